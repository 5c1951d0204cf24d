"""Decide a finding's answer from its probability: yes, no or unsure."""

from typing import NamedTuple

import numpy as np

from ecgbyte_cli.inference.certainty import Certainty, unsure_range

YES, NO, UNSURE = "yes", "no", "unsure"
SMALLEST = 1e-12  # probabilities are clipped to this distance from 0 and 1


class OperatingPoint(NamedTuple):
    """Thresholds for a finding's yes/no/unsure answer, and its recalibration.

    Attributes
    ----------
    no, yes : float or None
        The answer is no at or below `no`, yes at or above `yes`, otherwise unsure. None disables that answer. The
        thresholds apply to the model's own probability.
    slope, intercept : float
        Of the recalibration on the log-odds scale.
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
        """Return the recalibrated probability, which is shown to the user."""
        if (self.slope, self.intercept) == (1.0, 0.0):
            return probability
        return float(1 / (1 + np.exp(-(self.slope * log_odds(probability) + self.intercept))))


def log_odds(probability: float | np.ndarray) -> np.ndarray:
    """Return the log-odds, clipped so that 0 and 1 give finite values."""
    inside = np.clip(probability, SMALLEST, 1 - SMALLEST)
    return np.log(inside) - np.log1p(-inside)


def operating_point(certainty: Certainty, text: str) -> OperatingPoint:
    """Return the thresholds for a prompt; between them the answer is unsure, as in chat."""
    if text in certainty.points:
        return OperatingPoint(*unsure_range(certainty.points[text][2]))
    least = max(0.5, certainty.sure.get("two", 0.5))
    # a probability of exactly 0.5 means no
    return OperatingPoint(1 - least, max(least, np.nextafter(0.5, 1)))
