"""The ``data:`` section of recipes that learn from pictures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headway.data.pictures.images import Reading
from headway.data.sources import Sources, refuse_contradictions, weights_of


class ImageData(BaseModel):
    """What to train on, what to hold out, what to refuse, and how pictures are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    train: Sources = Field(
        min_length=1, description="Where training rows come from: a path, a source, or a list."
    )
    eval: Sources | None = Field(
        None, description="Where held-out rows come from. Give this or eval_fraction, or neither."
    )
    test: Sources | None = Field(
        None,
        min_length=1,
        description="Where rows come from that never choose anything: not the best checkpoint, not "
        "when to stop. `headway evaluate RUN --split test` measures on them.",
    )
    eval_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Hold out this share of the training rows, chosen by seed and picture: rows "
        "of one picture always fall on the same side.",
    )
    instruction: str | None = Field(
        None,
        description="Asked of every row in place of its own instruction; an empty text asks "
        "nothing but the picture. None: each row's own.",
    )
    images: Reading = Field(Reading(), description="How pictures are read.")
    overlong: Literal["truncate", "drop", "error"] = Field(
        "error",
        description="What to do with a row of more than max_tokens: keep its head (a picture is "
        "never cut: such a row is dropped), leave it out, or stop.",
    )
    chat_template: str = Field(
        "model",
        description="model: the tokenizer's own. plain: headway's '### User / ### Assistant' form. "
        "Or the path of a Jinja file.",
    )
    max_truncated: float = Field(
        0.2, ge=0, le=1, description="Refuse when a larger share of rows would be truncated."
    )
    max_dropped: float = Field(
        0.02, ge=0, le=1, description="Refuse when a larger share of rows would be dropped."
    )
    max_leaked: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Refuse when the pictures of a larger share of the held-out rows are among the "
        "training rows' too, or of the test rows' among either.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ImageData:
        refuse_contradictions(self.train, self.eval, self.test, self.eval_fraction)
        return self

    @property
    def weights(self) -> list[float] | None:
        """One weight per training source, or None."""
        return weights_of(self.train)
