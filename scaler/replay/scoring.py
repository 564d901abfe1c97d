"""What a moment is worth: the quality of what serves, less what tight memory costs the person.

The one home of the costs; the closed loop and the clairvoyant optimum are both judged by them.
"""

from __future__ import annotations

from scaler.policy import Policy

TIGHT_COST = 0.5
"""Per second above scale-at: more than climbing by one level usually gains, so a level had better give way."""
CRITICAL_COST = 3.0
"""Per second above critical-at, on top: the whole machine is slow, for all that the person does."""
KILL_COST = 300.0
"""When the kernel kills the model: what it was answering is lost, and the person's own work was at stake."""
KILLED_AFTER_S = 6.0
"""For so long memory is exhausted before the kernel kills; measured times lie between two seconds and a minute."""


def cost_per_s(usage: float, policy: Policy) -> float:
    """What usage costs a second; above 1 the cost of a kill is spread over the time to it.

    ``usage`` is a ratio of the total in the terms of RAM's thresholds: a GPU's is what it reads as.
    """
    if usage <= policy.scale_at:
        return 0.0
    if usage <= policy.critical_at:
        return TIGHT_COST
    return TIGHT_COST + CRITICAL_COST + (KILL_COST / KILLED_AFTER_S if usage > 1.0 else 0.0)
