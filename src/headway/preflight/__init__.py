"""Preflight: every question that can be answered before money is spent, asked in order.

Checks are passed in by those who know what to ask (``run``, the recipe). Beside them the room knows
what the operating system alone can say: of a folder, of the host, of an address.

*Promises*: every check is timed; whatever a check raises becomes a finding; one that cannot be
asked, because what it needs was not found, is said to be so; nothing is left on the disk; nobody is
asked to type anything.

*Does not promise*: that what is so now is so in an hour.
"""

from headway.preflight.asking import Answer, ask, has_blocker, tree
from headway.preflight.folder import prove_folder
from headway.records import Check, Finding

__all__ = ["Answer", "Check", "Finding", "ask", "has_blocker", "prove_folder", "tree"]
