"""What a run costs: the meter that runs with it, and the table of what GPUs cost and can do.

*Promises.* A restart does not forget what was spent. Every price has a source and a date.

*Does not promise.* The provider's bill: storage, idle time between attempts and taxes are not in.
"""

from headway.cost.live import Unanswered, live_price
from headway.cost.meter import Meter, Price, process_age_seconds, spent
from headway.cost.prices import Gpu, Rate, find_gpu, load_prices, price_of

__all__ = [
    "Gpu",
    "Meter",
    "Price",
    "Rate",
    "Unanswered",
    "find_gpu",
    "live_price",
    "load_prices",
    "price_of",
    "process_age_seconds",
    "spent",
]
