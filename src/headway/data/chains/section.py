"""The ``data:`` section of recipes that learn numbers from text: where chains come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from headway.data.sources import refuse_contradictions, weights_of

ChainFormat = Literal["auto", "prm800k", "reveal", "eqasc", "chains", "table"]
_CLOSED = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return (
        tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value
    )


Columns = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    Field(min_length=1),
]
"""One name of a field, or several; one with braces is filled in: ``{Question} {Answer}``."""


class ChainColumns(BaseModel):
    """Which field of a record is what. A name like ``{Question}: {Answer}`` is filled in."""

    model_config = _CLOSED

    problem: Columns | None = Field(
        None, description="What is asked: the fields named, a line each. None: nothing is."
    )
    text: Columns | None = Field(
        None, description="One text to be given a number: the fields named, a line each."
    )
    steps: Columns | None = Field(
        None, description="The steps: one field each, or one field that holds a list."
    )
    targets: Columns = Field(
        ("targets",),
        description="The label of each step, in their order: one field each, or one field that "
        "holds a list. A single label belongs to the last step.",
    )
    group: str | None = Field(
        None, description="Records with the same value are never separated. None: by problem."
    )
    extra: Mapping[str, str] = Field(
        {}, description="Other numbers to keep, to compare with: name -> field."
    )

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> ChainColumns:
        if (self.text is None) == (self.steps is None):
            raise ValueError("give text (one text, one number) or steps, and not both")
        return self


class ChainSource(BaseModel):
    """One place chains are read from. A bare string in a config means ``path``."""

    model_config = _CLOSED

    path: str = Field(description="A file, a folder, a remote path or a dataset, as for any data.")
    name: str | None = Field(
        None,
        min_length=1,
        description="Metrics are given per name. None: the format, or the file's name.",
    )
    format: ChainFormat = Field("auto", description="auto: by the fields of the first record.")
    weight: float | None = Field(
        None, gt=0, description="Relative share of this source in a mixture; all sources or none."
    )
    split: str | None = Field(None, description="Split of a Hugging Face dataset.")
    limit: int | None = Field(
        None, ge=1, description="Use only the first so many records; of reveal, answers."
    )
    columns: ChainColumns | None = Field(
        None, description="For a table, or for JSON Lines with other names: which field is what."
    )
    labels: Mapping[str, float | None] | None = Field(
        None,
        description="Words that stand for numbers: {yes: 1, no: 0, '?': null}; null is left out.",
    )
    label: Literal["human", "score"] | None = Field(
        None,
        description="eqasc: human (whether people found the chain valid; the default) or score "
        "(the retrieval score of each fact).",
    )
    with_evidence: bool = Field(
        False, description="reveal, chains: give the model the passages the labels were based on."
    )
    accept_terms: bool = Field(
        False, description="reveal: train on it although its terms allow only to evaluate."
    )


def _as_sources(value: Any) -> Any:
    """A path, a spec, or a list of either -> a list of specs."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"path": str(i)} if isinstance(i, str | Path) else i for i in items)


ChainSources = Annotated[
    tuple[ChainSource, ...],
    BeforeValidator(
        _as_sources, json_schema_input_type=str | ChainSource | list[str | ChainSource]
    ),
]
"""One place or several; a bare string is a path."""


class ChainData(BaseModel):
    """What to train on and what to hold out."""

    model_config = _CLOSED

    train: ChainSources = Field(
        min_length=1, description="Where training chains come from: a path, a source, or a list."
    )
    eval: ChainSources | None = Field(
        None,
        min_length=1,
        description="Where held-out chains come from. Give this or eval_fraction, or neither.",
    )
    test: ChainSources | None = Field(
        None,
        min_length=1,
        description="Where chains come from that never choose anything: not the best checkpoint, "
        "not when to stop. `headway evaluate RUN --split test` measures on them.",
    )
    eval_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Hold out this share of the problems, chosen by seed: all chains of a problem "
        "fall on the same side.",
    )
    eval_fold: int = Field(
        0,
        ge=0,
        description="With eval_fraction 0.2, folds 0 to 4 hold out five disjoint sets of problems "
        "that together are all of them: cross-validation is one run for each.",
    )
    max_leaked: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Refuse when a larger share of the held-out chains is among the training ones, "
        "or of the test chains among either.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ChainData:
        if self.eval_fold and self.eval_fraction is None:
            raise ValueError("eval_fold divides what eval_fraction holds out: give eval_fraction")
        if self.eval_fraction and (self.eval_fold + 1) * self.eval_fraction > 1 + 1e-9:
            raise ValueError(
                f"there is no fold {self.eval_fold} (counted from 0) when each is "
                f"{self.eval_fraction} of the problems"
            )
        refuse_contradictions(self.train, self.eval, self.test, self.eval_fraction)
        return self

    @property
    def weights(self) -> list[float] | None:
        """One weight per training source, or None: sampled by size."""
        return weights_of(self.train)
