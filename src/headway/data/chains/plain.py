"""Chains as plain records: JSON Lines with ``problem``, ``steps`` and ``targets``, and tables of
any columns, where one text with one number is a chain of one step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from headway.data.chains.chain import Chain, Drop, Item
from headway.data.chains.nodes import Node
from headway.data.chains.section import ChainColumns
from headway.data.formats import Record

CHAIN_COLUMNS = ChainColumns(problem=("problem",), steps=("steps",), targets=("targets",))
"""The names that ``headway data step-labels`` writes. ``problem`` may be missing."""
TABLE_COLUMNS = ChainColumns(text=("text",), targets=("target",))

_BLANK = re.compile(r"\{([^{}]+)\}")


def chains(
    record: Record,
    name: str,
    *,
    columns: ChainColumns = CHAIN_COLUMNS,
    labels: Mapping[str, float | None] | None = None,
    with_evidence: bool = False,
) -> Iterator[Item]:
    """The chain of a record, or why there is none. DataError for a record of another shape."""
    root = Node.root(record)
    steps = _steps(root, columns)
    if not steps or not all(steps):
        yield Drop("no text, or a step without one", record.where)
        return
    listed = _each(root, columns.targets)
    targets: list[float | None] = [_target(node, labels) for node in listed]
    # A column's one label; a list of one beside several steps has lost the others.
    if len(listed) == 1 and listed[0].key in columns.targets and columns is not CHAIN_COLUMNS:
        targets = [*(None for _ in steps[1:]), *targets]
    if all(target is None for target in targets):
        yield Drop("no label", record.where)
        return
    problem = _problem(root, columns)
    numbers = {key: root.at(column) for key, column in columns.extra.items()}
    passages = root.at("evidence").each() if with_evidence else []
    yield Chain(
        problem=problem,
        steps=tuple(steps),
        targets=tuple(targets),
        source=name,
        where=record.where,
        group=root.at(columns.group).name() if columns.group else problem or "\n".join(steps),
        evidence=tuple(passage.text() for passage in passages),
        kinds=_kinds(root),
        extra={key: node.number() for key, node in numbers.items() if not node.is_missing()},
    )


def _problem(root: Node, columns: ChainColumns) -> str:
    if columns is CHAIN_COLUMNS and root.get("problem") is None:
        return ""
    return "\n".join(_text(node) for node in _each(root, columns.problem or ()))


def _steps(root: Node, columns: ChainColumns) -> list[str]:
    if columns.text is not None:
        return ["\n".join(_text(node) for node in _each(root, columns.text)).strip()]
    return [_text(node) for node in _each(root, columns.steps or ())]


def _text(node: Node) -> str:
    """The text; empty for null, which is how Parquet and JSON write a gap of a CSV file."""
    return "" if node.is_missing() else node.text()


def _each(root: Node, names: Sequence[str]) -> list[Node]:
    """The fields named; the items of the one field named when it is a list."""
    nodes = [_filled(root, name) if _BLANK.search(name) else root.at(name) for name in names]
    return nodes[0].each() if len(nodes) == 1 and isinstance(nodes[0].value, list) else nodes


def _filled(root: Node, template: str) -> Node:
    """``{Question} {Answer}`` with the values of these fields."""

    def value(blank: re.Match[str]) -> str:
        node = root.at(blank[1])
        return "" if node.is_missing() else node.name()

    return Node(_BLANK.sub(value, template), root.where, template)


def _target(node: Node, labels: Mapping[str, float | None] | None) -> float | None:
    """The number, or what the word stands for; None when there is nothing."""
    if node.is_missing():
        return None
    if labels is None:
        return node.number()
    if node.name() not in labels:
        raise node.wrong(f"{node.value!r} is none of labels: {', '.join(labels)}. Give it a number")
    return labels[node.name()]


def _kinds(root: Node) -> tuple[str | None, ...]:
    """The type of error of each step, when the record says it."""
    kinds = root.get("kinds")
    if kinds is None or kinds.is_missing():
        return ()
    return tuple(None if kind.is_missing() else kind.text() for kind in kinds.each())
