"""From a record to a conversation with pictures: the shapes that rows come in, all made alike.

A row is messages whose content is a list of parts, ``{"type": "text", "text": …}`` and
``{"type": "image"}``, and its pictures in the order of these parts. A row with an instruction and
an answer is a question (pictures first, then the instruction) and an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.data.formats import Record
from headway.data.pictures.images import Picture, from_base64, from_pil
from headway.errors import DataError

SHAPES = (
    '{"image": "page.png", "instruction"?, "answer"}, {"image_base64", …}, {"bytes", …}, '
    '{"image": {"bytes", "path"}, …}, {"images": [ … ], …}, or {"messages": [ … ]} with image parts'
)
SINGLE = ("image", "image_base64", "image_path", "bytes")
ROLES = ("system", "user", "assistant")
_PLACE = re.compile(r"(?::\d+|\[\d+\])$")

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A conversation, its pictures, and where it is from."""

    where: str
    kind: str
    """``answer`` or ``messages``: the shape it came in."""
    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    filename: str = ""

    @property
    def answer(self) -> str:
        """What the assistant says last; empty where it says nothing."""
        said = [m for m in self.messages if m["role"] == "assistant"]
        return text_of(said[-1]) if said else ""

    @property
    def asked(self) -> str:
        """All that is written in it but the answers."""
        return "\n".join(text_of(m) for m in self.messages if m["role"] != "assistant")


def text_of(message: Message) -> str:
    """The text parts of a message, one after the other."""
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def recognise(record: Record, instruction: str | None = None) -> ImageRow:
    """Which of the known shapes this one record has. DataError names the field that is wrong.

    ``instruction``: asked in place of the row's own, and where it has none.
    """
    data, where = record.data, record.where
    filename = str(data.get("filename") or "")
    if data.get("messages") is not None:
        messages, pictures = _conversation(data, where)
        return ImageRow(where, "messages", messages, pictures, filename)
    pictures = _pictures(data, where)
    answer = _text(data, "answer", where)
    asked = instruction if instruction is not None else data.get("instruction")
    if not isinstance(asked, str):
        raise DataError(
            f"{where}: field 'instruction' must be text, and is {asked!r:.80}; or set "
            "data.instruction, which is asked of every row"
        )
    messages = (*question(asked, len(pictures)), _said("assistant", answer))
    return ImageRow(where, "answer", messages, pictures, filename)


def question(instruction: str, pictures: int) -> tuple[Message, ...]:
    """What is asked of the model: pictures first, then the instruction if there is one."""
    parts: list[dict[str, str]] = [{"type": "image"} for _ in range(pictures)]
    if instruction:
        parts.append({"type": "text", "text": instruction})
    return ({"role": "user", "content": parts},)


def picture_of(value: Any, where: str, folder: str) -> Picture:
    """A picture from a path, base64 in a ``data:`` URI, bytes, ``{bytes, path}`` or PIL's own."""
    if isinstance(value, bytes | bytearray):
        return Picture(where, data=bytes(value))
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return picture_of(value["bytes"], where, folder)
        if value.get("url") is not None:
            return picture_of(value["url"], where, folder)
        value = value.get("path")
    if hasattr(value, "save") and hasattr(value, "convert"):
        return from_pil(value, where)
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: no picture: {value!r:.80}. Known rows are {SHAPES}")
    if value.startswith("data:"):
        return from_base64(value, where)
    if value.startswith(("http://", "https://")):
        raise DataError(
            f"{where}: {value:.80} is on the network; fetch it first, and give its path: every "
            "attempt of a run must find the same pictures"
        )
    value = value.removeprefix("file://")
    if "://" in value or Path(value).is_absolute() or not folder:
        return Picture(where, path=value)
    return Picture(where, path=f"{folder}/{value}")


def folder_of(where: str) -> str:
    """The folder of the file that a record's place names; empty for the working directory."""
    file = _PLACE.sub("", where)
    if file.startswith("hf:") or "/" not in file:
        return ""
    parent = file.rsplit("/", 1)[0]
    return file if Path(file).is_dir() else parent


def _pictures(data: Mapping[str, Any], where: str) -> tuple[Picture, ...]:
    """The pictures of a row without messages."""
    folder = folder_of(where)
    if data.get("images") is not None:
        values = data["images"]
        if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
            raise DataError(f"{where}: field 'images' must be a list of pictures")
        return tuple(
            picture_of(value, f"{where}, picture {n}", folder) for n, value in enumerate(values, 1)
        )
    given = [name for name in SINGLE if data.get(name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or f"only {', '.join(map(repr, data)) or 'nothing'}"
        raise DataError(f"{where}: one picture is needed, and there is {found}. Known: {SHAPES}")
    name, value, place = given[0], data[given[0]], f"{where}, picture 1"
    if name == "image_base64":
        if not isinstance(value, str):
            raise DataError(f"{where}: field 'image_base64' must be text")
        return (from_base64(value, place),)
    return (picture_of(value, place, folder),)


def _conversation(
    data: Mapping[str, Any], where: str
) -> tuple[tuple[Message, ...], tuple[Picture, ...]]:
    """Messages with parts, and the pictures of their image parts in order."""
    turns = data["messages"]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError(f"{where}: the conversation must be a list with at least one message")
    waiting = list(data.get("images") or [])  # those that parts without a picture stand for
    folder = folder_of(where)
    messages: list[Message] = []
    pictures: list[Picture] = []
    for index, turn in enumerate(turns):
        at = f"{where}: message {index}"
        if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
            raise DataError(f"{at}: needs a role ({', '.join(ROLES)}) and content: {turn!r:.80}")
        parts: list[dict[str, str]] = []
        for part in _parts(turn.get("content"), at):
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                parts.append({"type": "text", "text": part["text"]})
                continue
            named = part.get("image_url", part.get("image")) if _is_image(part) else None
            if not _is_image(part) or (named is None and not waiting):
                raise DataError(f"{at}: a part that is no text and no picture: {part!r:.80}")
            value = waiting.pop(0) if named is None else named
            pictures.append(picture_of(value, f"{where}, picture {len(pictures) + 1}", folder))
            parts.append({"type": "image"})
        messages.append({"role": turn["role"], "content": parts})
    if waiting:
        raise DataError(f"{where}: {len(waiting)} pictures in 'images' have no part in messages")
    return tuple(messages), tuple(pictures)


def _is_image(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("image", "image_url")


def _parts(content: Any, at: str) -> list[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, Sequence) and all(isinstance(part, Mapping) for part in content):
        # A table's rows have every part's fields, those that are not its own empty.
        return [{k: v for k, v in part.items() if v is not None} for part in content]
    raise DataError(f"{at}: content must be text or a list of parts, and is {content!r:.80}")


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _text(data: Mapping[str, Any], name: str, where: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field {name!r} must be text, and is {value!r:.80}. Known rows are {SHAPES}; "
            f"name other fields with columns:, as in columns: {{{name}: label}}"
        )
    return value
