"""The one place where a conversation with pictures becomes tokens.

Training, evaluation and prediction all call it, so they cannot differ: a training row *is* the
prompt that prediction would be given, followed by the tokens of the answer. Text is tokenised in
pieces, one before each answer and one for the answer, so that no token lies across the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.data.pictures.records import Message, text_of
from headway.errors import DataError

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + '\n' }}"
    "{% for part in message['content'] %}"
    "{{ image_mark + '\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}"
)
"""``chat_template: plain``: ``### User``, pictures' marks, text, ``### Assistant``, text, EOS."""


@dataclass(frozen=True, slots=True)
class PromptWriter:
    """A tokenizer, the template that writes conversations, and how a picture stands in a text."""

    tokenizer: Any
    template: str
    image_mark: str
    """What the plain template writes for a picture: ``<|vision_start|><|image_pad|>…``."""
    image_id: int
    """The token that stands for one feature of a picture; a picture has as many as features."""

    def prompt(
        self, messages: Sequence[Message], features: Sequence[int], where: str
    ) -> NDArray[np.int32]:
        """Token ids [tokens] of all that is given before the answer to ``messages`` begins.

        ``features``: how many each picture has. DataError where pictures and their places differ.
        """
        text = self._written(messages, where, answering=True)
        return self._expanded([self._ids(text, where, first=True)], features, where)[0]

    def example(
        self, messages: Sequence[Message], features: Sequence[int], where: str
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids [tokens] of a whole conversation, and which of them the assistant says."""
        ids, said = [], []
        for number, (text, answer) in enumerate(self._pieces(messages, where)):
            piece = self._ids(text, where, first=number == 0)
            end = np.array(self._end(text, where) if answer else [], dtype=np.int32)
            ids.append(np.concatenate([piece, end]))
            said.append(answer)
        whole = self._expanded(ids, features, where)
        marks = [np.full(len(piece), s) for piece, s in zip(whole, said, strict=True)]
        return np.concatenate(whole), np.concatenate(marks)

    def _pieces(self, messages: Sequence[Message], where: str) -> Iterator[tuple[str, bool]]:
        """(text, whether the assistant says it), in order, up to the end of the last answer."""
        whole, at = self._written(messages, where), 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._written(messages[:index], where, answering=True)
            last = index + 1 == len(messages)
            after = whole if last else self._written(messages[: index + 1], where)
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= at):
                raise DataError(
                    f"{where}: the chat template writes turns differently depending on what comes "
                    "after them, so what the model is given when it answers cannot be told. Give "
                    "each answer a row of its own, or set chat_template: plain"
                )
            answer = after[len(before) :].rstrip()
            yield before[at:], False
            yield answer, True
            at = len(before) + len(answer)

    def _end(self, answer: str, where: str) -> list[int]:
        """EOS for an answer whose end the template does not mark; else nothing."""
        if any(answer.endswith(str(t)) for t in self.tokenizer.added_tokens_decoder.values()):
            return []
        if self.tokenizer.eos_token_id is None:
            raise DataError(f"{where}: the tokenizer has no EOS token to end an answer with")
        return [int(self.tokenizer.eos_token_id)]

    def _ids(self, text: str, where: str, *, first: bool) -> NDArray[np.int32]:
        """Tokens of a piece; only the first begins as the tokenizer begins a text (BOS)."""
        bos = self.tokenizer.bos_token
        begins = first and not (bos and text.startswith(bos))
        try:
            ids = self.tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"]
        except Exception as error:  # a word-level tokenizer raises a bare Exception
            raise DataError(f"{where}: the tokenizer cannot write this text: {error}") from error
        eos = self.tokenizer.eos_token_id
        if begins and ids and ids[-1] == eos and not text.endswith(str(self.tokenizer.eos_token)):
            ids = ids[:-1]  # some tokenizers end every text; nothing has ended here
        return np.array(ids, dtype=np.int32)

    def _expanded(
        self, pieces: list[NDArray[np.int32]], features: Sequence[int], where: str
    ) -> list[NDArray[np.int32]]:
        """The pieces with each picture's mark repeated, once for each of its features."""
        places = sum(int((piece == self.image_id).sum()) for piece in pieces)
        if places != len(features):
            raise DataError(
                f"{where}: {len(features)} pictures, and the text as written has room for {places}:"
                " the chat template leaves pictures out, or the mark of a picture stands in a text"
            )
        waiting, found = iter(features), []
        for piece in pieces:
            times = np.ones(len(piece), dtype=np.int64)
            for place in np.flatnonzero(piece == self.image_id):
                times[place] = next(waiting)
            found.append(np.repeat(piece, times))
        return found

    def _written(self, messages: Sequence[Message], where: str, *, answering: bool = False) -> str:
        try:
            written: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=answering,
                image_mark=self.image_mark,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"{where}: the chat template cannot write the first {len(messages)} messages: "
                f"{error}. Check the roles and their order, or set chat_template:"
            ) from error
        return written


def chosen_template(choice: str, tokenizer: Any) -> str:
    """The Jinja text that ``chat_template:`` names. DataError where there is none."""
    if choice == "plain":
        return PLAIN_TEMPLATE
    if choice == "model":
        found = getattr(tokenizer, "chat_template", None)
        if found is None:
            raise DataError(
                "the model has no chat template; set task.data.chat_template: plain, or the path "
                "of a Jinja file"
            )
        return found if isinstance(found, str) else str(found["default"])
    if not Path(choice).is_file():
        raise DataError(f"chat_template: {choice!r} is neither model, plain, nor a Jinja file")
    return Path(choice).read_text(encoding="utf-8")


def is_blank(messages: Sequence[Message]) -> bool:
    """Whether the assistant says nothing in any of its turns."""
    return not any(text_of(m).strip() for m in messages if m["role"] == "assistant")
