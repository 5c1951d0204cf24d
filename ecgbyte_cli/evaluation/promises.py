"""Thresholds with a promise: the errors among the answers stay below a limit, with 95 % confidence.

Theorem. Let patients be independent draws from one population, with one recording each. Let R(t) be the share of wrong
answers among patients whose score is at least t, and let R not fall as t falls. Test the hypotheses R(t) > limit for a
list of thresholds fixed before the data are seen, from the strictest down, and stop at the first that is not rejected.
Leave out thresholds that fewer than `fewest_answers` patients reach. Then the chance that any threshold passed has
R(t) > limit is at most 1 - confidence.

Proof. Given how many patients reach t, their number of errors is binomial with the share R(t), so the exact binomial
test has its level, and it passes where the upper bound of Clopper and Pearson is at most the limit. Let t be the first
threshold of the list with R(t) > limit. Where t is tested, a later one passes only if t does, which has a chance of at
most 1 - confidence. Where t is left out, this is decided by the number of patients that reach it, and all patients
between t and the next threshold tested are wrong with a share above the limit, as R does not fall: the errors are at
least as many as a binomial with that share, and the test keeps its level.

The promise is about one finding and one side (the answers yes, or the answers no). Of many promises, one in twenty may
be broken.

References
----------
Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial. Bauer 1991,
Multiple testing in clinical trials (fixed-sequence testing). Angelopoulos, Bates, Candès, Jordan and Lei 2021, Learn
then Test: calibrating predictive algorithms to achieve risk control (arXiv 2110.01052).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
# log-odds, fixed before any data are seen; scores beyond them reach the first
THRESHOLDS = np.arange(-12.0, 12.01, 0.5)


class Promise(NamedTuple):
    """A threshold whose answers were tested.

    Attributes
    ----------
    threshold : float
        Scores from here on are answered.
    answered, errors : int
        Patients of the calibration at or above it, and the wrong answers among them.
    bound : float
        Upper limit of the share of errors, at `CONFIDENCE`.
    """

    threshold: float
    answered: int
    errors: int
    bound: float


def fewest_answers(limit: float, confidence: float = CONFIDENCE) -> int:
    """Return how many answers without an error are the fewest to show a share of errors of at most `limit`.

    29 for 10 %, 59 for 5 %.
    """
    return math.ceil(math.log(1 - confidence) / math.log(1 - limit))


@lru_cache(2**16)
def upper_bound(errors: int, answered: int, confidence: float = CONFIDENCE) -> float:
    """Return the exact upper limit of a share, one-sided (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if errors >= answered else float(beta.ppf(confidence, errors + 1, answered - errors))


def promised_threshold(
    scores: np.ndarray, wrong: np.ndarray, limit: float, least: float, confidence: float = CONFIDENCE
) -> Promise | None:
    """Return the loosest threshold whose answers keep to a share of errors.

    Parameters
    ----------
    scores : float array (patients,)
        Log-odds of the answer.
    wrong : bool array (patients,)
        Whether the answer would be wrong.
    limit : float
        Largest share of errors.
    least : float
        Thresholds below it are not used: the other answer is more probable there.
    confidence : float

    Returns
    -------
    Promise or None
        None if the data support no promise.
    """
    found = None
    for threshold in THRESHOLDS[::-1]:
        if threshold < least:
            break
        reached = scores >= threshold
        answered = int(reached.sum())
        if answered < fewest_answers(limit, confidence):
            continue
        errors = int(wrong[reached].sum())
        bound = upper_bound(errors, answered, confidence)
        if bound > limit:
            break
        found = Promise(float(threshold), answered, errors, bound)
    return found
