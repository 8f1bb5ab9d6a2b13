"""The graph VAE: order of faces, scales, the weight of the KL, and a collapse that is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cases import tree_of
from headway.api import load_run, train
from headway.config import RunConfig
from headway.data.cad import FAMILIES, graphs_of, parts
from headway.data.cad.equality import shuffled
from headway.engine.state import load_model
from headway.errors import CheckpointError, ConfigError
from headway.journal import read_events
from headway.models.graph_vae import GraphVae, VaeShape, kl_nats, weights_sha256
from headway.recipes.graph_metrics import dimension_errors, measure
from headway.recipes.graph_rows import GraphRows, pairs_of
from headway.recipes.graph_use import export_vae, latents, load_vae, read_latents
from headway.recipes.graph_vae import GraphVaeConfig, GraphVaeRecipe, reconstruction
from toy import context

pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = VaeShape(latent=6, width=16, layers=2, decoder_layers=1, heads=2)


def some_graphs(n: int = 24, seed: int = 0) -> Any:
    return graphs_of(*parts(seed, np.arange(n)))


def some_model(n: int = 60) -> GraphVae:
    torch.manual_seed(0)
    model = GraphVae(SMALL)
    given = GraphRows.of(some_graphs(n)).tensors(np.arange(n))
    model.fit_scales(given["types"], given["faces"], given["pairs"])
    return model.eval()


def task_of(folder: Path, **keys: Any) -> Any:
    tree = tree_of("graph_vae", folder)["task"] | keys
    return GraphVaeRecipe().build(GraphVaeConfig.model_validate(tree), context(batch_size=8))


# ------------------------------------------------------------------ the model


def test_the_order_of_the_faces_does_not_matter() -> None:
    """Seed defect 4(g) 6: message passing that depends on the order of edges and faces."""
    model, graphs = some_model(), some_graphs()
    order = np.random.default_rng(1).permutation(11)
    moved = shuffled(graphs, order)
    assert not (moved.types == graphs.types).all()
    np.testing.assert_allclose(latents(model, moved), latents(model, graphs), atol=1e-5)


def test_edges_and_their_directions_matter() -> None:
    """Negative control of the test above: what is no order does change the latent."""
    model, graphs = some_model(), some_graphs()
    longer = replace(graphs, edges=graphs.edges * [1.5, 1.0])
    fewer = replace(graphs, ends=np.where(np.arange(50)[None, :, None] < 2, -1, graphs.ends))
    for other in (longer, fewer):
        assert np.abs(latents(model, other) - latents(model, graphs)).max() > 1e-4


def test_a_graph_alone_and_among_others_has_the_same_latent() -> None:
    model, graphs = some_model(), some_graphs()
    whole = latents(model, graphs)
    rows = GraphRows.of(graphs)
    for row in (0, 7, 23):
        given = rows.tensors([row])
        mu, _ = model.posterior_of(given["types"], given["faces"], given["pairs"])
        np.testing.assert_allclose(mu.detach().numpy()[0], whole[row], atol=1e-5)


def test_scales_make_what_the_model_reads_of_unit_size_and_leave_constants_alone() -> None:
    model, n = some_model(400), 400
    given = GraphRows.of(some_graphs(n)).tensors(np.arange(n))
    faces, _ = model.scaled(given["faces"], given["pairs"])
    there = faces[given["types"] >= 0]
    np.testing.assert_allclose(there.mean(0).detach().numpy(), 0, atol=1e-4)
    deviation = there.std(0, correction=0).detach().numpy()
    assert ((np.abs(deviation - 1) < 1e-3) | (deviation < 1e-6)).all()
    assert (model.face_scale > 0).all() and model.face_scale[8] == 1, "curvature 2 is always 0"


def test_kl_is_that_of_normal_distributions() -> None:
    from torch.distributions import Normal, kl_divergence

    mu, log_sigma = torch.randn(5, 3), torch.randn(5, 3) * 0.5
    expected = kl_divergence(Normal(mu, log_sigma.exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_nats(mu, log_sigma), expected)


def test_only_while_training_a_latent_is_drawn() -> None:
    model = some_model()
    given = GraphRows.of(some_graphs()).tensors(np.arange(24))
    still = [model(given)[2].family for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    drawn = [model(given)[2].family for _ in range(2)]
    assert not torch.equal(*drawn)


# ------------------------------------------------------------------ the task


def test_the_weight_of_the_kl_is_a_function_of_the_step(tmp_path: Path) -> None:
    kl = {"weight": 0.5, "free_bits": 0.0, "warmup_steps": 4}
    task = task_of(tmp_path, kl=kl)
    weights = [task.batch_at(step)[0].inputs["kl_weight"][0].item() for step in (0, 1, 2, 4, 9)]
    assert weights == [0.0, 0.125, 0.25, 0.5, 0.5]
    assert all((m.inputs["kl_weight"] == 0.5).all() for m in task.held_out())
    none = task_of(tmp_path, kl={**kl, "warmup_steps": 0})
    assert none.batch_at(0)[0].inputs["kl_weight"][0] == 0.5


def test_free_bits_are_for_each_dimension_of_each_graph(tmp_path: Path) -> None:
    kl = {"weight": 1.0, "warmup_steps": 0}
    free = task_of(tmp_path, kl={**kl, "free_bits": 0.25})
    batch = free.batch_at(0)[0].inputs
    free.model.eval()
    mu, log_sigma = free.model.posterior_of(batch["types"], batch["faces"], batch["pairs"])
    expected = kl_nats(mu, log_sigma).clamp(min=0.25).sum(1)
    sums = free.loss(free.model, batch)
    torch.testing.assert_close(sums["kl_nats"], expected.detach())
    assert (expected >= 8 * 0.25 - 1e-6).all()


def test_a_perfect_answer_costs_nothing() -> None:
    """Each part of the loss is 0 where what is decoded is what was given."""
    from headway.models.graph_vae import Decoded

    model, rows = some_model(), GraphRows.of(some_graphs())
    given = rows.tensors(np.arange(24))
    faces, edges = model.scaled(given["faces"], given["pairs"])
    types = torch.nn.functional.one_hot(torch.where(given["types"] >= 0, given["types"], 4), 5)
    shares = torch.zeros(24, 6, 9)
    shares[torch.arange(24), given["family"]] = given["shares"]
    right = Decoded(
        types=1e3 * types.float(),
        faces=faces[..., :12],
        joined=1e3 * (2 * given["pairs"][..., 0] - 1),
        edges=edges,
        family=1e3 * torch.nn.functional.one_hot(given["family"], 6).float(),
        shares=shares,
    )
    for name, value in reconstruction(model, given, right).items():
        assert value.abs().max() < 1e-5, name
    wrong = reconstruction(model, given, right._replace(shares=shares + 0.1))
    assert wrong["dimensions"].tolist() == pytest.approx([0.01] * 24, rel=1e-3)


def test_the_scales_travel_with_the_checkpoint(tmp_path: Path) -> None:
    config = RunConfig(**tree_of("graph_vae", tmp_path))
    train(config)
    run = load_run(tmp_path / "runs/run")  # reads no parts
    assert run.task.model.face_mean.abs().max() > 0
    bare = GraphVaeRecipe().build(config.task, context(data=False))
    assert bare.model.face_mean.abs().max() == 0
    load_model(bare, run.checkpoint.path / "model")
    graphs = some_graphs()
    assert (bare.encode(graphs) == run.task.encode(graphs)).all()


# ------------------------------------------------------------------ figures


def test_dimensions_in_use_are_counted_and_errors_are_in_mm() -> None:
    train_rows, held = GraphRows.of(some_graphs(90, 1)), GraphRows.of(some_graphs(30, 2))
    rng = np.random.default_rng(0)
    observed = []
    for row in range(30):
        mu = [rng.normal(), 0.05 * rng.normal(), *np.zeros(2)]
        family = held.graphs.family[row]
        columns = [row, family, 11, 2.0 * 5, 5, 121, *held.shares[row], *mu, *np.ones(4)]
        observed.append(tuple(map(float, columns)))
    metrics, baselines, read = measure(held, train_rows, observed)
    assert metrics["active_dimensions"] == 1.0 and metrics["kl_nats"] == 4.0
    assert metrics["type_accuracy"] == metrics["edge_accuracy"] == 1.0
    assert metrics["dimension_mae_mm"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["face_mse"] == pytest.approx(2.0)
    assert baselines["dimension_mae_mm/constant mean"] > 5
    off = held.shares.copy()
    off[:, 0] += 0.1  # each family's first dimension by a tenth of its range
    errors, _ = dimension_errors(held, train_rows, np.arange(30), off)
    for row in range(30):
        family = FAMILIES[held.graphs.family[row]]
        first = family.parameters[0]
        expected = 0.1 * (first.high - first.low) / len(family.parameters)
        assert errors[row] == pytest.approx(expected)
    assert len(read) == 30


def collapse(folder: Path, weight: float) -> list[dict[str, Any]]:
    tree = tree_of("graph_vae", folder)
    tree["train"] |= {"horizon": {"steps": 120}, "learning_rate": 0.01}
    tree["evaluate"] |= {"every_steps": 40}
    tree["checkpoint"] |= {"every_steps": None}
    tree["task"] |= {"least_active": 2, "kl": {"weight": weight, "free_bits": 0.0,
                                               "warmup_steps": 50}}  # fmt: skip
    tree["task"]["data"]["eval"] = {"count": 60, "seed": 2}
    train(RunConfig(**tree))
    events = read_events(folder / "runs/run/journal.jsonl", {"alert", "evaluation"})
    return [dict(event) for event in events]


def test_a_latent_that_collapses_is_an_alert_and_one_that_does_not_is_none(tmp_path: Path) -> None:
    """Seed defect 4(g) 11: a collapse was not seen for weeks."""
    held_down = collapse(tmp_path / "a", weight=100.0)
    alerts = [e for e in held_down if e["event"] == "alert" and e["kind"] == "recipe_gate"]
    assert len(alerts) == 1, "said once, however long it lasts"
    assert "of 8 latent dimensions are in use" in alerts[0]["what"]
    assert "task.kl.weight" in alerts[0]["advice"]
    newest = [e for e in held_down if e["event"] == "evaluation"][-1]
    assert newest["metrics"]["active_dimensions"] < 2 and newest["findings"]
    free = collapse(tmp_path / "b", weight=0.0)
    assert not [e for e in free if e["event"] == "alert" and e["kind"] == "recipe_gate"]
    assert [e for e in free if e["event"] == "evaluation"][-1]["metrics"]["active_dimensions"] >= 2


# ------------------------------------------------------------------ in use, and on disk


def test_what_is_no_part_is_refused_before_it_is_answered(tmp_path: Path) -> None:
    recipe = GraphVaeRecipe()
    for request, said in (
        ({"family": "sphere", "parameters": {}}, "no part family 'sphere'"),
        ({"family": "block", "parameters": {"length": 50}}, "exactly the parameters"),
        ({"prompt": "x"}, "takes no prompt"),
        ({"family": "block"}, "needs part .a STEP or JSON file., or family and parameters"),
        ({"part": "nowhere.json"}, "not readable as JSON or STEP"),
        (
            {"family": "block", "parameters": {"length": 5000, "width": 50, "height": 20}},
            "length is 5000 mm, not 20 to 150",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            recipe.check_request(request)


def test_a_part_in_a_file_is_answered_as_its_dimensions_are(tmp_path: Path) -> None:
    part = {"family": "block", "parameters": {"length": 50, "width": 50, "height": 20}}
    (tmp_path / "part.json").write_text(json.dumps(part))
    recipe, task = GraphVaeRecipe(), task_of(tmp_path)
    told = [recipe.predict(task, given) for given in (part, {"part": str(tmp_path / "part.json")})]
    assert told[0] == told[1] and len(told[0]["latent"]) == 8
    (tmp_path / "part.json").write_text("[1]")
    with pytest.raises(ConfigError, match="an object with family and parameters was expected"):
        recipe.check_request({"part": str(tmp_path / "part.json")})


def test_an_export_of_other_families_or_a_torn_one_is_refused(tmp_path: Path) -> None:
    model = some_model()
    found = export_vae(model, tmp_path, "full")
    assert found["sha256"] == weights_sha256(load_vae(tmp_path)) == weights_sha256(model)
    told, dimensions = read_latents(load_vae(tmp_path), np.zeros((2, 6), np.float32))
    assert len(told) == len(dimensions) == 2
    tree = json.loads((tmp_path / "graph_vae.json").read_text())
    tree["families"][0]["parameters"][0]["high"] = 999
    (tmp_path / "graph_vae.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="other families or ranges"):
        load_vae(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="no graph VAE can be read"):
        load_vae(tmp_path)


def test_one_weight_more_or_less_is_another_autoencoder() -> None:
    model = some_model()
    before = weights_sha256(model)
    with torch.no_grad():
        model.pair_scale[0] = model.pair_scale[0].nextafter(torch.tensor(0.0))
    assert weights_sha256(model) != before


def test_padding_is_no_edge_in_what_the_model_reads() -> None:
    """Seed defect 4(g) 7: padded edges were loops on face 0."""
    graphs = some_graphs(60)
    pairs = pairs_of(graphs.ends, graphs.edges)
    assert (pairs[..., 0].sum((1, 2)) == (graphs.ends[..., 0] >= 0).sum(1)).all()
    assert (pairs[:, np.arange(11), np.arange(11)] == 0).all()
    np.testing.assert_array_equal(pairs, pairs.transpose(0, 2, 1, 3))
