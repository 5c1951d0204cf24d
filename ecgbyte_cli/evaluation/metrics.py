"""Exact match, F1 and per-label scores of answers, compared with answers without the signal.

Percentages are 0 to 100. Intervals hold 95 % of a bootstrap over patients (Efron 1979): questions about one patient are
not independent, so the bootstrap draws patients, each with all of their questions.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Labels = frozenset[str]
Answer = str | Sequence[str]  # a text, or its labels

DRAWS = 2000  # number of bootstrap draws
MOST_LABELS = 100  # a question type with more distinct labels has no per-label scores


class Question(Protocol):
    """The parts of a question that scores need."""

    @property
    def question(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def truth(self) -> Answer: ...


def split_labels(answer: Answer, whole: Sequence[str] = ()) -> Labels:
    """Split an answer into its labels: `"B,  a."` is {"a", "b"}.

    Commas and semicolons separate labels; case, outer white space and a full stop at the end are ignored.

    Parameters
    ----------
    answer : str or sequence of str
        A text, or the labels themselves.
    whole : sequence of str
        Labels with a comma or a semicolon, from `unsplittable_labels`.
    """
    if not isinstance(answer, str):
        return frozenset(map(_normalized, answer)) - {""}
    labels, text = set(), re.sub(r"\s+", " ", answer).casefold()
    for label in whole:
        if label in text:
            labels.add(label)
            text = text.replace(label, ";")
    return frozenset(labels | {_normalized(part) for part in re.split("[,;]", text)} - {""})


def _normalized(label: str) -> str:
    return re.sub(r"\s+", " ", label).strip().rstrip(".").rstrip().casefold()


def unsplittable_labels(truths: Iterable[Answer]) -> list[str]:
    """Return the labels of list truths that hold a comma or a semicolon, longest first."""
    known = {label for truth in truths if not isinstance(truth, str) for label in split_labels(truth)}
    return sorted((label for label in known if re.search("[,;]", label)), key=len, reverse=True)


def exact_match(answer: Answer, truth: Answer, whole: Sequence[str] = ()) -> bool:
    """Return whether two answers have the same labels, in any order."""
    return split_labels(answer, whole) == split_labels(truth, whole)


def set_f1(answer: Answer, truth: Answer, whole: Sequence[str] = ()) -> float:
    """Return the F1 of an answer's labels against the truth's, 0 to 1; two empty answers agree."""
    predicted, true = split_labels(answer, whole), split_labels(truth, whole)
    return 2 * len(predicted & true) / (len(predicted) + len(true)) if predicted or true else 1.0


def candidate_answers(kind: str, truth: Answer) -> str:
    """Return the kind of question: verify (yes or no), choose (one of two options) or query (open).

    ECG-QA's question types end in the kind (`single-verify`). Other types are verify if the truth is yes or no, else
    query.
    """
    word = kind.rpartition("-")[2]
    if word in ("verify", "choose", "query"):
        return word
    return "verify" if split_labels(truth) in ({"yes"}, {"no"}) else "query"


def majority_answers(truths: Sequence[Answer], groups: Sequence[str]) -> dict[str, Answer]:
    """Return the most frequent answer of each group; on a tie, the first."""
    counts: dict[str, Counter] = {}
    spelled: dict[Labels, Answer] = {}
    for truth, group in zip(truths, groups, strict=True):
        counts.setdefault(group, Counter())[split_labels(truth)] += 1
        spelled.setdefault(split_labels(truth), truth)
    return {group: spelled[counter.most_common(1)[0][0]] for group, counter in counts.items()}


def baseline_guesses(training: Sequence[Question], asked: Sequence[Question]) -> tuple[list[Answer], str]:
    """Guess answers without any signal: the most frequent in training, by type or by the question's words.

    Parameters
    ----------
    training, asked : list of Question

    Returns
    -------
    (list of str or of tuple, str)
        A guess for each question asked, and the better of `type` and `question`. A question not in training is guessed
        by type, and for a type not in training from the questions asked.
    """
    by_type = majority_answers([q.truth for q in asked], [q.type for q in asked])
    by_type |= majority_answers([q.truth for q in training], [q.type for q in training])
    by_words = majority_answers([q.truth for q in training], [q.question for q in training])
    guesses = {
        "type": [by_type[q.type] for q in asked],
        "question": [by_words.get(q.question, by_type[q.type]) for q in asked],
    }
    right = {
        name: sum(exact_match(guess, q.truth) for guess, q in zip(of, asked, strict=True))
        for name, of in guesses.items()
    }
    best = max(right, key=right.__getitem__)
    return guesses[best], best


def score(
    answers: dict[str, Sequence[str | Sequence[str]]],
    truths: Sequence[str | Sequence[str]],
    types: Sequence[str],
    patients: Sequence[str],
    seed: int = 0,
    attributes: Sequence[str | None] | None = None,
) -> dict[str, Any]:
    """Score answers with the signal, and answers to the same questions without it.

    Parameters
    ----------
    answers : dict of str to list of str
        Keyed by `signal` and the names of controls: an answer for each question.
    truths : list of str, or of lists of str
        The truth of each question: a text, or its labels.
    types, patients : list of str
        Type and patient of each question.
    seed : int
        Seed of the bootstrap.
    attributes : list of str or None, optional
        ECG-QA's attribute_type of each question.

    Returns
    -------
    dict
        `questions`, `patients` (numbers), `exact_match`, `interval`, `by_type`, `by_answer_set`, `by_attribute`,
        `set_f1`; `labels` (see `label_scores`); `control` (name to its exact_match, interval and groups); with controls
        also `best_control`, `difference` (points), `difference_interval` (each draw has its own best control) and
        `difference_by_type`.

    Raises
    ------
    ValueError
        If there is no question, or the lengths differ.
    """
    if not truths:
        raise ValueError("no answers to score")
    whole = unsplittable_labels(truths)
    right = {
        name: np.array([exact_match(a, t, whole) for a, t in zip(of, truths, strict=True)], float)
        for name, of in answers.items()
    }
    sets = [candidate_answers(kind, truth) for kind, truth in zip(types, truths, strict=True)]
    groups = {"type": types, "answer_set": sets, "attribute": attributes or [None] * len(truths)}
    drawn = bootstrap(right, patients, seed)
    scores = {
        name: {"exact_match": 100 * right[name].mean(), "interval": confidence_interval(drawn[name])}
        | {f"by_{key}": group_means(right[name], of) for key, of in groups.items()}
        for name in answers
    }
    f1 = [set_f1(a, t, whole) for a, t in zip(answers["signal"], truths, strict=True)]
    result = {"questions": len(truths), "patients": len(set(patients))} | {
        **scores["signal"],
        "set_f1": float(100 * np.mean(f1)),
        "control": {name: scores[name] for name in answers if name != "signal"},
        "labels": label_scores(answers["signal"], truths, types, whole),
    }
    return result | (_gain(result, drawn) if result["control"] else {})


def _gain(result: dict[str, Any], drawn: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the gain of the signal's score over the best control's."""
    controls = result["control"]
    best = max(controls, key=lambda name: controls[name]["exact_match"])
    difference = drawn["signal"] - np.max([drawn[name] for name in controls], axis=0)
    return {
        "best_control": best,
        "difference": result["exact_match"] - controls[best]["exact_match"],
        "difference_interval": confidence_interval(difference),
        "difference_by_type": {
            kind: value - max(control["by_type"][kind] for control in controls.values())
            for kind, value in result["by_type"].items()
        },
    }


def bootstrap(
    right: Mapping[str, np.ndarray], patients: Sequence[str], seed: int = 0, draws: int = DRAWS
) -> dict[str, np.ndarray]:
    """Return means over samples of as many patients, drawn with replacement, in percent.

    Parameters
    ----------
    right : dict of str to array (questions,)
        1 for a right answer, 0 for a wrong one. All share the draws, so that differences are paired.
    patients : list of str
        The patient of each question.
    seed, draws : int

    Returns
    -------
    dict of str to array (draws,)
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    totals = {name: np.empty(draws) for name in right}
    asked = np.bincount(patient, minlength=len(names))
    sums = {name: np.bincount(patient, weights=values) for name, values in right.items()}
    start = 0
    for times in bootstrap_counts(len(names), seed, draws):
        here = slice(start, start := start + len(times))
        for name, per_patient in sums.items():
            totals[name][here] = 100 * (times @ per_patient) / (times @ asked)
    return totals


def bootstrap_counts(
    patients: int, seed: int = 0, draws: int = DRAWS, at_a_time: int = 0
) -> Iterator[np.ndarray]:
    """Yield how often each patient is drawn: arrays (some draws, patients), a few million numbers at a time.

    `at_a_time` is the number of values that the caller computes per draw, if larger than the number of patients.
    """
    random, chunk = np.random.default_rng(seed), max(1, 4_000_000 // max(patients, at_a_time))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        yield random.multinomial(patients, np.full(patients, 1 / patients), size=size)


def confidence_interval(values: np.ndarray) -> list[float]:
    """Return the percentiles 2.5 and 97.5."""
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def summarize_seeds(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarize scores over training runs with different seeds.

    Returns
    -------
    dict
        For `exact_match`, `difference` (the gain over the best control) and each type of question: `values`, `mean`
        and `interval` (95 % of the mean, by Student's t).
    """
    from scipy.stats import t

    def summary(values: Sequence[float]) -> dict[str, Any]:
        mean, count = float(np.mean(values)), len(values)
        wide = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
        return {"values": [float(v) for v in values], "mean": mean, "interval": [mean - wide, mean + wide]}

    first = results[0]
    scores = {
        key: summary([one[key] for one in results]) for key in ("exact_match", "difference") if key in first
    }
    by_type = {kind: summary([one["by_type"][kind] for one in results]) for kind in first["by_type"]}
    return scores | {"by_type": by_type}


def group_means(right: Iterable[float], groups: Iterable[str | None]) -> dict[str, float]:
    """Return the mean of each group in percent, keyed by the group's name; None means no group."""
    values: dict[str, list[float]] = {}
    for r, group in zip(right, groups, strict=True):
        if group is not None:
            values.setdefault(group, []).append(r)
    return {group: float(100 * np.mean(values[group])) for group in sorted(values)}


def label_scores(
    answers: Sequence[Answer], truths: Sequence[Answer], types: Sequence[str], whole: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Return the F1 of each label, for question types with few labels that occur more than once.

    Returns
    -------
    dict
        Type to `macro_f1` (mean over the labels of the truths, percent) and `f1` (label to `f1`, `precision`,
        `recall` in percent and `support`, its count among the truths).
    """
    result = {}
    for kind in sorted(set(types)):
        at = [i for i, t in enumerate(types) if t == kind]
        predicted = [split_labels(answers[i], whole) for i in at]
        true = [split_labels(truths[i], whole) for i in at]
        support, named = Counter(x for s in true for x in s), Counter(x for s in predicted for x in s)
        if len(support) > MOST_LABELS or sum(support.values()) < 2 * len(support):
            continue
        hits = Counter(x for p, t in zip(predicted, true, strict=True) for x in p & t)
        table = {
            label: {
                "f1": 200 * hits[label] / (named[label] + support[label]),
                "precision": 100 * hits[label] / named[label] if named[label] else 0.0,
                "recall": 100 * hits[label] / support[label],
                "support": support[label],
            }
            for label in sorted(support)
        }
        macro = float(np.mean([row["f1"] for row in table.values()])) if table else 0.0
        result[kind] = {"macro_f1": macro, "f1": table}
    return result
