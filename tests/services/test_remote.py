"""One contract, on every store: a folder, memory, and real servers behind a proxy that breaks them.

What a store cannot do is declared by its abilities, and the test then proves the declared weakness.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from headway.errors import RemoteError
from headway.upload.probe import probe
from headway.upload.remote import Changed, Exists, Refused, Temporary
from services.places import Place

MB = 1 << 20
services = pytest.mark.services
S3 = [pytest.param(name, marks=services) for name in ("swift", "moto")]
GCS = [pytest.param(name, marks=services) for name in ("fake_gcs", "gcs_emulator")]
EVERYWHERE = ["folder", "memory", *S3, *GCS]

PlaceOf = Callable[[str], Place]


@pytest.fixture(params=EVERYWHERE)
def place(request: pytest.FixtureRequest, place_of: PlaceOf) -> Place:
    return place_of(request.param)


@pytest.fixture(params=[*S3, *GCS])
def server(request: pytest.FixtureRequest, place_of: PlaceOf) -> Place:
    return place_of(request.param)


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def written(folder: Path, data: bytes) -> Path:
    file = folder / "source"
    file.write_bytes(data)
    return file


def media(place: Place) -> str:
    """The path of a request for an object's bytes."""
    return "key$" if place.name in ("swift", "moto") else "alt=media"


KNOWN = {
    #           create_only checksums ranges compare_and_swap
    "folder": (True, False, True, True),
    "memory": (True, False, True, True),
    "swift": (False, True, True, False),
    "moto": (True, True, True, True),
    "fake_gcs": (True, True, True, True),
    "gcs_emulator": (False, True, True, False),
}


def test_the_probe_says_what_a_store_can_do_and_leaves_nothing(place: Place) -> None:
    remote = place.remote()
    findings = probe(remote)
    can = remote.abilities
    assert not [finding for finding in findings if finding.level == "blocker"], findings
    assert KNOWN[place.name] == (
        can.create_only, can.checksums, can.ranges, can.compare_and_swap
    )  # fmt: skip
    warned = {finding.name for finding in findings if finding.level == "warning"}
    assert ("upload: create only" in warned) == (not can.create_only)
    assert ("upload: lease" in warned) == (not can.compare_and_swap)
    assert remote.list() == []


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_what_is_put_is_described_listed_and_read_back(place: Place, size: int) -> None:
    remote, data = place.remote(), content(size)
    file = remote.put("a/b c+d=é.bin", data)
    assert (file.key, file.bytes) == ("a/b c+d=é.bin", size)
    assert file.md5 == (md5(data) if remote.abilities.checksums else None)
    again = remote.head("a/b c+d=é.bin")
    assert again is not None and (again.bytes, again.md5) == (size, file.md5)
    assert [(f.key, f.bytes, f.md5) for f in remote.list()] == [(file.key, size, file.md5)]
    assert remote.read(file.key) == data
    assert remote.holds(file.key, data)
    assert not remote.holds(file.key, data + b"x")
    if size:
        assert not remote.holds(file.key, data[:-1] + bytes([data[-1] ^ 1]))


def test_a_large_file_goes_in_parts_and_comes_back_in_ranges(place: Place, tmp_path: Path) -> None:
    """40 MB: three parts on S3, three chunks on Google, two ranges back."""
    data = content(40 * MB)
    source, to = written(tmp_path, data), tmp_path / "back"
    remote = place.remote()
    sent: list[int] = []
    got: list[int] = []
    file = remote.put("large.bin", source, sent=sent.append)
    assert file.bytes == sum(sent) == len(data)
    assert remote.holds("large.bin", source)
    remote.download("large.bin", to, got=got.append)
    assert sum(got) == len(data)
    assert to.read_bytes() == data
    changed = bytearray(data)
    changed[39 * MB] ^= 1
    assert not remote.holds("large.bin", written(tmp_path, bytes(changed)))


def test_a_key_that_is_taken_stays_as_it_is(place: Place) -> None:
    if place.name == "gcs_emulator":
        pytest.skip("it ignores conditions, which only the probe finds out: see the next test")
    remote = place.remote()
    remote.put("key", b"first")
    with pytest.raises(Exists):
        remote.put("key", b"second")
    assert remote.read("key") == b"first"


def test_after_the_probe_even_a_store_without_conditions_keeps_what_is_there(place: Place) -> None:
    remote = place.remote()
    probe(remote)
    remote.put("key", b"first")
    with pytest.raises(Exists):
        remote.put("key", b"second")
    assert remote.read("key") == b"first"
    remote.put("key", b"third", create_only=False)
    assert remote.read("key") == b"third"


def test_of_many_that_create_one_key_one_succeeds(place: Place) -> None:
    remote = place.remote()
    probe(remote)
    if not remote.abilities.create_only:
        pytest.skip(f"{place.name} has no conditional writes, and its abilities say so")
    outcomes: list[str] = []

    def create(number: int) -> None:
        try:
            remote.put("key", str(number).encode())
            outcomes.append(str(number))
        except Exists:
            pass

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert remote.read("key").decode() == outcomes[0]


def test_a_replacement_needs_what_was_read(place: Place) -> None:
    remote, other = place.remote(), place.remote()
    probe(remote)
    probe(other)
    remote.replace("lease", b"mine 1", None)
    with pytest.raises(Changed):
        other.replace("lease", b"theirs", None)
    remote.replace("lease", b"mine 2", md5(b"mine 1"))
    with pytest.raises(Changed):
        other.replace("lease", b"theirs", md5(b"mine 1"))
    with pytest.raises(Changed):
        other.replace("absent", b"theirs", md5(b"mine 1"))
    assert remote.read("lease") == b"mine 2"


def test_keys_are_listed_under_a_prefix_and_deleted_in_order(place: Place) -> None:
    remote = place.remote()
    for key in ("a/1", "a/2", "ab/3", "b"):
        remote.put(key, key.encode())
    assert [file.key for file in remote.list()] == ["a/1", "a/2", "ab/3", "b"]
    assert [file.key for file in remote.list("a/")] == ["a/1", "a/2"]
    assert [file.key for file in remote.list("a")] == ["a/1", "a/2", "ab/3"]
    remote.delete(["a/2", "never there", "b"])
    if place.proxy is not None:
        deleted = [path for method, path in place.proxy.requests if method == "DELETE"]
        assert [path.split("?")[0][-1] for path in deleted] == ["2", "e", "b"]
    assert [file.key for file in remote.list()] == ["a/1", "ab/3"]
    assert remote.list("nothing/") == []
    assert remote.head("b") is None
    with pytest.raises(Refused):
        remote.read("b")


def test_a_listing_goes_on_from_page_to_page(
    server: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gcp-storage-emulator alone sends everything on one page."""
    assert server.proxy is not None
    monkeypatch.setattr("headway.upload.s3.PAGE_OBJECTS", 5)
    monkeypatch.setattr("headway.upload.gcs.PAGE_OBJECTS", 5)
    remote = server.remote()
    keys = [f"many/{number:04d}" for number in range(12)]
    for key in keys:
        remote.put(key, b"", create_only=False)
    server.proxy.clear()
    assert [file.key for file in remote.list("many/")] == keys
    assert len(server.proxy.requests) == (1 if server.name == "gcs_emulator" else 3)


@pytest.mark.fault(48)
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_busy_store_is_temporary_and_asked_once(server: Place, status: int) -> None:
    """No client asks again by itself."""
    assert server.proxy is not None
    remote = server.remote()
    fault = server.proxy.add("status", status=status, headers={"Retry-After": "7"}, times=99)
    for request in (
        lambda: remote.put("key", b"data", create_only=False),
        lambda: remote.head("key"),
        lambda: remote.list(),
        lambda: remote.delete(["key"]),
    ):
        before = fault.fired
        with pytest.raises(Temporary) as caught:
            request()
        assert fault.fired == before + 1
        assert caught.value.retry_after_seconds == 7 or "HEAD" in server.proxy.requests[-1]


@pytest.mark.fault(49, 50)
@pytest.mark.parametrize("kind", ["reset_request", "lost_reply", "reset_response"])
def test_a_broken_connection_is_temporary_and_the_next_try_succeeds(
    server: Place, kind: str
) -> None:
    """Nothing is cut short, and a lost answer is found to have been a success."""
    assert server.proxy is not None
    remote, data = server.remote(), content(200_000)
    probe(remote)
    fault = server.proxy.add(kind, method="PUT|POST", path="key", at=100 if "set" in kind else 0)
    if "upload/storage" in "".join(p for _, p in server.proxy.requests):
        fault.path = "upload"
    if kind == "reset_response" and server.name in ("swift", "moto"):
        fault.kind, fault.at = "lost_reply", 0  # an S3 answer to PUT has no body
    with pytest.raises(Temporary):
        remote.put("key", data)
    assert fault.fired == 1
    if kind == "reset_request":
        assert remote.head("key") is None
        remote.put("key", data)
    else:
        with pytest.raises(Exists):
            remote.put("key", data)
    assert remote.holds("key", data)


@pytest.mark.fault(49)
@pytest.mark.parametrize("at", range(64 << 10, 1 << 20, 320 << 10))
def test_an_upload_cut_anywhere_leaves_no_object(server: Place, at: int) -> None:
    assert server.proxy is not None
    remote = server.remote()
    fault = server.proxy.add("reset_request", method="PUT|POST", at=at)
    with pytest.raises(Temporary):
        remote.put("key", content(1 << 20), create_only=False)
    assert fault.fired == 1
    assert remote.list() == []


@pytest.mark.fault(49)
def test_a_part_that_fails_is_sent_again_alone(server: Place, tmp_path: Path) -> None:
    assert server.proxy is not None
    remote, data = server.remote(), content(40 * MB)
    probe(remote)
    if server.name == "fake_gcs":
        pytest.skip("fake-gcs-server takes the question how much it has for the end of the upload")
    server.proxy.clear()
    fault = server.proxy.add("reset_request", method="PUT", at=3 * MB)
    source = written(tmp_path, data)
    sent: list[int] = []
    remote.put("large", source, sent=sent.append)
    assert fault.fired == 1
    announced = sum(head.body_bytes for head in server.proxy.heads if head.method == "PUT")
    assert len(data) < announced < len(data) + 17 * MB
    assert len(data) <= sum(sent) <= announced  # a store may keep what came before the reset
    assert remote.holds("large", source)


def test_an_upload_that_is_given_up_leaves_no_object_and_no_parts(
    server: Place, tmp_path: Path
) -> None:
    """``sent`` raises: a second Ctrl-C, a lost lease."""
    remote = server.remote()
    probe(remote)
    source = written(tmp_path, content(40 * MB))

    class Enough(Exception):
        pass

    left = [20]

    def sent(count: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Enough

    with pytest.raises(Enough):
        remote.put("large", source, sent=sent)
    assert remote.list() == []
    if server.name in ("swift", "moto"):
        assert remote.abandon(before=1e12) == []


@pytest.mark.fault(52)
@pytest.mark.parametrize("name", S3)
def test_parts_of_a_killed_upload_are_found_and_thrown_away(
    name: str, place_of: PlaceOf, tmp_path: Path
) -> None:
    place = place_of(name)
    assert place.proxy is not None
    remote = place.remote()
    probe(remote)
    place.proxy.add("status", method="PUT", path="partNumber", times=99)
    abort = place.proxy.add("status", method="DELETE", path="uploadId", times=1)
    with pytest.raises(Temporary):
        remote.put("large", written(tmp_path, content(40 * MB)))
    assert abort.fired == 1
    assert remote.list() == []
    assert remote.abandon(before=0.0) == []
    assert remote.abandon(before=1e12) == ["large"]
    assert remote.abandon(before=1e12) == []


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", [*S3, *GCS])
@pytest.mark.parametrize("size", [100_000, 17 * MB])
def test_bytes_that_change_on_the_way_are_noticed(
    name: str, size: int, place_of: PlaceOf, tmp_path: Path
) -> None:
    """moto and fake-gcs-server accept a wrong MD5; what they then say gives them away."""
    place = place_of(name)
    assert place.proxy is not None
    remote = place.remote()
    probe(remote)
    path = "upload" if name in ("fake_gcs", "gcs_emulator") else "large"
    fault = place.proxy.add("flip_request", method="PUT|POST", path=path, at=50_000, times=99)
    with pytest.raises(Temporary) as caught:
        remote.put("large", written(tmp_path, content(size)))
    assert fault.fired >= 1
    assert remote.list() == []
    if name == "gcs_emulator":
        assert "refused bytes that changed" in str(caught.value)


@pytest.mark.parametrize("name", S3)
def test_every_body_leaves_with_its_md5(name: str, place_of: PlaceOf, tmp_path: Path) -> None:
    """Over TLS nothing else covers it: botocore then signs no body."""
    place = place_of(name)
    assert place.proxy is not None
    data = content(17 * MB)
    remote = place.remote()
    remote.put("small", data[:100], create_only=False)
    remote.put("large", written(tmp_path, data), create_only=False)
    found = {head.header("content-md5") for head in place.proxy.heads if head.method == "PUT"}
    bodies = (data[:100], data[: 16 * MB], data[16 * MB :])
    assert found == {base64.b64encode(bytes.fromhex(md5(body))).decode() for body in bodies}


@pytest.mark.fault(58)
def test_a_download_goes_on_where_it_broke(server: Place, tmp_path: Path) -> None:
    assert server.proxy is not None
    remote, data = server.remote(), content(3 * MB)
    remote.put("key", data)
    cut = server.proxy.add("truncate", method="GET", at=1_500_000)
    reset = server.proxy.add("reset_response", method="GET", at=200_000, times=2)
    got: list[int] = []
    remote.download("key", tmp_path / "back", got=got.append)
    assert (cut.fired, reset.fired) == (1, 2)
    assert (tmp_path / "back").read_bytes() == data
    assert sum(got) == len(data)


def test_a_download_that_brings_nothing_ends_and_leaves_no_file(
    server: Place, tmp_path: Path
) -> None:
    assert server.proxy is not None
    remote = server.remote()
    remote.put("key", content(100_000))
    fault = server.proxy.add("truncate", method="GET", path=media(server), at=0, times=99)
    with pytest.raises(Temporary):
        remote.download("key", tmp_path / "back")
    assert fault.fired == 3
    assert not (tmp_path / "back").exists()


@pytest.mark.fault(49)
@pytest.mark.parametrize("kind", ["stall", "stall_request"])
def test_a_connection_that_stands_still_is_given_up(server: Place, kind: str) -> None:
    """8 MB do not fit in the socket's buffers: sending itself stands still."""
    assert server.proxy is not None
    remote = server.remote(patience_seconds=1.0)
    fault = server.proxy.add(kind, method="PUT|POST", at=1000 if kind == "stall_request" else 0)
    with pytest.raises(Temporary):
        remote.put("key", content(12 * MB), create_only=False)
    assert fault.fired == 1


def test_a_slow_store_is_waited_for(server: Place, tmp_path: Path) -> None:
    """Patience is for standing still, not for being slow: this takes twice as long."""
    assert server.proxy is not None
    remote, data = server.remote(patience_seconds=1.0), content(1 << 20)
    remote.put("key", data)
    fault = server.proxy.add("slow", method="GET", path=media(server), bytes_per_second=5e5)
    remote.download("key", tmp_path / "back")
    assert fault.fired == 1
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.fault(60)
@services
def test_a_store_that_ignores_conditions_is_found_out(place_of: PlaceOf) -> None:
    """moto checks no signature, so its conditions can be taken away on the line."""
    place = place_of("moto")
    assert place.proxy is not None
    remote = place.remote()
    faults = [
        place.proxy.add("strip", header=name, times=99) for name in ("If-None-Match", "If-Match")
    ]
    findings = probe(remote)
    assert all(fault.fired for fault in faults)
    assert not remote.abilities.create_only and not remote.abilities.compare_and_swap
    assert {"upload: create only", "upload: lease"} <= {finding.name for finding in findings}


@pytest.mark.fault(60)
@services
def test_a_store_that_refuses_conditions_is_asked_without_them_at_once(
    place_of: PlaceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the proxy, on kept connections: Swift closes the one on which it said 501."""
    place = place_of("swift")
    assert place.server is not None
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", place.server.url)
    for number in range(20):
        remote = place.remote()
        remote.put(f"put-{number}", content(1000))
        assert not remote.abilities.create_only
        place.remote().replace(f"replaced-{number}", b"data", None)
    assert len(remote.list()) == 40


@pytest.mark.fault(55)
@services
@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("AWS_SECRET_ACCESS_KEY", "headway-wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "headway:nobody", "InvalidAccessKeyId|AccessDenied|Signature"),
    ],
)
def test_wrong_credentials_are_a_blocker_that_holds_no_secret(
    place_of: PlaceOf, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """Swift verifies signatures."""
    place = place_of("swift")
    monkeypatch.setenv(variable, value)
    findings = probe(place.remote())
    assert [finding.level for finding in findings] == ["blocker"]
    assert any(word in findings[0].what for word in says.split("|"))
    assert findings[0].fix and findings[0].why
    assert "headway-wrong" not in repr(findings)


@pytest.mark.fault(56)
def test_a_missing_bucket_is_a_blocker(server: Place) -> None:
    if server.name == "gcs_emulator":
        pytest.skip("gcp-storage-emulator makes a bucket when it is written to")
    server.url = server.url.replace("//drill/", "//absent/")
    findings = probe(server.remote())
    assert [finding.level for finding in findings] == ["blocker"], findings
    assert "bucket" in findings[0].fix


@pytest.mark.fault(56)
def test_missing_rights_to_delete_are_a_blocker(server: Place) -> None:
    """A bucket that can be written but not cleaned."""
    assert server.proxy is not None
    fault = server.proxy.add("status", method="DELETE", status=403, times=99)
    findings = probe(server.remote())
    assert fault.fired >= 1
    assert findings[-1].level == "blocker" and "delet" in findings[-1].why + findings[-1].what


def test_a_store_that_is_away_is_a_blocker_and_then_works_again(
    server: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.proxy is not None
    monkeypatch.setattr("headway.upload.probe.PAUSE_SECONDS", 0.0)
    remote = server.remote()
    fault = server.proxy.add("status", times=3)
    assert probe(remote)[-1].level == "blocker"
    assert fault.fired >= 3
    assert probe(remote)[-1].level == "note"


@services
@pytest.mark.parametrize("name", ["swift", "fake_gcs", "gcs_emulator"])
def test_objects_survive_a_server_that_is_killed(name: str, place_of: PlaceOf) -> None:
    place = place_of(name)
    assert place.server is not None
    remote, data = place.remote(), content(100_000)
    remote.put("key", data)
    place.server.kill()
    with pytest.raises(Temporary):
        remote.put("other", data)
    place.server.start()
    assert remote.holds("key", data)


def test_every_failure_is_a_remote_error_and_nothing_else(server: Place) -> None:
    """Answers that are no HTTP, no JSON, no XML."""
    assert server.proxy is not None
    remote = server.remote()
    for status in (200, 204, 301, 302, 400, 401, 404, 409, 418, 501, 599):
        fault = server.proxy.add("status", status=status)
        with contextlib.suppress(RemoteError):
            remote.list()
        assert fault.fired == 1
