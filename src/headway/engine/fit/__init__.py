"""What a training step takes of memory and arithmetic, found by doing it without numbers.

``weightless()`` (``headway.engine.fake``) around a recipe's ``build`` with ``weights=False`` gives
a task of the real model; ``held`` and ``footprint`` run its step and count.
"""

from headway.engine.fit.counting import Counted, bytes_of
from headway.engine.fit.depth import SHALLOW, at_depth
from headway.engine.fit.footprint import Footprint, Held, footprint, held

__all__ = ["SHALLOW", "Counted", "Footprint", "Held", "at_depth", "bytes_of", "footprint", "held"]
