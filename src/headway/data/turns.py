"""Which characters of a written conversation the assistant says.

A template is a program that writes the whole conversation; where the answers are in its output it
does not tell. First by prefixes: what it adds to "everything so far, and now the assistant" is the
answer and its end of turn. Templates of thinking models write an earlier turn otherwise than the
last one, so for them by markers: the conversation is written again with a marker in place of each
answer, and the two must be the same everywhere else. Either way the result is proven, or refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headway.errors import DataError

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, where they are from, and what writes them."""

    messages: Sequence[Mapping[str, Any]]
    where: str
    tokenizer: Any
    template: str

    def whole(self) -> str:
        """All messages as the template writes them."""
        return self._written(self.messages)

    def answers(self, whole: str) -> list[Span]:
        """Half-open character spans of the answers in ``whole``: from the first character through
        the end-of-turn mark, without the white space that only separates turns.
        """
        said = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        found = [self._by_prefix(index, whole) for index in said]
        spans = [span for span in found if span is not None]
        if len(spans) == len(said):
            return spans
        return list(self._by_markers(said, whole))

    def _by_prefix(self, index: int, whole: str) -> Span | None:
        """The answer of message ``index``, or None where a turn changes what stands around it."""
        before = self._written(self.messages[:index], answering=True)
        last = index + 1 == len(self.messages)
        after = whole if last else self._written(self.messages[: index + 1])
        if not (after.startswith(before) and whole.startswith(after)):
            return None
        answer = after[len(before) :].rstrip()
        content = self.messages[index]["content"].rstrip()
        if content and answer.endswith(content):
            raise self._endless()
        return len(before), len(before) + len(answer)

    def _by_markers(self, said: Sequence[int], whole: str) -> Iterator[Span]:
        """The answers, where everything else is written the same whatever they say."""
        if any(set(self.messages[i]) - {"role", "content", "name"} for i in said):
            raise self._unclear()  # tool calls, reasoning: said too, and not where the marker is
        markers = [f"\ue000answer {index}\ue001" for index in said]
        marked = [dict(message) for message in self.messages]
        for index, marker in zip(said, markers, strict=True):
            marked[index]["content"] = marker
        text = self._written(marked)
        cuts = [text.find(marker) for marker in markers]
        around = []  # what stands before, between and after the answers
        edges = [0, *(c + len(m) for c, m in zip(cuts, markers, strict=True))]
        for start, end in zip(edges, [*cuts, len(text)], strict=True):
            around.append(text[start:end])
        if min(cuts) < 0 or any(a >= b for a, b in pairwise(cuts)) or "" in around[1:-1]:
            raise self._unclear()
        at = 0
        for number, index in enumerate(said):
            at += len(around[number])
            content = self.messages[index]["content"]
            written = next((c for c in (content, content.strip()) if whole.startswith(c, at)), None)
            if written is None or not whole.startswith(around[number + 1], at + len(written)):
                raise self._unclear()
            yield at, at + len(written) + len(self._end_mark(around[number + 1]))
            at += len(written)
        if not whole.startswith(around[0]) or at + len(around[-1]) != len(whole):
            raise self._unclear()

    def _end_mark(self, following: str) -> str:
        """The special token that ends a turn, with the white space before it."""
        gap = following[: len(following) - len(following.lstrip())]
        tokens = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        ends = [token for token in tokens if following.startswith(token, len(gap))]
        if not ends:
            raise self._endless()
        return gap + max(ends, key=len)

    def _written(self, messages: Sequence[Mapping[str, Any]], *, answering: bool = False) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=answering,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise DataError(
                f"{self.where}: the chat template cannot write the first {len(messages)} messages: "
                f"{error}. Check the roles and their order, or set chat_template:"
            ) from error

    def _unclear(self) -> DataError:
        return DataError(
            f"{self.where}: the chat template writes turns differently depending on what comes "
            "before or after them, so which tokens are the answers cannot be told. Give each "
            "answer a row of its own, or set chat_template: to one that writes every turn alike."
        )

    def _endless(self) -> DataError:
        return DataError(
            f"{self.where}: the chat template does not mark the end of an answer, so the model "
            "would never learn to stop. Set chat_template: to one that ends each answer with "
            f"{self.tokenizer.eos_token!r}."
        )
