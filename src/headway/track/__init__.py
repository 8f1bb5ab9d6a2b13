"""Mirrors a run's journal to trackers (TensorBoard, W&B): each step once, in every case.

*Promises.* What a tracker has is a function of the journal: whatever was killed and how often, once
it is fed to the end it has each step of the run's timeline exactly once, and what a restart took
back is not there. A redone step that came out the same is not sent again. Credentials are the
tracker's own (its environment variables, netrc), never read or kept here.

*Does not promise.* That a tracker is up to date while it does not answer; that an alert, or an
evaluation that an attempt left to the next one, reaches a server in the instant of a kill.
"""

from headway.track.feeding import Feed, Mark, Sink, StartAgain, feed
from headway.track.records import About, Measurement, Note, Record, Row, translate
from headway.track.standing import Back, Past, Sent

__all__ = [
    "About",
    "Back",
    "Feed",
    "Mark",
    "Measurement",
    "Note",
    "Past",
    "Record",
    "Row",
    "Sent",
    "Sink",
    "StartAgain",
    "feed",
    "translate",
]
