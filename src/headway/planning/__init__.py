"""What a run will need and cost, before anything is rented: memory, time and money for each GPU.

``plan_run`` works where there is no GPU and downloads no weights: the memory is that of the real
model's step on tensors without numbers (``engine.fit``), the rest is arithmetic on it with a few
assumptions, each of which stands in the plan (``planning.assumptions``).
"""

from headway.planning.assumptions import Assumptions
from headway.planning.offers import Offer
from headway.planning.plan import RunPlan, plan_run

__all__ = ["Assumptions", "Offer", "RunPlan", "plan_run"]
