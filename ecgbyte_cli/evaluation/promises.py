"""Thresholds with a guarantee: the errors among the answers stay below a limit, with 95 % confidence.

Theorem. Let patients be independent draws from one population, with one recording each. Let R(t) be the error rate
among patients whose score is at least t, and let R not decrease as t decreases. Test the hypotheses R(t) > limit for a
list of thresholds fixed before seeing the data, from the strictest down, and stop at the first that is not rejected.
Skip thresholds that fewer than `fewest_answers` patients reach. Then the probability that any accepted threshold has
R(t) > limit is at most 1 - confidence.

Proof. Given the number of patients who reach t, their errors are binomial with the share R(t), so the exact binomial
test has its level, and t is accepted if the upper bound of Clopper and Pearson is at most the limit. Let t be the first
threshold of the list with R(t) > limit. If t is tested, a later one is accepted only if t is, with probability at
most 1 - confidence. If t is skipped, this is decided by the number of patients who reach it, and all patients
between t and the next tested threshold are wrong at a rate above the limit, because R does not decrease: the errors
are at least as many as a binomial with that rate, and the test keeps its level.

A guarantee is about one finding and one answer (yes or no). One in twenty guarantees may fail.

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
# log-odds, fixed before seeing any data; larger scores reach the first threshold
THRESHOLDS = np.arange(-12.0, 12.01, 0.5)


class Promise(NamedTuple):
    """A threshold whose answers were tested.

    Attributes
    ----------
    threshold : float
        Scores at or above it are answered.
    answered, errors : int
        Number of calibration patients at or above it, and of wrong answers among them.
    bound : float
        Upper limit of the share of errors, at `CONFIDENCE`.
    """

    threshold: float
    answered: int
    errors: int
    bound: float


def fewest_answers(limit: float, confidence: float = CONFIDENCE) -> int:
    """Return the smallest number of answers without an error that shows an error rate of at most `limit`.

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
    """Return the loosest threshold whose answers keep within an error rate.

    Parameters
    ----------
    scores : float array (patients,)
        Log-odds of the answer.
    wrong : bool array (patients,)
        Whether the answer would be wrong.
    limit : float
        Largest error rate.
    least : float
        Lowest threshold: below it the other answer is more probable.
    confidence : float

    Returns
    -------
    Promise or None
        None if the data support no guarantee.
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
