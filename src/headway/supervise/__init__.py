"""Training as a child process: started again when it dies, stopped when that is of no use.

*Promises.* A child that a crash, the out-of-memory killer or a hang ended is started again after a
growing, random delay. It ends for good when it says so itself (finished, budget, bad config, bad
data, disk full), when the supervisor was asked to stop, or when attempts in a row ended without
one new step or save: never an endless loop. A signal is passed on once each time it comes. As
process 1 it also takes away the zombies of others. Durations are measured on a monotonic clock.
``Watchdog`` sees the same silence from inside, in every run, and ends it with exit code 70.

*Does not promise.* That a hang is seen at once (silence is judged by minutes). That the child ends
with a supervisor that is killed with -9: on Linux it is sent SIGTERM then; elsewhere it trains on,
and the run's lock refuses the next one.
"""

from headway.supervise.child import answer_with_stacks, beat
from headway.supervise.supervisor import HEARTBEAT_FILE, Ears, Patience, Supervisor
from headway.supervise.trace import EVENTS, Trace, trace
from headway.supervise.watchdog import SilenceLimits, Watchdog

__all__ = [
    "EVENTS",
    "HEARTBEAT_FILE",
    "Ears",
    "Patience",
    "SilenceLimits",
    "Supervisor",
    "Trace",
    "Watchdog",
    "answer_with_stacks",
    "beat",
    "trace",
]
