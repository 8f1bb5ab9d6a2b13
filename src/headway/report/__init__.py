"""Report: what a run did, told from its journal, as numbers, as one HTML page, in the terminal.

*Promises.* Everything shown comes from the events passed in; nothing is measured or guessed here.
Steps that a restart did again are counted once in the curves and paid for twice in time and cost.
The page is one file that asks nothing of the network, and text from data can never act in it.

*Does not promise* to read a run directory, to know whether a process lives (the caller looks at the
lock), or to load a checkpoint's weights, except for comparing two of them file by file.

Modules import on first use: matplotlib only for a plot, numpy only for weights.
"""
