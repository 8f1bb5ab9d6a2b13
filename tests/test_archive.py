"""A checkpoint as one object: a damaged one is one clear error, whatever package unpacks it."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest

from fake_bucket import Bucket, FakeRemote, flipped, patient, saved
from headway.bucket import leased, open_uploader
from headway.config import Upload
from headway.errors import ConfigError
from headway.upload import Parcel, Remote, archive
from headway.upload.archive import packed, unpacked
from headway.upload.layout import Bad
from headway.upload.sending import Unsendable, send

KINDS = [
    "tar",
    pytest.param(
        "tar.zst",
        marks=pytest.mark.skipif(
            find_spec("zstandard") is None, reason="pip install 'headway[zstd]'"
        ),
    ),
]


@pytest.fixture
def parcel(tmp_path) -> Parcel:
    return saved(tmp_path / "run", 1)


def send_packed(parcel: Parcel, kind: str) -> Bucket:
    bucket = Bucket()
    send(
        parcel, FakeRemote(bucket), patient(), threads=1, archive=kind,
        before_commit=lambda: None, on_wrong=lambda what: None,
    )  # fmt: skip
    return bucket


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_packed_comes_out_as_it_was(parcel, tmp_path, kind):
    with packed(parcel, kind) as file:
        unpacked(file, tmp_path / "out", parcel.files)
    for name in parcel.files:
        assert (tmp_path / "out" / name).read_bytes() == (parcel.folder / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_in_an_archive_is_one_error_or_harmless(parcel, tmp_path, kind):
    """Every 37th byte flipped, and every 37th length: never an error of another package."""
    bad = 0
    with packed(parcel, kind) as file:
        whole = file.read_bytes()
        for number, at in enumerate(range(0, len(whole), 37)):
            for damaged in (whole[:at], whole[:at] + flipped(whole[at:])):
                file.write_bytes(damaged)
                out = tmp_path / f"{number}-{len(damaged)}"
                try:
                    unpacked(file, out, parcel.files)
                except Bad as error:
                    bad += 1
                    assert file.name in str(error)
    assert bad > 5, "truncation at least is seen; the hashes see the rest"


@pytest.mark.parametrize("kind", KINDS)
def test_a_packer_that_fails_costs_this_checkpoint_and_says_so(parcel, monkeypatch, kind):
    error = OSError(28, "No space left on device")
    if kind == "tar.zst":
        error = archive.zstandard().ZstdError("out of memory")

    class Broken:
        def __enter__(self):
            raise error

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr(archive, "compressing", lambda file, kind: Broken())
    with pytest.raises(Unsendable, match=r"could not be packed: (No space|out of memory)"):
        send_packed(parcel, kind)
    assert not list(parcel.folder.parent.glob(".partial-*"))


def test_a_missing_package_is_said_before_training_and_not_at_the_first_save(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    section = Upload(to=str(tmp_path / "bucket"), archive="tar.zst")
    remote = Remote(str(tmp_path / "bucket/run"))
    with leased(remote, section, 1, lambda line: None) as lease:
        with pytest.raises(ConfigError, match=r"headway\[zstd\]"):
            open_uploader(remote, section, tmp_path / "run", lease)
