"""Checkpoints: a directory of files that exists exactly when its manifest does.

*Promises.* A committed checkpoint survives a kill at any instant, is never changed, and is verified
byte by byte before it is used. A damaged one is moved aside and the newest good one is used, in
words; where none is good, the caller gets an error and never an empty answer. The best and the
newest are never deleted.

*Does not promise.* What a file means (the engine knows), a second copy (the uploader's work), or
exclusion of a second writer (the run lock's).
"""

from headway.checkpoint.awaited import Follower, Place
from headway.checkpoint.manifest import FileFact, Manifest, NewerFormat, read_manifest
from headway.checkpoint.retention import Retention, expendable
from headway.checkpoint.saver import Saver
from headway.checkpoint.store import Checkpoint, CheckpointStore, Partial, verify

__all__ = [
    "Checkpoint",
    "CheckpointStore",
    "FileFact",
    "Follower",
    "Manifest",
    "NewerFormat",
    "Partial",
    "Place",
    "Retention",
    "Saver",
    "expendable",
    "read_manifest",
    "verify",
]
