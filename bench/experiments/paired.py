"""Paired tests: is one arm's lead over another beyond chance?"""

from __future__ import annotations

import math
import statistics


def over_seeds(differences: list[float]) -> float:
    """Two-sided p of Student's paired t test; 1 where there is no spread to judge by.

    With t = sqrt(f) tan a, f degrees of freedom, P(|T| < t) is the share of cos^(f - 1) between -a and a.
    """
    freedom = len(differences) - 1
    if freedom < 1 or not (spread := statistics.stdev(differences)):
        return 1.0
    t = abs(statistics.fmean(differences)) / spread * math.sqrt(len(differences))

    def area(to: float, steps: int = 2000) -> float:  # Simpson's rule
        weights = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
        return sum(w * math.cos(to * i / steps) ** (freedom - 1) for i, w in enumerate(weights)) * to / steps / 3

    return max(0.0, 1 - area(math.atan(t / math.sqrt(freedom))) / area(math.pi / 2))
