from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_run
from headway.errors import CheckpointError
from headway.report.distance import compare_weights, module_of, read_header


def _write(folder: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(fake_run.safetensors_bytes(tensors))
    return folder


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size_=st.integers(1, 3000))
def test_the_distance_is_that_of_the_vectors(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size_: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=size_).astype("f4") for _ in range(2))
    root = tmp_path_factory.mktemp("weights")
    left = _write(root / "a", {"m.weight": ("F32", a)})
    right = _write(root / "b", {"m.weight": ("F32", b)})
    found = compare_weights(left, right).whole
    x, y = a.astype("f8"), b.astype("f8")
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    same = compare_weights(left, left).whole
    assert (same.relative_l2, same.cosine) == (0.0, pytest.approx(1.0))


def test_bfloat16_weights_are_read_as_the_numbers_they_are(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.15625, 3e38], "f4")  # exact in bfloat16 but for the last
    single = _write(tmp_path / "a", {"m.weight": ("F32", values[:3])})
    half = _write(tmp_path / "b", {"m.weight": ("BF16", values[:3])})
    assert compare_weights(single, half).whole.relative_l2 == 0.0
    assert read_header(half / "model.safetensors")["m.weight"]["dtype"] == "BF16"


def test_our_reader_agrees_with_safetensors_own(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "b.bias": np.ones(2, "f8")}
    (tmp_path / "x").mkdir()
    save_file(tensors, tmp_path / "x" / "model.safetensors")
    assert set(read_header(tmp_path / "x" / "model.safetensors")) == set(tensors)
    ours = _write(tmp_path / "y", {"a.weight": ("F32", tensors["a.weight"])})
    assert set(load_file(ours / "model.safetensors")) == {"a.weight"}
    found = compare_weights(tmp_path / "x", ours)
    assert found.unmatched == ("b.bias",) and found.whole.relative_l2 == 0.0


def test_zeros_and_other_shapes_are_said_and_not_divided_by(tmp_path: Path) -> None:
    a = _write(
        tmp_path / "a", {"m.lora_B.weight": ("F32", np.zeros(3)), "n.weight": ("F32", np.ones(2))}
    )
    b = _write(
        tmp_path / "b", {"m.lora_B.weight": ("F32", np.ones(3)), "n.weight": ("F32", np.ones(4))}
    )
    found = compare_weights(a, b)
    assert found.modules[0].relative_l2 == math.inf and math.isnan(found.modules[0].cosine)
    assert found.unmatched == ("n.weight",)


@pytest.mark.parametrize("cut", [0, 7, 20, 60])
def test_a_cut_weights_file_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    folder = _write(tmp_path / "a", {"m.weight": ("F32", np.ones(4))})
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        compare_weights(folder, folder)


@pytest.mark.fault(30)
def test_a_header_that_claims_more_than_the_file_holds_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}" * 40)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        compare_weights(folder, folder)


def test_a_module_is_a_tensor_without_its_last_name_and_lora_factor() -> None:
    assert module_of("model.layers.0.q_proj.lora_A.weight") == "model.layers.0.q_proj"
    assert module_of("model.norm.weight") == "model.norm"
    assert module_of("scale") == "scale"
