"""What a run is about to do, in a few lines that are printed before step 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.config.presets import find_preset

if TYPE_CHECKING:
    from headway.config.sections import Hardware
    from headway.run import Run


def summary(run: Run) -> list[str]:
    """One line each: model, batch and how it is split, length, saving, data, price."""
    config, task, plan, world = run.config, run.task, run.plan, run.world
    facts = task.facts()
    rows = config.train.batch_size
    size = config.hardware.microbatch_size
    split = "microbatches by the recipe" if size == "auto" else f"{size} rows a forward pass"
    tokens = round(plan.num_steps * rows * task.tokens_per_epoch / task.rows_per_epoch)
    epochs = plan.num_steps * rows / task.rows_per_epoch
    device = run.facts["hardware"].get("gpu") or run.facts["hardware"]["cpu"]
    lines = [
        f"run       {run.folder}"
        + ("" if run.state.step == 0 else f", from step {run.state.step}"),
        f"model     {facts.get('model', config.recipe)}: {counted(facts['trainable'])} of "
        f"{counted(facts['parameters'])} parameters train",
        f"batch     {rows} rows a step over {world.ranks} x {device}, {split}, "
        f"{config.hardware.precision}",
        f"length    {plan.num_steps} steps, {epochs:.2f} epochs, about {counted(tokens)} tokens; "
        f"{plan.schedule.shape} from {plan.schedule.peak:g} after {plan.schedule.warmup_steps} "
        "warm-up steps",
        f"saving    {saving(run)}",
        *(f"data      {line}" for line in facts.get("data", ())),
    ]
    if config.hardware.preset:
        lines.insert(3, f"preset    {preset_line(config.hardware)}")
    if config.cost and run.meter:
        price, spent = run.meter.price, run.cost_usd or 0.0
        cap = config.cost.budget_usd
        limit = f", stops before ${cap:g}" if cap else ""
        lines.append(f"cost      {price.an_hour}, ${spent:.4f} spent{limit}")
        if price.source != "config":
            lines.append(f"price     {price.gpu}, {price.source}, {price.date}")
    return lines


def preset_line(section: Hardware) -> str:
    """What a preset came to, after the keys that supersede it, and what it was made for."""
    found = find_preset(section.preset or "")
    keys = ", ".join(f"{key} {getattr(section, key)}".replace("_", " ") for key in found.hardware())
    return f"{section.preset}: {keys} (made for {found.suits}: {found.source})"


def saving(run: Run) -> str:
    """When checkpoints are made and which are kept."""
    section = run.config.checkpoint
    when = [f"every {section.every_steps} steps"] if section.every_steps else []
    when += [f"every {section.every_minutes:g} minutes"] if section.every_minutes else []
    if run.config.evaluate:
        when.append("at every evaluation")
    kept = f"the newest {section.keep_last} and the best {section.keep_best} are kept"
    return f"{', '.join(when) or 'at the end'}, and when it stops; {kept}"


def counted(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"
