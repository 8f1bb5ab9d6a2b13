"""eQASC (Jhamtani and Clark, "Learning to Explain", EMNLP 2020): do two facts explain an answer?

A record is one question; each of its choices has chains of two retrieved facts. Two labels exist,
and they mean different things, so a source is read with one of them:

- ``human``: people said whether the facts together explain the choice (``turk_label``, in the third
  item of a chain). The label is about the whole chain, so it is the target of its last fact.
- ``score``: the retrieval score s of each fact, as (s - 10) / 78 within [0, 1]. It says how well a
  search engine liked the fact, also for wrong answers; it is no judgement of correctness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from headway.data.chains.chain import Chain, Drop, Item, Note
from headway.data.chains.nodes import Node
from headway.data.formats import Record

LOWEST, SPAN = 10.0, 78.0

TARGETS: dict[str, float | None] = {
    "yes": 1.0,
    "no": 0.0,
    "fact1": 0.0,
    "fact2": 0.0,
    "fact12": 0.0,
    "not-quite": 0.0,
    "bad-answer": 0.0,
    "unsure": None,
    "?": None,
}
"""Verdict of the labelers -> target. ``fact1``: that fact alone suffices, so it is no chain of two;
``?``: they did not agree."""


def chains(
    record: Record, name: str = "eqasc", *, label: Literal["human", "score"] = "human"
) -> Iterator[Item]:
    """The chains of all choices of a question. DataError for a record of another shape."""
    question = Node.root(record).at("question")
    stem = question.at("stem").text()
    number = 0
    for choice in question.at("choices").each():
        problem = f"{stem}\nAnswer: {choice.at('text').text()}"
        listed = choice.get("chains")
        for items in [] if listed is None or listed.is_missing() else listed.each():
            number += 1
            where = f"{record.where}#chain {number}"
            facts = [item for item in items.each() if _is_fact(item)]
            if not facts:
                yield Drop("chain without a fact", where, "part")
                continue
            verdict = _verdict(items) if label == "human" else None
            if isinstance(verdict, str):
                yield Drop(verdict, where, "part")
                continue
            scores = [fact.at("score").number() for fact in facts]
            shares = tuple(min(1.0, max(0.0, (score - LOWEST) / SPAN)) for score in scores)
            if verdict is None:
                for score in scores:
                    if not LOWEST <= score <= LOWEST + SPAN:
                        yield Note("score outside of 10 to 88, taken as the nearer end", where)
            yield Chain(
                problem=problem,
                steps=tuple(fact.at("text").text() for fact in facts),
                targets=shares if verdict is None else (*(None for _ in facts[1:]), verdict),
                source=name,
                where=where,
                group=stem,
                extra={} if verdict is None else {"score": sum(scores) / len(scores)},
            )


def _verdict(items: Node) -> float | str:
    """What people said of a chain as a target, or the reason why there is none."""
    for item in items.each():
        said = item.get("turk_label")
        if said is None or said.is_missing():
            continue
        word = said.at("label")
        if word.is_missing():
            continue
        target = TARGETS.get(word.text().lower(), math.nan)
        if target is None:
            return "chain on which the labelers did not agree"
        if math.isnan(target):
            raise word.wrong(f"not a known verdict: {word.value!r}. Known are {', '.join(TARGETS)}")
        return target
    return "chain without a human label (label: score would take retrieval scores instead)"


def _is_fact(item: Node) -> bool:
    text = item.get("text")
    return text is not None and not text.is_missing()
