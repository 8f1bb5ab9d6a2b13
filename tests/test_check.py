"""``headway check``: each blocker is planted and read; what is checked is not changed by it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_recipe import ToyConfig
from typer.testing import CliRunner

from cases import tiny_base, tree_of
from headway.api import train
from headway.checking import Inspection, check
from headway.checks import kept_checkpoints
from headway.cli import build_app
from headway.config import RunConfig, find_recipe
from headway.cost import Meter, Price
from headway.devices import Gpu, Torch, cpu_findings, device_findings, gpu_findings
from headway.engine import rehearsal
from headway.engine.rehearsal import Rehearsal, rehearse
from headway.engine.state import checkpoint_bytes
from headway.foreseen import memory_of, price_findings, run_seconds, spoken
from headway.journal import Journal, read_events
from headway.lock import RunLock
from headway.opening import opened
from headway.preflight import Answer, ask
from headway.records import Finding
from headway.run import train as loop
from toy import Cut, CutAt, assert_same_state, context, final_state, toy_config

pytestmark = pytest.mark.usefixtures("own_cache")
NAMES = {
    "config", "folder", "machine", "run", "model files", "tokenizer", "data", "bucket", "model",
    "resume", "disk", "rehearsal", "price",
}  # fmt: skip


BAD = {"blocker", "not asked"}


@dataclass
class Case:
    """A config that has every section, and what a fault may touch."""

    folder: Path
    tree: dict[str, Any]
    patch: pytest.MonkeyPatch
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "run"

    def rows(self, *rows: dict[str, Any]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / "rows.jsonl").write_text(text)

    def tokenizer(self, **changes: Any) -> None:
        path = self.base / "tokenizer_config.json"
        tree = json.loads(path.read_text())
        path.write_text(json.dumps({**tree, **changes}))

    def begun(self, **sections: Any) -> None:
        """A run of this config, or of one with other sections, began here."""
        self.run.mkdir(parents=True)
        RunConfig(**{**self.tree, **sections}).save(self.run / "config.yaml")
        with Journal(self.run / "journal.jsonl", 1) as journal:
            journal.append("plan", steps=4)

    def answers(self) -> dict[str, Answer]:
        with self.stack:
            inspection = Inspection(lambda: RunConfig(**self.tree))
            return {answer.name: answer for answer in ask(inspection.checks())}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("model"))


@pytest.fixture
def case(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    shutil.copytree(model, tmp_path / "base")
    tree = tree_of("sft-lora", tmp_path)
    tree["upload"] = {"to": str(tmp_path / "bucket")}
    tree["cost"] = {"usd_per_hour": 1.0, "budget_usd": 50.0}
    return Case(tmp_path, tree, monkeypatch)


def test_a_config_that_works_is_told_so_by_every_check(case: Case) -> None:
    answers = case.answers()
    assert set(answers) == NAMES, "a new check needs a fault in FAULTS, and its name in NAMES"
    quiet = {name: a.level for name, a in answers.items() if a.level not in ("ok", "note")}
    assert quiet.keys() <= {"machine"}, quiet
    assert all(a.findings for a in answers.values()), "a check says what it found"
    text = "\n".join(f.what for f in answers["data"].findings)
    assert "21 of 21 rows" in text and "<|im_start|>user\nWhat is number" in text
    assert "<|im_start|>assistant\n⟦red" in text and "<|im_end|>⟧" in text
    assert "$" in answers["price"].findings[-1].what


# ------------------------------------------------------------------ every blocker, planted


def unknown_key(case: Case) -> None:
    case.tree["train"]["learning_rat"] = 1


def another_run(case: Case) -> None:
    case.begun(train={**case.tree["train"], "learning_rate": 0.5})


def locked(case: Case) -> None:
    case.stack.enter_context(RunLock(case.run / "lock"))


def root_is_a_file(case: Case) -> None:
    (case.folder / "runs").write_text("")


def no_gpu(case: Case) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    case.tree["hardware"]["device"] = "cuda"


def no_folder(case: Case) -> None:
    case.tree["task"]["base_model"] = "./nowhere"


def no_package(case: Case) -> None:
    case.tree["task"]["base_model"] = "package:no_such_package/x.gguf"


def pointer(case: Case) -> None:
    (case.base / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def pointer_beside(case: Case) -> None:
    (case.base / "tokenizer.json").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def half_a_file(case: Case) -> None:
    file = case.base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_safetensors(case: Case) -> None:
    (case.base / "model.safetensors").write_bytes(b"<html>404</html>" * 9)


def a_shard_is_missing(case: Case) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (case.base / "model.safetensors.index.json").write_text(json.dumps(index))


def only_a_pickle(case: Case) -> None:
    (case.base / "model.safetensors").rename(case.base / "pytorch_model.bin")


def no_model_config(case: Case) -> None:
    (case.base / "config.json").unlink()


def not_a_gguf(case: Case) -> None:
    (case.folder / "x.gguf").write_bytes(b"<html>")
    case.tree["task"]["base_model"] = str(case.folder / "x.gguf")


def no_eos(case: Case) -> None:
    case.tokenizer(eos_token=None)


def a_token_without_a_row(case: Case) -> None:
    case.tokenizer(eos_token="<|end|>")


def broken_template(case: Case) -> None:
    (case.base / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")


def endless_template(case: Case) -> None:
    text = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"
    (case.base / "chat_template.jinja").write_text(text)


def no_rows_file(case: Case) -> None:
    (case.folder / "rows.jsonl").unlink()


def rows_of_another_shape(case: Case) -> None:
    case.rows({"frage": "a", "antwort": "b"})


def all_rows_cut(case: Case) -> None:
    case.tree["task"]["max_tokens"] = 12


def leaked(case: Case) -> None:
    case.tree["task"]["data"] = {"train": str(case.folder / "rows.jsonl")}
    case.tree["task"]["data"]["eval"] = case.tree["task"]["data"]["train"]


def bucket_is_a_file(case: Case) -> None:
    (case.folder / "bucket").write_text("")


def bucket_of_another_run(case: Case) -> None:
    other = {**case.tree, "train": {**case.tree["train"], "learning_rate": 0.5}}
    train(RunConfig(**other))
    shutil.rmtree(case.run)


def bucket_in_the_run(case: Case) -> None:
    case.tree["upload"]["to"] = str(case.folder / "runs")


def nothing_held_out(case: Case) -> None:
    del case.tree["task"]["data"]["eval_fraction"]


def no_such_layer(case: Case) -> None:
    case.tree["task"]["tuning"]["target_modules"] = ["no_such_layer"]


def checkpoints_are_gone(case: Case) -> None:
    train(RunConfig(**case.tree))
    shutil.rmtree(case.run / "checkpoints")
    shutil.rmtree(case.folder / "bucket")


def all_checkpoints_are_damaged(case: Case) -> None:
    train(RunConfig(**case.tree))
    for file in (case.run / "checkpoints").glob("*/state.json"):
        file.write_bytes(b"")


def other_data_than_the_checkpoints(case: Case) -> None:
    train(RunConfig(**case.tree))
    lines = (case.folder / "rows.jsonl").read_text().splitlines()
    (case.folder / "rows.jsonl").write_text("\n".join([*lines[1:], lines[0]]) + "\n")


def full(case: Case) -> None:
    real = shutil.disk_usage
    case.patch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=300 << 20))
    case.tree["checkpoint"] |= {"every_steps": 1, "keep_last": 3}
    case.patch.setattr("headway.checks.checkpoint_bytes", lambda state: 30 << 20)


def not_a_number(case: Case) -> None:
    case.tree |= {"recipe": "toy", "task": {"nan_at_steps": [0]}}


def too_little_money(case: Case) -> None:
    case.tree["cost"] = {"usd_per_hour": 1e6, "budget_usd": 0.01}


def spent(case: Case) -> None:
    case.begun()
    with Journal(case.run / "journal.jsonl", 2) as journal:
        journal.append("stop", reason="budget", cost_usd=50.5)


FAULTS: list[tuple[str, Callable[[Case], None], str]] = [
    ("config", unknown_key, r"train\.learning_rat"),
    ("run", another_run, r"another config[\s\S]*train.learning_rate: 0.5 -> 0.01[\s\S]*--fresh"),
    ("run", locked, r"is being written by process \d+ on"),
    ("folder", root_is_a_file, r"runs.*run: Not a directory"),
    ("machine", no_gpu, r"hardware.device is cuda, and there is"),
    ("model files", no_folder, r"there is no folder nowhere"),
    ("model files", no_package, r"no_such_package is not installed; pip install"),
    ("model files", pointer, r"model.safetensors is a Git-LFS pointer.*git lfs pull"),
    ("model files", pointer_beside, r"tokenizer.json is a Git-LFS pointer"),
    ("model files", half_a_file, r"not fetched to its end; fetch it again"),
    ("model files", no_safetensors, r"is not a safetensors file"),
    ("model files", a_shard_is_missing, r"1 of 2 files of weights are missing \(model-00002"),
    ("model files", only_a_pickle, r"no \*.safetensors; pytorch_model.bin is a pickle"),
    ("model files", no_model_config, r"has no config.json"),
    ("model files", not_a_gguf, r"is not a GGUF file, whatever its name says"),
    ("tokenizer", no_eos, r"no EOS token, so the model would never learn to stop"),
    ("tokenizer", a_token_without_a_row, r"<\|end\|> is number \d+, and the model has only \d+"),
    ("tokenizer", broken_template, r"the chat template cannot write.*no such role"),
    ("tokenizer", endless_template, r"does not mark the end of an answer"),
    ("data", no_rows_file, r"rows.jsonl"),
    ("data", rows_of_another_shape, r"rows.jsonl:1: no known shape: the fields are 'frage'"),
    ("data", all_rows_cut, r"no train row is left of|cut at max_tokens"),
    ("data", leaked, r"also among the training rows, and max_leaked allows 0 %"),
    ("bucket", bucket_is_a_file, r"bucket"),
    ("bucket", bucket_of_another_run, r"another config[\s\S]*train.learning_rate: 0.5 -> 0.01"),
    ("bucket", bucket_in_the_run, r"one holds the other"),
    ("model", nothing_held_out, r"there are no held-out rows to measure; give task.data.eval"),
    ("model", no_such_layer, r"no_such_layer"),
    ("resume", checkpoints_are_gone, r"has no good checkpoint, and there was one.*--fresh"),
    ("resume", all_checkpoints_are_damaged, r"has no good checkpoint, and there was one"),
    ("resume", other_data_than_the_checkpoints, r"made with other inputs than are here now"),
    ("disk", full, r"room for 1 checkpoints of 31.5 MB.*4 will be there.*checkpoint.keep_last"),
    ("rehearsal", not_a_number, r"a step on rows of this run gave loss nan.*rows"),
    ("price", too_little_money, r"\$0.01 of the budget of \$0.01 are left"),
    ("price", spent, r"the budget of \$50 is spent \(\$50.50\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "plant", "words"), FAULTS, ids=[f[1].__name__ for f in FAULTS])
def test_a_planted_fault_is_the_first_blocker_and_its_message_says_what_to_do(
    case: Case, name: str, plant: Callable[[Case], None], words: str
) -> None:
    import re

    plant(case)
    answers = case.answers()
    blockers = [answer.name for answer in answers.values() if answer.level == "blocker"]
    assert blockers[:1] == [name], {n: [f.what for f in a.findings] for n, a in answers.items()}
    [finding] = [f for f in answers[name].findings if f.level == "blocker"]
    said = ". ".join((finding.what, finding.why, finding.fix))
    assert re.search(words, said), said
    assert "Traceback" not in said and "could not be finished" not in said


def test_every_check_has_a_planted_fault() -> None:
    assert {name for name, _, _ in FAULTS} == NAMES


@pytest.mark.parametrize("recipe", ["pretrain", "regression-lora", "toy"])
def test_every_recipe_brings_checks_of_these_names_and_passes_its_own(
    recipe: str, tmp_path: Path
) -> None:
    answers = check(RunConfig(**tree_of(recipe, tmp_path)))
    assert {a.name for a in answers} <= NAMES
    assert {a.name: a.level for a in answers if a.level in BAD} == {}
    if recipe != "toy":
        shown = "\n".join(f.what for a in answers if a.name == "data" for f in a.findings)
        assert "as the model reads it" in shown or "the first row" in shown


def test_a_device_that_cannot_be_used_does_not_hide_what_is_wrong_with_the_data(
    case: Case,
) -> None:
    no_gpu(case)
    no_rows_file(case)
    answers = case.answers()
    assert [n for n, a in answers.items() if a.level == "blocker"] == ["machine", "data"]
    assert answers["model"].level == "not asked"


# ------------------------------------------------------------------ warnings


def warnings_of(answer: Answer) -> str:
    return "\n".join(f"{f.what} {f.why}" for f in answer.findings if f.level == "warning")


def test_rows_that_are_cut_or_doubled_are_a_warning_with_their_share(case: Case) -> None:
    long = {"question": "What?", "answer": "red and green. " * 30}
    short = [{"question": f"What is {i}?", "answer": f"It is {i}."} for i in range(9)]
    case.rows(*short, *short, *([long] * 2))
    case.tree["task"]["data"] |= {"max_truncated": 1.0, "max_leaked": 1.0}
    said = warnings_of(case.answers()["data"])
    assert "of the rows are cut at task.max_tokens" in said
    assert "of the rows were there before, word for word" in said


def test_a_template_of_another_model_is_a_warning(case: Case) -> None:
    text = (case.base / "chat_template.jinja").read_text().replace("<|im_start|>", "<|turn|>")
    (case.base / "chat_template.jinja").write_text(text)
    said = warnings_of(case.answers()["tokenizer"])
    assert "the template writes <|turn|>, which the tokenizer does not know" in said


def test_a_damaged_newest_checkpoint_is_a_warning_and_the_one_before_is_named(case: Case) -> None:
    train(RunConfig(**case.tree))
    (case.run / "checkpoints/step-00000004/state.json").write_bytes(b"")
    (case.run / "checkpoints/step-00000003/manifest.json").write_bytes(b"")
    answer = case.answers()["resume"]
    said = warnings_of(answer)
    assert "step-00000004 is damaged" in said and "step-00000003 has no manifest" in said
    assert "goes on from step-00000002" in answer.findings[-1].what
    assert len(list((case.run / "checkpoints").iterdir())) == 4, "nothing was set aside"


def test_a_change_of_mechanics_is_a_warning(case: Case) -> None:
    case.begun(hardware={**case.tree["hardware"], "microbatch_size": 2})
    assert "hardware.microbatch_size" in warnings_of(case.answers()["run"])


def test_a_gpu_that_torch_cannot_use_is_a_blocker_and_never_quietly_a_cpu() -> None:
    cpu_build = Torch(version="2.13.0+cpu", cuda_version=None, gpus=(), driver="580.1")
    [finding] = device_findings("auto", "bf16", cpu_build)
    assert finding.level == "blocker" and "there is a GPU (driver 580.1)" in finding.what
    assert "built for CUDA" in finding.fix and "hardware.device: cpu" in finding.fix
    old = Torch(version="2.13", cuda_version="13.0", gpus=(), driver="470", said="too old")
    [finding] = device_findings("auto", "bf16", old)
    assert finding.level == "blocker" and "too old" in finding.what and "13.0" in finding.fix


def test_training_beside_a_gpu_that_torch_cannot_use_is_a_warning_that_goes_on() -> None:
    seen = Torch(version="2.13.0+cpu", cuda_version=None, gpus=(), driver="580.1")
    found = list(device_findings("auto", "fp32", seen, idle_gpu="warning"))
    assert [f.level for f in found] == ["warning", "note"]
    assert "while the GPU is paid for" in found[0].why and "CPU cores" in found[1].what
    [finding] = device_findings("cuda", "fp32", seen, idle_gpu="warning")
    assert finding.level == "blocker"


@pytest.mark.parametrize(
    ("device", "hidden"), [("cpu", False), ("auto", True)], ids=["cpu asked for", "hidden"]
)
def test_a_gpu_that_is_not_wanted_is_no_blocker(device: str, hidden: bool) -> None:
    """Negative control."""
    seen = Torch(version="2.13", cuda_version=None, gpus=(), driver="580.1", hidden=hidden)
    assert all(f.level != "blocker" for f in device_findings(device, "fp32", seen))


def test_a_gpu_without_bf16_or_with_a_neighbour_is_a_warning() -> None:
    t4 = Gpu(name="T4", memory_bytes=16 << 30, free_bytes=16 << 30, capability=(7, 5))
    assert [f.level for f in gpu_findings(t4, "fp32")] == ["note"]
    _, warning = gpu_findings(t4, "bf16")
    assert warning.level == "warning" and "T4 has no bfloat16" in warning.what
    shared = Gpu(name="A100", memory_bytes=80 << 30, free_bytes=40 << 30, capability=(8, 0))
    _, warning = gpu_findings(shared, "bf16")
    assert "42.9 GB of the GPU's memory are taken already" in warning.what
    assert [f.level for f in cpu_findings("bf16", False, 4, 8 << 30)] == ["note", "warning"]
    assert [f.level for f in cpu_findings("bf16", True, 4, 8 << 30)] == ["note"]


# ------------------------------------------------------------------ nothing is changed


LOCK = ".lock"
"""Empty, and kept by a bucket that is a folder."""


def files_under(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and "cache" not in path.parts and path.name != LOCK
    }


@pytest.mark.parametrize("begun", [False, True], ids=["a new run", "a run that is there"])
def test_a_check_leaves_every_file_as_it_was(case: Case, begun: bool) -> None:
    if begun:
        with pytest.raises(Cut):
            train(RunConfig(**case.tree), show=CutAt(3))
    before = files_under(case.folder)
    assert not [a for a in case.answers().values() if a.level == "blocker"]
    assert files_under(case.folder) == before
    assert case.run.exists() == begun


def rehearsed_then_trained(config: RunConfig) -> Rehearsal:
    with opened(config) as run:
        found = rehearse(run.task, run.state, run.plan, run.world, 4)
        loop(run)
    return found


@pytest.mark.parametrize(
    "case_name", ["toy", "sft-lora", "sft-full", "pretrain", "regression-lora"]
)
def test_a_rehearsed_run_ends_bit_for_bit_as_one_that_was_not(
    case_name: str, tmp_path: Path
) -> None:
    train(RunConfig(**tree_of(case_name, tmp_path / "a")))
    found = rehearsed_then_trained(RunConfig(**tree_of(case_name, tmp_path / "b")))
    assert found.step_tokens > 0 and found.peak_bytes > 0
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))


def test_a_rehearsal_in_the_middle_of_a_run_keeps_the_optimizer_too(tmp_path: Path) -> None:
    train(toy_config(tmp_path / "a"))
    with pytest.raises(Cut):
        train(toy_config(tmp_path / "b"), show=CutAt(4))
    rehearsed_then_trained(toy_config(tmp_path / "b"))
    assert_same_state(final_state(tmp_path / "b/run"), final_state(tmp_path / "a/run"))


def test_without_undoing_the_rehearsed_run_would_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: the comparison sees a step that was not undone."""

    @contextlib.contextmanager
    def kept(state: Any, device: Any) -> Iterator[int]:
        yield 0
        state.step, state.rows, state.tokens = 0, 0, 0

    train(toy_config(tmp_path / "a"))
    monkeypatch.setattr(rehearsal, "undone", kept)
    rehearsed_then_trained(toy_config(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_same_state(final_state(tmp_path / "b/run"), final_state(tmp_path / "a/run"))


def test_after_a_rehearsal_the_peak_of_memory_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a step would report the rehearsal's memory, and a leak would hide below it."""
    told: list[str] = []
    monkeypatch.setattr(rehearsal, "forget_peak", lambda device: told.append("forget"))
    monkeypatch.setattr(rehearsal, "peak", lambda device: told.append("peak") or 1)
    with opened(toy_config(tmp_path)) as run:
        rehearse(run.task, run.state, run.plan, run.world, 4)
    assert told == ["forget", "peak", "forget"]


def test_a_refused_rehearsal_is_undone_too(tmp_path: Path) -> None:
    from headway.errors import NonFiniteStep

    train(toy_config(tmp_path / "a"))
    with opened(toy_config(tmp_path / "b", task={"nan_at_steps": (6,)})) as run:
        before = {k: v.clone() for k, v in run.task.model.state_dict().items()}
        run.state.step = 6
        with pytest.raises(NonFiniteStep):
            rehearse(run.task, run.state, run.plan, run.world, 4)
        assert run.state.step == 6 and not run.state.optimizer.state
        assert all(torch.equal(before[k], v) for k, v in run.task.model.state_dict().items())
        assert all(p.grad is None for p in run.task.model.parameters())


def test_the_rehearsal_is_on_the_longest_rows(tmp_path: Path) -> None:
    with opened(RunConfig(**tree_of("sft-lora", tmp_path))) as run:
        found = rehearse(run.task, run.state, run.plan, run.world, 4)
        lengths = sorted(len(run.task.train[i].ids) for i in range(len(run.task.train)))
        assert (found.rows, found.tokens) == (4, sum(lengths[-4:]))
        by_tokens = rehearse(run.task, run.state, run.plan, run.world, None)
        most = max(m.tokens for step in range(4) for m in run.task.batch_at(step))
        assert by_tokens.tokens >= most


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize("case_name", ["toy", "sft-lora", "sft-full", "regression-lora"])
def test_the_size_of_a_checkpoint_is_foreseen_within_a_few_percent(
    case_name: str, tmp_path: Path
) -> None:
    config = RunConfig(**tree_of(case_name, tmp_path))
    with opened(config) as run:
        foreseen = checkpoint_bytes(run.state)
        measured = rehearse(run.task, run.state, run.plan, run.world, 4).checkpoint_bytes
        loop(run)
        real = run.saves.store.checkpoints()[-1].bytes
    headers = 20_000  # of a model this small they are a part of it
    assert measured == pytest.approx(real, rel=0.02, abs=headers)
    assert foreseen == pytest.approx(real, rel=0.02, abs=headers)
    assert real > 3 * headers or case_name == "toy", "or a forgotten part would not be seen"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"checkpoint": {"every_steps": 1, "keep_last": 2}}, (3, 3)),
        ({"checkpoint": {"every_steps": 1, "keep_last": 50}}, (6, 6)),
        ({"checkpoint": {"every_steps": 3, "keep_last": 2}}, (2, 2)),
        ({"checkpoint": {"every_steps": None, "every_minutes": 5.0, "keep_last": 2}}, (1, 3)),
        (
            {"checkpoint": {"every_steps": 1, "keep_last": 2}, "evaluate": {"every_steps": 2}},
            (3, 4),
        ),
        ({"checkpoint": {"every_steps": 1, "keep_last": 1, "keep_every_steps": 2}}, (2, 5)),
    ],
)
def test_how_many_checkpoints_lie_on_the_disk_at_a_time(
    tmp_path: Path, sections: dict[str, Any], expected: tuple[int, int]
) -> None:
    config = toy_config(tmp_path, **sections)
    assert kept_checkpoints(config, 0, 6) == expected


def test_no_more_checkpoints_are_there_than_foreseen(tmp_path: Path) -> None:
    """The bound of the test above, held against a real run."""
    from headway.show import Quiet

    seen = []

    class Counts(Quiet):
        def say(self, what: str) -> None:
            there = list((tmp_path / "run/checkpoints").iterdir())
            seen.append(len(there) if (tmp_path / "run/checkpoints").exists() else 0)

        def step(self, report: Any, plan: Any, cost_usd: float | None) -> None:
            folder = tmp_path / "run/checkpoints"
            seen.append(len(list(folder.iterdir())) if folder.exists() else 0)

    (tmp_path / "run/checkpoints").mkdir(parents=True)
    config = toy_config(
        tmp_path, checkpoint={"every_steps": 1, "keep_last": 2}, evaluate={"every_steps": 2}
    )
    train(config, show=Counts())
    assert 3 <= max(seen) <= kept_checkpoints(config, 0, 6)[1]


def meter(spent_usd: float = 0.0) -> Meter:
    price = Price(usd_per_hour=3.6, gpu="it", source="config", date="2026-01-01")
    return Meter(price, spent_usd, clock=lambda: 0.0)


def test_time_and_price_follow_from_tokens(tmp_path: Path) -> None:
    config = toy_config(tmp_path, evaluate={"every_steps": 2})
    measured = Rehearsal(
        rows=8, tokens=32, first_seconds=9.0, peak_bytes=1, step_seconds=1.0, step_tokens=64,
        checkpoint_bytes=1,
    )  # fmt: skip
    with opened(config) as run:
        training, evaluating = run_seconds(measured, config, run.task, run.plan, 0)
        later, _ = run_seconds(measured, config, run.task, run.plan, 4)
    assert training == pytest.approx(6 * 0.5)  # a step has 8 rows of 4 tokens, half of 64
    assert later == pytest.approx(2 * 0.5)
    assert evaluating == pytest.approx(4 * 6 * 4 / 64 / 3)  # at 0, 2, 4, 6: 6 rows of 4 tokens
    [finding] = price_findings(3600.0, 100, meter(), None)
    assert "$3.60 at $3.60 an hour" in finding.what
    [finding] = price_findings(3600.0, 100, meter(1.0), 2.8)
    assert finding.level == "blocker" and "after about 50 steps" in finding.why
    [finding] = price_findings(3600.0, 100, meter(1.0), 5.0)
    assert finding.level == "note" and "$4.00 may be spent" in finding.what
    [finding] = price_findings(3600.0, 100, None, None)
    assert "no price" in finding.what
    assert [spoken(s) for s in (40, 120, 7200, 200_000)] == [
        "40 seconds", "2.0 minutes", "2.0 hours", "2.3 days",
    ]  # fmt: skip


def test_memory_near_the_limit_is_a_warning_and_beyond_it_a_blocker() -> None:
    measured = Rehearsal(
        rows=8, tokens=32, first_seconds=9.0, peak_bytes=95, step_seconds=1.0, step_tokens=64,
        checkpoint_bytes=1,
    )  # fmt: skip
    assert [f.level for f in memory_of(measured, 100, "a GPU")] == ["warning"]
    assert [f.level for f in memory_of(measured, 200, "a GPU")] == ["note"]
    assert [f.level for f in memory_of(measured, None, "a GPU")] == ["note"]


def test_looking_for_the_fullest_microbatch_keeps_one_and_ends_where_rows_are_slow_to_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages: sixteen in each of 64 batches would be gigabytes and minutes."""
    task = find_recipe("toy").build(ToyConfig(), context())
    real, made = task.batch_at, []
    kept: list[weakref.ref[torch.Tensor]] = []

    def batch_at(step: int, halvings: int = 0) -> Any:
        assert sum(ref() is not None for ref in kept) <= 2, "the fullest, and the last"
        made.append(step)
        batch = real(step, halvings)
        kept.extend(weakref.ref(microbatch.inputs["x"]) for microbatch in batch)
        return batch

    monkeypatch.setattr(task, "batch_at", batch_at)
    [fullest, longest] = rehearsal.heaviest_batch(task, None)
    assert made == list(range(rehearsal.LOOKED_AT_STEPS)) and longest.rows
    assert fullest.rows == real(0)[0].rows, "of equals the first"
    made.clear()
    kept.clear()
    clock = itertools.count(0, 2.0)
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    rehearsal.heaviest_batch(task, None)
    assert made == [0, 1, 2]


@pytest.mark.parametrize(
    ("fits", "recomputed", "level", "words"),
    [
        (2, True, "warning", "8 rows with 32 tokens"),
        (0, True, "blocker", "one row alone does not fit"),
        (0, False, "warning", "a row of 4 tokens does not fit by itself"),
    ],
)
def test_rows_that_do_not_fit_together_are_a_warning_and_one_that_never_fits_a_blocker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fits: int,
    recomputed: bool,
    level: str,
    words: str,
) -> None:
    from toy_recipe import ToyTask

    fired, real = [], ToyTask.loss

    def out_of_memory(task: Any, model: Any, inputs: Any) -> Any:
        if len(inputs["x"]) > fits:
            fired.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(task, model, inputs)

    monkeypatch.setattr(ToyTask, "loss", out_of_memory)
    config = toy_config(tmp_path, hardware={"activation_checkpointing": recomputed})
    answers = {a.name: a for a in check(config)}
    assert fired and answers["rehearsal"].level == level
    [said] = [f for f in answers["rehearsal"].findings if words in f.what]
    assert said.level == level
    assert (answers["price"].level == "not asked") == (level == "blocker")
    if fits == 0 and level == "warning":
        assert "recomputes activations" in said.why
        assert "not known" in answers["price"].findings[0].what


# ------------------------------------------------------------------ training asks the quick ones


def test_training_builds_the_model_once_and_asks_the_quick_checks_only(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = type(find_recipe("sft"))
    built: list[int] = []
    real = recipe.build
    monkeypatch.setattr(recipe, "build", lambda self, *given: built.append(1) or real(self, *given))
    monkeypatch.setattr(rehearsal, "one_step", None)  # it would fail
    train(RunConfig(**case.tree))
    assert built == [1]


def test_training_refuses_what_a_quick_check_finds_with_its_own_exit_code(case: Case) -> None:
    from headway.errors import StorageFull

    full(case)
    with pytest.raises(StorageFull) as caught:
        train(RunConfig(**case.tree))
    assert caught.value.exit_code == 77
    [last] = read_events(case.run / "journal.jsonl", {"stop"})
    assert "room for 1 checkpoints" in last["message"]


def test_a_recipes_quick_check_is_asked_before_the_build(case: Case) -> None:
    case.tree["task"]["base_model"] = "package:no_such_package/x.gguf"
    own = find_recipe("sft").checks(RunConfig(**case.tree).task, context_of(case))
    assert [c.name for c in own if c.quick] == ["model files"]
    case.tree["task"]["base_model"] = "owner/on-the-hub"
    own = find_recipe("sft").checks(RunConfig(**case.tree).task, context_of(case))
    assert [c.name for c in own if c.quick] == [], "a network is never asked before training"


def context_of(case: Case) -> Any:
    from headway.building import build_context
    from headway.checking import ON_CPU

    return build_context(RunConfig(**case.tree), ON_CPU)


# ------------------------------------------------------------------ the verb


def invoke(*words: str) -> Any:
    return CliRunner().invoke(build_app(), ["check", *words])


@pytest.fixture
def written(case: Case) -> Path:
    RunConfig(**case.tree).save(case.folder / "c.yaml")
    return case.folder / "c.yaml"


def test_the_verb_tells_each_check_and_ends_with_0(written: Path) -> None:
    done = invoke(str(written))
    assert done.exit_code == 0, done.output
    told = [line.split()[1] for line in done.output.splitlines() if line.startswith("ok ")]
    assert told[:2] == ["config", "folder"]
    assert "nothing is in the way" in done.output.splitlines()[-1]


def test_the_verb_ends_with_1_on_a_blocker_and_says_why_and_what_to_do(written: Path) -> None:
    done = invoke(str(written), "cost.usd_per_hour=1000000", "cost.budget_usd=0.01")
    assert done.exit_code == 1
    assert "blocker    price" in done.output and "fix: Raise cost.budget_usd" in done.output
    assert done.output.splitlines()[-1].endswith("this would not work (price)")


def test_as_json_there_is_one_document_even_for_a_config_that_cannot_be_read(
    written: Path,
) -> None:
    done = invoke(str(written), "--json")
    told = json.loads(done.output)
    assert done.exit_code == 0 and {c["name"] for c in told["checks"]} == NAMES
    done = invoke(str(written), "train.nonsense=1", "--json")
    told = json.loads(done.output)
    assert done.exit_code == 1 and told["blockers"] == ["config"]
    assert "train.nonsense" in told["checks"][0]["findings"][0]["what"]


def test_fresh_is_asked_as_fresh_would_begin(case: Case) -> None:
    another_run(case)
    inspection = Inspection(lambda: RunConfig(**case.tree), fresh=True)
    answers = {a.name: a for a in ask(inspection.checks())}
    assert [n for n, a in answers.items() if a.level == "blocker"] == []
    assert isinstance(answers["resume"].findings[0], Finding)
    assert "moved aside" in answers["resume"].findings[0].what
