"""A trainer without torch that is killed: its journal is like a real run's, and it is tracked.

``tracked_child.py RUN LAST_STEP``. It goes on from its newest save; the loss is a function of the
step, but from the second attempt on every seventh step comes out otherwise.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from headway.config.track_section import TensorBoard, Track, Wandb
from headway.journal import Journal, next_attempt, read_events
from headway.lock import RunLock
from headway.tracking import tracking

TRACKERS = Track(tensorboard=TensorBoard(), wandb=Wandb(project="crash", mode="offline"))
SAVE_EVERY, STEP_SECONDS = 20, 0.002


def loss_at(step: int, attempt: int) -> float:
    return 1 / step + (attempt if attempt > 1 and step % 7 == 0 else 0)


def main(run: Path, last: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    path = run / "journal.jsonl"
    with RunLock(run / "lock"):
        saves = read_events(path, {"save"})
        restored, attempt = (saves[-1]["step"] if saves else 0), next_attempt(path)
        with Journal(path, attempt) as journal:
            journal.append("opening")
            with tracking(TRACKERS, run, journal, print):
                journal.append("attempt", restored_step=restored)
                for step in range(restored + 1, last + 1):
                    time.sleep(STEP_SECONDS)
                    journal.append("step", step=step, loss=loss_at(step, attempt), tokens=9)
                    if step % SAVE_EVERY == 0:
                        journal.append("save", step=step)
                        journal.append("evaluation", step=step, metrics={"loss": 1 / step})
                journal.append("stop", reason="finished", step=last)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
