"""Whose recordings are whose, and which side of the split a patient is on."""

import hashlib
import hmac
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.formats import FORMATS
from ecgbyte_cli.readers.recording import Recording, Unusable, split_row
from ecgbyte_cli.readers.text_table import read_rows

KNOWN_TABLES = [  # the columns that name records, and the one that names patients
    (["filename_hr", "filename_lr"], "patient_id"),  # PTB-XL
    (["path"], "subject_id"),  # MIMIC-IV-ECG
    (["exam_id"], "patient_id"),  # CODE-15 %
    (["record"], "patient"),
]

SIDES = ("train", "val", "test")
# what the sides of the split are called in tables, headers, question files and their folders, in small letters
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FOLDS = {str(fold): "train" for fold in range(1, 9)} | {"9": "val", "10": "test"}  # PTB-XL's

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


def side_of(split: str | None, fold: str | None = None) -> str | None:
    """The side of the split that a source gives: by name, by one of PTB-XL's folds, or both.

    Returns
    -------
    str or None
        train, val or test; None where both are empty.

    Raises
    ------
    ValueError
        If the name or the fold is unknown, or they are of two sides.
    """
    named, number = (split or "").strip(), (fold or "").strip()
    side = SPLITS.get(named.lower())
    if named and side is None:
        raise ValueError(f"split {named[:80]!r} is none of {', '.join(SIDES)}")
    folded = FOLDS.get(re.sub(r"\.0*$", "", number))
    if number and folded is None:
        raise ValueError(f"strat_fold {number[:80]!r} is none of 1 to 10")
    if side and folded and side != folded:
        raise ValueError(f"split {named!r} and strat_fold {number} are two sides of the split")
    return side or folded


def stated_side(recording: Recording) -> str | None:
    """The side of the split that the file itself gives in a comment `Split: …`; None where there is none.

    Raises
    ------
    Unusable
        If it is none of the known names, or there are two.
    """
    try:
        sides = {side_of(text) for text in recording.all_comments("split")} - {None}
    except ValueError as error:
        raise Unusable(f"split unknown: comment `Split:`, {error}") from error
    if len(sides) > 1:
        raise Unusable("split unknown: the comments `Split:` name two sides")
    return next(iter(sides), None)


def on_two_sides(sides: Mapping[str, set[str]]) -> str:
    """A line about the patients who are on more than one side of the split; empty where there are none."""
    both = sorted(patient for patient, their in sides.items() if len(their) > 1)
    if not both:
        return ""
    some = ", ".join(both[:3]) + (", …" if len(both) > 3 else "")
    return f"{len(both)} patients are on more than one side of the split, as the recordings have it: {some}"


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
        Record name to (patient, split); a row without a split takes that of the patient's other rows, else
        it is None. Where rows of different patients name the record alike, the key is the name with as many
        of its folders as tell them apart. PTB-XL's folds 1 to 8 are train, 9 is val and 10 is test, as its
        authors advise.

    Raises
    ------
    Failure
        If the file cannot be read, its columns are not known, a split or fold is unknown, or a recording has two
        patients or a patient two sides of the split.
    """
    wanted = {
        "split",
        "strat_fold",
        *(name for records, patient in KNOWN_TABLES for name in [*records, patient]),
    }
    columns: dict[str, list[str | None]] = {}
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
            break
    else:
        raise Failure(
            f"{path} has no columns `record` and `patient`, and is no table of a known data set; its columns are "
            f"{', '.join(filter(None, names))[:200] or 'none'}"
        )
    patients = _whole_numbers(columns[patient_column])
    rows = _rows(path, lines, record_columns, patients, columns)
    shared = Counter(_without_extension(os.path.basename(each)) for each in found)
    return {
        key: whose
        for bare, listed in rows.items()
        for key, whose in _keys(listed, 1 if shared[bare] < 2 else 2).items()
    }


def _rows(path, lines, record_columns, patients, columns):
    """Patient and side of each record, by its bare name and then by the name with its folders."""
    sides = _sides(path, lines, patients, columns)
    rows: dict[str, dict[str, tuple[str, str | None]]] = {}
    first: dict[str, int] = {}  # the line of each record
    for name in record_columns:
        for line, record, patient, side in zip(lines, columns[name], patients, sides, strict=True):
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


def _sides(path, lines, patients, columns):
    """The side of each row: its own, or that of the patient's other rows; a patient has one."""
    empty = [None] * len(patients)
    given = []
    first: dict[str, tuple[str, int]] = {}  # the side of each patient, and the line that says so
    named, folds = columns.get("split", empty), columns.get("strat_fold", empty)
    for line, patient, split, fold in zip(lines, patients, named, folds, strict=True):
        try:
            side = side_of(split, fold)
        except ValueError as error:
            raise Failure(f"{path}, line {line}: {error}") from error
        given.append(side)
        if side and patient and not is_placeholder(patient):
            before, at = first.setdefault(patient, (side, line))
            if before != side:
                raise Failure(
                    f"{path}, line {line}: patient {patient} is on the {side} side of the split, and in line {at} on "
                    f"the {before} side: put all recordings of a patient on one side"
                )
    return [side or first.get(patient, (None,))[0] for patient, side in zip(patients, given, strict=True)]


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


def find_listed(record: str, known: dict, path: str = "") -> tuple[str, str | None] | None:
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
    """The patient of a recording and its side of the split: by the table, else by the file, else by the hash.

    Parameters
    ----------
    record, patient : str
        The names that the file gives.
    split : {"train", "val", "test"} or None
        As the file gives it; see `side_of`.
    known : dict
        From `read_patients`.
    path : str
        The recording's file.
    """
    named, side = find_listed(record, known, path) or (patient, None)
    patient = patient if is_placeholder(named) else named
    return patient, side or split or split_of(patient)
