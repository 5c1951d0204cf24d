"""Find the segments that questions are about, and check the split of the questions."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.readers.formats import EXTENSIONS

NOT_ENCODED = "are about records that were not encoded"
SIDES = {"train": "training", "val": "validation", "test": "test"}  # in words

Joined = tuple[Question, int, str, str]  # question, its first segment, patient, split


def join_segments(
    questions: Sequence[Question], segments: dict[str, Any]
) -> tuple[list[Joined], list[Question]]:
    """Find the first segment of each of a question's records.

    A record is found by its name or by the end of its path ("Person_02/rec_1"), a record of PTB-XL by any of its names
    (06002_hr, 06002_lr, and HR06002 in the PhysioNet Challenge). A name of several recordings is not joined.

    Parameters
    ----------
    questions : list of Question
    segments : dict
        The columns of symbols/segments.parquet.

    Returns
    -------
    joined : list of (Question, int, str, str)
        Each question with its `segments`, its first segment, its patient and its split (its own, else the record's).
    unmatched : list of Question
        The questions that cannot be asked, with their `problem`.
    """
    find = record_finder(segments)
    joined: list[Joined] = []
    unmatched: list[Question] = []
    for question in questions:
        matches = [find(record) for record in question.records]
        splits = {question.split or segments["split"][places[0]] for places in matches if places}
        if not all(matches):
            unmatched.append(replace(question, problem=NOT_ENCODED))
        elif any(len(places) > 1 for places in matches):
            unmatched.append(replace(question, problem="name a record that several recordings are called"))
        elif len(splits) > 1:
            unmatched.append(replace(question, problem="are about records on different sides of the split"))
        else:
            first = matches[0][0]
            question = replace(question, segments=tuple(places[0] for places in matches))
            joined.append((question, first, segments["patient"][first], splits.pop()))
    return joined, unmatched


def record_finder(segments: dict[str, Any]) -> Callable[[str], list[int]]:
    """Return a function from a record's name to the first segments of all recordings of that name.

    `segments` has the columns `record` and `path`.
    """
    firsts: dict[tuple[str, str], int] = {}  # the first segment of each recording
    for i, recording in enumerate(
        zip(segments.get("path", segments["record"]), segments["record"], strict=True)
    ):
        firsts.setdefault(recording, i)
    by_record: dict[str, list[int]] = {}
    by_last: dict[str, list[tuple[list[str], int]]] = {}
    by_number: dict[int | None, list[int]] = {}
    for (path, record), i in firsts.items():
        parts = _parts(path)
        by_record.setdefault(record, []).append(i)
        by_last.setdefault(parts[-1], []).append((parts, i))
        by_number.setdefault(_ptb_xl_number(record), []).append(i)
    by_number.pop(None, None)

    def find(name: str) -> list[int]:
        wanted = _parts(name)
        by_path = [i for parts, i in by_last.get(wanted[-1], ()) if parts[-len(wanted) :] == wanted]
        return by_record.get(name) or by_path or by_number.get(_ptb_xl_number(name), [])

    return find


def _parts(path: str) -> list[str]:
    """Return the folders of a recording's path, and its name without the extension of a format."""
    *folders, name = path.split("/")
    stem, dot, extension = name.rpartition(".")
    return [*folders, stem if dot and f".{extension.lower()}" in EXTENSIONS else name]


def _ptb_xl_number(record: str) -> int | None:
    """Return the number of a record of PTB-XL; None for other records."""
    match = re.fullmatch(r"HR(\d{5})|(\d{5})_[hl]r", record)
    return int(match[1] or match[2]) if match else None


def describe_unmatched(unmatched: Sequence[Question], total: int) -> str:
    """Return a line about questions that were not joined: their number, the reasons, and some of their records."""
    parts = []
    for problem, count in Counter(question.problem for question in unmatched).most_common():
        some = sorted({r for question in unmatched if question.problem == problem for r in question.records})
        more = ", …" if len(some) > 3 else ""
        parts.append(f"{count} of {total} questions {problem} ({', '.join(some[:3])}{more})")
    hint = ": name the folder too, as in Person_02/rec_1" if "called" in "".join(parts) else ""
    return f"{'; '.join(parts)}: left out{hint}"


def split_leaks(joined: Sequence[Joined], learned: set[str], name: str | os.PathLike | list) -> list[str]:
    """Return lines about patients and questions on two sides of a split, and findings that the test side lacks.

    Parameters
    ----------
    joined : list
        From `join_segments`.
    learned : set of str
        The patients whose recordings the merges were learned from.
    name : path-like
        Of the question file.
    """
    lines: list[str] = []
    patients = {side: {p for *_, p, split in joined if split == side} for side in SIDES}
    for one, other in combinations(SIDES, 2):
        if both := patients[one] & patients[other]:
            lines.append(
                f"{len(both)} patients are in {SIDES[one]} and in {SIDES[other]}, as {name} has it: "
                f"{_shorten_list(both)}"
            )
    for side in ("val", "test"):
        if both := (patients[side] & learned) - patients["train"]:
            lines.append(
                f"{len(both)} patients of the {SIDES[side]} questions are among those whose recordings the merges "
                f"were learned from: {_shorten_list(both)}"
            )
    sides: dict[str, set[str]] = {}
    for question, *_, side in joined:
        if question.answer.strip().casefold() == "yes":
            sides.setdefault(question.topic or question.question, set()).add(side)
    if any(side == "test" for *_, side in joined):
        lines += without_positives(sides)
    if count := count_seen_in_training(joined):
        lines.append(
            f"{count} of {sum(side == 'test' for *_, side in joined)} test questions stand in training too, word "
            "for word and about the same records"
        )
    return lines


def without_positives(sides: dict[str, set[str]]) -> list[str]:
    """Return a line about findings that are present on some side of the split, but never on the test side.

    Parameters
    ----------
    sides : dict of str to set of str
        The sides on which each finding is present, by the finding's words.
    """
    missing = [words for words, on in sides.items() if "test" not in on]
    if not missing:
        return []
    some = ", ".join(missing[:12]) + (", …" if len(missing) > 12 else "")
    return [f"{len(missing)} findings have no positives on the test side of the split: {some}"]


def count_seen_in_training(joined: Sequence[Joined]) -> int:
    """Return the number of test questions that are in training, word for word and about the same records."""

    def key(question: Question) -> tuple:
        return question.segments, question.question, question.earlier

    known = {key(question) for question, *_, side in joined if side == "train"}
    return sum(side == "test" and key(question) in known for question, *_, side in joined)


def _shorten_list(names: set[str]) -> str:
    """Return the first three names."""
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
