"""Whose recordings are whose, and which side of the split a patient is on."""

import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Iterable

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.formats import FORMATS
from ecgbyte_cli.readers.recording import Recording, split_row
from ecgbyte_cli.readers.text_table import read_rows

KNOWN_TABLES = [  # the columns that name records, and the one that names patients
    (["filename_hr", "filename_lr"], "patient_id"),  # PTB-XL
    (["path"], "subject_id"),  # MIMIC-IV-ECG
    (["exam_id"], "patient_id"),  # CODE-15 %
    (["record"], "patient"),
]

# words that stand where a name was taken away, and parts of such words; a number behind them makes a name of them
PLACEHOLDERS = {
    "",
    *"anon unk na nan none null nil tbd patient subject patientid subjectid name hidden empty".split(),
}
PLACEHOLDER = re.compile(
    r"[^\W\d]*(anonym|anonim|unknown|unbekannt|inconnu|unnamed|noname|undefined|unspecified|notavailable|"
    r"notapplicable|identified|redacted|removed|masked|missing|nobody)[^\W\d]*0*"
)
# folders of one person's recordings: MIMIC-IV-ECG's p10000032, PTB's patient001, ECG-ID's Person_01, BIDS' sub-01,
# Icentia11k's p00001; shorter ones of the letter and digits must hold the recording itself
PERSON = re.compile(
    r"p(\d{8})|((?:patient|person|participant|proband|volunteer|subject|subj|sub|case|pat|pt)[ _.-]?\d+)",
    re.IGNORECASE,
)
OWN_FOLDER = re.compile(r"[ps][_-]?\d{1,6}", re.IGNORECASE)


def patient_of(recording: Recording) -> str:
    """The patient: as the file says, else by the folder of a person, else the record itself.

    A placeholder such as ANONYMOUS is nobody's name, and not believed.
    """
    stated = stated_patient(recording)
    if stated and not is_placeholder(stated):
        return stated
    folders = str(recording.path).split(os.sep)[:-1]
    for folder in reversed(folders):
        if match := PERSON.fullmatch(folder):
            return match[1] or match[2]
    if folders and OWN_FOLDER.fullmatch(folders[-1]):
        return folders[-1]
    return recording.name


def stated_patient(recording: Recording) -> str | None:
    """What the file itself gives as the patient, be it a name or a placeholder."""
    named = (recording.identity.get("Patient"), *map(recording.comment, ("patient", "patient id", "subject")))
    return next((text for text in named if text), None)


def pseudonym(patient: str, salt: str) -> str:
    """A keyed hash of a patient's number: the same for all recordings of one, and for who has no salt, nobody's."""
    return hmac.new(salt.encode(), patient.encode(), hashlib.sha256).hexdigest()[:16]


def is_placeholder(patient: str) -> bool:
    """Whether a patient's name is none: ANONYMOUS, unknown, 0, X, ---."""
    bare = re.sub(r"[\W_]+", "", patient).casefold()
    return bare in PLACEHOLDERS or set(bare) in ({"0"}, {"x"}) or bool(PLACEHOLDER.fullmatch(bare))


def split_of(patient: str) -> str:
    """The side a patient is on, by the hash of the name: train (80 %), val or test (10 % each)."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def read_patients(path: str | os.PathLike, found: Iterable[str] = ()) -> dict[str, tuple[str, str | None]]:
    """Read a table that says whose recordings are whose. Identifiers are text: 00016 is not 16.

    Parameters
    ----------
    path : str or Path
        A CSV or TSV file: PTB-XL's ptbxl_database.csv, MIMIC-IV-ECG's record_list.csv, CODE-15 %'s exams.csv, or
        any with the columns `record` and `patient`, and `split` if it likes.
    found : iterable of str
        The recordings that it is for. What several of them are called is known with its folders alone.

    Returns
    -------
    dict
        Record name to (patient, split); the split is None where the table does not say. Where rows of
        different patients name the record alike, the key is the name with as many of its folders as tell
        them apart. PTB-XL's folds 1 to 8 are train, 9 is val and 10 is test, as its authors advise.

    Raises
    ------
    Failure
        If the file cannot be read, or its columns are not known.
    """
    wanted = {
        "split",
        "strat_fold",
        *(name for records, patient in KNOWN_TABLES for name in [*records, patient]),
    }
    columns: dict[str, list[str | None]] = {}
    names: list[str] = []
    for _, row in read_rows(path, [{*records, patient} for records, patient in KNOWN_TABLES], numbers=True):
        if not names:
            names, columns = row, {name: [] for name in row if name in wanted}
        else:
            cells = dict(zip(names, row, strict=False))
            for name, column in columns.items():
                column.append(cells.get(name, "").strip() or None)
    for record_columns, patient_column in KNOWN_TABLES:
        if patient_column in columns and all(name in columns for name in record_columns):
            break
    else:
        raise Failure(
            f"{path} has no columns `record` and `patient`, and is no table of a known data set; its columns are "
            f"{', '.join(filter(None, names))[:200] or 'none'}"
        )
    patients = _whole_numbers(columns[patient_column])
    splits = columns.get("split", [None] * len(patients))
    if "strat_fold" in columns:
        folds = {"9": "val", "10": "test"}
        splits = [folds.get(fold, "train") for fold in _whole_numbers(columns["strat_fold"])]
    rows: dict[str, dict[str, tuple[str, str | None]]] = {}
    for name in record_columns:
        for record, patient, split in zip(columns[name], patients, splits, strict=True):
            if record and patient:
                whole = _without_extension(record.strip())
                known_split = split if split in ("train", "val", "test") else None
                rows.setdefault(whole.rpartition("/")[2], {})[whole] = (patient, known_split)
    shared = Counter(_without_extension(os.path.basename(each)) for each in found)
    return {
        key: whose
        for bare, listed in rows.items()
        for key, whose in _keys(listed, 1 if shared[bare] < 2 else 2).items()
    }


def _keys(listed, parts):
    """Rows by as few of the last parts of their paths as tell different patients apart, `parts` at least."""
    groups: dict[str, dict[str, tuple[str, str | None]]] = {}
    for whole, whose in listed.items():
        if whole.count("/") + 1 >= parts:  # a shorter one names any of several, and so none
            groups.setdefault("/".join(whole.split("/")[-parts:]), {})[whole] = whose
    keys = {}
    for key, group in groups.items():
        if len(set(group.values())) == 1:
            keys[key] = next(iter(group.values()))
        else:
            keys |= _keys(group, parts + 1)
    return keys


def _whole_numbers(column):
    """A column of identifiers as text; where all are written as 15709.0, as PTB-XL's are, without the point."""
    pointed = all(re.fullmatch(r"\d+\.0", text) for text in column if text)
    return [text.removesuffix(".0") if text and pointed else text and text.strip() for text in column]


def _without_extension(record):
    bare, extension = os.path.splitext(record)
    return bare if extension.lower() in FORMATS else record


def listed(record: str, known: dict, path: str = "") -> tuple[str, str | None] | None:
    """What a table says of a recording, found by its name or by as much of its path as is needed; None if nothing.

    Parameters
    ----------
    record : str
    known : dict
        From `read_patients`.
    path : str
        The recording's file.
    """
    if record in known:
        return known[record]
    folders = _without_extension(path).split(os.sep)[:-1] if split_row(path)[1] is None else []
    key = record
    for folder in reversed(folders):
        key = f"{folder}/{key}"
        if key in known:
            return known[key]
    return None


def patient_and_split(
    record: str, patient: str, split: str | None, known: dict, path: str = ""
) -> tuple[str, str]:
    """Whose a recording is, and the side it is on: by the table, else by the file, else by the hash."""
    named, side = listed(record, known, path) or (patient, None)
    patient = patient if is_placeholder(named) else named
    side = side or split
    return patient, side if side in ("train", "val", "test") else split_of(patient)
