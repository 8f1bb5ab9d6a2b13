"""``headway plan``: what a run will need and cost on each GPU, before one is rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from headway.planning import Offer, RunPlan


def plan(
    config: Annotated[Path, typer.Argument(help="YAML, JSON, TOML or Python config file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.path=value, as often as needed.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Training rows, where they are not on this disk.")
    ] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Read the training data, however large it is.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Train a few steps here, and plan with what they took."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """What the run of CONFIG will need and cost on each GPU. Needs no GPU, downloads no weights.

    Memory is that of the real model's step, traced without numbers; prices come from headway's
    dated table and your own (cost.prices, $HEADWAY_PRICES).
    """
    from headway.cli.tables import show_json
    from headway.config import load_config
    from headway.planning import plan_run

    loaded = load_config(config, overrides or [])
    if calibrate:
        from headway.planning.calibrate import calibrated

        found = calibrated(loaded, rows=rows, count=count)
    else:
        found = plan_run(loaded, rows=rows, count=count)
    if json:
        show_json(as_tree(found))
    else:
        show(found)


def show(found: RunPlan) -> None:
    """The plan for eyes: the model, the memory, the work, the offers, what was assumed."""
    from headway.cli.tables import show_facts, show_table
    from headway.config.presets import presets

    show_facts(facts(found), title=found.model)
    typer.echo("\nmemory of a step, by rows at once (GB of tensors)")
    show_table(
        ("how", "rows", "tokens", "activations", "of them logits", "peak", ""), memory(found)
    )
    typer.echo("\non one GPU")
    columns = ("GPU", "fits", "rows", "recompute", "needs/has GB", "hours", "on demand", "spot", "")
    show_table(columns, [line(offer) for offer in found.offers])
    for offer in found.offers:
        if offer.marks:
            typer.echo(f"\n{' and '.join(offer.marks)}: {offer.gpu.name}{sources(offer)}")
    typer.echo("\nassumed")
    for said in (*found.assumptions.lines(), *found.notes):
        typer.echo(f"  - {said}")
    typer.echo(f"\npresets (hardware.preset): {', '.join(presets())}")


def facts(found: RunPlan) -> dict[str, str]:
    """What is true of the run on any GPU."""
    held, work = found.ways[0].held, found.work
    unknown = "unknown: give --rows, or train.horizon.steps"
    return {
        "parameters": f"{held.parameters:,}, of which {held.trainable:,} train",
        "weights": gb(held.weights_bytes),
        "gradients": gb(held.gradient_bytes),
        "optimizer": gb(held.optimizer_bytes),
        "data": found.rows.said,
        "work": unknown
        if work.steps is None or work.tokens is None or found.flops is None
        else f"{work.steps:,} steps of {found.batch_size} rows, {work.tokens:,.0f} tokens, "
        f"{found.flops:.3g} FLOPs",
        "checkpoint": f"{gb(found.checkpoint_bytes)}; {gb(found.disk_bytes)} of disk for "
        f"{found.checkpoints} of them, the one being written included",
        "planned in": f"{found.seconds:.1f} s",
    }


def memory(found: RunPlan) -> list[list[str]]:
    """A line for each traced microbatch."""
    return [
        [
            ("recompute" if way.recompute else "keep") + (f", {way.tuning}" if way.tuning else ""),
            str(step.rows),
            f"{step.tokens:,}",
            f"{step.activation_bytes / 1e9:.2f}",
            f"{step.logits_bytes / 1e9:.2f}",
            f"{step.peak_bytes / 1e9:.2f}",
            "",
        ]
        for way in found.ways
        for step in way.steps
    ]


def line(offer: Offer) -> list[str]:
    """One GPU in the table."""
    size = f"{offer.needs_bytes / 1e9:.1f}/{offer.gpu.memory_bytes / 1e9:.1f}"
    if not offer.fits:
        return [offer.gpu.name, "no", "", "", size, "", "", "", ""]
    notes = [*offer.marks, *offer.changes]
    if offer.spot and offer.spot.lost_hours:
        notes.append(f"spot loses {offer.spot.lost_hours / offer.spot.hours:.0%}")
    return [
        offer.gpu.name,
        "yes" if offer.as_asked else "changed",
        str(offer.rows),
        "yes" if offer.recompute else "no",
        size,
        "?" if offer.hours is None else f"{offer.hours:.2f}",
        dollars(offer.on_demand, offer.hours),
        dollars(offer.spot, offer.hours),
        ", ".join(notes),
    ]


def dollars(money: Any, hours: float | None) -> str:
    """What it costs, or why that is not known."""
    if money is not None:
        return f"${money.usd:.2f}"
    return "?" if hours is None else "no price"


def sources(offer: Offer) -> str:
    """Where an offer's prices come from."""
    said = ""
    for kind, money in (("on demand", offer.on_demand), ("spot", offer.spot)):
        if money:
            rate = money.rate
            said += f"\n  {kind} {rate.an_hour}: {rate.provider} ({rate.source}, {rate.date})"
    return said


def as_tree(found: RunPlan) -> dict[str, Any]:
    """The plan for a program."""
    return {
        "model": found.model,
        "precision": found.precision,
        "rows": found.rows,
        "work": found.work,
        "batch_size": found.batch_size,
        "flops": found.flops,
        "checkpoint_bytes": found.checkpoint_bytes,
        "checkpoints": found.checkpoints,
        "disk_bytes": found.disk_bytes,
        "ways": [
            {
                "recompute": way.recompute,
                "tuning": way.tuning,
                "changed": way.changed,
                "held": way.held,
                "flops_per_token": way.flops_per_token,
                "steps": [
                    {
                        "rows": step.rows,
                        "tokens": step.tokens,
                        "activation_bytes": step.activation_bytes,
                        "logits_bytes": step.logits_bytes,
                        "peak_bytes": step.peak_bytes,
                        "flops": step.flops,
                    }
                    for step in way.steps
                ],
            }
            for way in found.ways
        ],
        "offers": [offer_tree(offer) for offer in found.offers],
        "assumptions": found.assumptions,
        "notes": [*found.assumptions.lines(), *found.notes],
        "seconds": found.seconds,
    }


def offer_tree(offer: Offer) -> dict[str, Any]:
    """One GPU for a program."""

    def money(of: Any) -> dict[str, Any] | None:
        if of is None:
            return None
        rate = of.rate.model_dump(exclude={"kind"})
        return {"usd": of.usd, "hours": of.hours, "lost_hours": of.lost_hours, **rate}

    return {
        "gpu": offer.gpu.name,
        "memory_bytes": offer.gpu.memory_bytes,
        "fits": offer.fits,
        "microbatch_size": offer.rows or None,
        "activation_checkpointing": offer.recompute if offer.fits else None,
        "changes": offer.changes,
        "needs_bytes": offer.needs_bytes,
        "hours": offer.hours,
        "on_demand": money(offer.on_demand),
        "spot": money(offer.spot),
        "marks": offer.marks,
    }


def gb(size: float) -> str:
    """1234567890 -> 1.23 GB"""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
