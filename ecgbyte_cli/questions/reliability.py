"""Whether a model's probabilities can be believed: discrimination, calibration, and what it gets right of each kind.

Intervals hold 95 % of a bootstrap over patients, as those of metrics.py.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.questions.metrics import DRAWS, answer_set, exact, labels, not_split

if TYPE_CHECKING:
    from ecgbyte_cli.model.answering import Given
    from ecgbyte_cli.questions.files import Question

BINS = 10  # of the calibration error
SUPPORT = 10  # true answers that a label needs to count in the balanced accuracy
MOST_LABELS = 40
STEPS = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10)  # of the coverage, %


def score(
    questions: Sequence["Question"], given: Sequence["Given"], patients: Sequence[str], seed: int = 0
) -> dict:
    """Score answers with their probabilities.

    Parameters
    ----------
    questions : list of Question
    given : list of Given
        The answer to each.
    patients : list of str
        Of each question.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        Where the answers were chosen from several, and their probabilities are calibrated:
        `auroc`, `auroc_intervals`: of the probability of yes, by topic (where questions have none, by type);
        `mean_auroc`, `mean_auroc_interval`, `mean_of`: over the findings of examples/findings.csv, where there are
        some, else over all topics, and over how many; `calibration_error`: of the answers yes and no, 0 to 1 (10 bins;
        Guo et al., ICML 2017); `coverage`: list of [share of the answers, %, the likeliest first; how many of these are
        right, %]; `sure`: `share` and `right`, %.
        Always: `balanced`: by type of question with few labels `accuracy` (mean recall over labels with ten or more
        true answers, %), `interval`, `recall` (by label, %), and `confusion` (truth to answer to number).
    """
    whole = not_split([q.truth for q in questions])
    right = np.array([exact(g.answer, q.truth, whole) for q, g in zip(questions, given, strict=True)])
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    drawn = list(_draws(len(names), seed))
    result = {"balanced": _balanced(questions, given, patient, drawn, whole)}
    asked = [i for i, g in enumerate(given) if g.yes is not None]
    if asked:
        result |= _discrimination(questions, given, patient, drawn, asked)
        sure = np.array([given[i].probability for i in asked])
        result["calibration_error"] = calibration_error(sure, right[asked])
    chosen = np.array([i for i, g in enumerate(given) if g.sure is not None], int)
    if len(chosen):
        probability = np.array([given[i].probability for i in chosen])
        order = chosen[np.argsort(-probability, kind="stable")]
        counts = [max(1, round(len(order) * step / 100)) for step in STEPS]
        result["coverage"] = [
            [step, float(100 * right[order[:n]].mean())] for step, n in zip(STEPS, counts, strict=True)
        ]
        kept = np.array([given[i].sure for i in chosen])
        result["sure"] = {
            "share": float(100 * kept.mean()),
            "right": float(100 * right[chosen[kept]].mean()) if kept.any() else None,
        }
    return result


def _draws(patients, seed):
    """How often each patient is drawn: arrays (some draws, patients)."""
    random, chunk = np.random.default_rng(seed), max(1, 4_000_000 // patients)
    for start in range(0, DRAWS, chunk):
        size = min(chunk, DRAWS - start)
        yield random.multinomial(patients, np.full(patients, 1 / patients), size=size)


def _interval(values):
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def auroc(values: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Areas under the receiver operating characteristic: how often a yes has more than a no (ties count half).

    Parameters
    ----------
    values : float array (n,)
    truth : bool array (n,)
    weights : array (draws, n)
        How often each counts.

    Returns
    -------
    numpy.ndarray
        (draws,); NaN where there is no yes, or no no.
    """
    order = np.argsort(values, kind="stable")
    steps = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])  # equal values together
    yes, no = (np.add.reduceat(weights[:, order] * of[order], steps, axis=1) for of in (truth, ~truth))
    below = np.cumsum(no, axis=1) - no / 2
    pairs = yes.sum(1) * no.sum(1)
    return np.where(pairs > 0, (yes * below).sum(1) / np.maximum(pairs, 1), np.nan)


def _discrimination(questions, given, patient, drawn, asked):
    """AUROC of the probability of yes, by topic and in the mean."""
    groups: dict[str, list[int]] = {}
    for i in asked:
        groups.setdefault(questions[i].topic or questions[i].type, []).append(i)
    areas, resampled = {}, {}
    for name, some in groups.items():
        truth = np.array([labels(questions[i].truth) == {"yes"} for i in some])
        if truth.all() or not truth.any():
            continue
        values, whose = np.array([given[i].yes for i in some]), patient[some]
        areas[name] = float(auroc(values, truth, np.ones((1, len(some))))[0])
        drawn_areas = np.concatenate([auroc(values, truth, times[:, whose]) for times in drawn])
        # a draw without a yes, or without a no, says nothing
        resampled[name] = np.where(np.isnan(drawn_areas), areas[name], drawn_areas)
    if not areas:
        return {}
    mine = [name for name in FINDINGS if name in areas] or [*areas]
    return {
        "auroc": areas,
        "auroc_intervals": {name: _interval(values) for name, values in resampled.items()},
        "mean_auroc": float(np.mean([areas[name] for name in mine])),
        "mean_auroc_interval": _interval(np.mean([resampled[name] for name in mine], axis=0)),
        "mean_of": len(mine),
    }


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: how far probabilities lie from the shares that are right, in bins, 0 to 1."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    off = np.bincount(bins, probabilities, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(off).sum() / count.sum())


def _balanced(questions, given, patient, drawn, whole):
    """Mean recall, and what was answered for what, of question types with few labels and one in each answer."""
    result = {}
    for kind in sorted({q.type for q in questions}):
        some = [i for i, q in enumerate(questions) if q.type == kind]
        truths = [labels(questions[i].truth, whole) for i in some]
        support = Counter(label for of in truths for label in of)
        alone = sum(len(of) == 1 for of in truths)
        kept = sorted(label for label, n in support.items() if n >= SUPPORT)
        if answer_set(kind, questions[some[0]].truth) == "verify" or len(kept) < 2:
            continue
        if alone < 0.8 * len(some) or len(support) > MOST_LABELS:
            continue
        answered = [labels(given[i].answer, whole) for i in some]
        of_draws, recall = [], {}
        for label in kept:
            mine = [n for n, of in enumerate(truths) if label in of]
            hit = np.array([label in answered[n] for n in mine], float)
            recall[label] = float(100 * hit.mean())
            times = [t[:, patient[[some[n] for n in mine]]] for t in drawn]
            of_draws.append(np.concatenate([t @ hit / np.maximum(t.sum(1), 1) for t in times]))
        confusion: dict[str, Counter] = {}
        for of, got in zip(truths, answered, strict=True):
            confusion.setdefault(", ".join(sorted(of)), Counter())[", ".join(sorted(got))] += 1
        result[kind] = {
            "accuracy": float(np.mean([*recall.values()])),
            "interval": _interval(100 * np.mean(of_draws, axis=0)),
            "recall": recall,
            "confusion": {name: dict(row.most_common()) for name, row in sorted(confusion.items())},
        }
    return result


def lines(result: dict) -> list[str]:
    """What a result says of all this, a line each."""
    made = []
    if "auroc" in result:
        low, high = result["mean_auroc_interval"]
        made.append(
            f"AUROC of P(yes), mean of {result['mean_of']}: {result['mean_auroc']:.3f} ({low:.3f} to {high:.3f})"
        )
    if "calibration_error" in result:
        made.append(f"calibration error of yes and no: {result['calibration_error']:.3f}")
    if "coverage" in result:
        shares = ", ".join(
            f"{right:.1f} % of the surest {step} %"
            for step, right in result["coverage"]
            if step in (100, 70, 50)
        )
        sure = result["sure"]
        of_sure = f", {sure['right']:.1f} % of these right" if sure["right"] is not None else ""
        made.append(f"right: {shares}; said to be sure: {sure['share']:.0f} %{of_sure}")
    for kind, of in result["balanced"].items():
        low, high = of["interval"]
        made.append(
            f"balanced accuracy of {kind}: {of['accuracy']:.1f} % ({low:.1f} to {high:.1f}; "
            f"{len(of['recall'])} answers)"
        )
    return made
