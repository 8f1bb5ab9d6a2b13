"""``--quick``: any config made so small that ten minutes tell whether the real run would work.

Same model, same data files, same places: only the horizon, the number of rows, and how often it
measures and saves are other, so that each part is tried. It is a run of its own, ``NAME-quick``.
"""

from __future__ import annotations

from typing import Any

from headway.config.run_config import RunConfig

STEPS = 10
ROWS = 100
"""Training rows that are read, over all sources of a list."""
HELD_OUT_ROWS = 20
EVERY_STEPS = 5
"""Between evaluations, and between saves."""
HELD_OUT_SHARE = 0.1
"""Of so few rows a smaller share might hold out none."""


def quick(config: RunConfig) -> RunConfig:
    """The config of a run of 10 steps on 100 rows, evaluated on at most 20 and saved at step 5.

    A source of tokens (``pretrain``) has no rows to leave out: it is read whole.
    """
    tree = config.tree()
    tree["run"]["name"] = f"{config.run.name or 'run'}-quick"
    train = tree["train"]
    train["horizon"] = {"steps": STEPS}
    if train["warmup"] >= 1:
        train["warmup"] = min(train["warmup"], EVERY_STEPS)
    if tree["evaluate"]:
        most = tree["evaluate"]["max_rows"] or HELD_OUT_ROWS
        tree["evaluate"] |= {
            "every_steps": EVERY_STEPS,
            "max_rows": min(most, HELD_OUT_ROWS),
            "early_stop": None,
        }
    tree["checkpoint"]["every_steps"] = EVERY_STEPS
    tree["task"] = _fewer(tree["task"], ROWS)
    return RunConfig(**tree)


def _fewer(value: Any, rows: int) -> Any:
    """The same tree, every source in it limited to its share of ``rows``."""
    if isinstance(value, list | tuple):
        sources = sum(_is_source(item) for item in value) or 1
        return [_fewer(item, -(-rows // sources)) for item in value]
    if not isinstance(value, dict):
        return value
    tree = {key: _fewer(item, ROWS) for key, item in value.items()}
    if _is_source(value):
        tree["limit"] = min(value["limit"] or rows, rows)
    if isinstance(tree.get("eval_fraction"), float):
        tree["eval_fraction"] = max(tree["eval_fraction"], HELD_OUT_SHARE)
    return tree


def _is_source(value: Any) -> bool:
    """Whether this is a place that rows are read from."""
    return isinstance(value, dict) and {"path", "limit"} <= set(value)
