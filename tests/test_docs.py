"""What the documents say is so: files, commands, configs, links and the run directory."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from doc_pages import FENCE, GUIDES, PAGES, ROOT, blocks, commands, fenced, parse
from headway import records
from headway.api import train
from headway.cli import build_app
from headway.cli.init import starter_names
from headway.cli.reference import leaves, reference
from headway.config import RunConfig
from headway.config.translate import NAMES
from headway.show import Quiet
from toy import toy_config


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------ the tree of the source


def listed_files(page: str) -> set[str]:
    """Paths below src/headway that the page's tree names; a directory is its __init__.py."""
    tree = next(b.text for b in fenced(page) if b.text.startswith("src/headway/"))
    found, folder = set(), ""
    for line in tree.splitlines()[1:]:
        name, _, comment = line.strip().partition(" ")
        assert comment.strip(), f"{name} has no comment"
        if name.endswith("/"):
            folder = name
            found.add(f"{folder}__init__.py")
        else:
            found.add(name if line.startswith("  ") and line[2] != " " else folder + name)
    return found


def test_the_architecture_page_names_every_file_of_the_package_and_no_other() -> None:
    source = ROOT / "src" / "headway"
    files = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    listed = listed_files((ROOT / "docs/architecture.md").read_text())
    without_code = {name for name in listed - files if not any((source / name).parent.glob("*.py"))}
    assert listed - without_code == files


def test_a_file_missing_in_the_tree_would_be_seen() -> None:
    """Negative control."""
    page = (ROOT / "docs/architecture.md").read_text()
    without = "\n".join(line for line in page.splitlines() if "run_config.py" not in line)
    assert listed_files(page) - listed_files(without) == {"config/run_config.py"}


# ------------------------------------------------------------------ commands


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("headway ")])
def test_a_documented_command_parses(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("line", ["headway fly run", "headway train a.yaml --swiftly"])
def test_a_command_that_is_not_there_would_be_seen(line: str) -> None:
    """Negative control."""
    with pytest.raises(Exception, match="No such"):
        parse(line)


INLINE = re.compile(r"`(headway [a-z][^`]*)`")


def unknown(text: str) -> list[str]:
    """Commands in the sentences of a page that name a verb or an option that is not there."""
    found = []
    for line in sorted({re.sub(r"\s+", " ", one) for one in INLINE.findall(FENCE.sub("", text))}):
        try:
            parse(line)
        except Exception as error:  # such as a missing argument: a sentence may leave it out
            if "No such" in str(error):
                found.append(f"{line}: {error}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_a_command_in_a_sentence_names_options_that_exist(page: Path) -> None:
    planned = ("headway launch",) if page.name == "README.md" else ()
    found = unknown(page.read_text(encoding="utf-8"))
    assert [said for said in found if not said.startswith(planned or "-")] == []


def test_an_option_that_is_not_there_would_be_seen_in_a_sentence() -> None:
    """Negative control."""
    assert len(unknown("Give `headway train RUN --swiftly`, or `headway fly`.")) == 2


def test_other_documented_commands_are_targets_or_known() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in (c for c in commands() if not c.startswith("headway ")):
        program, *rest = line.split()
        if program == "make":
            assert set(rest) <= targets, line
        elif program == "torchrun":
            parse(line[line.index("headway ") :])
        else:
            assert program in {"source", "python", ".venv/bin/python", "cat", "ls"}, line


def test_every_verb_named_in_a_sentence_exists() -> None:
    verbs = {path for path, _ in leaves(get_command(build_app()), ())}
    verbs |= {path[:1] for path in verbs}
    planned = {("check",), ("plan",), ("watch",), ("launch",), ("doctor",)}
    for page in PAGES:
        for said in re.findall(r"`headway ([a-z][a-z ]*)[^`]*`", page.read_text()):
            words = tuple(said.split())
            known = words[:1] in verbs | (planned if page.name == "README.md" else set())
            assert known, f"{page.name}: headway {said}"


def test_the_reference_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == reference(), "make docs"


def test_every_verb_has_help_and_every_parameter_a_meaning() -> None:
    for path, command in leaves(get_command(build_app()), ()):
        assert command.help, path
        assert all(p.help for p in command.params if p.name != "help"), path


# ------------------------------------------------------------------ what a reader would type


PROSE = [page for page in PAGES if page not in GUIDES]  # test_guides.py runs those


class Cut(Quiet):
    """Kills the training at a step."""

    def step(self, report: records.StepReport, plan: Any, cost_usd: float | None) -> None:
        if report.step == 5:
            raise ConnectionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``runs/run``: trained, cut, its newest checkpoint damaged, and finished; and a copy of it."""
    folder = tmp_path_factory.mktemp("docs")
    sections: dict[str, Any] = {
        "evaluate": {"every_steps": 2},
        "checkpoint": {"every_steps": 1, "every_minutes": None, "keep_last": 3},
        "cost": {"usd_per_hour": 0.4},
    }
    with pytest.raises(ConnectionError):
        train(toy_config(folder / "runs", **sections), show=Cut())
    newest = sorted((folder / "runs/run/checkpoints").glob("step-*"))[-1]
    (newest / "state.json").write_text("{}")
    train(toy_config(folder / "runs", **sections))
    shutil.copytree(folder / "runs/run", folder / "runs/other")
    return folder


@pytest.mark.parametrize(
    "line",
    sorted(
        {c for c in commands(PROSE) if re.match(r"headway (init|status|report|checkpoints) ?", c)}
    ),
)
def test_a_documented_command_that_only_looks_really_runs(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    there = [int(p.name[5:]) for p in sorted(Path("runs/run/checkpoints").glob("step-*"))]
    words = line.split()[1:]
    words = [str(there[0]) if w == "100" else str(there[-1]) if w == "200" else w for w in words]
    done = CliRunner().invoke(build_app(), [*words, *(["--force"] if words[0] == "init" else [])])
    assert done.exit_code == 0, done.output


def test_starters_name_keys_that_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headway.config import load_config

    monkeypatch.chdir(folder)
    assert {"sft", "pretrain", "regression", "vision"} < set(starter_names())
    for recipe in starter_names():
        done = CliRunner().invoke(build_app(), ["init", recipe, "--to", f"new-{recipe}.yaml"])
        assert done.exit_code == 0
        assert load_config(f"new-{recipe}.yaml").recipe == recipe


# ------------------------------------------------------------------ the run directory's page


def documented_fields(page: str, heading: str) -> set[str]:
    """First-column names of the table under a heading."""
    section = re.split(r"^#+ ", page.partition(f"\n{heading}\n")[2], flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


RUN_PAGE = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")


def test_every_journal_event_has_the_fields_its_page_says(folder: Path) -> None:
    lines = (folder / "runs/run/journal.jsonl").read_text().splitlines()
    head = {"event", "at", "attempt"}
    seen: dict[str, set[str]] = {}
    for event in map(json.loads, lines):
        seen.setdefault(event["event"], set()).update(set(event) - head)
    assert set(seen) >= {"attempt", "plan", "step", "evaluation", "save", "prune", "quarantine"}
    for event, fields in seen.items():
        assert documented_fields(RUN_PAGE, f"### `{event}`") == fields, event


SAYING = ("run.py", "saving.py", "opening.py", "rollback.py", "watching.py")


def test_every_kind_of_alert_is_on_its_page() -> None:
    page = (ROOT / "docs/alerts.md").read_text()
    assert {kind for kind in get_args(records.AlertKind) if f"| `{kind}` |" not in page} == set()


def test_every_event_in_the_source_is_on_the_page() -> None:
    sources = [(ROOT / "src/headway" / name).read_text() for name in SAYING]
    named = set(re.findall(r'journal\.append\(\s*"(\w+)"', "\n".join(sources)))
    assert "save_skipped" in named
    assert {event for event in named if f"### `{event}`" not in RUN_PAGE} == set()


def test_manifest_and_state_have_the_fields_their_page_says(folder: Path) -> None:
    newest = sorted((folder / "runs/run/checkpoints").glob("step-*"))[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    assert documented_fields(RUN_PAGE, "## `manifest.json`") == {*manifest, "bytes"} - {"bytes"}
    assert documented_fields(RUN_PAGE, "### Facts") == set(manifest["facts"])
    state = json.loads((newest / "state.json").read_text())
    assert documented_fields(RUN_PAGE, "## `state.json`") == set(state)


def test_results_have_the_fields_their_page_says(folder: Path) -> None:
    found = json.loads((folder / "runs/run/results.json").read_text())
    assert documented_fields(RUN_PAGE, "## `results.json`") == set(found)
    assert documented_fields(RUN_PAGE, "### `best` and `last`") == set(found["best"])


def test_every_stop_reason_that_can_be_given_is_on_the_page() -> None:
    given = {r.value for r in records.StopReason} - {"deadline"}
    assert all(f"`{value}`" in RUN_PAGE for value in given)


def test_every_field_of_a_step_is_on_the_page() -> None:
    fields = {f.name for f in dataclasses.fields(records.StepReport)} | {"cost_usd", "run_seconds"}
    assert documented_fields(RUN_PAGE, "### `step`") == fields


# ------------------------------------------------------------------ configs and code on the pages


def yaml_of(text: str) -> dict[str, Any]:
    return dict(YAML(typ="safe", pure=True).load(text))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_a_config_on_a_page_is_valid_and_a_foreign_one_is_translated(page: Path) -> None:
    known = set(NAMES) | {"learning_rate", "weight_decay", "optimizer"}  # the same name here
    for note, text in blocks(page, "yaml"):
        tree = yaml_of(text)
        if note == "foreign":
            assert set(tree) <= known, set(tree) - known
        else:
            RunConfig(**tree)


def test_coming_from_shows_every_tool_that_the_table_translates() -> None:
    foreign = [t for note, t in blocks(ROOT / "docs/coming-from.md", "yaml") if note == "foreign"]
    tools = {NAMES[key][0] for text in foreign for key in yaml_of(text) if key in NAMES}
    assert tools >= {"HF Trainer", "TRL", "Axolotl", "LLaMA-Factory", "nanoGPT"}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_quoted_code_is_the_code(page: Path) -> None:
    for note, text in blocks(page, "python"):
        if note:
            assert text in (ROOT / note).read_text(), f"{note} has changed"


def test_the_public_names_that_the_readme_uses_exist() -> None:
    import headway

    text = next(text for _, text in blocks(ROOT / "README.md", "python"))
    names = re.search(r"from headway import (.*)", text)
    assert names is not None
    for name in names[1].split(", "):
        assert inspect.getdoc(getattr(headway, name))


# ------------------------------------------------------------------ links; what must not be there


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_every_picture_is_small_and_shown_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert f"pictures/{picture.name})" in text, picture.name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_named_in_a_sentence_exist(page: Path) -> None:
    named = re.findall(r"`((?:tests|src|configs|benchmarks)/[\w/.-]+\.\w+)`", page.read_text())
    for name in named:
        if "NAME" not in name:
            assert (ROOT / name).exists(), name


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is not a git checkout, so nobody can say which files are tracked")
    return [ROOT / name for name in done.stdout.split("\0") if name]


MACHINE = re.compile(
    r"(?<![\w.$}])/(?:work|root|tmp/w)/"  # a folder of one machine
    r"|--?(?:extra-)?index-url|--find-links|--trusted-host"  # where one machine gets packages
    r"|pypi\.org/simple|files\.pythonhosted\.org|https?://\d+\.\d+\.\d+\.\d+"
)


def test_no_tracked_file_names_a_path_of_one_machine_or_a_registry() -> None:
    for path in tracked():
        if path.is_file() and path != Path(__file__):
            text = path.read_bytes().decode("utf-8", "ignore")
            found = MACHINE.search(text)
            assert found is None, f"{by_name(path)}: {found[0]}"


@pytest.mark.parametrize("text", ["cd /work/x", "open('/root/a')", "pip --index-url x", "/tmp/w/a"])
def test_a_path_of_one_machine_would_be_seen(text: str) -> None:
    """Negative control."""
    assert MACHINE.search(text)
