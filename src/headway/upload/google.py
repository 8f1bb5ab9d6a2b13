"""google-auth and requests, the clients beneath gcsfs; their exceptions as ours."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from headway.upload.faults import Refused, scrubbed, unanswered

PARALLEL_CONNECTIONS = 16
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


def is_installed() -> bool:
    """Whether the extra is there; imports nothing of it."""
    return find_spec("google") is not None and find_spec("google.auth") is not None


def connected(emulated: bool) -> Any:
    """A session, which threads may share, with the default credentials or with none."""
    import google.auth
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from requests.adapters import HTTPAdapter

    if emulated:
        credentials: Any = AnonymousCredentials()  # type: ignore[no-untyped-call]
    else:
        with explained("looking for Google credentials"):
            credentials, _ = google.auth.default(scopes=[SCOPE])
    session: Any = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    adapter = HTTPAdapter(pool_maxsize=PARALLEL_CONNECTIONS, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """google-auth's and requests' exceptions as ours."""
    from google.auth import exceptions as auth
    from requests import exceptions as http
    from urllib3.exceptions import HTTPError

    try:
        yield
    except auth.DefaultCredentialsError as error:
        fix = "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS"
        raise Refused(scrubbed(f"{doing}: {error}"), fix) from None
    except (auth.TransportError, auth.TimeoutError, auth.ResponseError) as error:
        raise unanswered(doing, error) from None
    except auth.GoogleAuthError as error:
        if error.retryable or isinstance(error.__cause__, auth.TransportError):
            raise unanswered(doing, error) from None  # the service of tokens was not reached
        fix = "Renew the credentials, and set this machine's clock"
        raise Refused(scrubbed(f"{doing}: {error}"), fix) from None
    except (http.InvalidURL, http.MissingSchema, http.InvalidSchema) as error:
        raise Refused(f"{doing}: {error}", "Check upload.to and STORAGE_EMULATOR_HOST") from None
    except (http.RequestException, HTTPError, ConnectionError, TimeoutError) as error:
        raise unanswered(doing, error) from None


def json_of(answer: Any, doing: str) -> dict[str, Any]:
    """The object that an answer holds; a success without one is no whole answer."""
    with explained(doing):
        found: dict[str, Any] = answer.json()
    return found


def message_of(content: bytes) -> str:
    """What an error's body says, JSON or not, at most a line of it."""
    try:
        said = json.loads(content)["error"]
        text = said["message"] if isinstance(said, dict) else str(said)
    except (ValueError, KeyError, TypeError):
        text = content.decode(errors="replace")
    return " ".join(str(text).split())[:300]


__all__ = ["connected", "explained", "is_installed", "json_of", "message_of"]
