"""botocore, the client beneath s3fs, without its retries; its exceptions as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from headway.upload.faults import Refused, answered, unanswered
from headway.upload.objects import Stretch

PARALLEL_CONNECTIONS = 16


def is_installed() -> bool:
    """Whether the extra is there; imports nothing."""
    return find_spec("botocore") is not None


def connected(patience_seconds: float) -> Any:
    """An S3 client, which threads may share, by the environment and the usual AWS files."""
    import botocore.session
    from botocore.config import Config

    config = Config(
        # A socket that stands still for this long fails, while sending too.
        connect_timeout=patience_seconds,
        read_timeout=patience_seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=PARALLEL_CONNECTIONS,
        tcp_keepalive=True,
        # Otherwise bodies get trailing checksums, which other stores than Amazon's refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = botocore.session.get_session().create_client("s3", config=config)

    def leaves(request: Any, **_: Any) -> None:
        if isinstance(request.body, Stretch):
            request.body.leaving = True

    client.meta.events.register("before-send.s3", leaves)
    return client


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """botocore's exceptions as ours."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except boto.ClientError as error:
        said, meta = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
        raise answered(
            doing,
            int(meta.get("HTTPStatusCode", 0)) or 400,
            str(said.get("Code", "")),
            str(said.get("Message", "")),
            meta.get("HTTPHeaders", {}).get("retry-after"),
        ) from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise Refused(
            f"{doing}: {error}", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        ) from None
    except (boto.HTTPClientError, boto.ConnectionError, ResponseParserError) as error:
        # ConnectionError: refused, no such host, timed out, TLS, proxy; no kind of HTTPClientError.
        raise unanswered(doing, error) from None
    except (boto.MetadataRetrievalError, boto.CredentialRetrievalError) as error:
        raise unanswered(doing, error) from None  # the machine's own service of credentials
    except (boto.IncompleteReadError, HTTPError, ConnectionError, TimeoutError) as error:
        raise unanswered(doing, error) from None
    except boto.BotoCoreError as error:
        raise Refused(f"{doing}: {error}", "Check upload.to and the AWS settings") from None


__all__ = ["connected", "explained", "is_installed"]
