"""One cell of ``benchmarks/gpu.py``: random models, packed rows, timed or resumed steps."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import (
    LEARNING_RATE,
    LEAST_STEPS,
    RANK,
    RESUME_STEPS,
    SECONDS_A_CELL,
    SHAPES,
    TINY_SIZES,
    WARM_STEPS,
    Cell,
    Place,
    Sizes,
)

# ---------------------------------------------------------------- models and rows


def config_of(shape: str, tiny: bool):
    """The architecture as transformers writes it."""
    from transformers import AutoConfig

    family, options = SHAPES[shape]
    options = {**options, **(TINY_SIZES if tiny else {}), "max_position_embeddings": 2048}
    if "num_key_value_heads" in options and tiny:
        options["num_key_value_heads"] = 1
    return AutoConfig.for_model(family, bos_token_id=0, eos_token_id=1, pad_token_id=1, **options)


def write_model(shape: str, tiny: bool, device: str, folder: Path) -> None:
    """Random weights in bf16, as a folder that both sides load."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(shape, tiny), dtype=torch.bfloat16)
    model.to("cpu").save_pretrained(folder)


def tokenizer_of(shape: str, tiny: bool):
    """As many tokens as the model has; nobody asks it to tokenise anything."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(min(config_of(shape, tiny).vocab_size, 100))}
    plain = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="t0", eos_token="t1", pad_token="t1", unk_token="t0"
    )


def documents(sizes: Sizes, vocabulary: int) -> list[list[Any]]:
    """Rows of exactly ``row_tokens`` random tokens, each a list of documents: medians of 400."""
    import numpy as np

    random = np.random.default_rng(0)
    rows = []
    for _ in range((WARM_STEPS + sizes.most_steps) * sizes.rows_a_step):
        row, left = [], sizes.row_tokens
        while left:
            wanted = int(random.lognormal(np.log(0.2 * sizes.row_tokens), 0.8))
            length = left if left - wanted < 8 else max(8, wanted)
            row.append(random.integers(2, vocabulary, length))
            left -= length
        rows.append(row)
    return rows


class PackedRows:
    """The documents as training rows: every token but a document's first is predicted."""

    def __init__(self, rows: list[list[Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int):
        import numpy as np

        from headway.recipes.text import TokenRow

        ids = np.concatenate(self.rows[row])
        ends = np.cumsum([len(part) for part in self.rows[row]])
        at = np.setdiff1d(np.arange(len(ids)), ends - 1)
        return TokenRow(ids=ids, ends=tuple(ends.tolist()), at=at, targets=ids[at + 1])

    def shown(self, row: int) -> dict[str, Any]:
        return {}


def flops_a_token(cell: Cell, rows: list[list[Any]], tiny: bool) -> float:
    """Forward and backward of the model: no recomputation, no weight gradient of what is frozen."""
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(cell.shape, tiny)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    products = sum(m.weight.numel() for m in linear.values())
    head = model.get_output_embeddings()
    adapted = [m for m in linear.values() if m is not head]
    adapters = sum(RANK * (m.in_features + m.out_features) for m in adapted)
    lengths = [len(part) for row in rows for part in row]
    context = sum(n * (n + 1) / 2 for n in lengths) / sum(lengths)
    attention = 12 * config.num_hidden_layers * config.hidden_size * context
    if cell.tuning == "full":
        return 6 * products + attention
    return 4 * products + 6 * adapters + attention


# ---------------------------------------------------------------- one cell


class Stopwatch:
    """Time and tokens from the end of the warm-up steps to the last step, with the GPU at rest."""

    def __init__(self, device: str) -> None:
        self.device, self.steps, self.start, self.end = device, 0, 0.0, 0.0

    def done(self, step: int) -> bool:
        """Note the end of a step; whether that is enough."""
        if step < WARM_STEPS:
            return False
        settle(self.device)
        now = time.perf_counter()
        if step == WARM_STEPS:
            self.start = now
        self.steps, self.end = step - WARM_STEPS, now
        return self.steps >= LEAST_STEPS and now - self.start > SECONDS_A_CELL

    @property
    def seconds(self) -> float:
        """Of all timed steps."""
        return self.end - self.start


def settle(device: str) -> None:
    """Wait for the GPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def headway_task(cell: Cell, place: Place):
    """A task as the recipe ``sft`` builds it, over random packed rows."""
    import torch

    from headway.engine.task import BuildContext
    from headway.recipes.language_model import load_model
    from headway.recipes.sft import SftConfig
    from headway.recipes.text import TextTask

    torch.manual_seed(1)
    tuning = {"kind": cell.tuning} | ({} if cell.tuning == "full" else {"rank": RANK})
    name, tokenizer = str(place.model(cell.shape)), tokenizer_of(cell.shape, place.tiny)
    config = SftConfig.model_validate(
        {"base_model": name, "tuning": tuning, "data": {"train": "random"}}
    )
    context = BuildContext(
        seed=1, batch_size=place.sizes.rows_a_step, microbatch_size=cell.microbatch,
        precision="bf16", device=place.device, rank=0, ranks=1,
        activation_checkpointing=cell.recompute, compile=False, held_out_rows=None,
        cache=place.folder,
    )  # fmt: skip
    model, described = load_model(config, context, tokenizer)
    rows = documents(place.sizes, config_of(cell.shape, place.tiny).vocab_size)
    return TextTask(
        model=model, tokenizer=tokenizer, train=PackedRows(rows), held=None,
        order=lambda positions: positions % len(rows), rows_per_epoch=len(rows),
        tokens_per_epoch=len(rows) * place.sizes.row_tokens, context=context, base_model=name,
        described=described,
    )  # fmt: skip


def headway_run(cell: Cell, place: Place, num_steps: int):
    """(state, reports of its steps) of a fresh run."""
    import torch

    from headway.engine.optim import make_optimizer, trainable
    from headway.engine.precision import make_deterministic
    from headway.engine.schedule import Schedule
    from headway.engine.state import TrainState
    from headway.engine.steps import Plan, train_steps
    from headway.engine.world import World, choose_device

    make_deterministic(cell.deterministic)
    task = headway_task(cell, place)
    optimizer = make_optimizer(
        "adamw", trainable(task.model), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
    )
    state = TrainState(task, optimizer)
    schedule = Schedule(peak=LEARNING_RATE, num_steps=num_steps, shape="constant")
    plan = Plan(num_steps=num_steps, seed=1, schedule=schedule, max_grad_norm=1.0, precision="bf16")
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return state, train_steps(task, state, plan, World(choose_device(place.device)))


def run_headway(cell: Cell, place: Place) -> dict[str, Any]:
    """Timed steps of headway's engine."""
    watch, tokens, peak = Stopwatch(place.device), 0, 0
    _, reports = headway_run(cell, place, WARM_STEPS + place.sizes.most_steps)
    with contextlib.closing(reports):
        for report in reports:
            enough = watch.done(report.step)
            tokens += report.tokens if report.step > WARM_STEPS else 0
            peak = report.memory_bytes
            if enough:
                break
    return {"tokens": tokens, "seconds": watch.seconds, "steps": watch.steps, "peak_bytes": peak}


def run_resume(cell: Cell, place: Place) -> dict[str, Any]:
    """Twice k steps in one go against k steps, a checkpoint on disk, a new model, and k more."""
    import torch

    from headway.engine.state import Snapshot, restore

    horizon = 2 * RESUME_STEPS
    with tempfile.TemporaryDirectory(dir=place.folder) as folder:
        state, reports = headway_run(cell, place, horizon)
        losses = []
        for report in reports:
            losses.append(report.loss)
            if report.step == RESUME_STEPS:
                snapshot = Snapshot()
                snapshot.take(state)
                for name, chunks in snapshot.files().items():
                    path = Path(folder) / name
                    path.parent.mkdir(exist_ok=True)
                    with path.open("wb") as file:
                        file.writelines(chunks())
                del snapshot
        straight = weights(state)
        del state, reports
        state, reports = headway_run(cell, place, horizon)
        restore(state, Path(folder))
        again = [report.loss for report in reports]
    other = weights(state)
    apart = {name: (straight[name] - other[name]).abs().max().item() for name in straight}
    loss_apart = max(abs(a - b) for a, b in zip(losses[RESUME_STEPS:], again, strict=True))
    equal = all(torch.equal(straight[name], other[name]) for name in straight)
    worst = max(apart, key=lambda name: apart[name])
    note = f"bit-equal: {len(apart)} trained tensors, {len(again)} losses"
    if not equal or loss_apart:
        note = f"NOT equal: weights by up to {apart[worst]:.2e} ({worst}), loss {loss_apart:.2e}"
    return {"note": note}


def weights(state) -> dict[str, Any]:
    """Copies of everything that trains, on the host."""
    named = state.task.model.named_parameters()
    return {n: p.detach().cpu().clone() for n, p in named if p.requires_grad}


def run_cell(cell: Cell, place: Place) -> dict[str, Any]:
    """What was measured; running out of memory is an answer too."""
    import torch

    rows = documents(place.sizes, config_of(cell.shape, place.tiny).vocab_size)
    try:
        if cell.resume:
            return run_resume(cell, place)
        if cell.side == "trl":
            from benchmarks.gpu_trl import run_trl

            found = run_trl(cell, place, rows, Stopwatch(place.device))
        else:
            found = run_headway(cell, place)
        found["flops"] = found["tokens"] * flops_a_token(cell, rows, place.tiny)
        return found
    except torch.OutOfMemoryError:
        return {"note": "out of memory"}
    except Exception as error:  # the other cells go on; the reason is in the table
        text = " ".join(str(error).split())[:160].replace("|", "/")
        return {"note": f"FAILED: {type(error).__name__}: {text}"}


def clean(device: str) -> None:
    """Give memory back between cells; called when no error holds a cell's frames any more."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
