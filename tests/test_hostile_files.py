"""Nothing that is loaded can run code, lead outside, or fill the memory: wherever it came from.

Every checkpoint here has a manifest whose hashes are right, as whoever can write to a disk or a
bucket can make them: what is refused is refused for what it is.
"""

from __future__ import annotations

import io
import json
import pickle
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cases import tiny_base, tree_of
from fake_bucket import Bucket, FakeRemote, saved
from headway.api import load_run, train
from headway.bucket import newest_here, restore_run
from headway.checkpoint import CheckpointStore, verify
from headway.config import RunConfig, load_config
from headway.errors import CheckpointError, ConfigError, DataError, HeadwayError
from headway.journal import read_events
from headway.models.hub import load_causal_lm, load_tokenizer
from headway.upload import Uploader
from hostile import (
    LFS_POINTER,
    LYING_HEADERS,
    pickled,
    put_in_checkpoint,
    take_from_checkpoint,
    torch_saved,
)
from toy import Cut, CutAt, final_state, toy_config

BOMBS = {"pickle": pickled, "torch.save": torch_saved}
CPU = torch.device("cpu")
MEMORY_MB = 200
"""More than any of these loads may add to the process."""


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """Is there once a bomb went off."""
    return tmp_path / "it went off"


@pytest.mark.parametrize("kind", BOMBS)
def test_the_bombs_do_go_off(sign: Path, kind: str) -> None:
    """Negative control: what other trainers call to read such a file."""
    data = BOMBS[kind](sign)
    if kind == "pickle":
        pickle.loads(data)
    else:
        torch.load(io.BytesIO(data), weights_only=False)
    assert sign.is_dir()


# ------------------------------------------------------------------ a checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that was cut after two saves."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.raises(Cut):
        train(toy_config(root), show=CutAt(3))
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(trained / "run", tmp_path / "root/run")
    return tmp_path / "root/run"


def newest(run: Path) -> Path:
    return CheckpointStore(run, attempt="t").checkpoints()[-1].path


def refused(run: Path) -> str:
    """Training and use of this run refuse its newest checkpoint; what training says."""
    steps = len(read_events(run / "journal.jsonl", {"step"}))
    assert verify(CheckpointStore(run, attempt="t").checkpoints()[-1]) == [], "its hashes fit"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as training:
        train(toy_config(run.parent))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEMORY_MB
    assert training.value.exit_code == 65
    assert len(read_events(run / "journal.jsonl", {"step"})) == steps
    return str(training.value)


FILES = ["model/model.safetensors", "optimizer.safetensors"]


@pytest.mark.fault(28)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_in_place_of_tensors_is_refused_and_does_not_run(
    run: Path, sign: Path, file: str, kind: str
) -> None:
    put_in_checkpoint(newest(run), file, BOMBS[kind](sign))
    assert file in refused(run)
    if file.startswith("model/"):
        with pytest.raises(CheckpointError):
            load_run(run)
    assert not sign.exists()


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "optimizer.pt", "model/.metadata"])
def test_a_pickle_beside_the_tensors_is_never_opened(run: Path, sign: Path, name: str) -> None:
    put_in_checkpoint(newest(run), name, torch_saved(sign))
    train(toy_config(run.parent))
    assert final_state(run) and not sign.exists()


@pytest.mark.fault(30)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("lie", LYING_HEADERS)
def test_a_header_that_lies_is_refused_without_the_memory_it_asks_for(
    run: Path, file: str, lie: str
) -> None:
    put_in_checkpoint(newest(run), file, LYING_HEADERS[lie])
    assert file in refused(run)


@pytest.mark.fault(29)
@pytest.mark.parametrize("file", FILES)
def test_an_lfs_pointer_with_a_hash_that_is_right_is_refused_too(run: Path, file: str) -> None:
    put_in_checkpoint(newest(run), file, LFS_POINTER)
    assert file in refused(run)


@pytest.mark.fault(32)
@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_without_its_weights_or_its_optimizer_is_refused(run: Path, file: str) -> None:
    take_from_checkpoint(newest(run), file)
    assert file in refused(run)


def altered(run: Path, change: str) -> None:
    """The newest weights with other names, shapes or types."""
    from safetensors.torch import load_file, save

    file = newest(run) / "model/model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    if change == "missing":
        del tensors[first]
    elif change == "unknown":
        tensors["lm_head.weight"] = torch.zeros(2)
    elif change == "renamed":
        tensors = {f"module.{name}": value for name, value in tensors.items()}
    elif change == "shape":
        tensors[first] = tensors[first].flatten().repeat(2)
    else:
        tensors[first] = tensors[first].double()
    put_in_checkpoint(newest(run), "model/model.safetensors", save(tensors))


@pytest.mark.fault(31)
@pytest.mark.parametrize("change", ["missing", "unknown", "renamed", "shape", "type"])
def test_other_tensors_than_the_models_are_refused_by_name(run: Path, change: str) -> None:
    from safetensors.torch import load_file

    names = sorted(load_file(newest(run) / "model/model.safetensors"))
    altered(run, change)
    said = refused(run)
    assert ("lm_head.weight" if change == "unknown" else names[0]) in said


@pytest.mark.fault(32)
@pytest.mark.parametrize("junk", [None, b"", b"[]", b'{"step": 2}', b"[" * 100_000, b"\xff"])
def test_counters_that_are_gone_or_none_are_refused(run: Path, junk: bytes | None) -> None:
    if junk is None:
        take_from_checkpoint(newest(run), "state.json")
    else:
        put_in_checkpoint(newest(run), "state.json", junk)
    assert "state.json" in refused(run)


# ------------------------------------------------------------------ a copy in the bucket


@pytest.fixture
def there(tmp_path: Path) -> Bucket:
    """Checkpoints 1 and 2 of a run, and its config, in a bucket."""
    bucket, folder = Bucket(), tmp_path / "first"
    with Uploader(FakeRemote(bucket), journal=folder / "upload.jsonl", attempt=1) as uploader:
        for step in (1, 2):
            uploader.submit(saved(folder, step))
            assert uploader.drain(until=lambda: False, show=lambda progress: None)
    return bucket


@pytest.mark.fault(28, 29, 58)
@pytest.mark.parametrize("file", ["manifest.json", "state.json", "model/adapter.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "LFS pointer", "a header that lies"])
def test_what_replaced_a_file_in_the_bucket_never_gets_a_name_here(
    there: Bucket, tmp_path: Path, sign: Path, file: str, kind: str
) -> None:
    data = {"pickle": torch_saved(sign), "LFS pointer": LFS_POINTER}.get(
        kind, LYING_HEADERS["a length of 2^62"]
    )
    [key] = [k for k in there.objects if "step-00000002" in k and k.endswith(file)]
    there.objects[key] = data
    said: list[str] = []
    found = restore_run(FakeRemote(there), tmp_path / "run", said.append)
    assert found and found.step == 1 and newest_here(tmp_path / "run") == (1, 1)
    assert any("step-00000002" in line for line in said)
    assert not sign.exists()
    assert not any(data == p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())


@pytest.mark.fault(28)
def test_a_copy_whose_hashes_are_right_is_refused_when_it_is_loaded(
    run: Path, tmp_path: Path, sign: Path
) -> None:
    """The bucket's keeper forges everything: the bytes come back, and nothing runs them."""
    bucket = tmp_path / "bucket"
    put_in_checkpoint(newest(run), "model/model.safetensors", torch_saved(sign))
    from headway.bucket import parcel_of
    from headway.upload import Remote

    remote = Remote(str(bucket / "run"))
    with Uploader(remote, journal=tmp_path / "upload.jsonl", attempt=1) as uploader:
        uploader.submit(parcel_of(CheckpointStore(run, attempt="t").checkpoints()[-1]))
        assert uploader.drain(until=lambda: False, show=lambda progress: None)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        train(toy_config(tmp_path / "other", upload={"to": str(bucket)}))
    assert not sign.exists()


@pytest.mark.fault(33)
def test_a_link_in_a_bucket_that_is_a_folder_is_not_followed(run: Path, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    train(toy_config(tmp_path / "one", upload={"to": str(bucket), "keep_last": 9}))
    copies = sorted((bucket / "run/checkpoints").glob("step-*/*/state.json"))
    secret = tmp_path / "secret"
    copies[-1].rename(secret)
    copies[-1].symlink_to(secret)
    shutil.rmtree(tmp_path / "one")
    said: list[str] = []
    from headway.upload import Remote

    found = restore_run(Remote(str(bucket / "run")), tmp_path / "back", said.append)
    steps = sorted(int(path.parts[-3][5:]) for path in copies)
    assert found and found.step == steps[-2]
    assert any(f"step-{steps[-1]:08d}" in line for line in said)


TAGS = "recipe: !!python/object/apply:os.mkdir ['{sign}']\n"


@pytest.mark.fault(28)
@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_a_config_cannot_run_code_by_its_tags(tmp_path: Path, sign: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(TAGS.format(sign=sign))
    with pytest.raises(ConfigError):
        load_config(path)
    assert not sign.exists()


# ------------------------------------------------------------------ a base model, data


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base(tmp_path)


def load(base: Path) -> Any:
    load_tokenizer(str(base), None, base)
    return load_causal_lm(str(base), None, base, dtype=torch.float32, device=CPU)


@pytest.mark.fault(28)
@pytest.mark.parametrize("alone", [True, False])
def test_pickled_weights_of_a_base_model_are_never_read(
    base: Path, sign: Path, alone: bool
) -> None:
    (base / "pytorch_model.bin").write_bytes(torch_saved(sign))
    (base / "training_args.bin").write_bytes(torch_saved(sign))
    if alone:
        (base / "model.safetensors").unlink()
        with pytest.raises(ConfigError, match="safetensors"):
            load(base)
    else:
        load(base)
    assert not sign.exists()


@pytest.mark.fault(28)
@pytest.mark.parametrize("own_type", [True, False])
def test_code_that_comes_with_a_model_is_not_run_and_not_asked_about(
    base: Path, sign: Path, own_type: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "evil.py").write_text(f"import os\nos.mkdir({str(sign)!r})\nclass Evil: ...\n")
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", None)):
        tree = json.loads((base / name).read_text())
        tree["auto_map"] = {key: "evil.Evil"} if key else {"AutoTokenizer": ["evil.Evil", None]}
        if own_type and key:
            tree["model_type"] = "evil"
            tree["auto_map"]["AutoConfig"] = "evil.Evil"
        (base / name).write_text(json.dumps(tree))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(str(words)) or "y")
    if own_type:
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load(base)
    else:
        load(base)
    assert asked == [] and not sign.exists()


@pytest.mark.fault(30)
@pytest.mark.parametrize("lie", LYING_HEADERS)
def test_a_base_model_whose_header_lies_is_one_clear_error(base: Path, lie: str) -> None:
    (base / "model.safetensors").write_bytes(LYING_HEADERS[lie])
    with pytest.raises(HeadwayError, match="base"):
        load(base)


@pytest.mark.fault(29)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "x.gguf"])
def test_an_lfs_pointer_in_a_base_model_is_called_one(base: Path, name: str) -> None:
    (base / name).write_bytes(LFS_POINTER)
    place = base / name if name.endswith(".gguf") else base
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')} is a Git-LFS pointer"):
        load_causal_lm(str(place), None, base / "cache", dtype=torch.float32, device=CPU)


@pytest.mark.fault(28)
def test_pickles_in_data_are_refused(tmp_path: Path, sign: Path) -> None:
    import numpy as np

    from headway.data.sources import read_records
    from headway.data.tokens import read_npz
    from hostile import Bomb

    np.savez(tmp_path / "a.npz", input_ids=np.array([Bomb(sign)], dtype=object))
    with pytest.raises(DataError):
        read_npz(tmp_path / "a.npz")
    for name in ("a.pkl", "a.pt", "a.bin", "a.parquet", "a.jsonl"):
        (tmp_path / name).write_bytes(torch_saved(sign))
        with pytest.raises(DataError):
            list(read_records(str(tmp_path / name)))
    assert not sign.exists()


def test_a_recipe_of_the_tests_builds_from_the_same_base(tmp_path: Path) -> None:
    """The folder that is made hostile above is one that trains."""
    assert RunConfig(**tree_of("sft-lora", tmp_path)).task.base_model == str(tmp_path / "base")
    assert load(tmp_path / "base").config.model_type == "llama"
