"""Whose recordings are whose, and which side of the split a patient is on."""

import hashlib
import os
import re

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.recording import Recording


def patient_of(recording: Recording) -> str:
    """The patient: as the file says, else by the folders of PTB and MIMIC-IV-ECG, else the record itself."""
    for key in ("patient", "patient id", "subject"):
        if named := recording.comment(key):
            return named
    for folder in reversed(str(recording.path).split(os.sep)[:-1]):
        match = re.fullmatch(r"p(\d{8})|(patient\d+)", folder)
        if match:
            return match[1] or match[2]
    return recording.name


def split_of(patient: str) -> str:
    """The side a patient is on, by the hash of the name: train (80 %), val or test (10 % each)."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def read_patients(path: str | os.PathLike) -> dict[str, tuple[str, str | None]]:
    """Read a table that says whose recordings are whose.

    Parameters
    ----------
    path : str or Path
        A CSV file: PTB-XL's ptbxl_database.csv, MIMIC-IV-ECG's record_list.csv, CODE-15 %'s exams.csv, or
        any with the columns `record` and `patient`, and `split` if it likes.

    Returns
    -------
    dict
        Record name to (patient, split); the split is None where the table does not say. PTB-XL's folds 1
        to 8 are train, 9 is val and 10 is test, as its authors advise.

    Raises
    ------
    Failure
        If the file cannot be read, or its columns are not known.
    """
    import pyarrow
    import pyarrow.csv

    known = [
        (["filename_hr", "filename_lr"], "patient_id"),  # PTB-XL
        (["path"], "subject_id"),  # MIMIC-IV-ECG
        (["exam_id"], "patient_id"),  # CODE-15 %
        (["record"], "patient"),
    ]
    try:
        columns = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
        ).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise Failure(f"{path} cannot be read as a CSV table: {' '.join(str(error).split())}") from error
    for record_columns, patient_column in known:
        if patient_column in columns and all(name in columns for name in record_columns):
            break
    else:
        raise Failure(f"{path} has no columns `record` and `patient`, and is no table of a known data set")
    folds = {9: "val", 10: "test"}
    splits = columns.get("split", [None] * len(columns[patient_column]))
    if "strat_fold" in columns:
        splits = [folds.get(fold, "train") for fold in columns["strat_fold"]]
    patients = {}
    for name in record_columns:
        for record, patient, split in zip(columns[name], columns[patient_column], splits, strict=True):
            if isinstance(patient, float) and patient.is_integer():
                patient = int(patient)  # PTB-XL writes 15709.0
            if record is not None and patient is not None:
                known_split = split if split in ("train", "val", "test") else None
                patients[str(record).rsplit("/", 1)[-1]] = (str(patient), known_split)
    return patients


def patient_and_split(record, patient, split, known):
    """Whose a recording is, and the side it is on: by the table, else by the file, else by the hash."""
    patient, listed = known.get(record, (patient, None))
    split = listed or split
    return patient, split if split in ("train", "val", "test") else split_of(patient)
