"""A run in W&B: one id for all attempts, each step once, online or in a folder for ``wandb sync``.

W&B's history only grows, and its rewinding is a private preview, so there are two ways. Offline the
folder is made again from the journal whenever something was taken back or a kill may have cost
rows: there is one folder, and it is whole. Online the server is asked
for its last step and fed from there; a redone step whose loss is within TOLERANCE stays as it was
first seen; and where a run really goes another way (a roll back), it goes on as a second W&B run in
the same group, which has the whole timeline.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headway.track.feeding import StartAgain
from headway.track.records import About, Measurement, Note, Record, Row
from headway.track.tables import pictures, table

TOLERANCE = 0.02
"""Another GPU gives losses that differ by a thousandth; a spike that is left out by far more."""
ANSWER_SECONDS = 60.0


class WandbRun:
    """One W&B run; needs the package ``wandb``. Keys come from its environment or netrc."""

    def __init__(
        self, folder: Path, run: Path, *, project: str, entity: str | None, mode: str | None
    ) -> None:
        """``folder``: ours alone, named ``wandb``. ``run``: whose evaluations hold pictures.

        ``mode``: ``online`` or ``offline``; None: what ``$WANDB_MODE`` says, else online.
        """
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        if "wandb" not in sys.modules:  # the service of a parent (a notebook) would end with it
            os.environ.pop("WANDB_SERVICE", None)
        import wandb

        self._wandb: Any = wandb
        self._folder, self._run_folder = folder, run
        self._project, self._entity = project, entity
        self._offline = (mode or os.environ.get("WANDB_MODE") or "online") != "online"
        self.tolerance = 0.0 if self._offline else TOLERANCE
        self.knows = not self._offline
        self._number = 1
        self._late: dict[str, Any] = {}
        self._newest = self._closed = -1

    def begin(self, about: About, noted: Mapping[str, Any]) -> int | None:
        """Open the run under its id; offline in a new folder, the old one removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = int(noted.get("number", 1))
        if self._offline:
            for old in [*self._folder.glob("offline-run-*"), *self._folder.glob("latest-run")]:
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        identity = about.identity if self._number == 1 else f"{about.identity}-{self._number}"
        self._run = self._wandb.init(
            project=self._project,
            entity=self._entity,
            id=identity,
            name=about.name if self._number == 1 else f"{about.name} ({self._number})",
            group=about.identity,
            config=dict(about.config),
            dir=str(self._folder.parent),
            mode="offline" if self._offline else "online",
            resume=None if self._offline else "allow",
            reinit="finish_previous",
            settings=self._wandb.Settings(
                console="off",
                silent=True,
                init_timeout=ANSWER_SECONDS,
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
            ),
        )
        self._run.define_metric("eval/step", hidden=True)
        self._run.define_metric("eval/*", step_metric="eval/step")
        self._late, self._newest, self._closed = {}, -1, -1
        if not self._offline and self._run.resumed:
            self._newest = self._closed = int(self._run.starting_step) - 1
        return None if self._closed < 0 else self._closed

    def write(self, record: Record) -> None:
        """A step and what was measured after it are one row of the history."""
        if isinstance(record, Note):
            levels = self._wandb.AlertLevel
            level = {"info": levels.INFO, "warning": levels.WARN, "error": levels.ERROR}
            text = f"step {record.step}: {record.text}"
            self._run.alert(record.title, text, level=level[record.level], wait_duration=0)
        elif isinstance(record, Row):
            self._log({**record.values, **self._late}, record.step)
            self._late = {}
        elif isinstance(record, Measurement):
            values = {**record.values, **self._worst(record), "eval/step": record.step}
            if record.step >= self._newest and record.step > self._closed:
                self._log(values, record.step)
            else:  # an earlier attempt left it to the next: its row is closed
                self._late |= values

    def back(self, step: int) -> None:
        """W&B cannot: another run, or offline another folder, gets the whole timeline."""
        if self._offline:
            self._run.finish()
        else:
            self._number += 1
            self._run.alert("roll back", f"goes on as another run, from step {step}")
            self._run.finish()
        raise StartAgain({} if self._offline else {"number": self._number})

    def flush(self) -> Mapping[str, Any]:
        """Nothing waits here: W&B's own process sends, and keeps what it cannot send."""
        return {"number": self._number, "id": self._run.id, "url": self._run.url or ""}

    def end(self) -> Mapping[str, Any]:
        """Wait until W&B has sent everything, or written it to its folder."""
        self._run.summary.update(self._late)  # a row of its own would stand where a step belongs
        noted = self.flush()
        self._run.finish()
        return noted

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        self._newest = max(step, self._newest)
        self._run.log(dict(values), step=step)

    def _worst(self, record: Measurement) -> dict[str, Any]:
        if not record.worst:
            return {}
        columns, rows = table(record.worst)
        images = [self._wandb.Image(str(path)) for path, _, _ in pictures(self._run_folder, record)]
        found = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        return {"worst_rows": found, **({"worst_pictures": images} if images else {})}
