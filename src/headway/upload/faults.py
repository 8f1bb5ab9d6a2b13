"""What a store can answer, as four kinds of error: try again, do not, it exists, it changed.

Messages pass through ``scrubbed``: nothing that looks like a key, a token or a signature stays, and
no value of an environment variable that is named like one. The client's own exception is cut off,
because its text and its request (a resumable upload's address is a credential) were not scrubbed.
"""

from __future__ import annotations

import os
import re

from headway.errors import RemoteError

REMOVED = "[removed]"

_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|SAS", re.IGNORECASE)
_SHORTEST_SECRET = 8
_SECRETS = [
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.S),
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA|GOOG)[A-Z0-9]{12,}"),
    re.compile(r"\bya29\.[\w.-]+"),
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"),  # a JSON web token
    re.compile(r"(?<=//)[^/\s@]+@"),  # user:password@host
    re.compile(r"(?:bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE),
    re.compile(
        r"(?<![a-z])(?:[\w-]*(?:signature|credential|secret|token|password|access_?key(?:_?id)?"
        r"|upload_id|sig))[\"']?\s*[=:]\s*[\"']?[^\s\"'&,;]+",
        re.IGNORECASE,
    ),
]

_TEMPORARY_CODES = {
    # Amazon S3, API Reference, Error responses: those that say to send the request again, and
    # those of bytes that changed or were lost on the way.
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody",
    "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "Throttling",
    "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "OperationAborted",
    "ConditionalRequestConflict", "NoSuchUpload",
}  # fmt: skip

_FIXES = {
    "RequestTimeTooSkewed": "This machine's clock is wrong: set it (`chronyc makestep`, `ntpdate`)",
    "NoSuchBucket": "Create the bucket, or correct its name in upload.to",
    "SignatureDoesNotMatch": "The secret key does not fit the access key: set both again",
    "InvalidAccessKeyId": "The access key is unknown there: check the key and AWS_ENDPOINT_URL_S3",
    "ExpiredToken": "The credentials have expired: renew them",
    "AccessDenied": "Give these credentials the rights to read, write, list and delete under the "
    "prefix",
    "401": "The store does not know these credentials: renew them",
    "403": "Give these credentials the rights to read, write, list and delete under the prefix, "
    "and check that they belong to this bucket's account",
    "404": "Create the bucket, or correct its name in upload.to",
    "301": "The bucket is in another region: set AWS_REGION",
}


class Temporary(RemoteError):
    """The store is busy, or the answer was lost or damaged: the same request may succeed later."""

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        """How long the store asked to wait (``Retry-After``)."""


class Refused(RemoteError):
    """The store will refuse the same request again until a person changes something."""

    def __init__(self, message: str, fix: str = "", code: str = "") -> None:
        super().__init__(f"{message}. {fix}" if fix else message)
        self.what = message
        self.fix = fix
        self.code = code
        """The store's own name for it (``AccessDenied``), or the HTTP status."""


class Exists(RemoteError):
    """The key is taken; what is there was not touched."""


class Changed(Exists):
    """The object is not what was expected any more; what is there was not touched."""


def answered(
    doing: str, status: int, code: str = "", said: str = "", retry_after: str | None = None
) -> RemoteError:
    """The error for an HTTP status of 300 or more; ``doing``: what was asked, of which object."""
    code = code if code and not code.isdigit() else ""
    words = " ".join(filter(None, [str(status), code, f"({said.strip()})" if said.strip() else ""]))
    what = scrubbed(f"{doing}: the store said {words}")
    if status == 412 or code == "PreconditionFailed":
        return Exists(f"{doing}: it already exists, or is not what was expected")
    if code in _TEMPORARY_CODES or status in (408, 429) or (status >= 500 and status != 501):
        return Temporary(what, _seconds(retry_after))
    fix = _FIXES.get(code) or _FIXES.get(str(status), "")
    return Refused(what, fix, code or str(status))


def unanswered(doing: str, error: BaseException) -> Temporary:
    """The error for a connection that broke, stood still, or brought half an answer."""
    return Temporary(scrubbed(f"{doing}: no whole answer ({type(error).__name__}: {error})"))


def scrubbed(text: str) -> str:
    """``text`` without anything that looks like a secret."""
    for name, value in os.environ.items():
        is_path = value.startswith(("/", "."))  # of a file with secrets: worth saying
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and not is_path:
            text = text.replace(value, REMOVED)
    for pattern in _SECRETS:
        text = pattern.sub(REMOVED, text)
    return text


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is left to the back-off."""
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None


__all__ = ["Changed", "Exists", "Refused", "Temporary", "answered", "scrubbed", "unanswered"]
