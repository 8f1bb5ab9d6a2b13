"""An alert, and when it begins and ends: one per episode, however long its cause lasts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from headway.records import AlertKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One warning sign in words a person can act on."""

    kind: AlertKind
    level: Literal["warning", "critical"]
    what: str
    """What was measured, with its figures."""
    why: str
    """What it means."""
    advice: str
    """What to do, as the config or a command would say it."""
    step: int = 0
    """The newest step when it was seen."""
    rows: tuple[int, ...] = ()
    """The rows of the data that it is about, where it is about rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """An alert's cause is gone."""

    kind: AlertKind
    began_step: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """An alert whose cause lasts."""

    began_step: int
    quiet: int = 0
    """Looks in a row without the sign."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """What is going on now. ``looked`` gives the next one and what there is to say."""

    going_on: Mapping[AlertKind, Episode]

    def looked(
        self, step: int, kinds: Collection[AlertKind], found: Iterable[Alert], calm: int
    ) -> tuple[Episodes, list[Alert | Over]]:
        """After looking for ``kinds``: a sign begins an episode, ``calm`` looks without it end it.

        A sign that comes back before that is the same episode: nothing is said twice.
        """
        signs = {alert.kind: alert for alert in found}
        if not signs and not any(kind in self.going_on for kind in kinds):
            return self, []
        now, said = dict(self.going_on), list[Alert | Over]()
        for kind in kinds:
            episode = now.get(kind)
            if kind in signs:
                began = step if episode is None else episode.began_step
                now[kind] = Episode(began_step=began)
                if episode is None:
                    said.append(replace(signs[kind], step=step))
            elif episode is not None and episode.quiet + 1 >= calm:
                del now[kind]
                said.append(Over(kind=kind, began_step=episode.began_step, step=step))
            elif episode is not None:
                now[kind] = replace(episode, quiet=episode.quiet + 1)
        return Episodes(now), said
