"""The promises every registered recipe keeps; a new recipe adds one line to ``cases.CASES``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cases import CASES, tree_of
from headway.api import load_run, train
from headway.config import RunConfig, known_recipes
from headway.engine.task import Microbatch, Task
from headway.errors import CheckpointError, ConfigError
from headway.opening import opened
from headway.records import StepReport
from headway.show import Quiet
from toy import Cut, CutAt, assert_same_state, final_state

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def config_of(case: str, folder: Path, **sections: dict[str, Any]) -> RunConfig:
    tree = tree_of(case, folder)
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return RunConfig(**tree)


def task_of(case: str, folder: Path, **sections: dict[str, Any]) -> Task:
    with opened(config_of(case, folder, **sections)) as run:
        return run.task


def test_every_installed_recipe_has_a_case() -> None:
    strangers = {"proof", "prose", "tuned"}  # those that the config tests install for themselves
    assert set(known_recipes()) - strangers <= {recipe for recipe, _, _ in CASES.values()}


def test_an_unknown_key_is_refused_with_its_path_and_the_config_round_trips(
    case: str, tmp_path: Path
) -> None:
    config = config_of(case, tmp_path)
    config.save(tmp_path / "c.yaml")
    assert RunConfig.load(tmp_path / "c.yaml") == config
    with pytest.raises(ConfigError, match=r"task\.learning_rat"):
        RunConfig.load(tmp_path / "c.yaml", ["task.learning_rat=1"])


def same(one: Microbatch, other: Microbatch) -> bool:
    return (one.rows, one.weights, one.tokens) == (other.rows, other.weights, other.tokens) and all(
        torch.equal(value.nan_to_num(), other.inputs[key].nan_to_num())
        if isinstance(value, torch.Tensor)
        else value == other.inputs[key]
        for key, value in one.inputs.items()
    )


def test_a_batch_is_a_pure_function_of_the_step(case: str, tmp_path: Path) -> None:
    task = task_of(case, tmp_path)
    forward = [list(task.batch_at(step)) for step in range(6)]
    backward = [list(task.batch_at(step)) for step in reversed(range(6))][::-1]
    for ones, others in zip(forward, backward, strict=True):
        assert all(same(a, b) for a, b in zip(ones, others, strict=True))


def test_an_epoch_has_each_row_exactly_once(case: str, tmp_path: Path) -> None:
    task = task_of(case, tmp_path, train={"batch_size": 1})
    for epoch in range(2):
        steps = range(epoch * task.rows_per_epoch, (epoch + 1) * task.rows_per_epoch)
        rows = [row for step in steps for m in task.batch_at(step) for row in m.rows]
        assert sorted(rows) == list(range(task.rows_per_epoch))


def test_sums_add_over_any_split_in_loss_and_gradient(case: str, tmp_path: Path) -> None:
    found = []
    for size in (8, 4, 3, 1):
        task = task_of(case, tmp_path / str(size), hardware={"microbatch_size": size})
        task.model.eval()  # dropout draws differ between splits, by design
        microbatches = task.batch_at(0)
        assert len(microbatches) == -(-8 // size)
        total: dict[str, float] = {}
        for microbatch in microbatches:
            sums = task.loss(task.model, microbatch.inputs)
            assert all(s.shape == (len(microbatch.rows),) for s in sums.values())
            sums["loss"].sum().backward()
            for name, rows in sums.items():
                total[name] = total.get(name, 0.0) + rows.sum().item()
        grads = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
        found.append((total, torch.cat(grads), sum(m.weight for m in microbatches)))
    whole = found[0]
    for part in found[1:]:
        assert part[2] == whole[2]
        assert part[0] == pytest.approx(whole[0], rel=1e-5)
        torch.testing.assert_close(part[1], whole[1], rtol=1e-4, atol=1e-4)


def test_when_memory_runs_out_the_same_rows_come_in_smaller_pieces(
    case: str, tmp_path: Path
) -> None:
    task = task_of(case, tmp_path)
    for pieces in (lambda h: task.batch_at(1, h), lambda h: list(task.held_out(h))):
        whole = [row for m in pieces(0) for row in m.rows]
        sizes = []
        for halvings in range(12):
            parts = pieces(halvings)
            assert [row for m in parts for row in m.rows] == whole
            assert all(same(a, b) for a, b in zip(parts, pieces(halvings), strict=True))
            sizes.append(max(len(m.rows) for m in parts))
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 1


def test_recomputed_activations_give_the_same_gradient(case: str, tmp_path: Path) -> None:
    task = task_of(case, tmp_path)
    task.model.train()

    def gradient() -> torch.Tensor:
        task.model.zero_grad()
        torch.manual_seed(0)
        for microbatch in task.batch_at(0):
            task.loss(task.model, microbatch.inputs)["loss"].sum().backward()
        return torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])

    kept = gradient()
    if not task.recompute_activations():
        assert case == "toy"
        return
    torch.testing.assert_close(gradient(), kept, rtol=1e-5, atol=1e-6)
    assert not task.recompute_activations(), "it does so already"


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_resumed_equals_uninterrupted_bit_for_bit(case: str, tmp_path: Path, cut: int) -> None:
    train(config_of(case, tmp_path / "a"))
    with pytest.raises(Cut):
        train(config_of(case, tmp_path / "b"), show=CutAt(cut))
    train(config_of(case, tmp_path / "b"))
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sft-lora", "vision-lora", "vision-llava"])
def test_qlora_resumes_bit_for_bit_with_evaluations_between(tmp_path: Path, recipe: str) -> None:
    pytest.importorskip("bitsandbytes")
    four_bits = {"tuning": {"kind": "qlora", "rank": 4, "alpha": 8}}
    bf16 = {"precision": "bf16"}
    train(config_of(recipe, tmp_path / "a", task=four_bits, hardware=bf16))
    with pytest.raises(Cut):
        config = config_of(recipe, tmp_path / "b", task=four_bits, hardware=bf16)
        train(config, show=CutAt(3))
    train(config)
    assert_same_state(final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run"))


def test_evaluation_and_export_leave_training_unchanged(case: str, tmp_path: Path) -> None:
    train(config_of(case, tmp_path / "a"))

    class Disturbs(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            run.recipe.export(
                run.task, run.config.task, new(tmp_path / f"x{report.step}"), CASES[case][2]
            )

    from headway.run import train as loop

    often = {"every_steps": 1}
    with opened(config_of(case, tmp_path / "b", evaluate=often), show=Disturbs()) as run:
        loop(run)
    one, other = final_state(tmp_path / "a/runs/run"), final_state(tmp_path / "b/runs/run")
    del one["state.json"], other["state.json"]  # it lists the evaluations, which differ here
    assert_same_state(one, other)


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_it_learns_and_can_learn_one_batch_by_heart(case: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"horizon": {"steps": 60}, "learning_rate": 0.02}
    losses: list[float] = []

    class Keeps(Quiet):
        def step(self, report: StepReport, plan: Any, cost_usd: float | None) -> None:
            losses.append(report.loss)

    with opened(
        config_of(case, tmp_path, train=more, checkpoint={"every_steps": None}), show=Keeps()
    ) as run:
        from headway.run import train as loop

        one_batch = list(run.task.batch_at(0))
        run.task.batch_at = lambda step, halvings=0: one_batch  # type: ignore[method-assign]
        loop(run)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_an_export_gives_the_same_outputs_in_a_fresh_process(case: str, tmp_path: Path) -> None:
    train(config_of(case, tmp_path))
    trained = load_run(tmp_path / "runs/run")
    to = tmp_path / "export"
    to.mkdir()
    trained.export(to, CASES[case][2])
    own = {
        "toy": toy_outputs,
        "regression": score_outputs,
        "vision": picture_outputs,
        "graph_vae": latent_outputs,
        "latent_editor": edit_outputs,
    }
    outputs = own.get(CASES[case][0], text_outputs)
    program, expected = outputs(trained, to, CASES[case][2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    found = torch.tensor(json.loads(done.stdout.strip().splitlines()[-1]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def toy_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    x = [[0.1, 0.2, 0.3, 0.4]]
    program = (
        "import json, torch; from safetensors.torch import load_file\n"
        f"w = load_file('{to}/model.safetensors'); x = torch.tensor({x})\n"
        "h = (x @ w['0.weight'].T + w['0.bias']).tanh()\n"
        "print(json.dumps((h @ w['3.weight'].T + w['3.bias']).tolist()))"
    )
    return program, torch.tensor(trained.predict({"x": x})["y"])


def score_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    asked = {"problem": "What is red 3?", "steps": ["red is", "green no"]}
    base = "None"
    if format == "adapter":
        base = f"AutoModelForCausalLM.from_pretrained('{trained.config.task.base_model}')"
    program = (
        "import json, torch; from pathlib import Path\n"
        "from transformers import AutoModelForCausalLM\n"
        "from headway.models.score import read_of\n"
        "from headway.models.surprise import StepTokens\n"
        "from headway.recipes.chain_rows import ChainRows\n"
        "from headway.recipes.chain_view import asked\n"
        "from headway.recipes.score_export import load_scorer\n"
        f"scorer, text = load_scorer(Path('{to}'), base={base})\n"
        f"from dataclasses import replace; chain = replace(asked({asked}), targets=(0.0, 0.0))\n"
        "x = ChainRows([chain], text).microbatch([0]).inputs\n"
        "out = scorer(*read_of(x), steps=StepTokens.of(x))\n"
        "print(json.dumps(out.sigmoid().tolist()))"
    )
    return program, torch.tensor(trained.predict(asked)["scores"])


def latent_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    part = {"family": "tube", "parameters": {"length": 90.0, "outer_diameter": 40.0,
                                             "inner_diameter": 20.0}}  # fmt: skip
    program = (
        "import json; from pathlib import Path\n"
        "from headway.recipes.graph_use import asked, described_part, load_vae\n"
        f"print(json.dumps(described_part(load_vae(Path('{to}')), asked({part}))['latent']))"
    )
    return program, torch.tensor(trained.predict(part)["latent"])


def edit_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    from headway.recipes.editor_files import said_of

    z, text = [0.5, 0.2, -0.1, 0.9, 0.0, 0.3], "make leg1 20 mm longer"
    base = "None"
    if format == "adapter":
        base = f"AutoModelForCausalLM.from_pretrained('{trained.config.task.base_model}')"
    program = (
        "import json, torch; from pathlib import Path\n"
        "from transformers import AutoModelForCausalLM\n"
        "from headway.recipes.editor_files import load_editor, said_of\n"
        f"editor, text = load_editor(Path('{to}'), base={base})\n"
        f"said = said_of(editor, text, '{text}', torch.tensor({z}))\n"
        "print(json.dumps(torch.cat([kind.flatten() for kind in said]).tolist()))"
    )
    trained.predict({"z_src": z, "instruction": text})
    said = said_of(trained.task.model, trained.task.text, text, torch.tensor(z))
    return program, torch.cat([kind.flatten() for kind in said])


def text_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    from headway.models.attention import generating

    ids = [[3, 5, 7, 9, 11, 4, 6]]
    with torch.no_grad(), generating(trained.task.model) as model:
        expected = model(input_ids=torch.tensor(ids), use_cache=False).logits[0, -1]
    load = f"AutoModelForCausalLM.from_pretrained('{to}')"
    if format == "adapter":
        base = trained.config.task.base_model
        load = f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), '{to}')"
    program = (
        "import json, torch; from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = {load}.eval()\n"
        f"out = model(input_ids=torch.tensor({ids}), use_cache=False).logits[0, -1]\n"
        "print(json.dumps(out.tolist()))"
    )
    return program, expected


def picture_outputs(trained: Any, to: Path, format: str) -> tuple[str, torch.Tensor]:
    """As a stranger would use it: transformers, the files in the folder, and a picture."""
    from safetensors.torch import save_file

    from headway.models.attention import generating
    from headway.recipes.vision_export import probe_of

    probe = probe_of(trained.task)
    save_file({key: value.contiguous() for key, value in probe.items()}, to.parent / "probe.st")
    with torch.no_grad(), generating(trained.task.model) as model:
        expected = model(**probe, use_cache=False).logits[0, -1]
    load = f"Auto.from_pretrained('{to}')"
    if format == "adapter":
        base = trained.config.task.base_model
        load = f"PeftModel.from_pretrained(Auto.from_pretrained('{base}'), '{to}')"
    program = (
        "import json, torch; from peft import PeftModel; from safetensors.torch import load_file\n"
        "from transformers import AutoImageProcessor, AutoModelForImageTextToText as Auto\n"
        "from transformers import AutoTokenizer\n"
        f"AutoTokenizer.from_pretrained('{to}').apply_chat_template\n"
        f"assert AutoImageProcessor.from_pretrained('{to}').size\n"
        f"model = {load}.eval(); probe = load_file('{to.parent}/probe.st')\n"
        "out = model(**probe, use_cache=False).logits[0, -1]\n"
        "print(json.dumps(out.tolist()))"
    )
    return program, expected


def test_a_run_is_never_used_over_another_base_model(tmp_path: Path) -> None:
    """Without this an adapter over changed weights would answer, wrongly and silently."""
    config = config_of("sft-lora", tmp_path)
    train(config)
    load_run(tmp_path / "runs/run")
    from tiny import tiny_llama

    vocabulary = AutoModelForCausalLM.from_pretrained(config.task.base_model).config.vocab_size
    tiny_llama(vocabulary, seed=9).save_pretrained(config.task.base_model)
    with pytest.raises(CheckpointError, match="base_model"):
        load_run(tmp_path / "runs/run")


def test_an_export_that_fails_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    train(config_of("toy", tmp_path))
    with pytest.raises(ConfigError, match="not gguf"):
        load_run(tmp_path / "runs/run").export(tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()


def test_cached_rows_that_changed_on_disk_are_made_again(tmp_path: Path) -> None:
    config = config_of("sft-lora", tmp_path)
    before = task_of("sft-lora", tmp_path).batch_at(0)
    (ids,) = (tmp_path / "cache").glob("rows-*/train/ids.bin")
    data = bytearray(ids.read_bytes())
    data[0] ^= 1
    ids.write_bytes(data)
    after = task_of("sft-lora", tmp_path).batch_at(0)
    assert config.recipe == "sft"
    assert all(same(one, other) for one, other in zip(before, after, strict=True))
