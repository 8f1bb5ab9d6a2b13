"""Chains made from GSM8K's worked solutions, for the tests of generated step labels."""

from headway.data.sources import Source, read_records
from headway.data.step_labels import Counts, Options, generate
from shared_data import shared


def made(count, **options):
    """Chains of the first ``count`` GSM8K solutions, and the counts."""
    counts = Counts()
    records = read_records(Source(path=str(shared("gsm8k/train.jsonl")), limit=count))
    return list(generate(records, Options(**options), counts)), counts


def twins(chains):
    """(untouched, wrong) of each question."""
    groups = {}
    for chain in chains:
        groups.setdefault(chain.group, []).append(chain)
    return [pair for pair in groups.values() if len(pair) == 2]
