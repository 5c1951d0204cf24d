"""Scores of findings against true labels: AUROC, sensitivity, specificity, predictive values and calibration.

Intervals hold 95 % of a bootstrap over patients, as in metrics.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.evaluation.metrics import DRAWS, bootstrap_counts, confidence_interval
from ecgbyte_cli.evaluation.reliability import auroc, calibration_error

MOST_DRAWS = 10_000  # largest number of bootstrap draws, for few patients
FEW_PATIENTS = 2_000
SMALLEST = 1e-6  # probabilities are clipped to this distance from 0 and 1 in the log loss
Scores = dict[str, Any]


def score_findings(labelled: Sequence[LabelledFinding], seed: int = 0) -> Scores:
    """Score findings.

    Parameters
    ----------
    labelled : list of LabelledFinding
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    dict
        `findings`: name to the scores of `answer_scores` and `probability_scores`, `auroc` and `auroc_interval` (None
        without a yes or without a no); `mean_auroc` and `mean_auroc_interval`, over `mean_of` findings with both.
    """
    drawn = draw_aurocs(labelled, seed)
    findings: dict[str, Scores] = {}
    for one, values in zip(labelled, drawn, strict=True):
        findings[one.name] = {
            "words": one.words,
            "recordings": len(one.truth),
            "patients": len(set(one.patients.tolist())),
            "positives": int(one.truth.sum()),
            "prevalence": float(one.truth.mean()),
            "auroc": area_of(one),
            "auroc_interval": None if values is None else interval_of(values),
            **answer_scores(one.answer, one.truth),
            **probability_scores(one.probability, one.truth),
        }
    areas = [one["auroc"] for one in findings.values() if one["auroc"] is not None]
    if not areas:
        return {"findings": findings, "mean_auroc": None, "mean_auroc_interval": None, "mean_of": 0}
    means = mean_draws(drawn)
    return {
        "findings": findings,
        "mean_auroc": float(np.mean(areas)),
        "mean_auroc_interval": interval_of(means),
        "mean_of": len(areas),
    }


def area_of(one: LabelledFinding) -> float | None:
    """Return the AUROC of a finding; None without a yes or without a no."""
    area = float(auroc(one.probability, one.truth, np.ones((1, len(one.truth))))[0])
    return None if np.isnan(area) else area


def draw_aurocs(labelled: Sequence[LabelledFinding], seed: int = 0) -> list[np.ndarray | None]:
    """Return the AUROC of each finding in every draw of a bootstrap over patients; None without a yes or without a no.

    All findings share the draws, so that differences are paired. A draw without a yes or without a no is NaN.
    """
    names = np.unique(np.concatenate([one.patients for one in labelled]))
    draws = MOST_DRAWS if len(names) <= FEW_PATIENTS else DRAWS
    both = [one.truth.any() and not one.truth.all() for one in labelled]
    numbers = [np.searchsorted(names, one.patients) for one in labelled]
    parts: list[list[np.ndarray]] = [[] for _ in labelled]
    for times in bootstrap_counts(len(names), seed, draws, max(len(one.truth) for one in labelled)):
        for one, number, part, has_both in zip(labelled, numbers, parts, both, strict=True):
            if has_both:
                part.append(auroc(one.probability, one.truth, times[:, number]))
    return [np.concatenate(part) if part else None for part in parts]


def answer_scores(answer: np.ndarray, truth: np.ndarray) -> Scores:
    """Return the scores of answers at their operating point, 0 to 1; None if the denominator is 0.

    Parameters
    ----------
    answer : array of str (rows,)
        yes, no or unsure.
    truth : bool array (rows,)

    Returns
    -------
    dict
        `answered` (share of answers that are not unsure), `true_positives`, `false_positives`, `true_negatives`,
        `false_negatives`; and over the answered rows `sensitivity`, `specificity`, `positive_predictive_value`,
        `negative_predictive_value`.
    """
    yes, no = answer == "yes", answer == "no"
    counts = [
        int((said & is_true).sum())
        for said, is_true in ((yes, truth), (yes, ~truth), (no, ~truth), (no, truth))
    ]
    hit, false, clear, missed = counts

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "answered": float((yes | no).mean()),
        **dict(
            zip(
                ("true_positives", "false_positives", "true_negatives", "false_negatives"),
                counts,
                strict=True,
            )
        ),
        "sensitivity": share(hit, hit + missed),
        "specificity": share(clear, clear + false),
        "positive_predictive_value": share(hit, hit + false),
        "negative_predictive_value": share(clear, clear + missed),
    }


def probability_scores(probability: np.ndarray, truth: np.ndarray) -> Scores:
    """Return `calibration_error` (10 bins), `brier` and `log_loss` (natural logarithm) of P(yes)."""
    inside = np.clip(probability, SMALLEST, 1 - SMALLEST)
    return {
        "calibration_error": calibration_error(probability, truth),
        "brier": float(((probability - truth) ** 2).mean()),
        "log_loss": float(-np.where(truth, np.log(inside), np.log1p(-inside)).mean()),
    }


def mean_draws(drawn: Sequence[np.ndarray | None]) -> np.ndarray:
    """Return the mean over findings in every draw, of those that have a value."""
    values = np.stack([one for one in drawn if one is not None])
    count = (~np.isnan(values)).sum(0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def interval_of(values: np.ndarray) -> list[float] | None:
    """Return the interval of the draws that have a value."""
    known = values[~np.isnan(values)]
    return confidence_interval(known) if len(known) else None
