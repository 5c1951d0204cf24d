"""What a data set says about a recording, in the one form that all sources are brought into; and tables read for it."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from ecgbyte_cli.readers.formats import FORMATS
from ecgbyte_cli.readers.text_table import names_of, read_rows

# the line of names of a table of labels holds all of one of these
NAMES = ({"filename_hr", "scp_codes"}, {"exam_id"}, {"record"})
CELL = 4096  # characters that a cell which is taken apart may have; PTB-XL's longest has some two hundred

# What is measured, as ranges: bounds, and the words for below the first, between two, and from the last on. The
# rate is in beats per minute, durations in ms.
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
    """What is said about one recording.

    Attributes
    ----------
    record, patient, split : str
    known : dict
        Name to whether the source states or denies it; None where the source is uncertain. Names are those of
        `findings.STATEMENTS`, of `findings.ASKED` (a finding as a whole), or the source's own. What the source does
        not cover is missing.
    said : dict
        Topic to the labels that answer a question about it, such as "age": ["60 to 69 years"].
    complete : bool
        Whether `known` has everything that the source states of the recording, so that it can be listed.
    whole : frozenset of str
        The topics in which the source can state everything, so that a list may also be "none".
    """

    record: str
    patient: str
    split: str
    known: dict[str, bool | None]
    said: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = False
    whole: frozenset[str] = frozenset()


@dataclass
class Source:
    """A data set: the facts of its recordings, and the words for what `findings.STATEMENTS` has none for."""

    facts: list[RecordFacts]
    words: dict[str, str] = field(default_factory=dict)


def column_names(path: str | os.PathLike) -> list[str]:
    """The names of the columns of a CSV or TSV table."""
    return [name for name in names_of(path, NAMES) if name]


def table_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV or TSV table, each with its line; every cell is stripped text, "" where it is empty."""
    names: list[str] = []
    for line, row in read_rows(path, NAMES, numbers=True):
        if not names:
            names = row
        else:
            cells = [cell.strip() for cell in row] + [""] * (len(names) - len(row))
            yield line, {name: cell for name, cell in zip(names, cells, strict=True) if name}


def record_name(text: str) -> str:
    """A record's name of what a table calls it: without folders, and without the extension of a recording."""
    bare, extension = os.path.splitext(os.path.basename(text))
    return bare if extension.lower() in FORMATS else bare + extension


def parse_number(text: str | None) -> float | None:
    """The number that a text is, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def age_label(text: str | None) -> list[str] | None:
    """The label of an age in years: its decade; None where it is not known. PTB-XL writes 300 for 90 and more."""
    years = parse_number(text)
    if years is None or years < 0 or (years > 120 and years != 300):
        return None
    if years >= 90:
        return ["90 years or older"]
    decade = int(years // 10) * 10
    return [f"{decade} to {decade + 9} years"]


def sex_label(text: str | None) -> list[str] | None:
    """The label of a sex; None where it is not known. 0 and 1 mean this in one table and that in another."""
    word = (text or "").strip().lower()
    return {"m": ["male"], "male": ["male"], "f": ["female"], "female": ["female"]}.get(word)


def measurement_label(topic: str, text: str | None) -> list[str] | None:
    """The label of a rate or a duration (s or ms); None where it is not known."""
    value = parse_number(text)
    if value is None or value <= 0:
        return None
    if topic != "rate":
        value = round(value * 1000 if value < 5 else value)  # no duration is 5 s, and none 5 ms
    bounds, words = RANGES[topic]
    return [words[sum(value >= bound for bound in bounds)]]


def drop_unknown(said: dict[str, list[str] | None]) -> dict[str, list[str]]:
    """What is said, without what is not."""
    return {topic: labels for topic, labels in said.items() if labels is not None}
