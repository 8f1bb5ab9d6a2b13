"""Imports point down, rooms never import each other, and the command line starts in a blink."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "headway"
GROUND = {"errors", "records", "system"}
ROOMS = {
    "checkpoint",
    "journal",
    "lock",
    "cost",
    "signals",
    "limits",
    "supervise",
    "upload",
    "report",
    "config",
    "evals",
    "monitor",
    "preflight",
}
ENGINE = {"engine"}
PARTS = {"data", "models"}
RUN = {
    "run", "saving", "spending", "opening", "building", "rollback", "claim", "machine", "show",
    "summary", "api", "demo", "checks", "checking", "devices", "doctor", "foreseen",
    "planning",
}  # fmt: skip
VIEWERS = {
    "viewing",
    "comparing",
    "results",
    "bucket",
    "copies",
    "joining",
    "uploading",
    "watching",
}

MAY_IMPORT: dict[str, set[str]] = {
    **{name: {"errors"} for name in GROUND},
    **{name: GROUND for name in ROOMS},
    "engine": GROUND,
    "data": GROUND | ENGINE,
    "models": GROUND | ENGINE,
    "recipes": GROUND | ENGINE | PARTS | {"config"},  # config: what sections look like
    **{name: GROUND | ROOMS | ENGINE | VIEWERS | RUN for name in RUN},
    "viewing": GROUND | ROOMS,
    "comparing": GROUND | ROOMS | {"viewing"},
    "results": GROUND | ROOMS | {"viewing"},
    "bucket": GROUND | ROOMS | {"viewing"},
    "copies": GROUND | ROOMS | {"bucket", "viewing"},
    "joining": GROUND | ROOMS | {"bucket", "viewing"},
    "uploading": GROUND | ROOMS | {"bucket", "joining", "viewing"},
    "watching": GROUND | ROOMS,
    "cli": GROUND | ROOMS | ENGINE | PARTS | VIEWERS | RUN,
    "__init__": GROUND | ROOMS | RUN,
}
TORCH_FREE = GROUND | ROOMS | VIEWERS | {"summary", "cli", "__init__"}
HEAVY = {"torch", "transformers", "peft", "datasets", "pandas"}


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).with_suffix("").parts[0]


def imports(file: Path) -> list[str]:
    """Every module a file imports, inside functions too; type-checking blocks are not imports."""
    found: list[str] = []

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                found.append(child.module or "")
                found.extend(f"{child.module}.{alias.name}" for alias in child.names)
            walk(child)

    walk(ast.parse(file.read_text()))
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_imports_point_down(file: Path) -> None:
    mine = room_of(file)
    assert mine in MAY_IMPORT, f"{mine} has no layer yet: give it one in this test"
    inside = {name.split(".")[1] for name in imports(file) if name.startswith("headway.")}
    upward = inside - MAY_IMPORT[mine] - {mine}
    assert not upward, f"{mine} may not import {sorted(upward)}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_rooms_and_viewers_never_import_torch(file: Path) -> None:
    if room_of(file) in TORCH_FREE:
        heavy = {name.split(".")[0] for name in imports(file)} & HEAVY
        assert not heavy


def test_the_checks_above_see_an_import_inside_a_function(tmp_path: Path) -> None:
    """Negative control."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from headway.recipes import sft\n    import torch\n")
    assert {"headway.recipes", "torch"} <= set(imports(file))


def test_recipes_are_named_only_where_they_enter() -> None:
    for file in FILES:
        if room_of(file) not in {"recipes", "cli", "config", "demo"}:
            assert "headway.recipes." not in file.read_text().replace("`headway.recipes`", "")


@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"]])
def test_help_and_status_load_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['headway', *" + repr(arguments) + "]\n"
        "from headway.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"loaded = {HEAVY | {'matplotlib', 'numpy', 'headway.config'}!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
