"""Rules on how the machine runs: speed, memory, GPU, disk, uploads. Pure functions of the history.

Speed and memory are compared within one attempt: the next one may be on another machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

from headway.monitor.alerts import Alert
from headway.monitor.history import BLOCK_STEPS, Block, History
from headway.monitor.thresholds import Thresholds

SPEED_BLOCKS, MEMORY_BLOCKS = 4, 6
GPU_LOOKS, BACKLOG_LOOKS, DISK_LOOKS = 8, 8, 20
DISK_SECONDS = 1200.0
"""Over less time one tooth of the saw that saves and deletions make would look like a slope."""


def throughput_drop(history: History, given: Thresholds) -> Alert | None:
    """The newest block's tokens per second against the median of this attempt's blocks."""
    blocks = of_this_attempt(history)[1:]  # the first steps warm up
    if len(blocks) < SPEED_BLOCKS:
        return None
    usual = statistics.median(block.tokens_per_second for block in blocks[:-1])
    newest = blocks[-1].tokens_per_second
    if newest >= given.throughput_share * usual:
        return None
    return Alert(
        kind="throughput_drop",
        level="warning",
        what=f"{newest:,.0f} tokens a second (median of {BLOCK_STEPS} steps), "
        f"{newest / max(usual, 1e-9):.0%} of this attempt's usual {usual:,.0f}",
        why="each step costs more: another process on the machine, a GPU that throttles, a slow "
        "disk, or longer rows than before",
        advice="look at nvidia-smi (clocks, temperature, other processes) and at top; if the "
        "machine stays slow, stop with Ctrl-C and give the same command on another one",
    )


def memory_growing(history: History, given: Thresholds) -> Alert | None:
    """Peak memory grew in each of the last blocks, and at this rate does not last to the end."""
    blocks, limit = of_this_attempt(history)[1:], history.memory_limit_bytes
    if limit is None or len(blocks) <= MEMORY_BLOCKS:
        return None
    newest = [block.memory_bytes for block in blocks[-MEMORY_BLOCKS - 1 :]]
    growth = [after - before for before, after in pairwise(newest)]
    if min(growth) <= 0:
        return None
    per_step = statistics.median(growth) / BLOCK_STEPS
    left = max(0, history.num_steps - blocks[-1].last_step)
    if newest[-1] + per_step * left <= limit:
        return None
    steps = (limit - newest[-1]) / per_step
    return Alert(
        kind="memory_growing",
        level="warning",
        what=f"peak memory is {size(newest[-1])} and grew by {size(per_step * 100)} per 100 "
        f"steps; {size(limit)} are reached in {max(0, steps):,.0f} steps, with {left:,} to go",
        why="something is kept from step to step; the run would end out of memory",
        advice="checkpoints make that cheap: run with --supervise, which starts again by itself; "
        "a smaller hardware.microbatch_size leaves more room",
    )


def gpu_idle(history: History, given: Thresholds) -> Alert | None:
    """The GPU computed less than half of the time, over the last minutes."""
    known = [g.gpu_share for g in history.gauges[-GPU_LOOKS:] if g.gpu_share is not None]
    if len(known) < GPU_LOOKS or statistics.median(known) >= given.gpu_share:
        return None
    return Alert(
        kind="gpu_idle",
        level="warning",
        what=f"the GPU computes {statistics.median(known):.0%} of the time",
        why="you pay for all of it; above 90 % is good",
        advice="look with top first: where one processor core is at 100 %, the data is what is "
        "waited for (more cores, smaller pictures, shorter rows). Where none is, the GPU gets too "
        "little at once: raise hardware.microbatch_size. Evaluations that read aloud count too",
    )


def disk_filling(history: History, given: Thresholds) -> Alert | None:
    """The next checkpoint does not fit, or at the present rate the disk is soon full."""
    known = [
        (g.at_seconds, g.disk_free_bytes) for g in history.gauges if g.disk_free_bytes is not None
    ]
    if not known:
        return None
    free, save = known[-1][1], history.gauges[-1].save_bytes
    minutes = minutes_to_full(known)
    tight = save is not None and free < 1.05 * save
    if not tight and (minutes is None or minutes > given.disk_minutes):
        return None
    what = f"{size(free)} are free on the run's disk"
    what += f", and a checkpoint takes {size(save)}" if tight and save else ""
    what += f"; at the present rate it is full in {minutes:.0f} minutes" if minutes else ""
    return Alert(
        kind="disk_filling",
        level="critical" if tight else "warning",
        what=what,
        why="a save that finds no room is skipped, and a kill then costs all steps since the last",
        advice="free space; lower checkpoint.keep_last and keep_best; see what is large with "
        "headway checkpoints list",
    )


def upload_backlog(history: History, given: Thresholds) -> Alert | None:
    """Several checkpoints have been waiting for the bucket at every one of the last looks."""
    newest = [gauges.waiting_checkpoints for gauges in history.gauges[-BACKLOG_LOOKS:]]
    if len(newest) < BACKLOG_LOOKS or min(newest) < given.waiting_checkpoints:
        return None
    return Alert(
        kind="upload_backlog",
        level="warning",
        what=f"{newest[-1]} checkpoints are not in the bucket yet",
        why="if this machine is lost now, so are the steps since the last one that is there; and "
        "they cannot be deleted here before they are sent",
        advice="save less often (checkpoint.every_steps), raise upload.parallel_files or "
        "upload.bandwidth_mb_per_second; headway upload status RUN says what waits",
    )


def of_this_attempt(history: History) -> tuple[Block, ...]:
    """The blocks whose steps this attempt made, all of them."""
    return tuple(b for b in history.blocks if b.whole and b.attempt == history.attempt)


def minutes_to_full(known: Sequence[tuple[float, int]]) -> float | None:
    """When free space would end. ``known``: (seconds, bytes free) of each look.

    Saves and deletions make free space a saw, so its peaks are compared: the highest of each
    quarter of the looks. None if they do not fall, or there are too few looks to say.
    """
    if len(known) < DISK_LOOKS or known[-1][0] - known[0][0] < DISK_SECONDS:
        return None
    count = len(known) // 4
    quarters = [known[n * count : (n + 1) * count] for n in range(4)]
    peaks = [max(quarter, key=lambda look: (look[1], -look[0])) for quarter in quarters]
    if any(after[1] >= before[1] for before, after in pairwise(peaks)):
        return None
    per_second = (peaks[0][1] - peaks[-1][1]) / (peaks[-1][0] - peaks[0][0])
    return known[-1][1] / per_second / 60


def size(bytes_: float) -> str:
    """1234567 -> '1.2 MB'."""
    for unit in ("bytes", "kB", "MB"):
        if abs(bytes_) < 1000:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.1f} GB"
