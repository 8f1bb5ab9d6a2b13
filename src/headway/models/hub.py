"""Where pretrained models come from: a hub name, a folder, or a GGUF file, also inside a package.

``package:NAME/FILE`` names a file inside an installed Python package. A GGUF is unpacked to fp32
safetensors once, in the cache, and loaded from there afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from headway.errors import ConfigError
from headway.models.files import check_gguf, path_of, refuse_pointers

NO_CODE = {"trust_remote_code": False}
"""Left out, transformers would ask in the terminal, and run what comes with the model after a y."""


def locate(name: str, cache: Path) -> str:
    """A name that transformers can load: a folder on this disk, or the hub name unchanged.

    Raises ConfigError: a package, folder or file that is not there. DataError: Git-LFS pointers
    where weights should be.
    """
    path = path_of(name)
    if path is None:
        return name
    if path.suffix == ".gguf":
        return str(_unpacked(path, cache))
    refuse_pointers(sorted(filter(Path.is_file, path.iterdir())))
    return str(path)


def locate_config(name: str, cache: Path) -> tuple[str, dict[str, str]]:
    """Where a model's config and tokenizer are, and what transformers must be told to read them.

    Weights need not be there. Raises ConfigError: a package, folder or file that is not there.
    """
    path = path_of(name)
    if path is None or path.suffix != ".gguf":
        return str(path or name), {}
    folder = _unpacked_folder(path, cache)
    if folder.exists():
        return str(folder), {}
    return str(path.parent), {"gguf_file": path.name}


def load_tokenizer(
    name: str, revision: str | None, cache: Path, *, weights: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model. Raises ConfigError when it cannot be loaded.

    Without ``weights`` it is read where it lies: a GGUF is not unpacked.
    """
    with explained(name):
        if weights:
            return AutoTokenizer.from_pretrained(locate(name, cache), revision=revision, **NO_CODE)
        place, options = locate_config(name, cache)
        return AutoTokenizer.from_pretrained(place, revision=revision, **NO_CODE, **options)


def load_shape(name: str, revision: str | None, cache: Path) -> PretrainedConfig:
    """The model's own config, without its weights. Raises ConfigError when there is none."""
    with explained(name):
        return AutoConfig.from_pretrained(
            locate(name, cache), revision=revision, **NO_CODE
        ).get_text_config()


def load_causal_lm(
    name: str,
    revision: str | None,
    cache: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantized: bool = False,
    auto: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """A language model on the device; with ``quantized`` its linear layers in NF4 (2305.14314).

    ``auto``: which of transformers' ``AutoModelFor…`` knows the model. Never executes code that
    comes with the model. Raises ConfigError when it cannot be loaded.
    """
    options: dict[str, Any] = dict(NO_CODE)
    if quantized:
        options["quantization_config"] = _nf4(dtype)
        options["device_map"] = {"": device}
    with explained(name):
        model = auto.from_pretrained(
            locate(name, cache), revision=revision, dtype=dtype, use_safetensors=True, **options
        )
    if quantized:
        keep_backward(model)
        return model
    return model.to(device)


def keep_backward(model: torch.nn.Module) -> None:
    """Keep 4-bit layers trainable after an evaluation on CPUs with AVX512-BF16.

    There bitsandbytes 0.50 repacks the weights at the first forward in eval mode for a kernel that
    has no backward, and never packs back: later adapter gradients are silently zero.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - no declared field


def weights_identity(name: str, revision: str | None, cache: Path) -> str:
    """A short hash that tells two sets of base weights apart: names, sizes, and both ends of files.

    For a hub model that is not on this disk: of its name and revision.
    """
    found = hashlib.sha256()
    located = locate(name, cache)
    files = sorted(Path(located).glob("*.safetensors")) if Path(located).is_dir() else []
    if not files:
        found.update(f"{name}@{revision}".encode())
    for file in files:
        add_ends(found, file)
    return found.hexdigest()[:16]


def add_ends(found: Any, file: Path) -> None:
    """Add a file's name, size, first and last MiB to a hash."""
    size = file.stat().st_size
    found.update(f"{file.name}:{size}".encode())
    with file.open("rb") as stream:
        found.update(stream.read(2**20))
        stream.seek(max(0, size - 2**20))
        found.update(stream.read(2**20))


def _unpacked_folder(gguf: Path, cache: Path) -> Path:
    """Where the GGUF is unpacked to; named by its content."""
    check_gguf(gguf)
    found = hashlib.sha256()
    add_ends(found, gguf)
    return cache / "models" / f"{gguf.stem}-{found.hexdigest()[:8]}"


def _unpacked(gguf: Path, cache: Path) -> Path:
    """The folder that holds the GGUF's model as fp32 safetensors, made now if it is not there."""
    folder = _unpacked_folder(gguf, cache)
    if folder.exists():
        return folder
    place, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file, **NO_CODE)
    # Without `dequantize` transformers keeps a GGUF quantisation config that cannot be saved again.
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=file,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        **NO_CODE,
    )
    partial = folder.with_name(f".partial-{folder.name}-{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; its result is the same
        shutil.rmtree(partial)
    return folder


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "task.tuning.kind is qlora, which needs bitsandbytes: pip install 'headway[qlora]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """What transformers raises for a model that cannot be loaded, as a ConfigError in our words."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()  # a person sees the run's own progress
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"task.base_model: {name} cannot be loaded: {first}\n"
            "It must be a folder with config.json and *.safetensors, a GGUF file, or a hub name "
            "that this machine can reach (a gated model needs HF_TOKEN in the environment)"
        ) from error
