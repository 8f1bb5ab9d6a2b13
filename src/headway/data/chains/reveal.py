"""REVEAL (Jacovi et al., "A Chain-of-Thought Is as Strong as Its Weakest Link", ACL 2024): is each
step of an answer supported by evidence?

A row is one step of one model's answer, judged against one passage; a question has several answers,
and a step several passages. Rows are grouped by question *and* answer, and the labels of one step
are combined by what a passage can say. *Unsupported* is about the passage ("nothing here speaks to
it"; the authors warn that support may exist which was not retrieved), the others are about the
step. So full support anywhere makes a step supported; else a contradiction anywhere makes it wrong;
else partial support counts; else it is unsupported. Support in one passage and contradiction in
another is counted. ("The most favourable label" would let a passage about something else turn a
contradicted step into an unsupported one.)

Steps without a label (of pure logic, mostly) stay in the chain, without a target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from headway.data.chains.chain import Chain, Drop, Item, Note
from headway.data.chains.nodes import Node
from headway.data.formats import Record

TARGETS = {"fully": 1.0, "contradictory": 0.0, "partially": 0.5, "unsupported": 0.25}
"""Label -> target, in the order of precedence when a step has several."""

_QUESTION = ("question_id", "question")
_ANSWER = ("answer_id", "answer_model", "full_answer")

TERMS = (
    "REVEAL may be used as a test set, not as a training set (the terms of its access page). "
    "Move it to eval:, or set accept_terms: true on this source if its authors allow you to train "
    "on it."
)


def grouped(records: Iterable[Record]) -> Iterator[list[Record]]:
    """The rows of each answer to each question, answers in the order of their first row."""
    answers: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        row = Node.root(record)
        key = (_first_of(row, *_QUESTION), _first_of(row, *_ANSWER))
        answers.setdefault(key, []).append(record)
    yield from answers.values()


def chains(
    rows: Sequence[Record], name: str = "reveal", *, with_evidence: bool = False
) -> Iterator[Item]:
    """The chain of one answer out of all its rows. DataError for rows of another shape."""
    steps: dict[float, str] = {}
    words: dict[float, set[str]] = {}
    passages: dict[str, None] = {}
    seen: set[tuple[float, str, str]] = set()
    for record in rows:
        row = Node.root(record)
        text = row.at("step").text()
        if not text:
            yield Drop("row without a step", record.where)
            continue
        at = _index(row, text, steps)
        if steps.setdefault(at, text) != text:
            raise row.at("step").wrong(
                f"an earlier row has another text for step {at:g} of this answer. Are two answers "
                "under one id?"
            )
        evidence = row.get("evidence")
        passage = "" if evidence is None or evidence.is_missing() else evidence.text()
        word = _word(row.at("attribution_label"))
        if (at, passage, word) in seen:
            yield Drop("the same step, passage and label again", record.where)
            continue
        seen.add((at, passage, word))
        words.setdefault(at, set()).update([word] if word else [])
        passages.update({passage: None} if passage else {})
    for at in sorted(steps):
        if not words[at]:
            yield Drop("step without a label, kept as context", rows[0].where, "part")
        elif {"fully", "contradictory"} <= words[at]:
            yield Note("step supported by one passage and contradicted by another", rows[0].where)
    if any(words.values()):
        question = Node.root(rows[0]).at("question").text()
        yield Chain(
            problem=question,
            steps=tuple(steps[at] for at in sorted(steps)),
            targets=tuple(_combined(words[at]) for at in sorted(steps)),
            source=name,
            where=rows[0].where,
            group=question,
            evidence=tuple(passages) if with_evidence else (),
        )


def _combined(words: set[str]) -> float | None:
    return next((target for word, target in TARGETS.items() if word in words), None)


def _word(label: Node) -> str:
    """``fully`` for 'Fully' and 'Fully Attributable'; empty for no label."""
    if label.is_missing():
        return ""
    word = label.text().lower().partition(" ")[0].rstrip(".")
    if word not in TARGETS:
        known = ", ".join(word.capitalize() for word in TARGETS)
        raise label.wrong(f"not a known label: {label.value!r}. Known are {known}, and null")
    return word


def _index(row: Node, text: str, steps: dict[float, str]) -> float:
    """Place of the step in its answer: as the file says, else by the first row that has it."""
    for key in ("step_idx", "step_index"):
        field = row.get(key)
        if field is not None and not field.is_missing():
            return field.number()
    known = {step: at for at, step in steps.items()}
    return known.get(text, float(len(steps)))


def _first_of(row: Node, *keys: str) -> str:
    """The first of these fields that has a value: what tells rows apart."""
    for key in keys:
        field = row.get(key)
        if field is not None and not field.is_missing():
            return field.name()
    raise row.wrong(
        f"none of {', '.join(keys)} has a value: the answers to one question cannot be told "
        "apart, and their steps would be mixed"
    )
