"""Whether a model's probabilities can be believed: discrimination, calibration, and what it gets right of each kind.

Intervals hold 95 % of a bootstrap over patients, as those of metrics.py.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.evaluation.metrics import (
    bootstrap_counts,
    candidate_answers,
    confidence_interval,
    exact_match,
    split_labels,
    unsplittable_labels,
)
from ecgbyte_cli.questions.findings import FINDINGS

if TYPE_CHECKING:
    from ecgbyte_cli.inference.batch_answering import Answer
    from ecgbyte_cli.questions.question_file import Question

BINS = 10  # of the calibration error
SUPPORT = 10  # true answers that a label needs to count in the balanced accuracy
MOST_LABELS = 40
STEPS = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10)  # of the coverage, %


def score_probabilities(
    questions: Sequence["Question"], given: Sequence["Answer"], patients: Sequence[str], seed: int = 0
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
    whole = unsplittable_labels([q.truth for q in questions])
    right = np.array([exact_match(g.answer, q.truth, whole) for q, g in zip(questions, given, strict=True)])
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    asked = [i for i, g in enumerate(given) if g.yes is not None]
    topics, kinds = _topics(questions, given, asked), _question_types(questions, given, whole)
    some = [topic.some for topic in topics] + [r.some for kind in kinds for r in kind.recalls]
    areas: list[list[np.ndarray]] = [[] for _ in topics]
    hits: list[list[np.ndarray]] = [[] for kind in kinds for _ in kind.recalls]
    for times in bootstrap_counts(len(names), seed, at_a_time=max(map(len, some), default=1)):
        for topic, made in zip(topics, areas, strict=True):
            area = auroc(topic.values, topic.truth, times[:, patient[topic.some]])
            made.append(
                np.where(np.isnan(area), topic.auroc, area)
            )  # a draw without a yes, or a no, says nothing
        for recall, made in zip((r for kind in kinds for r in kind.recalls), hits, strict=True):
            drawn = times[:, patient[recall.some]]
            count = drawn.sum(1)
            made.append(np.where(count > 0, drawn @ recall.hit / np.maximum(count, 1), recall.hit.mean()))
    result: dict = {"balanced": _balanced_accuracy(kinds, [np.concatenate(of) for of in hits])}
    if topics:
        result |= _auroc_by_topic(topics, [np.concatenate(of) for of in areas])
    if asked:
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


class Topic(NamedTuple):
    """Questions with yes and no about one thing."""

    name: str
    some: list[int]
    values: np.ndarray  # P(yes)
    truth: np.ndarray
    auroc: float


class Recall(NamedTuple):
    """The questions whose true answer has a label, and of which the answer has it too."""

    label: str
    some: list[int]
    hit: np.ndarray


class QuestionType(NamedTuple):
    """A type of question with few labels, one in each answer."""

    name: str
    recalls: list[Recall]
    confusion: dict[str, Counter]


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


def _topics(questions, given, asked):
    groups: dict[str, list[int]] = {}
    for i in asked:
        groups.setdefault(questions[i].topic or questions[i].type, []).append(i)
    topics = []
    for name, some in groups.items():
        truth = np.array([split_labels(questions[i].truth) == {"yes"} for i in some])
        if truth.any() and not truth.all():
            values = np.array([given[i].yes for i in some])
            area = float(auroc(values, truth, np.ones((1, len(some))))[0])
            topics.append(Topic(name, some, values, truth, area))
    return topics


def _auroc_by_topic(topics, resampled):
    """AUROC of the probability of yes, by topic and in the mean."""
    areas = {topic.name: topic.auroc for topic in topics}
    drawn = dict(zip(areas, resampled, strict=True))
    mine = [name for name in FINDINGS if name in areas] or [*areas]
    return {
        "auroc": areas,
        "auroc_intervals": {name: confidence_interval(values) for name, values in drawn.items()},
        "mean_auroc": float(np.mean([areas[name] for name in mine])),
        "mean_auroc_interval": confidence_interval(np.mean([drawn[name] for name in mine], axis=0)),
        "mean_of": len(mine),
    }


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: how far probabilities lie from the shares that are right, in bins, 0 to 1."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    off = np.bincount(bins, probabilities, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(off).sum() / count.sum())


def _question_types(questions, given, whole):
    kinds = []
    for name in sorted({q.type for q in questions}):
        some = [i for i, q in enumerate(questions) if q.type == name]
        truths = [split_labels(questions[i].truth, whole) for i in some]
        support = Counter(label for of in truths for label in of)
        kept = sorted(label for label, n in support.items() if n >= SUPPORT)
        few = 2 <= len(kept) and len(support) <= MOST_LABELS
        alone = sum(len(of) == 1 for of in truths) >= 0.8 * len(some)
        if not (few and alone) or candidate_answers(name, questions[some[0]].truth) == "verify":
            continue
        answered = [split_labels(given[i].answer, whole) for i in some]
        recalls, confusion = [], {}
        for label in kept:
            mine = [n for n, of in enumerate(truths) if label in of]
            hit = np.array([label in answered[n] for n in mine], float)
            recalls.append(Recall(label, [some[n] for n in mine], hit))
        for of, got in zip(truths, answered, strict=True):
            confusion.setdefault(", ".join(sorted(of)), Counter())[", ".join(sorted(got))] += 1
        kinds.append(QuestionType(name, recalls, confusion))
    return kinds


def _balanced_accuracy(kinds, hits):
    """Mean recall, and what was answered for what."""
    result, drawn = {}, iter(hits)
    for kind in kinds:
        recall = {one.label: float(100 * one.hit.mean()) for one in kind.recalls}
        result[kind.name] = {
            "accuracy": float(np.mean([*recall.values()])),
            "interval": confidence_interval(100 * np.mean([next(drawn) for _ in kind.recalls], axis=0)),
            "recall": recall,
            "confusion": {name: dict(row.most_common()) for name, row in sorted(kind.confusion.items())},
        }
    return result


def reliability_lines(result: dict) -> list[str]:
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


def confusion_tables(result: dict) -> str:
    """For each type of question with few labels, which answers were given to which truths, as Markdown."""
    made = []
    for kind, of in result["balanced"].items():
        given = list(dict.fromkeys([*of["confusion"], *(a for row in of["confusion"].values() for a in row)]))
        head = [f"| {kind}: truth | {' | '.join(given)} |", "| --- |" + " ---: |" * len(given)]
        rows = [
            f"| {truth} | {' | '.join(str(row.get(answer, 0)) for answer in given)} |"
            for truth, row in of["confusion"].items()
        ]
        made.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(made)
