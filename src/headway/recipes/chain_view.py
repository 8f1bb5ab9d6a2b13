"""Chains with their scores, as metrics and people look at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headway.data.chains import Chain
from headway.engine.precision import autocast
from headway.engine.steps import on_device
from headway.errors import ConfigError
from headway.models.score import Scorer, read_of
from headway.models.surprise import StepTokens
from headway.recipes.chain_rows import ChainRows, ChainText
from headway.recipes.score_metrics import Scored

KEYS = ("steps", "prompt", "problem", "evidence")
"""What a request may have."""


def scored_of(held: ChainRows, observed: Sequence[tuple[float, ...]]) -> Scored:
    """What ``observe`` gathered, by chain and source."""
    table = np.array(observed, dtype=np.float64).reshape(-1, 4)
    chain = np.array(held.chain_of, dtype=np.int64)[table[:, 0].astype(np.int64)]
    sources = tuple(dict.fromkeys(chain.source for chain in held.chains))
    number = {name: index for index, name in enumerate(sources)}
    measured = np.bincount(chain, minlength=len(held.chains))
    labelled = np.array([len(found.labels) for found in held.chains], dtype=np.int64)
    return Scored(
        chain=chain,
        step=table[:, 1].astype(np.int64),
        source=np.array([number[held.chains[c].source] for c in chain], dtype=np.int64),
        predicted=table[:, 2],
        target=table[:, 3],
        sources=sources,
        whole=(measured == labelled)[chain],
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
    """What a person should see of a row's chain: each step with its target and its score.

    ``range`` only where it is not 0 to 1.
    """
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
    span = [held.text.low, held.text.high]
    return found | ({"kinds": kinds} if kinds else {}) | ({"range": span} if span != [0, 1] else {})


def asked(request: Mapping[str, Any]) -> Chain:
    """The chain that a request means: ``problem``, ``steps`` and ``evidence``, or ``prompt``.

    Raises ConfigError for unknown or missing keys, and for what is not text.
    """
    unknown = [str(key) for key in request if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"predict: a score takes no {' and no '.join(unknown)}; leave it out "
            f"(it takes {', '.join(KEYS)})"
        )
    if ("steps" in request) == ("prompt" in request):
        raise ConfigError(
            "predict needs steps (a list of texts) or prompt (one text), not both; found "
            f"{', '.join(map(str, request)) or 'nothing'}"
        )
    steps = _texts(request["steps"] if "steps" in request else [request["prompt"]], "steps")
    if not steps or not all(steps):
        raise ConfigError("predict: a step is empty; every step needs a text")
    [problem] = _texts([request.get("problem") or ""], "problem")
    return Chain(
        problem=problem,
        steps=steps,
        targets=(None,) * len(steps),
        source="request",
        where="request",
        group="request",
        evidence=_texts(request.get("evidence") or [], "evidence"),
    )


def _texts(values: Any, key: str) -> tuple[str, ...]:
    """Texts without blanks at their ends, as the data's readers give them."""
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        expected = "a text" if key == "problem" else "a list of texts"
        raise ConfigError(f"predict: {key} must be {expected}, not {values!r}")
    return tuple(value.strip() for value in values)


@torch.no_grad()
def scores_of(
    scorer: Scorer, text: ChainText, chains: Sequence[Chain], precision: str = "fp32"
) -> list[list[float | None]]:
    """A number for each step of each chain, in the labels' unit; None beyond ``max_tokens``.

    ``precision`` is the run's ``hardware.precision``. The scorer must be in evaluation mode. A step
    that the whole chain has no room for is read again by itself, after as many of the steps before
    it as fit: as training reads a chain of which only that step has a label.
    """
    found: list[list[float | None]] = [[None] * len(chain.steps) for chain in chains]
    whole = [replace(c, targets=(text.low,) * len(c.steps)) for c in chains]
    _score(scorer, ChainRows(whole, text), range(len(chains)), precision, found)
    late = [
        (number, replace(chain, steps=chain.steps[:end], kinds=chain.kinds[:end],
                         targets=(None,) * (end - 1) + (text.low,)))
        for number, chain in enumerate(chains)
        for end in range(1, len(chain.steps) + 1)
        if found[number][end - 1] is None
    ]  # fmt: skip
    rows = ChainRows([chain for _, chain in late], text)
    _score(scorer, rows, [number for number, _ in late], precision, found)
    return found


def _score(
    scorer: Scorer,
    rows: ChainRows,
    numbers: Sequence[int],
    precision: str,
    found: list[list[float | None]],
) -> None:
    """Put each score into ``found``, under its step and the number of its chain there."""
    text, device = rows.text, next(scorer.parameters()).device
    for row in range(len(rows)):
        inputs = on_device(rows.microbatch([row]).inputs, device)
        with autocast(precision, device):
            logits = scorer(*read_of(inputs), steps=StepTokens.of(inputs))
        scores = text.low + (text.high - text.low) * logits.sigmoid()
        for (_, step), score in zip(inputs["units"].tolist(), scores.tolist(), strict=True):
            found[numbers[rows.chain_of[row]]][step] = score


def answered(
    chain: Chain, scores: Sequence[float | None], middle: float, against: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The scores by step, the first below the middle of the range, and both as text.

    ``against``: what was found that speaks against each step.
    """
    doubtful = next((n for n, s in enumerate(scores) if s is not None and s < middle), None)
    lines = [
        f"{'?' if score is None else format(score, '.3f'):>6}  "
        f"{'>' if place == doubtful else ' '} {text}" + (f"  ({'; '.join(found)})" if found else "")
        for place, (text, score, found) in enumerate(zip(chain.steps, scores, against, strict=True))
    ]
    lines += ["?: beyond task.max_tokens, not read"] if None in scores else []
    return {
        "scores": list(scores),
        "first_doubtful": doubtful,
        **({"against": [list(found) for found in against]} if any(against) else {}),
        "text": "\n".join(lines),
    }
