"""The sentences of the vaderSentiment source package: how positive people found each of them.

Every score is the mean of at least 15 people's, whose single ratings lie beside it: they say how
far the mean itself would be off with other people, and so how good any prediction can look. The
package is fetched through pip, checked, and stays in headway's cache; what is made of it lies under
runs/. Nothing of it is part of this repository. C. J. Hutto, E. Gilbert: VADER (ICWSM 2014).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.human_labels import (
    Line,
    Values,
    config_of,
    facts_of,
    predictions,
    shown,
    table,
    train,
    with_interval,
)
from numpy.typing import NDArray

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
FOLDER = Path("runs/vader-data")
CORPORA = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
"""Our name -> the package's."""
COLUMNS = ("text", "score", "compound", "noise", "document")

# ---------------------------------------------------------------- the package


def fetched(cache: Path) -> Path:
    """The source package, from the cache or through pip. Exits when it is not the one known."""
    folder = cache / "benchmarks"
    file = folder / f"{PACKAGE}-{VERSION}.tar.gz"
    if not file.exists():
        wanted = [f"{PACKAGE}=={VERSION}", "--no-binary", ":all:", "--no-deps", "-d", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted], check=True)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{file}: sha256 {found}, expected {SHA256}: delete it and try again")
    print(f"{file}: sha256 {found}, as expected", flush=True)
    return file


def sentences_in(package: Path) -> Iterator[tuple[str, list[list[str]], list[list[str]]]]:
    """Each corpus: its name, lines of (id, mean, text), lines of (id, mean, deviation, ratings)."""
    with tarfile.open(package) as outer:
        inside = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
        packed = outer.extractfile(inside)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            for name, theirs in CORPORA.items():
                scored, rated = (
                    _lines(inner, f"hutto_ICWSM_2014/{theirs}_{part}.txt")
                    for part in ("GroundTruth", "anonDataRatings")
                )
                yield name, scored, rated


def _lines(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    stream = archive.extractfile(name)
    assert stream is not None
    text = stream.read().decode("utf-8-sig")
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]


def lexicon_of(package: Path) -> Callable[[str], float]:
    """The package's own scorer: text -> compound in [-1, 1]. Runs the package's code."""
    with tarfile.open(package) as archive:
        archive.extractall(package.parent, filter="data")
    module = package.parent / f"{PACKAGE}-{VERSION}" / PACKAGE / f"{PACKAGE}.py"
    spec = importlib.util.spec_from_file_location(PACKAGE, module)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    analyzer = loaded.SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


# ---------------------------------------------------------------- the files trained on


def noise_of(ratings: Sequence[float]) -> float:
    """How far the mean of these ratings is from that of endlessly many such people, squared: the
    sample variance over their number."""
    return float(np.var(ratings, ddof=1) / len(ratings))


def sentence_rows(
    name: str,
    scored: Sequence[Sequence[str]],
    rated: Sequence[Sequence[str]],
    compound: Callable[[str], float],
    seen: set[str],
) -> tuple[list[list[str]], str]:
    """Rows of COLUMNS, and what was left out or is missing, as a line.

    A text in ``seen`` is left out. ``noise`` is empty where the ratings are not those of the score:
    196 tweets have ratings with another mean. ``document``: sentences of one review or article
    share it, and are never parted.
    """
    ratings = {line[0]: ast.literal_eval(line[3]) for line in rated}
    rows, doubles, strangers = [], 0, 0
    for number, score, text in scored:
        if text in seen:
            doubles += 1
            continue
        seen.add(text)
        fits = abs(np.mean(ratings[number]) - float(score)) < 0.01
        strangers += not fits
        noise = f"{noise_of(ratings[number]):.6f}" if fits else ""
        document = f"{name}-{number.partition('_')[0]}"
        rows.append([text, score, f"{compound(text):.4f}", noise, document])
    people = sorted(len(given) for given in ratings.values())
    return rows, (
        f"{name}: {len(rows):,} sentences of {len({row[-1] for row in rows}):,} documents, each "
        f"scored by {people[0]} to {people[-1]} people (median {people[len(people) // 2]}); "
        f"{doubles} with a text seen before left out, {strangers} with ratings of another mean"
    )


def write_sentences(package: Path, folder: Path) -> None:
    """A TSV per corpus, the same every time."""
    compound, seen = lexicon_of(package), set[str]()
    folder.mkdir(parents=True, exist_ok=True)
    for name, scored, rated in sentences_in(package):
        rows, said = sentence_rows(name, scored, rated, compound, seen)
        with (folder / f"{name}.tsv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([COLUMNS, *rows])
        print(said, flush=True)


# ---------------------------------------------------------------- figures


def r2(predicted: Values, target: Values) -> float:
    """1 − SS_res / SS_tot, the mean taken of these targets; NaN where they are all equal."""
    if np.ptp(target) == 0:
        return np.nan
    return float(1 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean()) ** 2))


def pearson(predicted: Values, target: Values) -> float:
    """NaN for a constant."""
    if np.ptp(predicted) == 0 or np.ptp(target) == 0:
        return np.nan
    return float(np.corrcoef(predicted, target)[0, 1])


def mae(predicted: Values, target: Values) -> float:
    return float(np.mean(np.abs(predicted - target)))


def ceiling(target: Values, noise: Values) -> float:
    """The R² of someone who knew what endlessly many people think: a score is that plus noise of
    known variance, so 1 − mean(noise) / Var(score), over the rows whose noise is known. NaN where
    there are no two different scores among those."""
    known = ~np.isnan(noise)
    if not known.any() or np.ptp(target[known]) == 0:
        return np.nan
    return float(1 - noise[known].mean() / target[known].var())


@dataclass(frozen=True)
class Sentences:
    """Arrays are [n]."""

    target: Values
    compound: Values
    noise: Values
    """NaN: not known."""
    source: NDArray[np.str_]
    document: tuple[str, ...]


def as_sentences(chains: Sequence[Any]) -> Sentences:
    """From headway's own reading of the files."""
    return Sentences(
        target=np.array([chain.targets[0] for chain in chains], dtype=np.float64),
        compound=np.array([chain.extra["compound"] for chain in chains]),
        noise=np.array([chain.extra.get("noise", np.nan) for chain in chains]),
        source=np.array([chain.source for chain in chains]),
        document=tuple(chain.group for chain in chains),
    )


def fitted(train: Sentences, held: Sentences, degree: int) -> Values:
    """What a line in the compound (degree 1), or a mean (0), fitted to each corpus' training part
    says of the held-out part [n]."""
    found = np.empty(len(held.target))
    for name in np.unique(held.source):
        known, asked = train.source == name, held.source == name
        line = np.polynomial.Polynomial.fit(train.compound[known], train.target[known], degree)
        found[asked] = line(held.compound[asked])
    return found


def score_tables(train: Sentences, held: Sentences, model: Values) -> str:
    """R², Pearson and MAE of each predictor, by corpus and for all, on the held-out sentences."""
    predictors = {
        "corpus mean": fitted(train, held, 0),
        "lexicon ×4": 4 * held.compound,
        "lexicon, fitted": fitted(train, held, 1),
        "model": model,
    }
    parts = {str(name): held.source == name for name in dict.fromkeys(held.source)}
    parts["all"] = np.ones(len(held.target), dtype=bool)
    tables = []
    for title, figure in (("R²", r2), ("Pearson", pearson), ("MAE", mae)):
        rows = []
        for name, at in parts.items():
            target, documents = (
                held.target[at],
                [d for d, k in zip(held.document, at, strict=True) if k],
            )
            row: list[object] = [name, len(target), len(set(documents))]
            for predicted in predictors.values():
                own = predicted[at]

                def of(rows, own=own, target=target, figure=figure):
                    return figure(own[rows], target[rows])

                is_main = predicted is model and figure is r2
                row.append(with_interval(of, documents) if is_main else shown(figure(own, target)))
            best = ceiling(target, held.noise[at])
            limit = {"R²": best, "Pearson": np.sqrt(max(best, 0.0))}.get(title, np.nan)
            rows.append([*row, shown(limit)])
        head = [f"{title}, held out", "sentences", "documents", *predictors, "best possible"]
        tables.append(table(head, rows))
    return "\n\n".join(tables)


def predicted_part(lines: Sequence[Line], held: Sequence[Any]) -> tuple[list[Any], Values]:
    """The held-out chains that were predicted, and their predictions [n]: all, but for a run with
    evaluate.max_rows. Raises ValueError when other chains were predicted."""
    by_place: Mapping[str, float] = {line["where"]: line["predicted"] for line in lines}
    chains = [chain for chain in held if chain.where in by_place]
    if len(chains) != len(lines):
        raise ValueError("the predictions are of other sentences than those held out")
    return chains, np.array([by_place[chain.where] for chain in chains])


def vader(overrides: Sequence[str]) -> str:
    """Make the files, train, measure; the tables."""
    from headway.data.chains import load_chains
    from headway.machine import cache_folder

    write_sentences(fetched(cache_folder()), FOLDER)
    run = train("vader", overrides)
    config = config_of("vader", overrides)
    splits = load_chains(config.task.data, seed=config.run.seed)
    held, model = predicted_part(predictions(run), splits.held_out or [])
    tables = score_tables(as_sentences(splits.train), as_sentences(held), model)
    return f"{facts_of([run])}\n\n{tables}"
