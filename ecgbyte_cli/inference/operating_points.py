"""From the probability of a finding to the answer: yes, no or unsure."""

from typing import NamedTuple

import numpy as np

from ecgbyte_cli.inference.certainty import Certainty, unsure_range

YES, NO, UNSURE = "yes", "no", "unsure"
SMALLEST = 1e-12  # probabilities are kept this far from 0 and 1


class OperatingPoint(NamedTuple):
    """Where the answers about a finding change, and its recalibration.

    Attributes
    ----------
    no, yes : float or None
        The answer is no up to the first probability, yes from the second on, else unsure; None: never. They are
        compared with the model's own probability.
    slope, intercept : float
        Of the recalibrated log-odds.
    """

    no: float | None
    yes: float | None
    slope: float = 1.0
    intercept: float = 0.0

    def answer(self, probability: float) -> str:
        """Return `yes`, `no` or `unsure` for the model's own probability."""
        if self.yes is not None and probability >= self.yes:
            return YES
        return NO if self.no is not None and probability <= self.no else UNSURE

    def recalibrated(self, probability: float) -> float:
        """Return the probability to show."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return probability
        return float(1 / (1 + np.exp(-(self.slope * log_odds(probability) + self.intercept))))


def log_odds(probability: float | np.ndarray) -> np.ndarray:
    """Return the logarithm of the odds; 0 and 1 become finite."""
    inside = np.clip(probability, SMALLEST, 1 - SMALLEST)
    return np.log(inside) - np.log1p(-inside)


def operating_point(certainty: Certainty, text: str) -> OperatingPoint:
    """Return where a model's answers to a prompt's text change: as in chat, and unsure in between."""
    if text in certainty.points:
        return OperatingPoint(*unsure_range(certainty.points[text][2]))
    least = max(0.5, certainty.sure.get("two", 0.5))
    # at equal odds the answer is no
    return OperatingPoint(1 - least, max(least, np.nextafter(0.5, 1)))
