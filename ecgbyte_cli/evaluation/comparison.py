"""Paired differences between two models' findings or answers about the same recordings.

Intervals hold 95 % of a bootstrap over patients; both sides share the same draws.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.evaluation.finding_scores import area_of, draw_aurocs, interval_of, mean_draws
from ecgbyte_cli.evaluation.finding_truth import FindingTable, LabelledFinding, join_truth, read_finding_table
from ecgbyte_cli.evaluation.metrics import bootstrap, confidence_interval, exact_match
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import check_regular_file

ALL = "all"
TOO_FEW = "too few to tell"


class Difference(NamedTuple):
    """The difference B minus A.

    Attributes
    ----------
    name : str
        The finding, type or topic; `ALL` for the mean of all.
    measure : str
    a, b, difference : float
    low, high : float
        Interval of the difference.
    patients : int
    """

    name: str
    measure: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    patients: int

    @property
    def verdict(self) -> str:
        """The conclusion from the interval."""
        if self.low == self.high == self.difference == 0:
            return "the same"
        if self.low > 0:
            return "B is higher"
        return "A is higher" if self.high < 0 else TOO_FEW


def compare_files(a: Path, b: Path, truth: Path | None) -> tuple[int, list[Difference]]:
    """Compare two tables of `ecgbyte findings`, or two files answers.jsonl of `ecgbyte generate`.

    Parameters
    ----------
    a, b : Path
    truth : Path or None
        Labels of a table's recordings. Answer files contain theirs.

    Returns
    -------
    (int, list of Difference)
        The number of rows that both have, and the differences.

    Raises
    ------
    Failure
        If they contain different recordings or questions, or cannot be compared.
    """
    kinds = [_holds_answers(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise Failure(f"{a} and {b} are of different kinds: a table of findings, and answers to questions")
    if not kinds[0]:
        return _compare_tables(a, b, truth)
    if truth:
        raise Failure(f"{a} contains the true answers: remove --truth")
    one, other = (_read_answers(path) for path in (a, b))
    _check_same(list(one), list(other), a, b)
    return len(one), compare_answers([*one.values()], [other[key] for key in one])


def _holds_answers(path: Path) -> bool:
    """Return whether a file holds answers to questions, by its first line."""
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with open(check_regular_file(path), encoding="utf-8") as file:
            first = json.loads(file.readline() or "{}")
    except (OSError, ValueError, RecursionError) as error:
        raise Failure(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error
    return isinstance(first, dict) and {"question", "truth", "answer"} <= first.keys()


def _read_answers(path: Path) -> dict[tuple, dict[str, Any]]:
    """Read an answer file: keyed by record, question, truth and the number of earlier occurrences."""
    seen: Counter[tuple] = Counter()
    answers = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                one = json.loads(line)
                records = one["record"] if isinstance(one["record"], list) else [one["record"]]
                key = (*map(str, records), *(str(one[name]) for name in ("question", "truth")))
                if not isinstance(one["answer"], str) or type(one.get("p_yes")) not in (
                    float,
                    int,
                    type(None),
                ):
                    raise ValueError("the answer is no text, or p_yes no number")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise Failure(
                    f"{path}, line {number} is not an answer from `ecgbyte generate`: {error}"
                ) from error
            answers[(*key, seen[key])] = one
            seen[key] += 1
    return answers


def _check_same(one: Sequence[tuple], other: Sequence[tuple], a: Path, b: Path) -> None:
    """Reject two files with different rows."""
    for here, there, has, lacks in ((one, other, a, b), (other, one, b, a)):
        known = set(there)
        missing = [key for key in here if key not in known]
        if missing:
            first = ", ".join(str(part) for part in missing[0][:2])
            raise Failure(f"{lacks} lacks {len(missing)} of the {len(here)} rows of {has}, the first {first}")
    for rows, path in ((one, a), (other, b)):
        if len(set(rows)) < len(rows):
            raise Failure(f"{path} has two rows for the same record and segment")


def _compare_tables(a: Path, b: Path, truth: Path | None) -> tuple[int, list[Difference]]:
    """Compare two tables of findings."""
    one, other = (read_finding_table(path) for path in (a, b))
    _check_same(one.keys, other.keys, a, b)
    names = [name for name in one.answers if name in other.answers]
    if not names:
        raise Failure(f"{a} and {b} have no finding in common")
    if alone := [name for name in {**one.answers, **other.answers} if name not in names]:
        note(f"only one of the tables has {', '.join(alone[:10])}{', …' if len(alone) > 10 else ''}")
    rows = {key: row for row, key in enumerate(other.keys)}
    order = np.array([rows[key] for key in one.keys])
    pair = [
        # in the same order, with the same patient names
        one._replace(
            probabilities={n: t.probabilities[n][at] for n in names},
            answers={n: t.answers[n][at] for n in names},
        )
        for t, at in ((one, np.arange(len(order))), (other, order))
    ]
    if truth is None:
        return len(order), compare_unlabelled(*pair)
    labelled, later = join_truth(pair[0], truth), pair[1]
    there = [
        found._replace(
            probability=later.probabilities[found.name][found.numbers],
            answer=later.answers[found.name][found.numbers],
        )
        for found in labelled
    ]
    return len(order), compare_labelled(labelled, there)


def compare_unlabelled(one: FindingTable, other: FindingTable) -> list[Difference]:
    """Compare two tables without labels: the mean probability, and the share of yes answers, of each finding."""
    values: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    for name, chances in one.probabilities.items():
        values[name, "probability"] = chances, other.probabilities[name]
        values[name, "yes"] = one.answers[name] == "yes", other.answers[name] == "yes"
    differences = _means(values, one.patients)
    same = [one.answers[name] == other.answers[name] for name in one.answers]
    note(
        f"{100 * np.mean(same):.1f} % of the answers are the same; --truth is needed to tell which are right"
    )
    return differences


def compare_labelled(one: Sequence[LabelledFinding], other: Sequence[LabelledFinding]) -> list[Difference]:
    """Compare two tables with labels: the AUROC of each finding and their mean, and the share of right answers."""
    pairs = list(zip(one, other, strict=True))
    drawn = draw_aurocs([*one, *other])
    differences, right = [], {}
    means: list[np.ndarray | None] = []
    areas: list[tuple[float, float]] = []
    for number, (first, second) in enumerate(pairs):
        before, after = drawn[number], drawn[len(pairs) + number]
        if before is not None and after is not None:
            areas.append((area_of(first) or 0.0, area_of(second) or 0.0))
            means.append(after - before)
            count = len(set(first.patients.tolist()))
            differences.append(_difference(first.name, "AUROC", areas[-1], after - before, count))
        right[first.name, "right"] = _right(first), _right(second)
    people = sorted({patient for first in one for patient in first.patients.tolist()})
    if areas:
        a, b = np.mean(areas, axis=0)
        differences.append(_difference(ALL, "AUROC", (a, b), mean_draws(means), len(people)))
    for first in one:
        differences += _means({(first.name, "right"): right[first.name, "right"]}, first.patients.tolist())
    joined = tuple(np.concatenate([part[side] for part in right.values()]) for side in (0, 1))
    patients = [patient for first in one for patient in first.patients.tolist()]
    return differences + _means({(ALL, "right"): (joined[0], joined[1])}, patients)


def compare_answers(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Compare two answer files for the same questions: exact match by type, and the AUROC of P(yes) by topic."""
    patients = [str(line.get("patient") or line["record"]) for line in one]
    hits = tuple(
        np.array([exact_match(line["answer"], line["truth"]) for line in lines], float)
        for lines in (one, other)
    )
    differences = []
    kinds = np.array([str(line.get("type")) for line in one])
    for kind in [*dict.fromkeys(kinds.tolist()), ALL]:
        some = np.flatnonzero((kinds == kind) | (kind == ALL))
        parts = hits[0][some], hits[1][some]
        differences += _means({(kind, "exact match"): parts}, [patients[i] for i in some])
    topics: dict[str, list[int]] = {}
    for number, (line, there) in enumerate(zip(one, other, strict=True)):
        if line.get("p_yes") is not None and there.get("p_yes") is not None:
            topics.setdefault(str(line.get("topic") or line.get("type")), []).append(number)
    if not topics:
        return differences
    labelled = [
        [
            labelled_topic(topic, [lines[i] for i in some], [patients[i] for i in some])
            for topic, some in topics.items()
        ]
        for lines in (one, other)
    ]
    return differences + [one for one in compare_labelled(*labelled) if one.measure == "AUROC"]


def labelled_topic(
    topic: str, lines: Sequence[Mapping[str, Any]], patients: Sequence[str]
) -> LabelledFinding:
    """Return the answers to the questions about a topic."""
    truth = np.array([exact_match(line["truth"], "yes") for line in lines])
    chances = np.array([line["p_yes"] for line in lines], float)
    answers = np.array([line["answer"] for line in lines])
    return LabelledFinding(topic, topic, chances, answers, truth, np.array(patients))


def _right(one: LabelledFinding) -> np.ndarray:
    """Return which answers are right; unsure is not."""
    return one.answer == np.where(one.truth, "yes", "no")


def _means(
    values: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], patients: Sequence[str]
) -> list[Difference]:
    """Return the differences of means, by name and measure."""
    steps = {key: np.subtract(b, a, dtype=float) for key, (a, b) in values.items()}
    drawn = bootstrap({str(number): step for number, step in enumerate(steps.values())}, patients)
    count = len(set(patients))
    return [
        _difference(*key, (float(np.mean(a)), float(np.mean(b))), drawn[str(number)] / 100, count)
        for number, (key, (a, b)) in enumerate(values.items())
    ]


def _difference(
    name: str, measure: str, values: Iterable[float], drawn: np.ndarray, patients: int
) -> Difference:
    """Return the difference of two values, with the interval of its draws."""
    a, b = islice(values, 2)
    low, high = interval_of(drawn) or confidence_interval(np.zeros(1))
    return Difference(name, measure, float(a), float(b), float(b - a), low, high, patients)
