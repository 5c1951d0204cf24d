"""Score a model's probabilities: AUROC, calibration, coverage and balanced accuracy.

Intervals hold 95 % of a bootstrap over patients, as in metrics.py.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
    from ecgbyte_cli.questions.question_file import Question


class Answered(Protocol):
    """The parts of an answer that scores need."""

    @property
    def answer(self) -> str: ...

    @property
    def probability(self) -> float: ...

    @property
    def yes(self) -> float | None: ...

    @property
    def sure(self) -> bool | None: ...


BINS = 10  # bins of the calibration error
SUPPORT = 10  # fewest true answers of a label in the balanced accuracy
MOST_LABELS = 40
STEPS = (100, 90, 80, 70, 60, 50, 40, 30, 20, 10)  # coverage levels, %


def score_probabilities(
    questions: Sequence["Question"], answers: Sequence[Answered], patients: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Score answers with their probabilities.

    Parameters
    ----------
    questions : list of Question
    answers : list of Answered
        One for each question.
    patients : list of str
        Patient of each question.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    dict
        With calibrated answers chosen from a list: `auroc`, `auroc_intervals` (of P(yes), by topic, or by type where
        questions have no topic), `mean_auroc`, `mean_auroc_interval`, `mean_of` (number of topics: the findings of
        examples/findings.csv if there are some, else all topics), `calibration_error` (of yes/no answers, 0 to 1, in 10
        bins; Guo et al., ICML 2017), `coverage` (list of [share of the answers in %, the likeliest first; how many of
        these are right, %]) and `sure` (`share` and `right`, %).
        Always: `balanced`, by question type with few labels: `accuracy` (mean recall over labels with ten or more true
        answers, %), `interval`, `recall` (by label, %) and `confusion` (truth to answer to number).
    """
    whole = unsplittable_labels([q.truth for q in questions])
    right = np.array([exact_match(a.answer, q.truth, whole) for q, a in zip(questions, answers, strict=True)])
    topics, kinds = _topics(questions, answers), _question_types(questions, answers, whole)
    areas, hits = _resample(topics, [r for kind in kinds for r in kind.recalls], patients, seed)
    result: dict[str, Any] = {"balanced": _balanced_accuracy(kinds, hits)}
    if topics:
        result |= _auroc_by_topic(topics, areas)
    yes_no = [i for i, answer in enumerate(answers) if answer.yes is not None]
    if yes_no:
        probability = np.array([answers[i].probability for i in yes_no])
        result["calibration_error"] = calibration_error(probability, right[yes_no])
    return result | _coverage(answers, right)


def _resample(
    topics: list["Topic"], recalls: list["Recall"], patients: Sequence[str], seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the AUROC of each topic, and each recall, in every draw of the bootstrap."""
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    numbers = [topic.some for topic in topics] + [recall.some for recall in recalls]
    longest = max(map(len, numbers), default=1)
    areas: list[list[np.ndarray]] = [[] for _ in topics]
    hits: list[list[np.ndarray]] = [[] for _ in recalls]
    for times in bootstrap_counts(len(names), seed, at_a_time=longest):
        for topic, drawn_areas in zip(topics, areas, strict=True):
            area = auroc(topic.values, topic.truth, times[:, patient[topic.some]])
            # a draw without a yes, or without a no, gets the value of the original sample
            drawn_areas.append(np.where(np.isnan(area), topic.auroc, area))
        for recall, drawn_hits in zip(recalls, hits, strict=True):
            drawn = times[:, patient[recall.some]]
            count = drawn.sum(1)
            share = drawn @ recall.hit / np.maximum(count, 1)
            drawn_hits.append(np.where(count > 0, share, recall.hit.mean()))
    return [np.concatenate(of) for of in areas], [np.concatenate(of) for of in hits]


def _coverage(answers: Sequence[Answered], right: np.ndarray) -> dict[str, Any]:
    """Return the share of right answers among the likeliest, and among the sure ones."""
    chosen = np.array([i for i, answer in enumerate(answers) if answer.sure is not None], int)
    if not len(chosen):
        return {}
    probability = np.array([answers[i].probability for i in chosen])
    order = chosen[np.argsort(-probability, kind="stable")]
    counts = [max(1, round(len(order) * step / 100)) for step in STEPS]
    sure = np.array([answers[i].sure for i in chosen])
    return {
        "coverage": [
            [step, float(100 * right[order[:n]].mean())] for step, n in zip(STEPS, counts, strict=True)
        ],
        "sure": {
            "share": float(100 * sure.mean()),
            "right": float(100 * right[chosen[sure]].mean()) if sure.any() else None,
        },
    }


class Topic(NamedTuple):
    """Yes/no questions about one topic."""

    name: str
    some: list[int]  # indices of the questions
    values: np.ndarray  # P(yes)
    truth: np.ndarray
    auroc: float


class Recall(NamedTuple):
    """The questions whose true answer has a label, and whether the answer contains it."""

    label: str
    some: list[int]
    hit: np.ndarray


class QuestionType(NamedTuple):
    """A type of question with few labels, one in each answer."""

    name: str
    recalls: list[Recall]
    confusion: dict[str, Counter]


def auroc(values: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return areas under the ROC curve: how often a yes has a higher value than a no (ties count half).

    Parameters
    ----------
    values : float array (n,)
    truth : bool array (n,)
    weights : array (draws, n)
        Weight of each question in each draw.

    Returns
    -------
    numpy.ndarray
        (draws,); NaN if there is no yes or no no.
    """
    order = np.argsort(values, kind="stable")
    steps = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])  # equal values form one step
    yes, no = (np.add.reduceat(weights[:, order] * of[order], steps, axis=1) for of in (truth, ~truth))
    below = np.cumsum(no, axis=1) - no / 2
    pairs = yes.sum(1) * no.sum(1)
    return np.where(pairs > 0, (yes * below).sum(1) / np.maximum(pairs, 1), np.nan)


def _topics(questions: Sequence["Question"], answers: Sequence[Answered]) -> list[Topic]:
    groups: dict[str, list[int]] = {}
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if answer.yes is not None:
            groups.setdefault(question.topic or question.type, []).append(i)
    topics = []
    for name, some in groups.items():
        truth = np.array([split_labels(questions[i].truth) == {"yes"} for i in some])
        if truth.any() and not truth.all():
            values = np.array([answers[i].yes for i in some])
            area = float(auroc(values, truth, np.ones((1, len(some))))[0])
            topics.append(Topic(name, some, values, truth, area))
    return topics


def _auroc_by_topic(topics: list[Topic], resampled: list[np.ndarray]) -> dict[str, Any]:
    """Return the AUROC of P(yes) by topic and its mean."""
    areas = {topic.name: topic.auroc for topic in topics}
    drawn = dict(zip(areas, resampled, strict=True))
    averaged = averaged_topics(areas)
    return {
        "auroc": areas,
        "auroc_intervals": {name: confidence_interval(values) for name, values in drawn.items()},
        "mean_auroc": float(np.mean([areas[name] for name in averaged])),
        "mean_auroc_interval": confidence_interval(np.mean([drawn[name] for name in averaged], axis=0)),
        "mean_of": len(averaged),
    }


def averaged_topics(areas: Mapping[str, float]) -> list[str]:
    """Return the topics of the mean AUROC: the findings of examples/findings.csv if there are some, else all."""
    return [name for name in FINDINGS if name in areas] or [*areas]


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Return the expected calibration error: the mean gap between probabilities and shares of right answers, 0 to 1."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    off = np.bincount(bins, probabilities, BINS) - np.bincount(bins, right, BINS)
    return float(np.abs(off).sum() / count.sum())


def _question_types(
    questions: Sequence["Question"], answers: Sequence[Answered], whole: Sequence[str]
) -> list[QuestionType]:
    kinds = []
    for name in sorted({q.type for q in questions}):
        some = [i for i, q in enumerate(questions) if q.type == name]
        truths = [split_labels(questions[i].truth, whole) for i in some]
        support = Counter(label for of in truths for label in of)
        frequent = sorted(label for label, n in support.items() if n >= SUPPORT)
        few = 2 <= len(frequent) and len(support) <= MOST_LABELS
        alone = sum(len(of) == 1 for of in truths) >= 0.8 * len(some)
        if not (few and alone) or candidate_answers(name, questions[some[0]].truth) == "verify":
            continue
        answered = [split_labels(answers[i].answer, whole) for i in some]
        recalls: list[Recall] = []
        confusion: dict[str, Counter] = {}
        for label in frequent:
            places = [n for n, of in enumerate(truths) if label in of]
            hit = np.array([label in answered[n] for n in places], float)
            recalls.append(Recall(label, [some[n] for n in places], hit))
        for true, named in zip(truths, answered, strict=True):
            confusion.setdefault(", ".join(sorted(true)), Counter())[", ".join(sorted(named))] += 1
        kinds.append(QuestionType(name, recalls, confusion))
    return kinds


def _balanced_accuracy(kinds: list[QuestionType], hits: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the mean recall and the confusion of each question type; `hits` holds the draws of each recall."""
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
