"""Scores of findings against true labels: AUROC, sensitivity, specificity, predictive values and calibration.

Intervals hold 95 % of a bootstrap over patients, as in metrics.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.evaluation.metrics import DRAWS, bootstrap_counts, confidence_interval
from ecgbyte_cli.evaluation.reliability import auroc, calibration_error

MOST_DRAWS = 10_000  # of the bootstrap, where patients are few and more draws cost little
FEW_PATIENTS = 2_000
SMALLEST = 1e-6  # probabilities are kept this far from 0 and 1 in the log loss
Scores = dict[str, Any]


def score_findings(labelled: Sequence[LabelledFinding], seed: int = 0) -> Scores:
    """Score findings.

    Parameters
    ----------
    labelled : list of LabelledFinding
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `findings`: name to the scores of `answer_scores` and `probability_scores`, `auroc` and `auroc_interval` (None
        without a yes or without a no); `mean_auroc` and `mean_auroc_interval`, over `mean_of` findings with both.
    """
    drawn = dict(draw_aurocs(labelled, seed))
    findings: dict[str, Scores] = {}
    for one in labelled:
        values = drawn.get(one.name)
        findings[one.name] = {
            "words": one.words,
            "recordings": len(one.truth),
            "patients": len(set(one.patients.tolist())),
            "positives": int(one.truth.sum()),
            "prevalence": float(one.truth.mean()),
            "auroc": area_of(one),
            "auroc_interval": None if values is None else _interval(values),
            **answer_scores(one.answer, one.truth),
            **probability_scores(one.probability, one.truth),
        }
    areas = [one["auroc"] for one in findings.values() if one["auroc"] is not None]
    if not areas:
        return {"findings": findings, "mean_auroc": None, "mean_auroc_interval": None, "mean_of": 0}
    means = np.nanmean(np.stack([*drawn.values()]), axis=0)
    return {
        "findings": findings,
        "mean_auroc": float(np.mean(areas)),
        "mean_auroc_interval": _interval(means),
        "mean_of": len(areas),
    }


def area_of(one: LabelledFinding) -> float | None:
    """Return the AUROC of a finding; None without a yes or without a no."""
    area = float(auroc(one.probability, one.truth, np.ones((1, len(one.truth))))[0])
    return None if np.isnan(area) else area


def draw_aurocs(labelled: Sequence[LabelledFinding], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each finding with both labels, and its AUROC in every draw of the bootstrap over patients.

    All findings share the draws. A draw without a yes or without a no is NaN.
    """
    both = [one for one in labelled if one.truth.any() and not one.truth.all()]
    names = np.unique(np.concatenate([one.patients for one in both])) if both else np.empty(0)
    draws = MOST_DRAWS if len(names) <= FEW_PATIENTS else DRAWS
    longest = max((len(one.truth) for one in both), default=1)
    areas: dict[str, list[np.ndarray]] = {one.name: [] for one in both}
    numbers = [np.searchsorted(names, one.patients) for one in both]
    for times in bootstrap_counts(len(names), seed, draws, longest) if both else ():
        for one, patient in zip(both, numbers, strict=True):
            areas[one.name].append(auroc(one.probability, one.truth, times[:, patient]))
    for name, parts in areas.items():
        yield name, np.concatenate(parts)


def answer_scores(answer: np.ndarray, truth: np.ndarray) -> Scores:
    """Return the scores of answers at their operating point, 0 to 1; None where nothing is counted.

    Parameters
    ----------
    answer : array of str (rows,)
        yes, no or unsure.
    truth : bool array (rows,)

    Returns
    -------
    dict
        `answered` (share that is not unsure), `true_positives`, `false_positives`, `true_negatives`,
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


def _interval(values: np.ndarray) -> list[float] | None:
    """Return the interval of the draws that have a value."""
    known = values[~np.isnan(values)]
    return confidence_interval(known) if len(known) else None
