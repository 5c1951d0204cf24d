"""Comments of WFDB headers: SNOMED CT codes after `Dx:`, as in the PhysioNet Challenges, or those of `ecgbyte synth`.

The vocabulary of a database is all codes in its headers. A header denies the codes of the vocabulary that it does not
have; any other statement is unknown. A header with an unknown code (there are dozens) denies nothing, and no question
asks for its list.
"""

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.findings import ALL_FINDINGS, GENERIC, OF_SNOMED, OTHER_RHYTHMS, SINUS, STATEMENTS
from ecgbyte_cli.questions.sources.base import (
    CELL,
    RecordFacts,
    Source,
    age_label,
    drop_unknown,
    measurement_label,
    sex_label,
)
from ecgbyte_cli.readers import wfdb_header
from ecgbyte_cli.readers.patients import patient_and_split, patient_of, stated_side
from ecgbyte_cli.readers.recording import Recording, Unusable, record_name

# The databases of the Challenge 2021 by the names of their records: each has its own vocabulary.
DATABASE = re.compile(r"(A|Q|I|S)\d{4}|(HR|JS|E)\d{5}")
# Statements of form that are ST-T changes: the Challenge's data sets use them for PTB-XL's diagnosis.
CHANGES = {"INVT", "STD", "STE"}
# The conditions of `ecgbyte synth`, with the statements that each leaves open: without a rhythm, the rate decides
# between the rhythms of the sinus node.
BY_RATE = ("SR", "SBRAD", "STACH")
CONDITIONS = {
    "sinus rhythm": ("SR", ()),
    "sinus bradycardia": ("SBRAD", ()),
    "sinus tachycardia": ("STACH", ()),
    "atrial fibrillation": ("AFIB", ()),
    "left bundle branch block": ("CLBBB", BY_RATE),
    "anterior st elevation": ("STE", BY_RATE),
    "first-degree av block": ("1AVB", BY_RATE),
    "premature ventricular complexes": ("PVC", BY_RATE),
}
# Its recordings have only their condition of these topics. (The rate decides about bradycardia.)
SYNTHETIC = {name for name, s in STATEMENTS.items() if s.topic in ("rhythm", "CD", "beats")} - {"BRADY"}
SYNTHETIC |= {"STE", "LPR"}
MEASURED = {"rate": "heart rate", "pr": "pr interval", "qrs": "qrs duration"}


def read_headers(paths: Iterable[str], source: str | os.PathLike) -> Source:
    """Read the comments of headers.

    Parameters
    ----------
    paths : iterable of str
        Of .hea files. Unreadable ones are skipped; those with an unknown split are skipped with a note.
    source : str or Path
        The name of the data set for messages.

    Raises
    ------
    Failure
        If no header states a diagnosis.
    """
    recordings: list[Recording] = []
    refused: list[str] = []
    for path in paths:
        try:
            comments = wfdb_header.read_header(path).comments
        except (Unusable, OSError):
            continue
        recording = Recording(np.empty((0, 0), np.float32), 0, [], record_name(path), path, comments)
        try:
            stated_side(recording)
        except Unusable as error:
            refused.append(f"{path}: {error.message}")
            continue
        recordings.append(recording)
    if refused:
        note(f"{len(refused)} recordings left out; the first, {refused[0]}")
    facts = facts_of(recordings)
    if not facts:
        raise Failure(
            f"{source}: no header says in its comments what the recording shows: `# Dx:` with SNOMED CT codes, as "
            "in the PhysioNet Challenges"
        )
    return Source(facts)


def facts_of(recordings: Iterable[Recording]) -> list[RecordFacts]:
    """Return the facts of the recordings whose comments state any."""
    headers = [(each, stated) for each in recordings if (stated := _statements_of(each)) is not None]
    vocabularies: dict[str, set[str]] = {}
    for _, stated in headers:
        vocabularies.setdefault(stated.database, set()).update(stated.statements)
    vocabularies["synth"] = SYNTHETIC
    return [_facts(each, stated, vocabularies[stated.database]) for each, stated in headers]


class Stated(NamedTuple):
    """The statements of a header."""

    statements: set[str]
    unknown: set[str]  # statements that it leaves open
    complete: bool  # whether `statements` has all of its codes
    database: str


def _statements_of(recording: Recording) -> Stated | None:
    """Return the statements of a header; None if there are none."""
    codes = (recording.comment("dx") or "")[:CELL]
    numbers = [code.strip() for code in codes.split(",") if code.strip().isdigit()]
    if numbers:
        match = DATABASE.fullmatch(recording.name)
        statements = {OF_SNOMED[code] for code in numbers if code in OF_SNOMED}
        complete = all(code in OF_SNOMED for code in numbers)
        return Stated(statements, set(), complete, (match[1] or match[2]) if match else "")
    condition = CONDITIONS.get((recording.comment("condition") or "").lower())
    return Stated({condition[0]}, set(condition[1]), True, "synth") if condition else None


def _known(stated: Stated, vocabulary: set[str]) -> dict[str, bool | None]:
    """Return the statements that are present or denied, in the order of the table."""
    present = stated.statements | ({"STTC"} if stated.statements & CHANGES else set())
    unknown = set(stated.unknown)
    for name in GENERIC:
        word, members = name.upper(), set(ALL_FINDINGS[name].statements)
        if word in present:
            unknown |= members  # an infarction of any place
        elif present & members:
            unknown.add(word)  # an anterior infarction is an infarction
    if not present & {*SINUS, *OTHER_RHYTHMS}:
        unknown.add("SR")  # a rhythm that is not stated may be sinus rhythm
    denied = vocabulary - present - unknown if stated.complete else set()
    return {name: name in present for name in STATEMENTS if name in present or name in denied}


def _facts(recording: Recording, stated: Stated, vocabulary: set[str]) -> RecordFacts:
    """Return the facts about a recording."""
    patient, split = patient_and_split(
        recording.name, patient_of(recording), stated_side(recording), {}, recording.path
    )
    answers = {"age": age_label(recording.comment("age")), "sex": sex_label(recording.comment("sex"))}
    answers |= {topic: measurement_label(topic, recording.comment(key)) for topic, key in MEASURED.items()}
    whole = frozenset({"beats"} if stated.database == "synth" else ())
    known = _known(stated, vocabulary)
    return RecordFacts(recording.name, patient, split, known, drop_unknown(answers), stated.complete, whole)
