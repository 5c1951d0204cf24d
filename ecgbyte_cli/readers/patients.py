"""Find the patient of each recording, and the patient's side of the split."""

import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.formats import EXTENSIONS
from ecgbyte_cli.readers.recording import Recording, Unusable, split_row
from ecgbyte_cli.readers.text_table import read_rows

PatientSide = tuple[str, str | None]  # patient, and side of the split if it is known
Columns = dict[str, list[str | None]]

KNOWN_TABLES = [  # the columns of records, and the column of patients
    (["filename_hr", "filename_lr"], "patient_id"),  # PTB-XL
    (["path"], "subject_id"),  # MIMIC-IV-ECG
    (["exam_id"], "patient_id"),  # CODE-15 %
    (["record"], "patient"),
]

SIDES = ("train", "val", "test")
# names of the sides of the split in tables, headers, question files and their folders, in lower case
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FOLDS = {str(fold): "train" for fold in range(1, 9)} | {"9": "val", "10": "test"}  # PTB-XL's

# placeholders for a removed name, and parts of such words; one with a number after it is a name
PLACEHOLDERS = {
    "",
    *"anon unk na nan none null nil tbd patient subject patientid subjectid name hidden empty".split(),
}
PLACEHOLDER = re.compile(
    r"[^\W\d]*(anonym|anonim|unknown|unbekannt|inconnu|unnamed|noname|undefined|unspecified|notavailable|"
    r"notapplicable|identified|redacted|removed|masked|missing|nobody)[^\W\d]*0*"
)
# folders of one person: MIMIC-IV-ECG's p10000032, PTB's patient001, ECG-ID's Person_01, BIDS' sub-01, Icentia11k's
# p00001; a folder of a letter and few digits counts only if it holds the recording itself
PERSON = re.compile(
    r"p(\d{8})|((?:patient|person|participant|proband|volunteer|subject|subj|sub|case|pat|pt)[ _.-]?\d+)",
    re.IGNORECASE,
)
OWN_FOLDER = re.compile(r"[ps][_-]?\d{1,6}", re.IGNORECASE)


def patient_of(recording: Recording) -> str:
    """Return the patient: from the file, else from a person's folder, else the record's name.

    A placeholder such as ANONYMOUS is ignored.
    """
    return known_patient(recording) or recording.name


def patient_key(recording: Recording, salt: str) -> str | None:
    """Return a name for the patient that does not reveal a hospital's number; None where the patient is unknown.

    The number in a hospital file is hashed with the salt (see `pseudonym`); other names stay.
    """
    patient = known_patient(recording)
    if patient and patient == recording.identity.get("Patient"):
        return pseudonym(patient, salt)
    return patient


def known_patient(recording: Recording) -> str | None:
    """Return the patient from the file, else from a person's folder; None where neither names one."""
    stated = stated_patient(recording)
    if stated and not is_placeholder(stated):
        return stated
    folders = str(recording.path).split(os.sep)[:-1]
    for folder in reversed(folders):
        if match := PERSON.fullmatch(folder):
            return match[1] or match[2]
    if folders and OWN_FOLDER.fullmatch(folders[-1]):
        return folders[-1]
    return None


def stated_patient(recording: Recording) -> str | None:
    """Return the patient that the file names, which may be a placeholder."""
    own = recording.identity.get("Patient")
    return own or next(filter(None, map(recording.comment, ("patient", "patient id", "subject"))), None)


def pseudonym(patient: str, salt: str) -> str:
    """Return a keyed hash of a patient's number: the same for all recordings of a patient, secret without the salt."""
    return hmac.new(salt.encode(), patient.encode(), hashlib.sha256).hexdigest()[:16]


def is_placeholder(patient: str) -> bool:
    """Return whether a patient's name is a placeholder: ANONYMOUS, unknown, 0, X, ---."""
    bare = re.sub(r"[\W_]+", "", patient).casefold()
    return bare in PLACEHOLDERS or set(bare) in ({"0"}, {"x"}) or bool(PLACEHOLDER.fullmatch(bare))


def side_of(split: str | None, fold: str | None = None) -> str | None:
    """Return the side of the split, by its name, by PTB-XL's fold, or both.

    Returns
    -------
    str or None
        train, val or test; None if both are empty.

    Raises
    ------
    ValueError
        If the name or the fold is unknown, or they differ.
    """
    named, number = (split or "").strip(), (fold or "").strip()
    side = SPLITS.get(named.lower())
    if named and side is None:
        raise ValueError(f"split {named[:80]!r} is not one of {', '.join(SIDES)}")
    folded = FOLDS.get(re.sub(r"\.0*$", "", number))
    if number and folded is None:
        raise ValueError(f"strat_fold {number[:80]!r} is not one of 1 to 10")
    if side and folded and side != folded:
        raise ValueError(f"split {named!r} and strat_fold {number} are two sides of the split")
    return side or folded


def stated_side(recording: Recording) -> str | None:
    """Return the side of the split in a file's comment `Split: …`; None if there is none.

    Raises
    ------
    Unusable
        If its name is unknown, or there are two.
    """
    try:
        sides = {side_of(text) for text in recording.all_comments("split")} - {None}
    except ValueError as error:
        raise Unusable(f"split unknown: comment `Split:`, {error}") from error
    if len(sides) > 1:
        raise Unusable("split unknown: the comments `Split:` name two sides")
    return next(iter(sides), None)


def on_two_sides(sides: Mapping[str, set[str]]) -> str:
    """Return a line about the patients on more than one side of the split; empty if there are none."""
    both = sorted(patient for patient, each in sides.items() if len(each) > 1)
    if not both:
        return ""
    some = ", ".join(both[:3]) + (", …" if len(both) > 3 else "")
    return f"{len(both)} patients are on more than one side of the split, as the recordings have it: {some}"


def split_of(patient: str) -> str:
    """Return the side of a patient by the hash of the name: train (80 %), val or test (10 % each)."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def read_patients(path: str | os.PathLike, found: Iterable[str] = ()) -> dict[str, PatientSide]:
    """Read a table of patients. Identifiers are text: 00016 is not 16.

    Parameters
    ----------
    path : str or Path
        A CSV or TSV file: PTB-XL's ptbxl_database.csv, MIMIC-IV-ECG's record_list.csv, CODE-15 %'s exams.csv, or
        any with the columns `record` and `patient`, and optionally `split`.
    found : iterable of str
        The recordings that it is for. A name that several of them have needs its folders, too.

    Returns
    -------
    dict
        Record name to (patient, split). A row without a split takes that of the patient's other rows, else None.
        If several patients have a record of the same name, the key is the name with as many of its folders as make
        it unique. PTB-XL's folds 1 to 8 are train, 9 is val and 10 is test, as its authors recommend.

    Raises
    ------
    Failure
        If the file cannot be read, its columns, a split or a fold are unknown, a recording has two patients, or a
        patient has two sides.
    """
    lines, record_columns, patient_column, columns = _read_columns(path)
    patients = _whole_numbers(columns[patient_column])
    rows = _rows(path, lines, [columns[name] for name in record_columns], patients, columns)
    shared = Counter(_without_extension(os.path.basename(each)) for each in found)
    return {
        key: row
        for bare, listed in rows.items()
        for key, row in _shortest_keys(listed, 1 if shared[bare] < 2 else 2).items()
    }


def _read_columns(path: str | os.PathLike) -> tuple[list[int], list[str], str, Columns]:
    """Read the columns of a table of patients.

    Returns
    -------
    lines : list of int
        The line of each row.
    record_columns, patient_column
        Their names; see `KNOWN_TABLES`.
    columns : dict
    """
    wanted = {name for records, patient in KNOWN_TABLES for name in [*records, patient]}
    wanted |= {"split", "strat_fold"}
    columns: Columns = {}
    names: list[str] = []
    lines: list[int] = []
    for line, row in read_rows(
        path, [{*records, patient} for records, patient in KNOWN_TABLES], numbers=True
    ):
        if not names:
            names, columns = row, {name: [] for name in row if name in wanted}
        else:
            lines.append(line)
            cells = dict(zip(names, row, strict=False))
            for name, column in columns.items():
                column.append(cells.get(name, "").strip() or None)
    for record_columns, patient_column in KNOWN_TABLES:
        if patient_column in columns and all(name in columns for name in record_columns):
            return lines, record_columns, patient_column, columns
    raise Failure(
        f"{path} has no columns `record` and `patient`, and is not a table of a known data set; its columns are "
        f"{', '.join(filter(None, names))[:200] or 'none'}"
    )


def _rows(
    path: str | os.PathLike,
    lines: list[int],
    record_columns: list[list[str | None]],
    patients: list[str | None],
    columns: Columns,
) -> dict[str, dict[str, PatientSide]]:
    """Return patient and side of each record, by its bare name and then by the name with its folders."""
    sides = _sides(path, lines, patients, columns)
    rows: dict[str, dict[str, PatientSide]] = {}
    first: dict[str, int] = {}  # the line of each record
    for records in record_columns:
        for line, record, patient, side in zip(lines, records, patients, sides, strict=True):
            if record and patient:
                whole = _without_extension(record.strip())
                before = rows.setdefault(whole.rpartition("/")[2], {}).setdefault(whole, (patient, side))
                at = first.setdefault(whole, line)
                if before != (patient, side):
                    raise Failure(
                        f"{path}, line {line}: record {whole} has patient {patient} and split {side or 'empty'}, "
                        f"and in line {at} patient {before[0]} and split {before[1] or 'empty'}: keep one row"
                    )
    return rows


def _sides(
    path: str | os.PathLike, lines: list[int], patients: list[str | None], columns: Columns
) -> list[str | None]:
    """Return the side of each row, its own or that of the patient's other rows. A patient has only one."""
    empty: list[str | None] = [None] * len(patients)
    own = []
    first: dict[str | None, tuple[str, int]] = {}  # the side of each patient, and its line
    splits, folds = columns.get("split", empty), columns.get("strat_fold", empty)
    for line, patient, split, fold in zip(lines, patients, splits, folds, strict=True):
        try:
            side = side_of(split, fold)
        except ValueError as error:
            raise Failure(f"{path}, line {line}: {error}") from error
        own.append(side)
        if side and patient and not is_placeholder(patient):
            before, at = first.setdefault(patient, (side, line))
            if before != side:
                raise Failure(
                    f"{path}, line {line}: patient {patient} is on the {side} side of the split, and in line {at} on "
                    f"the {before} side: put all recordings of a patient on one side"
                )
    return [
        side or (first[patient][0] if patient in first else None)
        for patient, side in zip(patients, own, strict=True)
    ]


def _shortest_keys(listed: dict[str, PatientSide], parts: int) -> dict[str, PatientSide]:
    """Key rows by as few of the last parts of their paths, at least `parts`, as tell different patients apart."""
    groups: dict[str, dict[str, PatientSide]] = {}
    for whole, row in listed.items():
        if whole.count("/") + 1 >= parts:  # a shorter name is ambiguous
            groups.setdefault("/".join(whole.split("/")[-parts:]), {})[whole] = row
    keys = {}
    for key, group in groups.items():
        if len(set(group.values())) == 1:
            keys[key] = next(iter(group.values()))
        else:
            keys |= _shortest_keys(group, parts + 1)
    return keys


def _whole_numbers(column: list[str | None]) -> list[str | None]:
    """Return identifiers as text; if all are written like PTB-XL's 15709.0, without the ".0"."""
    pointed = all(re.fullmatch(r"\d+\.0", text) for text in column if text)
    return [text.removesuffix(".0") if text and pointed else text and text.strip() for text in column]


def _without_extension(record: str) -> str:
    """Return a record's name without the extension of a recording."""
    bare, extension = os.path.splitext(record)
    return bare if extension.lower() in EXTENSIONS else record


def find_listed(record: str, known: dict[str, PatientSide], path: str = "") -> PatientSide | None:
    """Find a recording in a table, by its name or by as much of its path as is needed; None if it is not there.

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
    record: str, patient: str, split: str | None, known: dict[str, PatientSide], path: str = ""
) -> tuple[str, str]:
    """Return a recording's patient and side of the split: from the table, else from the file, else by the hash.

    Parameters
    ----------
    record, patient : str
        As stored in the file.
    split : {"train", "val", "test"} or None
        As stored in the file; see `side_of`.
    known : dict
        From `read_patients`.
    path : str
        The recording's file.
    """
    named, side = find_listed(record, known, path) or (patient, None)
    patient = patient if is_placeholder(named) else named
    return patient, side or split or split_of(patient)
