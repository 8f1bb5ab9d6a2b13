"""From a record to tokens, and which of them the model is trained to say.

Each record is recognised by itself, whatever its neighbours look like, and becomes a conversation
or a text. A conversation is written with the model's own chat template, and ``turns`` says which
characters are the answers. The whole text is tokenised once, and characters are mapped to tokens,
so no boundary changes a token.

The contract with everything downstream: token t is a *target*, predicted from tokens before it,
when ``supervised[t]``. Nothing in ``data`` shifts anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headway.data.formats import Record
from headway.data.turns import Conversation
from headway.errors import DataError

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + '\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\n' }}{% endif %}"
)
"""``chat_template: plain``, for base models: ``### User``, text, ``### Assistant``, text, EOS."""

SHAPES = (
    '{"messages": [{"role", "content"}, …]}, {"conversations": [{"from", "value"}, …]}, '
    '{"instruction", "input"?, "output"}, {"prompt", "completion"}, {"question", "answer"}, '
    '{"text"}'
)
_PAIRS = (
    ("alpaca", "instruction", "output"),
    ("prompt", "prompt", "completion"),
    ("question", "question", "answer"),
)
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What a record says, in one of two forms: ``messages``, or ``text`` when that is not None."""

    kind: str
    where: str
    messages: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None

    @property
    def content(self) -> str:
        """The same string for the same content, whatever shape or file it came in."""
        return self.text if self.text is not None else json.dumps(self.messages, sort_keys=True)

    def is_empty(self, train_on: str) -> bool:
        """Whether nothing is said where something would be learned: no answer, or a blank one."""
        if self.text is not None:
            return not self.text.strip()
        said = [m for m in self.messages if train_on == "all" or m["role"] == "assistant"]
        return not any(m["content"].strip() or m.get("tool_calls") for m in said)


@dataclass(frozen=True, slots=True)
class Written:
    """A row as text [characters], and the half-open character spans that are supervised."""

    row: Row
    text: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model sees it. ``ids`` int32 [tokens], ``supervised`` bool [tokens]."""

    ids: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    where: str
    kind: str
    full_tokens: int
    """Tokens before anything was cut."""

    @property
    def truncated(self) -> bool:
        """Whether the end was cut off."""
        return len(self.ids) < self.full_tokens

    @property
    def weight(self) -> int:
        """Targets: supervised tokens after the first, which nothing predicts."""
        return int(self.supervised[1:].sum())


def render(
    record: Record,
    tokenizer: Any,
    *,
    max_tokens: int,
    train_on: str = "assistant",
    overlong: str = "truncate",
    chat_template: str = "model",
) -> Example:
    """One record as the model sees it: :func:`recognise`, :func:`write`, :func:`encode`."""
    template = chosen_template(chat_template, tokenizer)
    written = write(recognise(record), tokenizer, template, train_on=train_on)
    return encode([written], tokenizer, max_tokens=max_tokens, overlong=overlong)[0]


def chosen_template(choice: str, tokenizer: Any) -> str | None:
    """The Jinja text that ``chat_template:`` names, or None for a tokenizer without one."""
    if choice == "model":
        template = getattr(tokenizer, "chat_template", None)
        return template if template is None or isinstance(template, str) else template["default"]
    if choice == "plain":
        return PLAIN_TEMPLATE
    if not Path(choice).is_file():
        raise DataError(f"chat_template: {choice!r} is neither model, plain, nor a Jinja file")
    return Path(choice).read_text(encoding="utf-8")


def recognise(record: Record) -> Row:
    """Which of the known shapes this one record has. DataError names the field that is wrong."""
    data, where = record.data, record.where
    if data.get("messages") is not None:
        return Row("messages", where, _messages(data["messages"], where, "role", "content"))
    if data.get("conversations") is not None:
        turns = data["conversations"]
        sharegpt = isinstance(turns, list) and any(
            "from" in t for t in turns if isinstance(t, dict)
        )
        keys = ("from", "value") if sharegpt else ("role", "content")
        return Row("conversations", where, _messages(turns, where, *keys))
    for kind, asked, answered in _PAIRS:
        if asked in data and answered in data:
            return Row(kind, where, _pair(data, where, asked, answered))
    if "text" in data:
        return Row("text", where, text=_string(data, "text", where))
    raise DataError(
        f"{where}: no known shape: the fields are {', '.join(map(repr, data)) or 'none'}. Known "
        f"are {SHAPES}. Name other fields with columns:, as in columns: {{question: Q, answer: A}}"
    )


def write(
    row: Row, tokenizer: Any, template: str | None, *, train_on: str = "assistant"
) -> Written:
    """The row as one string, and what of it is supervised.

    DataError when the answers cannot be found in what the template writes, or their end is not
    marked: the model would never learn to stop.
    """
    if row.text is not None:
        return Written(row, row.text, ((0, len(row.text)),))
    if template is None:
        raise DataError(
            f"{row.where}: a conversation, but the tokenizer has no chat template (a base model?). "
            'Set chat_template: plain, or the path of a Jinja file, or use {"text"} rows.'
        )
    conversation = Conversation(row.messages, row.where, tokenizer, template)
    whole = conversation.whole()
    if train_on == "all":
        return Written(row, whole, ((0, len(whole)),))
    return Written(row, whole, tuple(conversation.answers(whole)))


def encode(
    rows: Sequence[Written], tokenizer: Any, *, max_tokens: int, overlong: str = "truncate"
) -> list[Example]:
    """Tokens of many rows at once. A text row ends in EOS, and begins as the tokenizer begins one.

    ``overlong``: ``truncate`` keeps the head; ``drop`` keeps no token, so nothing is supervised;
    ``error`` refuses the row.
    """
    examples: list[Example | None] = [None] * len(rows)
    for is_text in (False, True):
        mine = [i for i, written in enumerate(rows) if (written.row.text is not None) == is_text]
        if not mine:
            continue
        tokens = _tokenised([rows[i].text for i in mine], tokenizer, specials=is_text)
        for i, (ids, ends) in zip(mine, tokens, strict=True):
            supervised = _inside(ends, rows[i].spans)
            if is_text:
                ids, supervised = _ended(ids, supervised, tokenizer, rows[i].row.where)
            examples[i] = _fitted(ids, supervised, rows[i].row, max_tokens, overlong)
    return [example for example in examples if example is not None]


def spans(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """The example as text in runs: (text, whether it is supervised). For people to look at.

    A first token that is supervised is shown as not: nothing predicts it.
    """
    target = example.supervised.copy()
    target[:1] = False
    cuts = [0, *(np.flatnonzero(np.diff(target)) + 1).tolist(), len(target)]
    runs = []
    for start, end in pairwise(cuts):
        if end > start:
            text = tokenizer.decode(example.ids[start:end].tolist(), skip_special_tokens=False)
            runs.append((text, bool(target[start])))
    return runs


def _messages(
    turns: Any, where: str, role_key: str, content_key: str
) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: the conversation must be a list with at least one message")
    messages = []
    for index, turn in enumerate(turns):
        at = f"{where}: message {index}"
        if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
            raise DataError(f"{at}: needs {role_key!r} and {content_key!r}, and is {turn!r:.80}")
        role = turn[role_key]
        if role_key == "from":
            if role not in _SHAREGPT_ROLES:
                known = ", ".join(_SHAREGPT_ROLES)
                raise DataError(f"{at}: unknown speaker {role!r}; known are {known}")
            role = _SHAREGPT_ROLES[role]
        content = turn.get(content_key)
        calls = turn.get("tool_calls")
        if not (isinstance(content, str) or (content is None and calls)):
            raise DataError(f"{at}: {content_key!r} must be text, and is {content!r:.80}")
        extra = {k: v for k, v in turn.items() if k not in (role_key, content_key)}
        extra = {k: v for k, v in extra.items() if v is not None}
        messages.append({"role": role, "content": content or "", **extra})
    return tuple(messages)


def _pair(
    data: Mapping[str, Any], where: str, asked: str, answered: str
) -> tuple[Mapping[str, Any], ...]:
    """Question and answer as messages, after an optional ``system`` message."""
    if isinstance(data[asked], list) and isinstance(data[answered], list):
        return _messages(data[asked] + data[answered], where, "role", "content")
    question, answer = _string(data, asked, where), _string(data, answered, where)
    if asked == "instruction" and data.get("input"):
        question += "\n\n" + _string(data, "input", where)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if data.get("system"):
        messages.insert(0, {"role": "system", "content": _string(data, "system", where)})
    return tuple(messages)


def _string(data: Mapping[str, Any], name: str, where: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise DataError(f"{where}: field {name!r} must be text, and is {value!r:.80}")
    return value


def _tokenised(
    texts: list[str], tokenizer: Any, *, specials: bool
) -> list[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """For each text its ids [tokens], and at which character each token ends [tokens].

    Ends alone, and never falling: a byte-level tokenizer leaves leading spaces out of a token's
    offsets, and gives every piece of a many-byte character the same ones.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("the tokenizer cannot tell which characters a token covers: use a fast one")
    found = tokenizer(
        texts, add_special_tokens=specials, return_offsets_mapping=True, verbose=False
    )
    result = []
    for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True):
        ends = np.array([end for _, end in offsets], dtype=np.int64)
        result.append((np.array(ids, dtype=np.int32), np.maximum.accumulate(ends)))
    return result


def _inside(ends: NDArray[np.int64], spans: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
    """Tokens [tokens] that end inside one of the spans; one that begins before it counts too."""
    inside = np.zeros(len(ends), dtype=np.bool_)
    for start, end in spans:
        inside |= (ends > start) & (ends <= end)
    return inside


def _ended(
    ids: NDArray[np.int32], supervised: NDArray[np.bool_], tokenizer: Any, where: str
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The tokens of a text with EOS as their last, itself a target."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(f"{where}: the tokenizer has no EOS token to end a text with; give it one")
    if len(ids) == 0 or ids[-1] != eos:
        ids, supervised = np.append(ids, np.int32(eos)), np.append(supervised, True)
    supervised[-1] = True
    return ids, supervised


def _fitted(
    ids: NDArray[np.int32],
    supervised: NDArray[np.bool_],
    row: Row,
    max_tokens: int,
    overlong: str,
) -> Example:
    count = len(ids)
    if count > max_tokens:
        if overlong == "error":
            raise DataError(
                f"{row.where}: {count} tokens, more than max_tokens: {max_tokens}. Raise "
                "max_tokens, or set overlong: to truncate or drop."
            )
        keep = max_tokens if overlong == "truncate" else 0
        ids, supervised = ids[:keep], supervised[:keep]
    return Example(ids, supervised, row.where, row.kind, count)
