"""Rows with pictures as people look at them: before training, and those that were read worst."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from headway.data.pictures import ImageExample, ImageSplits, PromptWriter, decoded
from headway.data.pictures.load import budget_lines, read_images
from headway.data.prepare import refuse_unusable
from headway.engine.task import GoOn, RowAsRead, Survey
from headway.errors import DataError
from headway.models.eyes import Eyes
from headway.models.files import model_files
from headway.recipes.checks import CLOSE, OPEN, share_findings, shortened
from headway.recipes.ocr_metrics import PageScore, diff
from headway.recipes.text import shaded
from headway.records import Check, Evaluation, Finding, Picture, RowLoss

if TYPE_CHECKING:
    from headway.recipes.vision import VisionConfig
    from headway.recipes.vision_task import VisionTask

MARKS = {"equal": None, "missing": "missing", "extra": "added"}
PICTURE_SIDE = 900
"""Longest side in pixels of a picture that is kept for people."""
SHOWN_CHARACTERS = 400

Heard = Mapping[int, tuple[str, PageScore]]
"""Row -> what was read of it, and how well."""


def checks(config: VisionConfig, look: Callable[[], Iterable[Finding]]) -> list[Check]:
    """The model's files where it has any, and the rows."""
    name, revision = config.base_model, config.revision
    if name is None:
        return [Check("data", look)]
    on_this_disk = name.startswith(("./", "../", "/", "~"))
    return [
        Check("model files", lambda: model_files(name, revision), quick=on_this_disk),
        Check("data", look, needs=("model files",)),
    ]


def findings(
    splits: ImageSplits, eyes: Eyes, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    """What became of the rows, and one of them as the model reads it."""
    for line in data_lines(splits, eyes):
        yield Finding(level="note", name="data", what=line)
    yield from share_findings(splits.report)
    first = as_read(splits.train[0], tokenizer, eyes)
    text = "".join(
        f"{OPEN}{shortened(run, SHOWN_CHARACTERS)}{CLOSE}" if target else shortened(run, 300)
        for run, target, _ in first.runs
    )
    yield Finding(
        level="note",
        name="data",
        what=f"{first.where} as the model reads it, {first.facts} ({OPEN}learned{CLOSE}):\n{text}",
    )


def data_lines(splits: ImageSplits, eyes: Eyes) -> list[str]:
    """The data report, and what pictures cost."""
    size = eyes.processor.size
    by_split = [("train", splits.train), ("held-out", splits.held_out), ("test", splits.test)]
    lines = [*splits.report.lines(), *budget_lines(by_split, eyes)]
    if "shortest_edge" in dict(size) and "longest_edge" in dict(size):
        low, high = int(size["shortest_edge"]), int(size["longest_edge"])
        most = eyes.features(*_square(high))
        lines.append(
            f"picture budget: min_pixels {low:,}, max_pixels {high:,} (about {most:,} tokens)"
        )
    return lines


def _square(pixels: int) -> tuple[int, int]:
    side = max(1, int(pixels**0.5))
    return side, side


def as_read(row: ImageExample, tokenizer: PreTrainedTokenizerBase, eyes: Eyes) -> RowAsRead:
    """A row's text in runs, each picture as one mark with its size and its tokens."""
    facts = (
        f"{len(row.ids):,} tokens, {sum(row.features):,} of them for {len(row.features)} "
        f"pictures, {row.weight:,} learned"
    )
    if row.full_tokens > len(row.ids):
        facts += f", cut from {row.full_tokens:,}"
    pictures = iter(zip(row.sizes, row.features, strict=True))
    runs: list[tuple[str, str, float | None]] = []
    start = 0
    ids, said = row.ids.tolist(), row.supervised.tolist()
    while start < len(ids):
        is_picture = ids[start] == eyes.image_id
        stop = start
        if is_picture:
            (height, width), count = next(pictures)
            seen = eyes.scaled(height, width)
            stop = start + count
            text = f"[picture {width}x{height}, seen as {seen[1]}x{seen[0]}, {count} tokens]"
        else:
            while stop < len(ids) and ids[stop] != eyes.image_id and said[stop] == said[start]:
                stop += 1
            text = str(tokenizer.decode(ids[start:stop], skip_special_tokens=False))
        runs.append((text, "learned" if said[start] else "", 1.0 if said[start] else None))
        start = stop
    return RowAsRead(where=row.row.where, facts=facts, runs=runs)


def read(
    config: VisionConfig, writer: PromptWriter, eyes: Eyes, seed: int, cache: Path
) -> ImageSplits:
    """All rows, whatever share of them is lost."""
    return read_images(
        config.data, writer, eyes, max_tokens=config.max_tokens, seed=seed, cache=cache
    )


def survey(
    config: VisionConfig, writer: PromptWriter, eyes: Eyes, seed: int, cache: Path
) -> Survey:
    """All rows counted; what a run would refuse is said at the end."""
    splits = read(config, writer, eyes, seed, cache)
    refusal = ""
    try:
        held_out = splits.held_out is not None
        refuse_unusable(config.data, splits.report, splits.sizes, held_out=held_out)
    except DataError as error:
        refusal = str(error)
    lines = data_lines(splits, eyes)
    return Survey(lines=lines, tree={**splits.report.tree(), "lines": lines}, refusal=refusal)


# ------------------------------------------------------------------ the worst rows


def worst(
    task: VisionTask, evaluation: Evaluation, heard: Heard, new_tokens: int, go_on: GoOn
) -> tuple[RowLoss, ...]:
    """The rows of highest loss, and as many of highest error rate among those that were heard, each
    once, as they are seen."""
    from headway.recipes.ocr_metrics import score_page
    from headway.recipes.vision_reading import read_held

    assert task.held is not None
    keep = len(evaluation.worst)
    by_loss = {row.row: row for row in evaluation.worst}
    by_error = sorted(heard, key=lambda row: (-heard[row][1].cer, row))[:keep]
    unread = [row for row in by_loss if row not in heard] if heard else []
    more = {
        row: (found.text, score_page(found.text, task.held[row].row.answer))
        for row, found in zip(unread, read_held(task, unread, new_tokens, go_on), strict=True)
    }
    everything = {**heard, **more}
    found = list(by_loss.values())
    for row in by_error:
        if row not in by_loss:
            losses = task.judged(row).losses
            found.append(
                RowLoss(row=row, loss=sum(losses) / len(losses), weight=float(len(losses)))
            )
    return tuple(
        RowLoss(
            row=each.row,
            loss=each.loss,
            weight=each.weight,
            shown=_shown(task, each.row, everything.get(each.row)),
        )
        for each in found
    )


def _shown(task: VisionTask, row: int, read: tuple[str, PageScore] | None) -> dict[str, Any]:
    assert task.held is not None
    example = task.held[row]
    shown: dict[str, Any] = {"where": example.row.where}
    pictures = [
        Picture(data=thumbnail(decoded(picture, task.reading)), says=_seen(task, example, number))
        for number, picture in enumerate(example.row.pictures)
    ]
    if pictures:
        shown["page"] = pictures[0] if len(pictures) == 1 else pictures
    if asked := example.row.asked:
        shown["prompt"] = asked
    shown["reference"] = example.row.answer
    shown |= shaded(task.judged(row), task.tokenizer)
    if read is not None:
        text, score = read
        shown["prediction"] = text
        shown["difference"] = [(t, MARKS[kind]) for kind, t in diff(text, example.row.answer)]
        shown |= {"error": score.cer, "cer": score.cer, "wer": score.wer}
    return shown


def _seen(task: VisionTask, example: ImageExample, number: int) -> str:
    height, width = example.sizes[number]
    seen = task.eyes.scaled(height, width)
    name = example.row.filename or f"picture {number + 1}"
    return f"{name}, {width} x {height}; the model sees {seen[1]} x {seen[0]}"


def thumbnail(image: Any) -> bytes:
    """A picture for people, at most 900 pixels a side: PNG where that is small, else JPEG."""
    small = image.copy()
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    for options in ({"format": "PNG", "optimize": True}, {"format": "JPEG", "quality": 80}):
        stream = io.BytesIO()
        small.save(stream, **options)
        if stream.tell() <= 200_000:
            break
    return stream.getvalue()
