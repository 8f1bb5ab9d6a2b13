"""The paths that only a GPU takes, against the plain ones: ``make gpu``."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product on the GPU
torch = pytest.importorskip("torch")
for package in ("pydantic", "ruamel.yaml", "peft", "transformers"):
    pytest.importorskip(package)

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from toy_recipe import RECIPE as TOY  # noqa: E402
from toy_recipe import ToyConfig  # noqa: E402

from headway.engine.optim import make_optimizer, trainable  # noqa: E402
from headway.engine.precision import make_deterministic  # noqa: E402
from headway.engine.schedule import Schedule  # noqa: E402
from headway.engine.state import Snapshot, TrainState, placed, restore  # noqa: E402
from headway.engine.steps import Plan, on_device, train_steps  # noqa: E402
from headway.engine.task import Task  # noqa: E402
from headway.engine.world import World  # noqa: E402
from headway.models import attention  # noqa: E402
from headway.models.backbone import Backbone, prove_backbone  # noqa: E402
from headway.models.lm_loss import lm_row_sums  # noqa: E402
from headway.models.lora_linear import fuse_lora, fuse_swiglu  # noqa: E402
from headway.models.tuning import Lora, adapt  # noqa: E402
from headway.recipes.text import TextTask, TokenRow, flatten  # noqa: E402
from tiny import tiny_llama  # noqa: E402
from toy import context  # noqa: E402

GPU = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    make_deterministic(True)
    yield
    make_deterministic(False)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Distance over length of the reference; not finite never passes."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


# ---------------------------------------------------------------- attention

LENGTHS = [5, 130, 1, 64, 300]


def heads(width: int, kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(width + kv_heads)
    tokens = sum(LENGTHS)
    shapes = [(1, n, tokens, width) for n in (4, kv_heads, kv_heads)]
    made = (torch.randn(shape, generator=drawn).to(GPU, dtype) for shape in shapes)
    return [tensor.requires_grad_() for tensor in made]


def values_and_gradients(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    out = call(*inputs)
    drawn = torch.Generator().manual_seed(9)
    out.backward(torch.randn(out.shape, generator=drawn).to(out))
    return [out.detach(), *(t.grad for t in inputs if t.grad is not None)]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 16])
def test_variable_length_attention_equals_a_call_per_segment(
    width: int, kv_heads: int, window: int | None
) -> None:
    cuts = attention.segments(np.cumsum(LENGTHS).tolist(), sum(LENGTHS), GPU)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert attention._varlen_fits(q, v, 0.0, cuts)
        options = {"segments": cuts, "sliding_window": window}
        return attention.attend(nn.Module(), q, k, v, None, **options)[0]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention._by_segment(q, k, v, 0.0, None, cuts, window).transpose(1, 2)

    half = heads(width, kv_heads, torch.bfloat16)
    exact = [t.detach().float().requires_grad_() for t in half]
    found, wanted = values_and_gradients(flash, half), values_and_gradients(plain, exact)
    assert max(apart(a, b) for a, b in zip(found, wanted, strict=True)) < 2e-2


def test_variable_length_attention_does_not_cross_segments() -> None:
    ends = np.cumsum(LENGTHS).tolist()
    q, k, v = (t.detach() for t in heads(64, 2, torch.bfloat16))
    others = [t.clone() for t in (q, k, v)]
    for tensor in others:
        tensor[:, :, :5] += 1.0
    cut, whole = attention.segments(ends, ends[-1], GPU), attention.segments([500], 500, GPU)

    def later(tensors: Any, cuts: attention.Segments) -> Tensor:
        return attention.attend(nn.Module(), *tensors, None, segments=cuts)[0][:, 5:]

    assert torch.equal(later((q, k, v), cut), later(others, cut))
    assert not torch.equal(later((q, k, v), whole), later(others, whole))  # negative control


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_on_the_gpu_is_proved_isolated(dtype: torch.dtype) -> None:
    model = tiny_llama(384).to(GPU, dtype)
    prove_backbone(model)
    assert attention.isolate(model)


# ---------------------------------------------------------------- loss


def loss_inputs(tokens: int, vocabulary: int, width: int) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=GPU, requires_grad=True)
    head = nn.Linear(width, vocabulary, bias=False, device=GPU)
    return hidden, head, torch.randint(0, vocabulary, (tokens,), device=GPU)


@pytest.mark.parametrize(("half", "limit"), [(False, 1e-4), (True, 3e-2)])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_loss_on_the_gpu_equals_cross_entropy(half: bool, limit: float, frozen: bool) -> None:
    hidden, head, targets = loss_inputs(300, 1000, 64)
    head.requires_grad_(not frozen)
    rows = torch.arange(300, device=GPU) // 100
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        sums = lm_row_sums(
            hidden, Backbone(None, head), torch.arange(300, device=GPU), targets, rows, 3,
            chunk_tokens=64,
        )["loss"]  # fmt: skip
    (sums.sum() / 300).backward()
    found = [sums.detach(), hidden.grad, head.weight.grad]
    hidden.grad = head.weight.grad = None
    losses = F.cross_entropy(head(hidden), targets, reduction="none")
    losses.mean().backward()
    wanted = [losses.detach().view(3, 100).sum(1), hidden.grad, head.weight.grad]
    pairs = [(a, b) for a, b in zip(found, wanted, strict=True) if b is not None]
    assert len(pairs) == (2 if frozen else 3)
    assert max(apart(a, b) for a, b in pairs) < limit


def test_the_loss_needs_far_less_memory_than_the_logits() -> None:
    tokens, vocabulary = 16384, 64000
    hidden, head, targets = loss_inputs(tokens, vocabulary, 128)
    head.requires_grad_(False)
    at, rows = torch.arange(tokens, device=GPU), torch.zeros(tokens, dtype=torch.int64, device=GPU)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        sums = lm_row_sums(hidden, Backbone(None, head), at, targets, rows, 1)["loss"]
    sums.sum().backward()
    assert torch.cuda.max_memory_allocated() - before < 0.4 * tokens * vocabulary * 4


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize(("half", "limit"), [(False, 1e-4), (True, 5e-2)])
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_adapters_equal_pefts(half: bool, limit: float, recompute: bool) -> None:
    plain = adapt(tiny_llama(384), Lora(rank=4)).to(GPU)
    torch.manual_seed(1)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 14
    assert fuse_swiglu(fused) == 2
    inputs = on_device(flatten(Rows(), [0, 1, 2]).inputs, GPU)
    found = []
    for model in (plain, fused):
        attention.isolate(model)
        if recompute and model is fused:
            attention.checkpoint_activations(model)
        model.train()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = text_task(model).loss(model, inputs)["loss"].sum()
        loss.backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat(grads)))
    (own, own_gradient), (mine, my_gradient) = found
    assert apart(mine, own) < limit
    assert apart(my_gradient, own_gradient) < limit


# ---------------------------------------------------------------- runs


class Rows:
    """24 rows of two documents each; the second token of a document depends on its first."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> TokenRow:
        drawn = np.random.default_rng(row)
        first, second = int(drawn.integers(3, 40)), int(drawn.integers(3, 40))
        ids = drawn.integers(0, 384, first + second)
        at = np.setdiff1d(np.arange(len(ids) - 1), [first - 1])
        return TokenRow(ids=ids, ends=(first, first + second), at=at, targets=ids[at + 1])

    def shown(self, row: int) -> dict[str, Any]:
        return {}


def text_task(model: nn.Module, precision: str = "bf16") -> TextTask:
    return TextTask(
        model=model, tokenizer=None, train=Rows(), held=None, order=lambda at: at % 24,
        rows_per_epoch=24, tokens_per_epoch=1000, base_model="tiny",
        context=context(device="cuda", precision=precision, microbatch_size=3),
    )  # fmt: skip


def toy(precision: str) -> Task:
    """With dropout."""
    return TOY.build(ToyConfig(), context(device="cuda", precision=precision))


def llama(precision: str) -> Task:
    model = tiny_llama(384).to(GPU)
    attention.isolate(model)
    return text_task(model, precision)


def llama_lora(precision: str) -> Task:
    torch.manual_seed(2)
    model = adapt(tiny_llama(384).to(GPU), Lora(rank=4))
    fuse_lora(model)
    fuse_swiglu(model)
    attention.isolate(model)
    attention.checkpoint_activations(model)
    return text_task(model, precision)


def opened(make: Callable[[str], Task], precision: str, seed: int = 5) -> Any:
    task = make(precision)
    task.model.to(GPU)
    optimizer = make_optimizer(
        "adamw", trainable(task.model), betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1
    )
    state = TrainState(task, optimizer)
    plan = Plan(
        num_steps=8, seed=seed, schedule=Schedule(peak=1e-2, num_steps=8), max_grad_norm=1.0,
        precision=precision,
    )  # fmt: skip
    return state, train_steps(task, state, plan, World(GPU))


def written(state: TrainState, folder: Path) -> Path:
    snapshot = Snapshot()
    snapshot.take(state)
    for name, chunks in snapshot.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"".join(bytes(chunk) for chunk in chunks()))
    return folder


def everything(state: TrainState) -> dict[str, Tensor]:
    """Weights and optimizer state, copied to the host."""
    found = {n: p.detach().cpu().clone() for n, p in state.task.model.named_parameters()}
    for name, parameter in state.task.model.named_parameters():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            found[f"{key}.{name}"] = value.detach().cpu().clone()
    return found


@pytest.mark.parametrize("make", [toy, llama, llama_lora])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_on_the_gpu_equals_the_uninterrupted_bit_for_bit(
    make: Callable[[str], Task], precision: str, tmp_path: Path
) -> None:
    state, reports = opened(make, precision)
    losses = []
    for report in reports:
        losses.append(report.loss)
        if report.step == 4:
            written(state, tmp_path)
    straight = everything(state)
    state, reports = opened(make, precision)
    restore(state, tmp_path)
    assert {v.device for parts in state.optimizer.state.values() for v in parts.values()} == {GPU}
    assert [report.loss for report in reports] == losses[4:]
    resumed = everything(state)
    assert resumed.keys() == straight.keys()
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []


def test_restored_state_of_a_paged_optimizer_is_paged_again() -> None:
    pytest.importorskip("bitsandbytes")
    weight = nn.Parameter(torch.zeros(512, 512, device=GPU))  # smaller ones are never paged
    betas = (0.9, 0.99)
    optimizer = make_optimizer(
        "paged_adamw_8bit", [("weight", weight)], betas=betas, eps=1e-8, weight_decay=0.0
    )
    stored = torch.arange(512 * 512).to(torch.uint8).view(512, 512)
    kept = placed(optimizer, weight, stored)
    assert getattr(kept, "is_paged", False) and torch.equal(kept.cpu(), stored)


def test_another_seed_gives_other_bits() -> None:
    """Negative control: dropout is drawn on the GPU too."""
    ends = []
    for seed in (5, 6):
        state, reports = opened(toy, "fp32", seed)
        ends.append((list(reports), everything(state))[1])
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("make", [llama, llama_lora])
def test_forward_and_backward_never_wait_for_the_gpu(make: Callable[[str], Task]) -> None:
    task = make("bf16")
    for strict in (False, True):  # the first time compiles and allocates
        inputs = on_device(task.batch_at(0)[0].inputs, GPU)
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = task.loss(task.model, inputs)["loss"].sum()
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
