"""Reasoning chains with a label for each step: PRM800K, REVEAL, eQASC, JSON Lines and tables."""

from headway.data.chains.chain import Chain, pieces
from headway.data.chains.load import (
    ChainSplits,
    load_chains,
    read_chains,
    recognised,
    refuse_leaks,
    survey_chains,
)
from headway.data.chains.report import ChainReport, ChainTally, Labels, SplitTally
from headway.data.chains.section import ChainColumns, ChainData, ChainSource

__all__ = [
    "Chain",
    "ChainColumns",
    "ChainData",
    "ChainReport",
    "ChainSource",
    "ChainSplits",
    "ChainTally",
    "Labels",
    "SplitTally",
    "load_chains",
    "pieces",
    "read_chains",
    "recognised",
    "refuse_leaks",
    "survey_chains",
]
