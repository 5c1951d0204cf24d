"""Join a table of findings with the true labels of its recordings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecgbyte_cli.cli.output import counted, note
from ecgbyte_cli.cli.spelling import nearest
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.everyday import recognise
from ecgbyte_cli.inference.trained_questions import short_name
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.labels import NO, YES, derive_labels
from ecgbyte_cli.questions.question_segments import record_finder
from ecgbyte_cli.questions.sources import read_source
from ecgbyte_cli.questions.sources.base import Source
from ecgbyte_cli.storage.row_table import column_names, read_columns

MOST_NAMED = 5  # names listed in a message


class FindingTable(NamedTuple):
    """The findings of a table of `ecgbyte findings`, row by row.

    Attributes
    ----------
    keys : list of (str, str)
        Record and segment.
    paths, patients : list of str
        The patient is the record if unknown.
    probabilities : dict of str to float array (rows,)
        Keyed by short name of the finding.
    answers : dict of str to array of str (rows,)
        yes, no or unsure.
    """

    keys: list[tuple[str, str]]
    paths: list[str]
    patients: list[str]
    probabilities: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]


class LabelledFinding(NamedTuple):
    """A finding with its true labels, in the rows whose label is known.

    Attributes
    ----------
    name, words : str
    probability : float array (rows,)
    answer : array of str (rows,)
        yes, no or unsure.
    truth : bool array (rows,)
    patients : array of str (rows,)
    numbers : int array (rows,) or None
        The rows' indices in the table, if they come from one.
    """

    name: str
    words: str
    probability: np.ndarray
    answer: np.ndarray
    truth: np.ndarray
    patients: np.ndarray
    numbers: np.ndarray | None = None


def read_finding_table(path: Path) -> FindingTable:
    """Read the findings of a table.

    Raises
    ------
    Failure
        If it is not a table from `ecgbyte findings`, or is damaged.
    """
    columns = column_names(path)
    names = [name for before, name in zip(columns, columns[1:], strict=False) if before == f"p_{name}"]
    if not names:
        raise Failure(f"{path} has no findings: it is not a table from `ecgbyte findings`")
    wanted = ["record", "path", "patient", "segment", *(f"p_{name}" for name in names), *names]
    read = read_columns(path, wanted)
    patients = [patient or record for patient, record in zip(read["patient"], read["record"], strict=True)]
    try:
        chances = {name: np.array(read[f"p_{name}"], float) for name in names}
    except (TypeError, ValueError) as error:
        raise Failure(f"{path} is damaged: {error}") from error
    outside = [name for name, values in chances.items() if not ((values >= 0) & (values <= 1)).all()]
    if outside:
        raise Failure(f"{path} is damaged: p_{outside[0]} is not a probability")
    keys = [(record, str(segment)) for record, segment in zip(read["record"], read["segment"], strict=True)]
    return FindingTable(
        keys, read["path"], patients, chances, {name: np.array(read[name], str) for name in names}
    )


def join_truth(table: FindingTable, path: Path) -> list[LabelledFinding]:
    """Join the findings of a table with the labels of a data set.

    All rows of a recording with several segments get its label.

    Parameters
    ----------
    table : FindingTable
    path : Path
        A table with a column `record` and yes/no columns, or any other source of `ecgbyte questions`.

    Returns
    -------
    list of LabelledFinding
        The findings with a known label in at least one row, in the table's order.

    Raises
    ------
    Failure
        If the labels cannot be read, or match no recording or finding.
    """
    source = read_source(path)
    rows, facts = _matched(table, source, path)
    labels = derive_labels([source.facts[fact] for fact in facts])
    stated = [source.facts[fact] for fact in facts]
    patients = np.array(
        [
            one.patient if one.patient != one.record else table.patients[row]
            for row, one in zip(rows, stated, strict=True)
        ]
    )
    labelled = []
    own = {short_name(words): column for column, words in source.words.items()}
    for name, chances in table.probabilities.items():
        label = labels.findings.get(name)
        if label is None:
            label = labels.statements.get(own.get(name, name.upper()))
        known = np.zeros(len(rows), bool) if label is None else (label == YES) | (label == NO)
        if known.any() and label is not None:
            at, words = rows[known], _words(name)
            parts = chances[at], table.answers[name][at], label[known] == YES, patients[known], at
            labelled.append(LabelledFinding(name, words, *parts))
    _note_unused(source, labelled, path)
    if not labelled:
        raise Failure(f"{path} has no label for a finding in the table")
    return labelled


def _matched(table: FindingTable, source: Source, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows with labels, and the index of each row's facts."""
    records = [record for record, _ in table.keys]
    find = record_finder({"record": records, "path": table.paths})
    of_recording: dict[tuple[str, str], list[int]] = {}
    for row, recording in enumerate(zip(records, table.paths, strict=True)):
        of_recording.setdefault(recording, []).append(row)
    pairs, unused, shared = [], 0, list[str]()
    for fact, one in enumerate(source.facts):
        places = find(one.record)
        unused += not places
        shared += [one.record] if len(places) > 1 else []
        if len(places) == 1:
            (first,) = places
            pairs += [(row, fact) for row in of_recording[records[first], table.paths[first]]]
    if not pairs:
        raise Failure(
            f"{path} has no label for a recording in the table: it names {source.facts[0].record} for example, "
            f"and the table {records[0]}"
        )
    rows, facts = np.array(sorted(pairs)).T
    without = len(of_recording) - len({(records[row], table.paths[row]) for row in rows})
    if without or unused:
        note(f"{_have(without, 'recording')} no label; {_have(unused, 'label')} no recording in the table")
    if shared:
        more = f" and {len(shared) - MOST_NAMED} more" if len(shared) > MOST_NAMED else ""
        note(
            f"{counted(len(shared), 'label')} ignored, because several recordings share the name: "
            f"{', '.join(shared[:MOST_NAMED])}{more}"
        )
    return rows, facts


def _have(number: int, noun: str) -> str:
    return f"{counted(number, noun)} {'has' if number == 1 else 'have'}"


def _words(name: str) -> str:
    """Return the words of a finding."""
    if name in ALL_FINDINGS:
        return ALL_FINDINGS[name].words
    return STATEMENTS[name.upper()].words if name.upper() in STATEMENTS else name


def _nearest_finding(column: str, spellings: Mapping[str, str]) -> str | None:
    """Return the finding that a column may refer to, by another name, by shared words, then by similar letters.

    `spellings` maps each spelling to the name of its finding.
    """
    plain = column.replace("_", " ")
    meant = recognise(plain)
    if meant and meant.kind == "finding" and meant.name in ALL_FINDINGS:
        return meant.name
    words = {*plain.casefold().split()}
    shared = {text: len(words & {*text.casefold().split()}) for text in spellings}
    most = max(shared.values(), default=0)
    best = [text for text, count in shared.items() if count == most] if most > 1 else []
    near = nearest(plain, best or [*spellings], 0 if best else 0.6)
    return spellings[near] if near else None


def _note_unused(source: Source, labelled: Sequence[LabelledFinding], path: Path) -> None:
    """Note the labels that match no finding of the table, and suggest the nearest."""
    names = {one.name: one for one in labelled}
    spellings = {one.words: one.name for one in labelled}
    spellings |= {text: name for name, one in ALL_FINDINGS.items() for text in (name, one.words)}
    unknown = [column for column, words in source.words.items() if short_name(words) not in names]
    for name in unknown[:MOST_NAMED]:
        near = _nearest_finding(name, spellings)
        hint = f": did you mean {near!r}?" if near else ""
        note(f"{path}: the column {name!r} matches no known finding{hint}")
    if len(unknown) > MOST_NAMED:
        note(f"{path}: {len(unknown) - MOST_NAMED} more columns match no known finding")
    used = {key for name in names if name in ALL_FINDINGS for key in ALL_FINDINGS[name].statements}
    used |= {*names, *(name.upper() for name in names)}
    stated = dict.fromkeys(key for fact in source.facts for key in fact.known)
    others = [_words(key) for key in stated if key not in used and key not in source.words]
    if others:
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        note(f"the table does not answer about {', '.join(others[:MOST_NAMED])}{more}")
