"""Chains with their scores, as metrics and people look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headway.data.chains import Chain
from headway.errors import ConfigError
from headway.recipes.chain_rows import ChainRows
from headway.recipes.score_metrics import Scored


def scored_of(held: ChainRows, observed: Sequence[tuple[float, ...]]) -> Scored:
    """What ``observe`` gathered, by chain and source."""
    table = np.array(observed, dtype=np.float64).reshape(-1, 4)
    chain = np.array(held.chain_of, dtype=np.int64)[table[:, 0].astype(np.int64)]
    sources = tuple(dict.fromkeys(chain.source for chain in held.chains))
    number = {name: index for index, name in enumerate(sources)}
    return Scored(
        chain=chain,
        step=table[:, 1].astype(np.int64),
        source=np.array([number[held.chains[c].source] for c in chain], dtype=np.int64),
        predicted=table[:, 2],
        target=table[:, 3],
        sources=sources,
    )


def predictions_of(held: ChainRows, scored: Scored) -> list[dict[str, Any]]:
    """One line per labelled step: where it is, its target, what was predicted."""
    lines = []
    for chain, step, predicted, target in zip(
        scored.chain.tolist(),
        scored.step.tolist(),
        scored.predicted.tolist(),
        scored.target.tolist(),
        strict=True,
    ):
        found = held.chains[chain]
        line = {
            "chain": chain,
            "step": step,
            "source": found.source,
            "where": found.where,
            "target": target,
            "predicted": round(predicted, 6),
        }
        if found.kinds and found.kinds[step]:
            line["kind"] = found.kinds[step]
        lines.append(line | dict(found.extra))
    return lines


def shown(
    held: ChainRows, row: int, lines: Mapping[tuple[int, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """What a person should see of a row's chain: each step with its target and its score."""
    number = held.chain_of[row]
    chain = held.chains[number]
    steps = []
    for step, text in enumerate(chain.steps):
        line = lines.get((number, step), {})
        steps.append(
            {"text": text, "target": line.get("target"), "predicted": line.get("predicted")}
        )
    kinds = list(chain.kinds) if any(chain.kinds) else []
    found = {"where": chain.where, "problem": chain.problem, "steps": steps}
    return found | ({"kinds": kinds} if kinds else {})


def asked(request: Mapping[str, Any]) -> Chain:
    """The chain that a request means. Raises ConfigError for unknown or missing keys."""
    keys = {"problem", "steps", "prompt", "evidence"}
    steps = request.get("steps", [request["prompt"]] if "prompt" in request else None)
    if set(request) - keys or not steps or not all(isinstance(step, str) for step in steps):
        raise ConfigError(
            f"predict takes {sorted(keys)} and needs steps (a list of texts) or prompt (one text); "
            f"found {sorted(request)}"
        )
    return Chain(
        problem=str(request.get("problem", "")),
        steps=tuple(steps),
        targets=(None,) * len(steps),
        source="request",
        where="request",
        group="request",
        evidence=tuple(request.get("evidence", ())),
    )


def answered(chain: Chain, scores: Sequence[float | None], middle: float) -> dict[str, Any]:
    """The scores by step, the first below the middle of the range, and both as text."""
    doubtful = next((n for n, s in enumerate(scores) if s is not None and s < middle), None)
    lines = [
        f"{'?' if score is None else format(score, '.3f'):>6}  "
        f"{'>' if place == doubtful else ' '} {text}"
        for place, (text, score) in enumerate(zip(chain.steps, scores, strict=True))
    ]
    return {
        "scores": list(scores),
        "first_doubtful": doubtful,
        "text": "\n".join(lines),
    }
