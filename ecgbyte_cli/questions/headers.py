"""What the comments of WFDB headers say: SNOMED CT codes behind `Dx:`, as in the PhysioNet Challenges, or what
`ecgbyte synth` writes.

A code that the folder's headers never give is one that its readers did not look for, and nobody asks about it; one
that they give elsewhere is absent where they do not. Records with a code that the table does not have, of which
there are some dozens, are asked no question whose answer is a list of all there is to see.
"""

import os
from collections.abc import Iterable

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.facts import CELL, Facts, Source, age, known_only, measured, sex
from ecgbyte_cli.questions.findings import OF_SNOMED, STATEMENTS
from ecgbyte_cli.readers import header
from ecgbyte_cli.readers.patients import patient_and_split, patient_of
from ecgbyte_cli.readers.recording import Recording, Unusable, stem

# A statement that leaves open which of several it is.
BROADER = {
    "MI": ("IMI", "ILMI", "IPLMI", "IPMI", "AMI", "ASMI", "ALMI", "LMI", "PMI"),
    "BBB": ("IRBBB", "CRBBB", "ILBBB", "CLBBB"),
    "BRADY": ("SBRAD",),
}
# A statement of form that is a change of ST segment or T wave: the Challenge's data sets have such codes for what
# PTB-XL states as a diagnosis.
CHANGES = {"INVT", "STD", "STE"}
# The conditions of `ecgbyte synth`. Where it names no rhythm, the rate decides between those of the sinus node.
SINUS = ("SR", "SBRAD", "STACH")
CONDITIONS = {
    "sinus rhythm": ("SR", ()),
    "sinus bradycardia": ("SBRAD", ()),
    "sinus tachycardia": ("STACH", ()),
    "atrial fibrillation": ("AFIB", ()),
    "left bundle branch block": ("CLBBB", SINUS),
    "anterior st elevation": ("STE", SINUS),
    "first-degree av block": ("1AVB", SINUS),
    "premature ventricular complexes": ("PVC", SINUS),
}
MEASURED = {"rate": "heart rate", "pr": "pr interval", "qrs": "qrs duration"}


def read(paths: Iterable[str], source: str | os.PathLike) -> Source:
    """Read the comments of headers.

    Parameters
    ----------
    paths : iterable of str
        Of .hea files. One that cannot be read says nothing.
    source : str or Path
        What was asked for, for the message.

    Raises
    ------
    Failure
        If none of them says what its recording shows.
    """
    found = []
    for path in paths:
        try:
            comments = header.read(path).comments
        except (Unusable, OSError):
            continue
        recording = Recording(np.empty((0, 0), np.float32), 0, [], stem(path), path, comments)
        stated = _stated(recording)
        if stated is not None:
            found.append((recording, *stated))
    if not found:
        raise Failure(
            f"{source}: no header says in its comments what the recording shows: `# Dx:` with SNOMED CT codes, as "
            "in the PhysioNet Challenges"
        )
    spoken_of = set().union(*({*made, *unsaid} for _, made, unsaid, _ in found))
    names = [name for name in STATEMENTS if name in spoken_of]
    return Source([_facts(recording, names, *stated) for recording, *stated in found])


def _stated(recording):
    """The statements made, those left open, and whether that is all; None if the header speaks of none."""
    codes = (recording.comment("dx") or "")[:CELL]
    given = [code.strip() for code in codes.split(",") if code.strip().isdigit()]
    if given:
        made = {OF_SNOMED[code] for code in given if code in OF_SNOMED}
        if made & CHANGES:
            made.add("STTC")
        unsaid = {narrow for name in made for narrow in BROADER.get(name, ())} - made
        return made, unsaid, all(code in OF_SNOMED for code in given)
    condition = CONDITIONS.get((recording.comment("condition") or "").lower())
    return condition and ({condition[0]}, set(condition[1]), True)


def _facts(recording, names, made, unsaid, complete):
    patient, split = patient_and_split(
        recording.name, patient_of(recording), recording.comment("split"), {}, recording.path
    )
    said = {"age": age(recording.comment("age")), "sex": sex(recording.comment("sex"))}
    said |= {topic: measured(topic, recording.comment(key)) for topic, key in MEASURED.items()}
    known = {name: None if name in unsaid else name in made for name in names}
    return Facts(recording.name, patient, split, known, known_only(said), complete)
