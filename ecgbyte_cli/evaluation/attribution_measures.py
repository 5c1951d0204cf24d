"""Measure how well an attribution finds the samples that matter."""

from collections.abc import Sequence

import numpy as np

from ecgbyte_cli.inference.attribution import Explainer, baseline_letters


def sum_windows(density: np.ndarray, width: int) -> np.ndarray:
    """Return the sums over windows of `width` samples, (leads, windows); a lead's last window may be shorter."""
    starts = np.arange(0, density.shape[1], width)
    return np.add.reduceat(density, starts, axis=1)


def peak_window(density: np.ndarray, width: int) -> tuple[int, int]:
    """Return the lead and the middle sample of the window of `width` samples with most attribution."""
    sums = np.apply_along_axis(np.convolve, 1, density, np.ones(min(width, density.shape[1])), "valid")
    lead, start = np.unravel_index(sums.argmax(), sums.shape)
    return int(lead), int(start) + width // 2


def flatten_windows(letters: np.ndarray, chosen: np.ndarray, width: int, keep: bool) -> np.ndarray:
    """Return letters with the chosen windows flattened, or all others if `keep`.

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, (leads, samples).
    chosen : numpy.ndarray
        bool, (leads, windows).
    width : int
        Samples per window.
    keep : bool

    Returns
    -------
    numpy.ndarray
        uint8, (leads, samples).
    """
    inside = np.repeat(chosen, width, axis=1)[:, : letters.shape[1]]
    return np.where(inside == keep, letters, baseline_letters(letters)[:, None])


def deletion_insertion_curves(
    explainer: Explainer,
    letters: np.ndarray,
    question: str,
    answer: str,
    density: np.ndarray,
    width: int,
    fractions: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the answer's probability as the windows with most attribution are deleted, or inserted, first.

    Petsiuk et al., RISE, BMVC 2018. A deleted window is flat, and the signal is encoded again.

    Parameters
    ----------
    explainer : Explainer
    letters, question, answer, density
        See `Explainer.density`.
    width : int
        Samples per window.
    fractions : list of float
        Shares of all windows, rising from 0 to 1.

    Returns
    -------
    (numpy.ndarray, numpy.ndarray)
        Probability of the answer at each fraction, deleted and inserted.
    """
    sums = sum_windows(density, width)
    rank = np.empty(sums.size, np.int64)
    rank[np.argsort(-sums.ravel(), kind="stable")] = np.arange(sums.size)
    cases = []
    for keep in (False, True):
        for fraction in fractions:
            chosen = (rank < round(fraction * sums.size)).reshape(sums.shape)
            cases.append(explainer.case(flatten_windows(letters, chosen, width, keep), question, answer))
    values = np.exp(explainer.log_probabilities(cases))
    return values[: len(fractions)], values[len(fractions) :]


def area_under_curve(fractions: Sequence[float], values: np.ndarray) -> float:
    """Return the area under a curve over 0 to 1, by trapezoids."""
    return float(np.trapezoid(values, fractions))
