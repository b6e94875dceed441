"""95 % intervals: how far a score might lie from that of endlessly many such questions.

Letters: G groups of questions that are drawn together, C counts, B draws.
"""

import math

import numpy as np
from jaxtyping import Float

DRAWS = 1000
SEED = 0
"""One for all, so that the same grades give the same interval on any day."""
QUANTILE = 1.959963984540054
"""Of the normal distribution, at 97.5 %."""


def wilson(mean: float, number: int) -> tuple[float, float]:
    """(low, high) of a mean of `number` values between 0 and 1, by Wilson (1927).

    Made for right and wrong; for values in between it is at most too wide, as none of their mean vary more than zeros
    and ones do. Unlike the normal interval it says something of one answer, and of answers that are all right.
    """
    mean = min(max(mean, 0.0), 1.0)  # a sum of many floats may pass 1 by a hair
    square = QUANTILE**2 / number
    centre = mean + square / 2
    half = QUANTILE * math.sqrt(mean * (1 - mean) / number + square / (4 * number))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    return (max(low, 0.0) if mean else 0.0), (min(high, 1.0) if mean < 1 else 1.0)


def resampled(groups: Float[np.ndarray, "G C"]) -> Float[np.ndarray, "B C"]:
    """Sums of counts over as many groups drawn with replacement, `DRAWS` times (Efron's bootstrap)."""
    random = np.random.default_rng(SEED)
    number = len(groups)
    weights = (np.bincount(random.integers(number, size=number), minlength=number) for _ in range(DRAWS))
    return np.stack([weight @ groups for weight in weights])


def spread(values: Float[np.ndarray, " B"]) -> tuple[float, float]:
    """(low, high) that hold the middle 95 % of the draws' scores. Of a single group the draws are all the same."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
