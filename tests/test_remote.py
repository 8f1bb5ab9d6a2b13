"""What needs no server: URLs, keys, secrets, parts, a folder's own ways (see tests/services)."""

from __future__ import annotations

import errno
import itertools
import random
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import ConfigError
from headway.upload import boto, google
from headway.upload.faults import REMOVED, answered, scrubbed, unanswered
from headway.upload.objects import Stretch, md5_of
from headway.upload.remote import Exists, Refused, Remote, Temporary
from headway.upload.s3 import PART_BYTES, _parts


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "gs://token@bucket",
        "s3://bucket/prefix?X-Amz-Signature=abc",
        "s3://bucket/#fragment",
        "file:///tmp/x?sig=1",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="no credentials") as caught:
        Remote(url)
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "https://bucket/x", "s3://", "gs:///x", "s3://b/../c", "", "/a/../b"]
)
def test_a_url_that_names_no_place_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Remote(url)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\nb",
        "a\0b",
        "x" * 901,
    ],
)
def test_a_key_that_is_no_plain_relative_path_is_refused_everywhere(
    key: str, tmp_path: Path
) -> None:
    for remote in (Remote(str(tmp_path / "bucket")), Remote("memory://refused")):
        for request in (
            lambda r=remote: r.put(key, b""),
            lambda r=remote: r.head(key),
            lambda r=remote: r.read(key),
            lambda r=remote: r.delete([key]),
            lambda r=remote: r.replace(key, b"", None),
            lambda r=remote: r.download(key, tmp_path / "to"),
        ):
            with pytest.raises(ConfigError, match="cannot be a key"):
                request()
    assert not (tmp_path / "bucket").exists()


@pytest.mark.parametrize(("client", "extra"), [("boto", "s3"), ("google", "gcs")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, client: str, extra: str) -> None:
    monkeypatch.setattr(f"headway.upload.{client}.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'headway\[{extra}\]'"):
        Remote("s3://bucket" if extra == "s3" else "gs://bucket")


@given(st.text("abcdefghijklmnopqrstuvwxyzABCDEFXYZ0123456789/+=-_", min_size=16, max_size=60))
def test_no_message_repeats_a_secret_of_the_environment(secret: str) -> None:
    if secret.startswith("/"):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        for error in (
            answered("writing x", 403, "AccessDenied", f"no such key {secret}, sorry"),
            unanswered("writing x", ConnectionError(f"http://host/?q={secret}")),
        ):
            assert secret not in str(error)
            assert REMOVED in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "https://h/?X-Amz-Signature=CANARY&x=1",
        "X-Amz-Credential=CANARY/20260101/us-east-1",
        "x-amz-security-token: CANARY",
        "Authorization: Bearer CANARYCANARY",
        "https://h/upload?upload_id=CANARY&x=1",
        "http://user:CANARY@proxy:3128",
        '{"private_key": "-----BEGIN PRIVATE KEY-----\\nCANARY\\n-----END PRIVATE KEY-----"}',
        "refresh_token=CANARY",
        'client_secret": "CANARY"',
        "key AKIACANARYCANARY12",
        "token ya29.CANARY-CANARY",
    ],
)
def test_what_looks_like_a_secret_is_removed(text: str) -> None:
    assert "CANARY" not in scrubbed(f"before {text} after")
    assert scrubbed("writing s3://bucket/run/model.safetensors: 503") == (
        "writing s3://bucket/run/model.safetensors: 503"
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "", Temporary), (502, "", Temporary), (503, "SlowDown", Temporary),
        (429, "", Temporary), (408, "", Temporary), (400, "BadDigest", Temporary),
        (400, "RequestTimeout", Temporary), (404, "NoSuchUpload", Temporary),
        (403, "AccessDenied", Refused), (403, "RequestTimeTooSkewed", Refused),
        (404, "NoSuchBucket", Refused), (400, "", Refused), (401, "", Refused),
        (501, "NotImplemented", Refused), (412, "", Exists), (301, "", Refused),
    ],
)  # fmt: skip
def test_an_answer_says_whether_to_try_again(status: int, code: str, kind: type) -> None:
    error = answered("writing x", status, code)
    assert type(error) is kind
    if isinstance(error, Refused) and code not in ("", "NotImplemented"):
        assert error.fix and error.fix in str(error)


def test_a_wait_that_the_store_asks_for_is_passed_on() -> None:
    def seconds(said: str | None) -> float | None:
        error = answered("x", 429, retry_after=said)
        assert isinstance(error, Temporary)
        return error.retry_after_seconds

    assert seconds("7") == 7
    assert seconds(None) is None
    assert seconds("Wed, 21 Oct 2026 07:28:00 GMT") is None


@given(st.integers(0, 6 << 40))
def test_parts_cover_a_file_once_within_the_limits_of_s3(size: int) -> None:
    parts = _parts(size)
    assert parts[0][0] == 0 and parts[-1][1] == size
    assert len(parts) <= 9001
    lengths = [stop - start for start, stop in parts]
    assert all(length >= PART_BYTES for length in lengths[:-1])
    assert all(one[1] == two[0] for one, two in itertools.pairwise(parts))


@given(st.binary(max_size=2000), st.data())
def test_a_stretch_is_its_bytes_and_counts_only_what_leaves(
    data: bytes, draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(0, len(data)))
    stop = draw.draw(st.integers(start, len(data)))
    sent: list[int] = []
    body = Stretch(data, start, stop, sent.append)
    assert len(body) == stop - start
    assert body.read() == data[start:stop]
    assert sent == []
    body.seek(0)
    body.leaving = True
    found = b""
    while block := body.read(draw.draw(st.integers(1, 700))):
        found += block
    assert found == data[start:stop]
    assert sum(sent) == stop - start
    assert md5_of(data, start, stop) == md5_of(data[start:stop])
    body.close()


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    with Stretch(file, 0, 10, lambda count: None) as body:
        file.write_bytes(b"x" * 4)
        assert body.read(4) == b"xxxx"
        with pytest.raises(OSError, match="shorter"):
            body.read(4)


def test_a_folder_shows_nothing_of_an_upload_that_was_given_up(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def sent(count: int) -> None:
        raise Enough

    remote = Remote(str(tmp_path))
    with pytest.raises(Enough):
        remote.put("a/key", b"x" * 100, sent=sent)
    assert remote.list() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_naive_way_shows_half_an_object() -> None:
    """Negative control: why nothing here is written through ``fs.open``."""
    fs = fsspec.filesystem("memory")
    with pytest.raises(ZeroDivisionError), fs.open("memory://naive/key", "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert Remote("memory://naive").read("key") == b"half"


def test_a_folder_lists_no_partial_file_and_throws_it_away_by_age(tmp_path: Path) -> None:
    remote = Remote(str(tmp_path))
    remote.put("a/key", b"data")
    (tmp_path / "a" / ".partial-key-0000").write_bytes(b"da")
    assert [file.key for file in remote.list()] == ["a/key"]
    assert remote.abandon(before=0.0) == []
    assert remote.abandon(before=1e12) == ["a/.partial-key-0000"]
    assert remote.read("a/key") == b"data"


def test_a_link_that_leads_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    bucket = tmp_path / "bucket"
    remote = Remote(str(bucket))
    remote.put("key", b"data")
    (bucket / "away").symlink_to(outside)
    (bucket / "link").symlink_to(outside / "secret")
    for key in ("away/secret", "link"):
        with pytest.raises(Refused, match="symbolic link"):
            remote.read(key)
    with pytest.raises(Refused, match="symbolic link"):
        remote.put("away/new", b"data")
    assert [file.key for file in remote.list()] == ["key"]


def test_a_download_never_follows_a_link(tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "bucket"))
    remote.put("key", b"data")
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / "to").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        remote.download("key", tmp_path / "to")
    assert (tmp_path / "victim").read_bytes() == b"victim"


def test_keys_that_somebody_else_put_there_and_are_no_paths_are_left_out() -> None:
    fs = fsspec.filesystem("memory")
    fs.store.update({"/odd/../../x": fs.store.get("/naive/key"), "/odd/a//b": None})
    try:
        fs.pipe_file("memory://odd/good", b"data")
        fs.store["/odd/../../x"] = fs.store["/odd/a//b"] = fs.store["/odd/good"]
        assert [file.key for file in Remote("memory://odd").list()] == ["good"]
    finally:
        for key in ("/odd/../../x", "/odd/a//b"):
            del fs.store[key]


def test_a_range_that_fails_ends_the_others_and_leaves_no_file(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    calls: list[int] = []

    def got(count: int) -> None:
        calls.append(count)
        if len(calls) == 2:
            raise Enough

    remote = Remote(str(tmp_path / "bucket"))
    remote.put("key", random.Random(0).randbytes(66 << 20))
    with pytest.raises(Enough):
        remote.download("key", tmp_path / "to", got=got)
    assert not (tmp_path / "to").exists()
    assert sum(calls) < 66 << 20


def test_a_network_that_fails_is_asked_again_and_a_wrong_setting_is_not() -> None:
    """botocore's ConnectionError is no HTTPClientError; a token's renewal is a request too."""
    for client in ("botocore", "google.auth"):
        pytest.importorskip(client)
    from botocore import exceptions as of_boto
    from google.auth import exceptions as of_google
    from requests import exceptions as of_requests

    endpoint = {"endpoint_url": "https://x", "error": "x"}
    refresh = of_google.RefreshError("no token")  # type: ignore[no-untyped-call]
    refresh.__cause__ = of_google.TransportError("no route")  # type: ignore[no-untyped-call]
    passing: list[tuple[Any, Exception]] = [
        (boto, of_boto.EndpointConnectionError(**endpoint)),
        (boto, of_boto.ConnectTimeoutError(**endpoint)),
        (boto, of_boto.ReadTimeoutError(**endpoint)),
        (boto, of_boto.SSLError(**endpoint)),
        (boto, of_boto.ProxyConnectionError(proxy_url="http://proxy")),
        (boto, of_boto.ConnectionClosedError(**endpoint)),
        (boto, of_boto.MetadataRetrievalError(error_msg="timed out")),
        (google, of_requests.ConnectionError("refused")),
        (google, of_requests.Timeout("slow")),
        (google, of_google.TransportError("no route")),  # type: ignore[no-untyped-call]
        (google, of_google.RefreshError("busy", retryable=True)),  # type: ignore[no-untyped-call]
        (google, refresh),
    ]
    lasting: list[tuple[Any, Exception]] = [
        (boto, of_boto.NoRegionError()),
        (boto, of_boto.NoCredentialsError()),
        (google, of_google.RefreshError("invalid_grant")),  # type: ignore[no-untyped-call]
        (google, of_requests.InvalidURL("x")),
    ]
    for kind, cases in ((Temporary, passing), (Refused, lasting)):
        for store, error in cases:
            with pytest.raises(kind), store.explained("asking"):
                raise error


def test_a_refused_connection_and_an_unknown_host_are_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the real clients: nothing listens on port 9, and .invalid is nobody's (RFC 2606)."""
    for client in ("botocore", "google.auth"):
        pytest.importorskip(client)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-nobody")
    for endpoint in ("http://localhost:9", "http://nobody.invalid"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        for url in ("s3://bucket/run", "gs://bucket/run"):
            with pytest.raises(Temporary):
                Remote(url, patience_seconds=2).head("x")


def test_a_full_disk_here_is_not_the_buckets_refusal(tmp_path: Path) -> None:
    """What the receiver of the bytes raises comes out as it was raised."""
    remote = Remote(str(tmp_path))
    remote.put("x", b"1")

    def full(count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        remote.download("x", tmp_path / "here", got=full)
