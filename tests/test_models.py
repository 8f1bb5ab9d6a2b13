"""Loading, tuning and saving models: what trains, what is saved, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cases import tiny_base
from headway.engine.state import safetensors_chunks
from headway.errors import ConfigError, DataError
from headway.models.backbone import backbone, keep_first_layers, prove_backbone
from headway.models.hub import keep_backward, load_causal_lm, locate, weights_identity
from headway.models.tuning import Full, Lora, adapt, adapted_modules, add_tokens, saved_model
from headway.recipes.pretrain import Shape, make_config
from tiny import tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


def load(folder: Path, **options: object) -> torch.nn.Module:
    name = str(tiny_base(folder))
    return load_causal_lm(name, None, folder, dtype=torch.float32, device=CPU, **options)  # type: ignore[arg-type]


def test_full_tuning_trains_everything_and_lora_only_its_adapters() -> None:
    full = adapt(tiny_llama(300), Full())
    assert all(p.requires_grad for p in full.parameters())
    lora = adapt(tiny_llama(300), Lora(rank=4, alpha=8))
    trained = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert adapted_modules(lora) == 2 * 7  # q k v o gate up down in each of two layers


def test_no_adapted_module_is_an_error() -> None:
    with pytest.raises(ConfigError, match="target_modules"):
        adapt(tiny_llama(300), Lora(target_modules=("query_key_value",)))


def test_new_tokens_get_trained_rows_and_the_table_never_shrinks() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer) + 64)  # a padded table, as many models have
    rows = model.get_input_embeddings().weight.shape[0]
    new = add_tokens(model, tokenizer, ["<confidence>"])
    assert new == [len(tokenizer) - 1] and model.get_input_embeddings().weight.shape[0] == rows
    assert add_tokens(model, tokenizer, ["<confidence>"]) == []
    tuned = adapt(model, Lora(rank=2), new)
    tuned(input_ids=torch.tensor([[*new, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).loss.backward()
    grads = [p.grad for n, p in tuned.named_parameters() if "trainable_tokens_delta" in n]
    assert len(grads) == 1 and grads[0] is not None and grads[0].abs().sum() > 0
    saved = saved_model(tuned, tokenizer, "base")
    assert any("trainable_tokens" in name for name in saved.tensors["adapter_model.safetensors"])


def test_a_table_too_small_for_new_tokens_grows() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer))
    add_tokens(model, tokenizer, ["<a>", "<b>"])
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def write(saved: object, to: Path) -> Path:
    to.mkdir()
    for name, data in saved.files.items():  # type: ignore[attr-defined]
        (to / name).write_bytes(data)
    for name, tensors in saved.tensors.items():  # type: ignore[attr-defined]
        (to / name).write_bytes(b"".join(safetensors_chunks(dict(tensors))))
    return to


def test_a_lora_checkpoint_loads_with_peft_and_answers_the_same(tmp_path: Path) -> None:
    tuned = adapt(load(tmp_path), Lora(rank=4, alpha=8))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    to = write(saved_model(tuned, None, "base"), tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path))
    found = PeftModel.from_pretrained(base, to)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(found.eval()(ids).logits, tuned.eval()(ids).logits)


def test_a_full_checkpoint_loads_with_transformers_tied_weights_once(tmp_path: Path) -> None:
    model = adapt(load(tmp_path), Full())
    saved = saved_model(model, tiny_tokenizer(), "base")
    assert "lm_head.weight" not in saved.tensors["model.safetensors"]
    found = AutoModelForCausalLM.from_pretrained(write(saved, tmp_path / "model"))
    ids = torch.arange(8)[None]
    torch.testing.assert_close(found.eval()(ids).logits, model.eval()(ids).logits)


def test_the_adapter_config_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    files = [
        saved_model(adapt(load(tmp_path), Lora(rank=4)), None, "base").files["adapter_config.json"]
        for _ in range(2)
    ]
    assert files[0] == files[1] and json.loads(files[0])["r"] == 4


@pytest.mark.slow
def test_qlora_keeps_its_gradients_after_an_evaluation(tmp_path: Path) -> None:
    """bitsandbytes on AVX512-BF16 CPUs repacks weights in eval mode, and gradients vanish."""
    pytest.importorskip("bitsandbytes")
    model = adapt(load(tmp_path, quantized=True), Lora(kind="qlora", rank=4))
    ids = torch.arange(16)[None] + 20

    def norms() -> list[float]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=ids, labels=ids).loss.backward()
        return [float(p.grad.norm()) for n, p in model.named_parameters() if "lora_B" in n]

    before = norms()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids)
    model.train()
    assert all(norm > 0 for norm in before) and norms() == pytest.approx(before, rel=0.05)


def test_the_guard_for_four_bit_layers_switches_the_repacking_off() -> None:
    class Layer(torch.nn.Module):
        support_avx512bf16_for_cpu = True

    model = torch.nn.Sequential(Layer())
    keep_backward(model)
    assert model[0].support_avx512bf16_for_cpu is False


@pytest.mark.fault(29)
def test_an_lfs_pointer_in_place_of_weights_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        locate(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("package:no_such_package/x.gguf", "not installed"),
        ("package:headway/no.gguf", "has no file"),
        ("./nowhere", "there is no folder"),
        ("/nowhere/model.gguf", "there is no file"),
    ],
)
def test_a_model_that_is_not_there_is_one_clear_error(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        locate(name, tmp_path)


def test_a_broken_model_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_causal_lm(str(tmp_path), None, tmp_path, dtype=torch.float32, device=CPU)


def test_other_base_weights_have_another_identity(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    one = weights_identity(str(base), None, tmp_path)
    assert one == weights_identity(str(base), None, tmp_path)
    tiny_llama(len(tiny_tokenizer()), seed=1).save_pretrained(base)
    assert weights_identity(str(base), None, tmp_path) != one


@pytest.mark.parametrize(
    ("layers", "tied", "expected"),
    [
        (16, False, 1_011_589_120),
        (16, True, 908_662_784),
        (20, False, 1_213_022_208),
        (24, False, 1_414_455_296),
        (24, True, 1_311_528_960),
    ],
)
def test_the_seeds_1_2b_shape_and_what_its_layer_counts_really_are(
    layers: int, tied: bool, expected: int
) -> None:
    shape = Shape(
        family="gpt_neox", layers=layers, hidden_size=2048, heads=16, tied_embeddings=tied
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_config(shape, 50_257, 2048))
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_every_family_builds_and_runs(family: str) -> None:
    shape = Shape(family=family, layers=1, hidden_size=16, heads=2, tied_embeddings=True)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_config(make_config(shape, 50, 32))
    assert model(torch.arange(8)[None]).logits.shape == (1, 8, 50)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="not divisible"):
        make_config(Shape(family="llama", layers=1, hidden_size=30, heads=4), 50, 32)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_first_layers_alone_make_that_layers_hidden_states_scaled(
    family: str, tmp_path: Path
) -> None:
    shape = Shape(family=family, layers=3, hidden_size=16, heads=2, tied_embeddings=True)  # type: ignore[arg-type]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(make_config(shape, 50, 32)).eval()
    parts = backbone(model).body.children()
    norms = [part for part in parts if getattr(part, "weight", torch.ones(1, 1)).dim() == 1]
    norms[0].weight.data.mul_(3.0)
    if hasattr(norms[0], "bias"):
        norms[0].bias.data.add_(0.5)
    ids = torch.tensor([[5, 9, 2, 33]])
    inside = model(input_ids=ids, output_hidden_states=True).hidden_states[2]
    keep_first_layers(model, 2)
    prove_backbone(model)
    last = backbone(model).body(input_ids=ids).last_hidden_state
    if family != "llama":
        inside = inside - inside.mean(-1, keepdim=True)
    (norm,) = norms
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    scaled = inside / (inside.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(last, scaled, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ConfigError, match=r"task\.layers: 3, but the model has 2 layers"):
        keep_first_layers(model, 3)
