"""What can go wrong, as one family: each kind of error knows the exit code a script can act on.

A message says what happened, where (file, line, key, step), and what to do.
"""


class HeadwayError(Exception):
    """An error a person can act on; shown as one message, never as a traceback."""

    exit_code = 1


class ConfigError(HeadwayError):
    """The config, or a command's arguments, cannot be used as written."""

    exit_code = 78


class DataError(HeadwayError):
    """Training data is unreadable, malformed, or not what the config says."""

    exit_code = 65


class CheckpointError(HeadwayError):
    """A checkpoint is damaged, incomplete, or does not fit this run."""

    exit_code = 65


class NonFiniteStep(HeadwayError):
    """The loss or the gradient is NaN or infinite; the optimizer was not run."""

    exit_code = 65


class OutOfMemory(HeadwayError):
    """A step does not fit into memory in any way that keeps the mathematics."""

    exit_code = 1


class StorageFull(HeadwayError):
    """The disk has no room for what must be written; what is committed is untouched."""

    exit_code = 77


class RemoteError(HeadwayError):
    """A bucket or a tracker refused, lied, or did not answer; what is on this disk is untouched."""

    exit_code = 69


class RunLocked(HeadwayError):
    """Another process is writing this run."""

    exit_code = 1
