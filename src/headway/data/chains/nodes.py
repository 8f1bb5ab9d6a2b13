"""A value inside a record that knows its place: whatever is wrong with it is said with file, line,
key, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.data.formats import Record
from headway.errors import DataError


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a record, where the record is, and the key that leads to the value."""

    value: Any
    where: str
    key: str = ""

    @classmethod
    def root(cls, record: Record) -> Node:
        """The whole record."""
        return cls(record.data, record.where)

    def wrong(self, problem: str) -> DataError:
        """An error to raise: ``problem`` says what is wrong and what to do."""
        place = f"{self.where}: {self.key}" if self.key else self.where
        return DataError(f"{place}: {problem}")

    def at(self, name: str) -> Node:
        """The field of this name. DataError when there is none."""
        found = self.get(name)
        if found is None:
            has = ", ".join(map(repr, self.value)) or "nothing"
            raise self.wrong(f"no field {name!r}; there is {has}. Is this the right format?")
        return found

    def get(self, name: str) -> Node | None:
        """The field of this name, or None. DataError when this is not an object with fields."""
        if not isinstance(self.value, Mapping):
            raise self.wrong(f"an object with named fields was expected, not {self._shown()}")
        if name not in self.value:
            return None
        return Node(self.value[name], self.where, f"{self.key}.{name}" if self.key else name)

    def each(self) -> list[Node]:
        """The items of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.wrong(f"a list was expected, not {self._shown()}")
        return [Node(v, self.where, f"{self.key}[{i}]") for i, v in enumerate(self.value)]

    def text(self) -> str:
        """The text, without blanks at its ends; it may be empty."""
        if not isinstance(self.value, str):
            raise self.wrong(f"a text was expected, not {self._shown()}")
        return self.value.strip()

    def name(self) -> str:
        """An identifier, which may be a text or a number."""
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float):
            raise self.wrong(f"a name or a number was expected, not {self._shown()}")
        return str(self.value).strip()

    def number(self) -> float:
        """A finite number, or a text that is one."""
        number = math.nan
        if isinstance(self.value, str | int | float) and not isinstance(self.value, bool):
            try:
                number = float(self.value)
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise self.wrong(f"a finite number was expected, not {self._shown()}")
        return number

    def is_missing(self) -> bool:
        """Null, NaN or an empty text: how JSON, pandas and CSV write that there is nothing."""
        if isinstance(self.value, float):
            return math.isnan(self.value)
        return self.value is None or (isinstance(self.value, str) and not self.value.strip())

    def _shown(self) -> str:
        shown = repr(self.value)
        return shown if len(shown) <= 60 else shown[:57] + "..."
