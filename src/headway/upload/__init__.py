"""The bucket: a verified copy of what a run has saved, made beside training, and brought back.

*Promises.* A step never waits for the bucket. A copy exists exactly when its manifest does: that is
sent last, after every file was compared with the store's own checksum (or read back), and deleted
first. No object is ever overwritten. A kill, a lost answer or an altered byte at any point leaves
nothing listed or a whole copy, and the next attempt goes on. What is restored was hashed file by
file. A machine that lost its lease commits nothing more, and what it still sent is never newest.

*Does not promise.* That what was skipped reaches the bucket: where it is slower than the saves only
the newest and the best are sent. Exclusion of a second machine on a store without compare-and-swap.
That the last lines of the journal came along after a kill.
"""

from headway.upload.layout import Copy, Parcel, standing
from headway.upload.lease import Lease, LeaseLost, acquire
from headway.upload.ledger import Progress, UploadEvent
from headway.upload.line import Line
from headway.upload.pruning import clean, leftovers
from headway.upload.remote import Remote
from headway.upload.restoring import RemoteCheckpoint, Restored, remote_checkpoints, restore
from headway.upload.uploader import Uploader

__all__ = [
    "Copy",
    "Lease",
    "LeaseLost",
    "Line",
    "Parcel",
    "Progress",
    "Remote",
    "RemoteCheckpoint",
    "Restored",
    "UploadEvent",
    "Uploader",
    "acquire",
    "clean",
    "leftovers",
    "remote_checkpoints",
    "restore",
    "standing",
]
