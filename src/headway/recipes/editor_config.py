"""What a config says of a latent editor: model, weights of the loss, and data."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator, model_validator

from headway.config import CLOSED
from headway.models.latent_editor import EditorShape
from headway.models.tuning import Lora, Tuning


class EditData(BaseModel):
    """Where edits come from: folders of `headway data cad-edits`, or JSON in the seed's fields."""

    model_config = CLOSED

    train: str
    """Edits to train on."""
    eval: str | None = None
    """Edits held out. Give this or `eval_fraction`, or neither."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Hold out this share of the training edits."""
    split: int = Field(default=0, ge=0)
    """`eval_fraction` only: which of the many ways to draw them."""
    test: str | None = None
    """Edits that never choose anything: `headway evaluate RUN --split test`."""
    max_unreadable: float = Field(default=0.02, ge=0, le=1)
    """Refuse when a larger share of the labels is not in the text: an own reader looks for them."""

    @model_validator(mode="after")
    def _consistent(self) -> EditData:
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError("give eval or eval_fraction, not both")
        if self.eval_fraction is None and self.split:
            raise ValueError("split has no effect without eval_fraction; leave it out")
        return self


class EditWeights(BaseModel):
    """What each part of the loss weighs; the change of the latent weighs 1."""

    model_config = CLOSED

    named: float = Field(default=2.0, ge=0)
    """Which dimensions change, as said in the text."""
    amounts: float = Field(default=1.0, ge=0)
    """By how much they do: the likelihood of the amounts that the labels name."""
    direction: float = Field(default=0.1, ge=0)
    """Whether it becomes more or less; edits that ask for neither, or both, have no part in it."""
    dimensions: float = Field(default=0.0, ge=0)
    """The dimensions that the autoencoder reads from the edited latent; needs an autoencoder."""


class LatentEditorConfig(BaseModel):
    """What to train, and on which edits."""

    model_config = CLOSED

    base_model: str
    """A hub name, a folder, a GGUF file, or `package:NAME/FILE` inside an installed package."""
    revision: str | None = None
    """Commit or tag on the hub; left out: the newest."""
    tuning: Tuning = Field(default=Lora(), validate_default=True)
    """Which parameters of the language model train: `full`, `lora` or `qlora`. Projector and head
    always do."""
    layers: int | None = Field(default=None, ge=1)
    """Only the first so many layers of the language model; left out: all. What a short sentence
    means stands in the hidden states of a middle layer, and the later ones cost as much."""
    latent: int = Field(default=32, ge=1)
    """Numbers in a latent; those of the data must be as many."""
    editor: EditorShape = EditorShape()
    """What stands around the language model."""
    weights: EditWeights = EditWeights()
    """What counts how much."""
    vae: str | None = None
    """Folder of the exported graph VAE that made the latents; left out: `vae/` in the training
    data, and where that is not there either, latents are never read back to dimensions."""
    text_format: str = "{instruction}\n"
    """How an instruction is written; `{instruction}` is filled in."""
    max_tokens: int = Field(default=128, ge=4)
    """Longest row in tokens, the latent's included. A longer one is an error."""
    data: EditData
    """Where edits come from."""

    @field_validator("text_format")
    @classmethod
    def _has_its_place(cls, value: str) -> str:
        if value.count("{instruction}") != 1:
            raise ValueError("must hold {instruction} once")
        return value

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """None: the latent's embedding is no token's."""
        return ()
