"""Comments of WFDB headers: SNOMED CT codes behind `Dx:`, as in the PhysioNet Challenges, or those of `ecgbyte synth`.

A header lists the diagnoses of its database's vocabulary: the codes that the headers of that database give anywhere.
A code of the vocabulary that a header does not give is absent; any other statement is unknown. Where a header has a
code that the table here does not know (there are some dozens), nothing is absent and nothing is listed.
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

# The databases of the Challenge 2021 by their records' names: each has a vocabulary of its own.
DATABASE = re.compile(r"(A|Q|I|S)\d{4}|(HR|JS|E)\d{5}")
# A statement of form that is a change of ST segment or T wave: the Challenge's data sets have such codes for what
# PTB-XL states as a diagnosis.
CHANGES = {"INVT", "STD", "STE"}
# The conditions of `ecgbyte synth`. Where it names no rhythm, the rate decides between those of the sinus node.
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
# Its recordings have nothing of these topics but their condition. (Whether a rhythm is slow, the rate decides.)
SYNTHETIC = {name for name, s in STATEMENTS.items() if s.topic in ("rhythm", "CD", "beats")} - {"BRADY"}
SYNTHETIC |= {"STE", "LPR"}
MEASURED = {"rate": "heart rate", "pr": "pr interval", "qrs": "qrs duration"}


def read_headers(paths: Iterable[str], source: str | os.PathLike) -> Source:
    """Read the comments of headers.

    Parameters
    ----------
    paths : iterable of str
        Of .hea files. One that cannot be read says nothing; one whose split is unknown is left out, with a note.
    source : str or Path
        What was asked for, for the message.

    Raises
    ------
    Failure
        If none of them says what its recording shows.
    """
    found, refused = [], []
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
        found.append(recording)
    if refused:
        note(f"{len(refused)} recordings left out; the first, {refused[0]}")
    facts = facts_of(found)
    if not facts:
        raise Failure(
            f"{source}: no header says in its comments what the recording shows: `# Dx:` with SNOMED CT codes, as "
            "in the PhysioNet Challenges"
        )
    return Source(facts)


def facts_of(recordings: Iterable[Recording]) -> list[RecordFacts]:
    """Return the facts of those recordings whose comments have any."""
    found = [(each, stated) for each in recordings if (stated := _statements_of(each)) is not None]
    vocabularies: dict[str, set[str]] = {}
    for _, stated in found:
        vocabularies.setdefault(stated.database, set()).update(stated.made)
    vocabularies["synth"] = SYNTHETIC
    return [_facts(each, stated, vocabularies[stated.database]) for each, stated in found]


class Stated(NamedTuple):
    """What a header states."""

    made: set[str]
    unsaid: set[str]  # statements that it leaves open
    complete: bool  # whether `made` is all of it
    database: str


def _statements_of(recording):
    """What a header states; None if it states nothing."""
    codes = (recording.comment("dx") or "")[:CELL]
    given = [code.strip() for code in codes.split(",") if code.strip().isdigit()]
    if given:
        match = DATABASE.fullmatch(recording.name)
        made = {OF_SNOMED[code] for code in given if code in OF_SNOMED}
        complete = all(code in OF_SNOMED for code in given)
        return Stated(made, set(), complete, (match[1] or match[2]) if match else "")
    condition = CONDITIONS.get((recording.comment("condition") or "").lower())
    return condition and Stated({condition[0]}, set(condition[1]), True, "synth")


def _known(stated, vocabulary):
    """The statements made, and those denied, in the table's order."""
    made = stated.made | ({"STTC"} if stated.made & CHANGES else set())
    unsaid = set(stated.unsaid)
    for name in GENERIC:
        word, members = name.upper(), set(ALL_FINDINGS[name].statements)
        if word in made:
            unsaid |= members  # infarction, wherever it may be
        elif made & members:
            unsaid.add(word)  # an anterior infarction is one
    if not made & {*SINUS, *OTHER_RHYTHMS}:
        unsaid.add("SR")  # where no rhythm is stated, it may well be the sinus node's
    denied = vocabulary - made - unsaid if stated.complete else set()
    return {name: name in made for name in STATEMENTS if name in made or name in denied}


def _facts(recording, stated, vocabulary):
    patient, split = patient_and_split(
        recording.name, patient_of(recording), stated_side(recording), {}, recording.path
    )
    said = {"age": age_label(recording.comment("age")), "sex": sex_label(recording.comment("sex"))}
    said |= {topic: measurement_label(topic, recording.comment(key)) for topic, key in MEASURED.items()}
    whole = frozenset({"beats"} if stated.database == "synth" else ())
    known = _known(stated, vocabulary)
    return RecordFacts(recording.name, patient, split, known, drop_unknown(said), stated.complete, whole)
