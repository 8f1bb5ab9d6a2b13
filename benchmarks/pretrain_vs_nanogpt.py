"""Pretraining at nanoGPT's CPU setting: headway's way against a nanoGPT-style plain loop.

    python benchmarks/pretrain_vs_nanogpt.py [--steps 60] [--repeats 3] [--threads 2]

4 layers, 4 heads, 128 wide, block 64, batch 12, 65 characters, no dropout, fp32 (the command in
nanoGPT's README under "I only have a macbook"). The plain loop's model is written out below in that
style: scaled dot-product attention, no biases, AdamW as PyTorch chooses it on CPU, clipping at 1.
Sides run in turns, each alone in its process; the first 10 steps of each are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LAYERS, HEADS, WIDTH, BLOCK, BATCH, VOCABULARY = 4, 4, 128, 64, 12, 65
WARM_STEPS = 10
SIDES = ("nanogpt", "transformers", "headway", "headway-bf16")


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


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "n_positions": BLOCK}
    off = {
        "bos_token_id": None,
        "eos_token_id": None,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    same = {"vocab_size": VOCABULARY, "activation_function": "gelu"}  # as nanoGPT, not gelu_new
    return GPT2LMHeadModel(GPT2Config(**same, **sizes, **off)).train()


def side_of(name: str):
    """(model, loss of a batch, optimizer) of one side."""
    import torch

    torch.manual_seed(0)
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
    if name == "nanogpt":
        model = nanogpt()
        return model, model, torch.optim.AdamW(model.parameters(), **options)
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **options)
    if name == "transformers":

        def plain(ids, targets):
            logits = model(input_ids=ids, use_cache=False).logits
            flat = logits.view(-1, VOCABULARY)
            return torch.nn.functional.cross_entropy(flat, targets.view(-1))

        return model, plain, optimizer

    from headway.models.attention import hidden_states, isolate
    from headway.models.backbone import backbone
    from headway.engine.host_memory import keep_freed_memory
    from headway.models.lm_loss import lm_row_sums

    keep_freed_memory()
    assert isolate(model)
    parts = backbone(model)
    at = torch.arange(BATCH * BLOCK)
    positions, row_of, ends = at[None] % BLOCK, at // BLOCK, list(range(BLOCK, len(at) + 1, BLOCK))

    def ours(ids, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "headway-bf16"):
            hidden = hidden_states(model, ids.view(1, -1), positions, ends)
            sums = lm_row_sums(hidden, parts, at, targets.view(-1), row_of, BATCH)["loss"]
        return sums.sum() / len(at)

    return model, ours, optimizer


def work(name: str, steps: int, threads: int) -> None:
    """One side in this process; prints a JSON line."""
    import torch

    torch.set_num_threads(threads)
    model, loss_of, optimizer = side_of(name)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(steps + WARM_STEPS):
        window = torch.randint(0, VOCABULARY, (BATCH, BLOCK + 1), generator=generator)
        start = time.perf_counter()
        loss = loss_of(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=name != "nanogpt" or None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    report = {"side": name, "seconds": seconds[WARM_STEPS:], "loss": loss.item()}
    print("RESULT " + json.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return work(arguments.side, arguments.steps, arguments.threads)
    runs: dict[str, list[float]] = {side: [] for side in SIDES}
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
            runs[side].append(statistics.median(json.loads(lines[0][7:])["seconds"]))
    first = statistics.median(runs[SIDES[0]])
    print("| side | ms a step, median of runs (each) | tokens/s | speed |\n|---|---|---|---|")
    for side, own in runs.items():
        median = statistics.median(own)
        each = ", ".join(f"{1e3 * s:.1f}" for s in own)
        speed = BATCH * BLOCK / median
        print(f"| {side} | {1e3 * median:.1f} ({each}) | {speed:.0f} | {first / median:.2f}x |")
    print(f"\nLoad of the machine before each process: {[round(b, 1) for b in busy]}")


if __name__ == "__main__":
    main()
