"""Calibrate findings on a site's own labels: probabilities that fit the site, and thresholds with a guarantee."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgbyte_cli.evaluation.finding_scores import probability_scores
from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.evaluation.promises import CONFIDENCE, Promise, promised_threshold
from ecgbyte_cli.inference.operating_points import OperatingPoint, log_odds

# Standard deviations of the prior around the shipped probabilities, of the logarithm of the slope and of the intercept:
# a site may have a finding seven times as often, and probabilities half as steep.
SLOPE_SPREAD, INTERCEPT_SPREAD = 0.5, 2.0


def calibrate_finding(
    one: LabelledFinding, max_error: float, seed: int = 0
) -> tuple[OperatingPoint, dict[str, Any]]:
    """Calibrate a finding.

    Parameters
    ----------
    one : LabelledFinding
        Contains the model's own probabilities.
    max_error : float
        Largest share of errors among the answers yes, and among the answers no.
    seed : int
        Seed for choosing a recording of each patient with several.

    Returns
    -------
    (OperatingPoint, dict)
        The point, and details: `patients`, `positives`, `negatives` (patients, by the recording chosen),
        `yes` and `no` (a `Promise` each as a dict, with the threshold as a probability; None without), `answered`,
        `log_loss` and `log_loss_before`.
    """
    scores = log_odds(one.probability)
    _, patient, rows = np.unique(one.patients, return_inverse=True, return_counts=True)
    slope, intercept = fit_probabilities(scores, one.truth, 1 / rows[patient])
    some = _one_per_patient(one.patients, seed)
    score, truth = scores[some], one.truth[some]
    even = -intercept / slope  # the log-odds at which yes and no are equally probable
    yes = promised_threshold(score, ~truth, max_error, even)
    no = promised_threshold(-score, truth, max_error, -even)
    point = OperatingPoint(
        None if no is None else _probability(-no.threshold),
        None if yes is None else _probability(yes.threshold),
        *(slope, intercept),
    )
    chances = one.probability[some]
    said_yes = np.zeros(len(some), bool) if point.yes is None else chances >= point.yes
    said_no = np.zeros(len(some), bool) if point.no is None else chances <= point.no
    after = 1 / (1 + np.exp(-(slope * scores + intercept)))
    return point, {
        "patients": len(some),
        "positives": int(truth.sum()),
        "negatives": int((~truth).sum()),
        "yes": _described(yes, point.yes),
        "no": _described(no, point.no),
        "answered": float((said_yes | said_no).mean()),
        "log_loss": probability_scores(after, one.truth)["log_loss"],
        "log_loss_before": probability_scores(one.probability, one.truth)["log_loss"],
    }


def calibrate_site(
    labelled: Sequence[LabelledFinding], max_error: float
) -> tuple[dict[str, OperatingPoint], dict[str, dict[str, Any]], dict[str, Any]]:
    """Calibrate findings.

    Returns
    -------
    (dict, dict, dict)
        Points and details of each finding by name, and the settings of the site file: `max_error`, `confidence`,
        `labels` (`patients` and `recordings`, of the finding with most of them).
    """
    found = {one.name: calibrate_finding(one, max_error) for one in labelled}
    details = {name: detail for name, (_, detail) in found.items()}
    labels = {
        "patients": max(detail["patients"] for detail in details.values()),
        "recordings": max(len(one.truth) for one in labelled),
    }
    settings = {"max_error": max_error, "confidence": CONFIDENCE, "labels": labels}
    return {name: point for name, (point, _) in found.items()}, details, settings


def fit_probabilities(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Fit slope and intercept of the log-odds (Platt 1999), pulled towards 1 and 0 if there are few labels.

    Parameters
    ----------
    scores : float array (rows,)
        Log-odds of the model's own probabilities.
    truth : bool array (rows,)
    weights : float array (rows,)

    Returns
    -------
    (float, float)
        The most probable slope, above 0, and intercept, under normal priors of its logarithm and of the intercept.
    """
    from scipy.optimize import minimize

    sign = np.where(truth, 1.0, -1.0)
    spreads = np.array([SLOPE_SPREAD, INTERCEPT_SPREAD])

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(at[0])
        margin = sign * (slope * scores + at[1])
        logs = np.logaddexp(0, -margin)
        # the derivative of the loss with respect to the log-odds is -sign * sigmoid(-margin)
        steps = -weights * sign * np.exp(-margin - logs)
        gradient = np.array([slope * (steps @ scores), steps.sum()])
        return float(weights @ logs + ((at / spreads) ** 2).sum() / 2), gradient + at / spreads**2

    steepness, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(np.exp(steepness)), float(intercept)


def _one_per_patient(patients: np.ndarray, seed: int) -> np.ndarray:
    """Return one random row index for each patient."""
    order = np.random.default_rng(seed).permutation(len(patients))
    return order[np.unique(patients[order], return_index=True)[1]]


def _probability(score: float) -> float:
    return float(1 / (1 + np.exp(-score)))


def _described(promise: Promise | None, threshold: float | None) -> dict[str, Any] | None:
    return None if promise is None else promise._asdict() | {"threshold": threshold}
