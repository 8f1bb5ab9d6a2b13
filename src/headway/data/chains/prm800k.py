"""PRM800K (Lightman et al., "Let's Verify Step by Step", 2023): ratings of steps by people.

A record is one solution; each of its steps has one or more rated completions, of which one may be
chosen. In phase 2 labelling stops at the first error, and nothing is chosen there: a reader that
follows the chosen completions only never sees a wrong step. Here every rated completion becomes
exactly one labelled step:

- the *path* is one chain: the chosen completions with their ratings, and, where nothing is chosen,
  the solution's own step (``pre_generated_steps``; else the first rated -1, else the first rated);
- every other rated completion is a *branch*: the steps before it, not loss units there, and itself.

A step written by the labeler (phase 1) stands in the path but was not rated, so it has no target. A
completion that the labeler flagged ("does not know how to label") has none either.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.data.chains.chain import Chain, Drop, Item, Note
from headway.data.chains.nodes import Node
from headway.data.formats import Record

TARGETS = {1: 1.0, 0: 0.5, -1: 0.0}
"""Rating -> target: correct, neither wrong nor of use, wrong."""

_NOT_SERVED = {
    "is_quality_control_question": "quality-control question, served to every labeler",
    "is_initial_screening_question": "screening question, served to every labeler",
}


def chains(record: Record, name: str = "prm800k") -> Iterator[Item]:
    """The path of a solution and its branches. DataError for a record of another shape."""
    root = Node.root(record)
    for key, reason in _NOT_SERVED.items():
        flag = root.get(key)
        if flag is not None and flag.value:
            yield Drop(reason, record.where)
            return
    problem = root.at("question").at("problem").text()
    label = root.at("label")
    reason_to_stop = label.get("finish_reason")
    if reason_to_stop is not None and reason_to_stop.value == "bad_problem":
        yield Note("solution of a problem that the labeler reported as broken", record.where)
    own = root.at("question").get("pre_generated_steps")
    own_steps = [] if own is None or own.is_missing() else [step.text() for step in own.each()]

    path: list[tuple[str, float | None]] = []
    branches: list[tuple[int, tuple[str, float]]] = []
    ended = False
    for index, step in enumerate(label.at("steps").each()):
        listed = _completions(step)
        rated: dict[int, tuple[str, float]] = {}
        for number, completion in enumerate(listed):
            found = _rated(completion)
            if isinstance(found, tuple) and ended:
                found = Drop("rated after a step where nothing was chosen", record.where, "part")
            if isinstance(found, Drop):
                yield found
            else:
                rated[number] = found
        if ended:
            continue
        on_path = _on_path(step, listed, rated, own_steps[index : index + 1])
        branches += [(len(path), rated[n]) for n in rated if n != on_path]
        if isinstance(on_path, int):
            path.append(rated.get(on_path) or (listed[on_path].at("text").text(), None))
        elif on_path is not None:
            yield Note("step written by the labeler: in the path, without a target", record.where)
            path.append((on_path, None))
        ended = on_path is None or _nothing_chosen(step)
    yield from _as_chains(problem, path, branches, name, record.where)


def _completions(step: Node) -> list[Node]:
    listed = step.get("completions")
    return [] if listed is None or listed.is_missing() else listed.each()


def _rated(completion: Node) -> tuple[str, float] | Drop:
    """Text and target of a completion, or why it has none."""
    rating, flagged = completion.at("rating"), completion.get("flagged")
    text = completion.at("text").text()
    if rating.is_missing():
        return Drop("completion without a rating", completion.where, "part")
    if flagged is not None and flagged.value:
        return Drop("rating flagged by the labeler as uncertain", completion.where, "part")
    if type(rating.value) not in (int, float) or rating.value not in TARGETS:
        raise rating.wrong(f"a rating is -1, 0, 1 or null, not {rating.value!r}")
    if not text:
        return Drop("completion without a text", completion.where, "part")
    return text, TARGETS[rating.value]


def _nothing_chosen(step: Node) -> bool:
    """Whether the solution ended here: no completion was chosen and none was written."""
    return step.at("chosen_completion").is_missing() and not _written(step)


def _written(step: Node) -> str:
    """The labeler's own step, as a text or as an object that holds one; empty: there is none."""
    human = step.get("human_completion")
    if human is None or human.is_missing():
        return ""
    return human.text() if isinstance(human.value, str) else human.at("text").text()


def _on_path(
    step: Node, listed: list[Node], rated: dict[int, tuple[str, float]], own: list[str]
) -> int | str | None:
    """What stands in the path: the number of a completion, a text written by hand, or nothing."""
    chosen = step.at("chosen_completion")
    if not chosen.is_missing():
        if not isinstance(chosen.value, int) or not 0 <= chosen.value < len(listed):
            raise chosen.wrong(
                f"{chosen.value!r} is not the number of one of {len(listed)} completions (from 0)"
            )
        return chosen.value if listed[chosen.value].at("text").text() else None
    if written := _written(step):
        return written
    by_preference = [
        *(n for n, (text, _) in rated.items() if [text] == own),
        *(n for n, (_, target) in rated.items() if target == TARGETS[-1]),
        *rated,
    ]
    return by_preference[0] if by_preference else None


def _as_chains(
    problem: str,
    path: list[tuple[str, float | None]],
    branches: list[tuple[int, tuple[str, float]]],
    name: str,
    where: str,
) -> Iterator[Chain]:
    """The path when it has a label, and each branch: (steps of the path before it, itself)."""
    texts = tuple(text for text, _ in path)
    targets = tuple(target for _, target in path)
    if any(target is not None for target in targets):
        yield Chain(
            problem=problem, steps=texts, targets=targets, source=name, where=where, group=problem
        )
    for number, (before, (text, target)) in enumerate(branches, start=1):
        yield Chain(
            problem=problem,
            steps=(*texts[:before], text),
            targets=(None,) * before + (target,),
            source=name,
            where=f"{where}#branch {number}",
            group=problem,
        )
