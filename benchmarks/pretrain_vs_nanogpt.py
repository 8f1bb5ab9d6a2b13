"""Pretraining at nanoGPT's CPU setting: headway's way against a nanoGPT-style plain loop.

    python benchmarks/pretrain_vs_nanogpt.py [--steps 60] [--repeats 3] [--threads 2]

4 layers, 4 heads, 128 wide, block 64, batch 12, 65 characters, no dropout, fp32 (the command in
nanoGPT's README under "I only have a macbook"). The plain loop's model is written out below in that
style: scaled dot-product attention, no biases, AdamW as PyTorch chooses it on CPU, clipping at 1.
Sides run in turns, each alone in its process; the first 10 steps of each are not timed. On a shared
machine the median says how busy the neighbours were; the fastest tenth is what the code takes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sides import DATA, needed

LAYERS, HEADS, WIDTH, BLOCK, BATCH, VOCABULARY = 4, 4, 128, 64, 12, 65
WARM_STEPS = 10
SIDES = ("nanogpt", "nanogpt-bf16", "headway", "headway-bf16")
TEXT = DATA / "text/tinyshakespeare.txt"


def nanogpt():
    """The plain model: a function from ids and targets [batch, block] to the mean loss."""
    import torch.nn.functional as F
    from torch import arange, nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH, bias=False) for _ in range(2)])
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)
            self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
            self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x):
            batch, tokens, _ = x.shape
            parts = self.qkv(self.norms[0](x)).split(WIDTH, dim=2)
            q, k, v = (p.view(batch, tokens, HEADS, -1).transpose(1, 2) for p in parts)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).contiguous().view(batch, tokens, WIDTH))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(VOCABULARY, WIDTH)
            self.positions = nn.Embedding(BLOCK, WIDTH)
            self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
            self.norm = nn.LayerNorm(WIDTH, bias=False)
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.positions(arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.view(-1, VOCABULARY), targets.view(-1))

    return GPT()


def run_plain(bf16: bool, steps: int) -> list[float]:
    """The plain loop: random windows, AdamW as PyTorch chooses it on CPU, clipping at 1."""
    import torch

    torch.manual_seed(0)
    model = nanogpt()
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    text = TEXT.read_text(encoding="utf-8")
    places = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([places[character] for character in text[: int(0.9 * len(text))]])
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        starts = torch.randint(len(tokens) - BLOCK, (BATCH,)).tolist()
        x = torch.stack([tokens[i : i + BLOCK] for i in starts])
        y = torch.stack([tokens[i + 1 : i + 1 + BLOCK] for i in starts])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start)
    return seconds


def run_headway(bf16: bool, steps: int, threads: int) -> list[float]:
    """headway as a user runs it: configs/shakespeare.yaml, journal and all."""
    import tempfile

    from headway import load_config
    from headway.opening import opened
    from headway.run import train
    from headway.show import Quiet

    seconds: list[float] = []

    class Clock(Quiet):
        def step(self, step, plan, cost_usd) -> None:
            now = time.perf_counter()
            seconds.append(now - self.at)
            self.at = now

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            Path(__file__).resolve().parents[1] / "configs/shakespeare.yaml",
            [
                f"run.root={folder}",
                f"train.horizon.steps={steps}",
                f"hardware.precision={'bf16' if bf16 else 'fp32'}",
                f"hardware.threads={threads}",
                "evaluate=null",
                "checkpoint.every_steps=null",
                f"task.data.train={TEXT}",
            ],
        )
        clock = Clock()
        with opened(config, show=clock) as run:
            clock.at = time.perf_counter()
            train(run)
    return seconds


def work(name: str, steps: int, threads: int) -> None:
    """One side in this process; prints a JSON line."""
    import torch

    torch.set_num_threads(threads)
    total, bf16 = steps + WARM_STEPS, name.endswith("bf16")
    ours = name.startswith("headway")
    seconds = run_headway(bf16, total, threads) if ours else run_plain(bf16, total)
    print("RESULT " + json.dumps({"side": name, "seconds": seconds[WARM_STEPS:]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return work(arguments.side, arguments.steps, arguments.threads)
    needed(TEXT)
    runs: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    busy = []
    for _ in range(arguments.repeats):
        for side in SIDES:
            busy.append(os.getloadavg()[0])
            command = [sys.executable, __file__, "--side", side, "--steps", str(arguments.steps)]
            command += ["--threads", str(arguments.threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if done.returncode or not lines:
                raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
            seconds = json.loads(lines[0][7:])["seconds"]
            runs[side].append((statistics.median(seconds), statistics.quantiles(seconds, n=10)[0]))
    print("| side | ms a step, median of runs (each) | speed | fastest tenth (each) | speed |")
    print("|---|---|---|---|---|")
    first: list[float] = []
    for side, own in runs.items():
        cells, medians = [], [statistics.median(kind) for kind in zip(*own, strict=True)]
        first = first or medians
        for kind, median, base in zip(zip(*own, strict=True), medians, first, strict=True):
            each = ", ".join(f"{1e3 * s:.1f}" for s in kind)
            cells += [f"{1e3 * median:.1f} ({each})", f"{base / median:.2f}x"]
        print(f"| {side} | {' | '.join(cells)} |")
    print(f"\nLoad of the machine before each process: {[round(b, 1) for b in busy]}")


if __name__ == "__main__":
    main()
