"""What one GPU makes of headway: tokens/s, share of its matrix rate, memory, and exact resume.

    PYTHONPATH=src:. python3 benchmarks/gpu.py [--minutes 8.5] [--tiny --device cpu]

Models have random weights; rows are packed with random tokens, in documents of random lengths. Both
sides (headway, TRL's SFTTrainer with packing) see the same documents, train the same parameters
under bf16 autocast with the same rows a step, and run in processes of their own, one for each side
and shape. FLOPs are the model's: recomputation is not counted, attention only within documents.
What cannot run (a package is missing, memory or time ran out) stays in the table with its reason.
The table is printed and, where ``OUT`` names a folder, written to ``OUT/gpu.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NEEDS = {
    "headway": ("torch", "transformers", "peft", "safetensors", "pydantic", "ruamel.yaml"),
    "trl": ("torch", "transformers", "peft", "trl", "datasets"),
    "qlora": ("bitsandbytes",),
}
WARM_STEPS, LEAST_STEPS, MOST_STEPS, SECONDS_A_CELL = 2, 3, 10, 5.0
RANK, LEARNING_RATE, RESUME_STEPS = 16, 1e-4, 3


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    row_tokens: int
    rows_a_step: int
    microbatches: tuple[int, int, int]
    matrix: int


REAL = Sizes(2048, 16, (1, 4, 8), 8192)
TINY = Sizes(64, 4, (1, 2, 4), 256)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.5B": ("qwen2", {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        "tie_word_embeddings": True,
    }),
    "1.2B": ("gpt_neox", {
        "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16,
        "intermediate_size": 8192, "vocab_size": 50304,
    }),
}  # fmt: skip
TINY_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 64, "vocab_size": 96}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    side: str
    shape: str
    tuning: str
    microbatch: int
    recompute: bool = False
    deterministic: bool = True
    resume: bool = False

    @property
    def name(self) -> str:
        """What the table shows of it, unique."""
        what = "resume" if self.resume else f"{self.microbatch} rows"
        what += ", recompute" if self.recompute else ""
        what += "" if self.deterministic or self.side == "trl" else ", any kernel"
        return f"{self.side} | {self.shape} | {self.tuning} | {what}"


def planned(sizes: Sizes) -> list[Cell]:
    """Every row the table will have, in the order of running."""
    small, middle, large = sizes.microbatches
    cells: list[Cell] = []
    for shape in SHAPES:
        for tuning in ("lora", "full"):
            cells += [Cell("headway", shape, tuning, n) for n in (middle, large, small)]
            cells.append(Cell("headway", shape, tuning, large, recompute=True))
            cells.append(Cell("headway", shape, tuning, middle, deterministic=False))
            if shape == "0.5B":
                cells.append(Cell("headway", shape, tuning, middle, resume=True))
        cells.append(Cell("headway", shape, "qlora", middle))
        for tuning in ("lora", "full"):
            cells.append(Cell("trl", shape, tuning, middle))
            cells.append(Cell("trl", shape, tuning, large, recompute=True))
        cells.append(Cell("trl", shape, "qlora", middle))
    return cells


def absent(cell: Cell) -> list[str]:
    """Packages this cell needs that this Python does not have."""
    names = NEEDS[cell.side] + (NEEDS["qlora"] if cell.tuning == "qlora" else ())
    return [name for name in names if not importable(name)]


def importable(name: str) -> bool:
    """Whether a module of this name could be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


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
    for _ in range((WARM_STEPS + MOST_STEPS) * sizes.rows_a_step):
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


@dataclass(frozen=True)
class Place:
    """Where cells run."""

    sizes: Sizes
    tiny: bool
    device: str
    folder: Path

    def model(self, shape: str) -> Path:
        """The folder of the shape's random weights."""
        return self.folder / shape


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
    from headway.recipes.sft import SftConfig, load_model
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
    plan = Plan(
        num_steps=num_steps, seed=1, schedule=schedule, max_grad_norm=1.0, precision="bf16"
    )
    if place.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return state, train_steps(task, state, plan, World(choose_device(place.device)))


def run_headway(cell: Cell, place: Place) -> dict[str, Any]:
    """Timed steps of headway's engine."""
    watch, tokens, peak = Stopwatch(place.device), 0, 0
    _, reports = headway_run(cell, place, WARM_STEPS + MOST_STEPS)
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


# ---------------------------------------------------------------- processes


def machine(place: Place) -> dict[str, Any]:
    """Writes the models; the device's name, versions, and its bf16 matrix products a second."""
    import platform

    import torch
    import transformers

    for shape in SHAPES:
        write_model(shape, place.tiny, place.device, place.model(shape))
    n = place.sizes.matrix
    a, b = (torch.randn(n, n, device=place.device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(5):
        settle(place.device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        settle(place.device)
        seconds.append((time.perf_counter() - started) / 10)
    name = torch.cuda.get_device_name() if place.device == "cuda" else "CPU"
    return {
        "name": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "matrix_flops_per_second": 2 * n**3 / statistics.median(seconds[1:]),
    }


def work(group: str, place: Place, until: float) -> None:
    """One group of cells in this process; prints a JSON line for each."""
    if group == "machine":
        print("RESULT " + json.dumps(machine(place)), flush=True)
        return
    longest = 0.0
    for cell in planned(place.sizes):
        if f"{cell.side}:{cell.shape}" != group or absent(cell):
            continue
        started = time.time()
        if started + longest > until:
            found: dict[str, Any] = {"note": "DROPPED: no time left"}
        else:
            found = run_cell(cell, place)
            clean(place.device)
            longest = max(longest, time.time() - started)
        print("RESULT " + json.dumps({"cell": asdict(cell), **found}), flush=True)


def results_of(group: str, arguments: argparse.Namespace, folder: str, until: float) -> list[Any]:
    """What the group's process printed before its time was over."""
    command = [
        sys.executable, __file__, "--group", group, "--until", str(until), "--folder", folder,
        "--device", arguments.device, *(["--tiny"] if arguments.tiny else []),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        out, _ = process.communicate(timeout=max(1.0, until + 15 - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    if process.returncode:
        print(f"{group} ended with {process.returncode}", file=sys.stderr)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def measure(arguments: argparse.Namespace) -> str:
    """Run every group within the budget; the table."""
    sizes = TINY if arguments.tiny else REAL
    ends = time.time() + 60 * arguments.minutes
    cells = planned(sizes)
    groups = list(dict.fromkeys(f"{c.side}:{c.shape}" for c in cells if not absent(c)))
    found: dict[Cell, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        facts = results_of("machine", arguments, folder, ends)
        for number, group in enumerate(groups):
            share = (ends - time.time() - 20) / (len(groups) - number)
            print(f"{group}: up to {share:.0f} s", file=sys.stderr, flush=True)
            for result in results_of(group, arguments, folder, time.time() + share):
                found[Cell(**result.pop("cell"))] = result
    return table(cells, found, facts[0] if facts else {}, sizes)


def table(cells: list[Cell], found: dict[Cell, Any], facts: dict[str, Any], sizes: Sizes) -> str:
    """Markdown: one row for each planned cell, measured or not."""
    rate = facts.get("matrix_flops_per_second", 0.0)
    what = ", ".join(f"{k} {facts.get(k, '?')}" for k in ("python", "torch", "transformers"))
    lines = [
        f"# {facts.get('name', 'no device answered')}",
        "",
        f"{what}; bf16 products of {sizes.matrix} x {sizes.matrix}: {rate / 1e12:.3g} TFLOP/s. "
        f"Packed rows of {sizes.row_tokens} tokens, {sizes.rows_a_step} rows a step, bf16 "
        "autocast, AdamW, LoRA rank 16 on all linear layers. Rows: of one microbatch. headway runs "
        'repeatable kernels unless it says "any kernel".',
        "",
        "| side | shape | tuning | rows | tokens/s | TFLOP/s | of matrix rate | peak GB | note |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for cell in cells:
        result = found.get(cell) or {"note": "DROPPED: its process ended or ran out of time"}
        if absent(cell):
            result = {"note": f"skipped: not installed here: {', '.join(absent(cell))}"}
        lines.append(f"| {cell.name} | {figures(result, rate)} | {result.get('note', '')} |")
    return "\n".join(lines) + "\n"


def figures(result: dict[str, Any], rate: float) -> str:
    """The table's four numbers, or dashes."""
    if not result.get("seconds"):
        return "– | – | – | –"
    tokens, flops = (result[k] / result["seconds"] for k in ("tokens", "flops"))
    share = f"{100 * flops / rate:.1f} %" if rate else "–"
    return f"{tokens:,.0f} | {flops / 1e12:.3g} | {share} | {result['peak_bytes'] / 1e9:.2f}"


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.5, help="wall time for everything")
    parser.add_argument("--tiny", action="store_true", help="the same code on tiny shapes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.group:
        sizes = TINY if arguments.tiny else REAL
        place = Place(sizes, arguments.tiny, arguments.device, arguments.folder)
        work(arguments.group, place, arguments.until)
        return
    text = measure(arguments)
    print(text)
    if os.environ.get("OUT"):
        (Path(os.environ["OUT"]) / "gpu.md").write_text(text)


if __name__ == "__main__":
    main()
