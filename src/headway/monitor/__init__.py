"""Judges a run while it trains: warning signs, each with its figures, its meaning and what to do.

*Promises.* A rule is a pure function of a small history: the same steps give the same verdict, in
a resumed run too. One alert for one episode, and a word when it is over. No loss is compared with a
fixed number. A look takes a small part of a millisecond and waits for nothing: disk, GPU and
webhook are asked in threads.

*Does not promise.* That every trouble has a sign, or that a sign means trouble: how often the rules
are wrong on clean runs is measured in ``docs/results/monitor.md``. It stops nothing: what is rolled
back or stopped is decided by the run.
"""

from headway.monitor.alerts import Alert, Over
from headway.monitor.gauges import Sampler, look_at
from headway.monitor.history import Gauges, History
from headway.monitor.thresholds import Thresholds
from headway.monitor.watch import RULES, Monitor
from headway.monitor.webhook import Webhook, webhook_text

__all__ = [
    "RULES",
    "Alert",
    "Gauges",
    "History",
    "Monitor",
    "Over",
    "Sampler",
    "Thresholds",
    "Webhook",
    "look_at",
    "webhook_text",
]
