"""The facts about recordings that all sources are converted to, and helpers to read tables of them."""

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ecgbyte_cli.readers.formats import EXTENSIONS
from ecgbyte_cli.readers.text_table import names_of, read_rows

CELL = 4096  # characters, the longest cell that is parsed; PTB-XL's longest has about two hundred

# The ranges of measurements: bounds, and the words for values below, between and above them. The rate is in beats per
# minute, durations in ms.
_TENS = list(range(40, 160, 10))
RANGES = {
    "rate": (
        _TENS,
        ["under 40 beats per minute"]
        + [f"{low} to {low + 9} beats per minute" for low in _TENS[:-1]]
        + ["150 beats per minute or more"],
    ),
    "pr": ([120, 201], ["under 120 ms", "120 to 200 ms", "over 200 ms"]),
    "qrs": ([100, 120], ["under 100 ms", "100 to 119 ms", "120 ms or more"]),
}


@dataclass
class RecordFacts:
    """The facts about one recording.

    Attributes
    ----------
    record, patient, split : str
    known : dict
        Name to whether the source states or denies it; None if the source is uncertain. Names are those of
        `findings.STATEMENTS`, of `findings.ALL_FINDINGS` (a finding as a whole), or the source's own. Names that the
        source does not cover are missing.
    answers : dict
        Topic to the labels that answer a question about it, such as "age": ["60 to 69 years"].
    complete : bool
        Whether `known` has everything that the source states about the recording, so that it can be listed.
    whole : frozenset of str
        The topics that the source covers completely, so that a list may also be "none".
    """

    record: str
    patient: str
    split: str
    known: dict[str, bool | None]
    answers: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = False
    whole: frozenset[str] = frozenset()


@dataclass
class Source:
    """A data set: the facts about its recordings, and the words of names that are not in `findings.STATEMENTS`."""

    facts: list[RecordFacts]
    words: dict[str, str] = field(default_factory=dict)


class SourceKind(NamedTuple):
    """A kind of data set.

    Attributes
    ----------
    name : str
        For messages.
    read : callable
        Takes a path; returns a Source.
    columns : sequence of sets of str
        A table of this kind has all columns of one of these; empty for kinds without a table.
    table : str
        The file by which a folder of this kind is recognised, "" for none.
    """

    name: str
    read: Callable[[Path], Source]
    columns: Sequence[set[str]] = ()
    table: str = ""


def column_names(path: str | os.PathLike, columns: Sequence[Collection[str]]) -> list[str]:
    """Return the names of the columns of a CSV or TSV table, which has all of one of `columns`."""
    return [name for name in names_of(path, columns) if name]


def table_rows(
    path: str | os.PathLike, columns: Sequence[Collection[str]]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV or TSV table, each with its line; cells are stripped text, "" if empty."""
    names: list[str] = []
    for line, row in read_rows(path, columns, numbers=True):
        if not names:
            names = row
        else:
            cells = [cell.strip() for cell in row] + [""] * (len(names) - len(row))
            yield line, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def record_name(text: str) -> str:
    """Return a record's name in a table without folders and without the extension of a recording."""
    bare, extension = os.path.splitext(os.path.basename(text))
    return bare if extension.lower() in EXTENSIONS else bare + extension


def parse_number(text: str | None) -> float | None:
    """Return the number in a text, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def age_label(text: str | None) -> list[str] | None:
    """Return the label of an age in years, its decade; None if unknown. PTB-XL writes 300 for 90 and more."""
    years = parse_number(text)
    if years is None or years < 0 or (years > 120 and years != 300):
        return None
    if years >= 90:
        return ["90 years or older"]
    decade = int(years // 10) * 10
    return [f"{decade} to {decade + 9} years"]


def sex_label(text: str | None) -> list[str] | None:
    """Return the label of a sex; None if unknown. 0 and 1 have no meaning that all tables share."""
    word = (text or "").strip().lower()
    return {"m": ["male"], "male": ["male"], "f": ["female"], "female": ["female"]}.get(word)


def measurement_label(topic: str, text: str | None) -> list[str] | None:
    """Return the label of a rate or a duration (s or ms); None if unknown."""
    value = parse_number(text)
    if value is None or value <= 0:
        return None
    if topic != "rate":
        value = round(value * 1000 if value < 5 else value)  # durations lie between 5 ms and 5 s
    bounds, words = RANGES[topic]
    return [words[sum(value >= bound for bound in bounds)]]


def drop_unknown(answers: dict[str, list[str] | None]) -> dict[str, list[str]]:
    """Return the answers without the topics that are unknown."""
    return {topic: labels for topic, labels in answers.items() if labels is not None}
