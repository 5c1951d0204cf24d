"""Several data sets: their recordings, tables of patients, and unique names for their patients."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.find import find, fingerprint
from ecgbyte_cli.readers.patients import find_listed, patient_and_split, read_patients
from ecgbyte_cli.readers.recording import split_row
from ecgbyte_cli.storage.files import sha256_of

Paths = str | os.PathLike | Sequence[str | os.PathLike]
PATIENTS = 5  # a single patient in this many recordings is taken for a placeholder


@dataclass
class DataSet:
    """Recordings whose patients are numbered together."""

    name: str  # a prefix of its patients; empty for a single data set
    found: list[str]
    known: dict[str, tuple[str, str | None]]  # patient and split of each record, from the table of patients
    shared: bool  # whether the table is for all data sets
    stated: set[str | None] = field(default_factory=set)  # the patients that its files name
    used: int = 0  # number of recordings that are not skipped
    everyone: str | None = None  # the patient that all of them name, if they are too many to belong to one

    def settle(self, skipped: set[str]) -> None:
        """Set `used` and `everyone` once all recordings are read."""
        self.used = len(set(self.found) - skipped)
        if len(self.stated) == 1 and self.used >= PATIENTS and not self.known:
            [self.everyone] = self.stated

    def whose(self, record: str, patient: str, split: str | None, path: str) -> tuple[str, str]:
        """Return a patient's name, unique among all data sets, and side of the split.

        The side does not depend on the data set's name, so it is the same as in the questions generated from the
        data set alone. Patients of a shared table keep their names.
        """
        patient = record if patient == self.everyone else patient
        patient, side = patient_and_split(record, patient, split, self.known, path)
        row = find_listed(record, self.known, path) if self.shared else None
        if self.name and (row is None or row[0] != patient):
            patient = f"{self.name}/{patient}"
        return patient, side


def find_data_sets(
    sources: Paths,
    tables: Paths | None = None,
    without: str | os.PathLike | None = None,
) -> tuple[list[DataSet], list[tuple[str, str]], dict]:
    """Find the recordings and patients of data sets.

    Parameters
    ----------
    sources : str or Path, or several
        Each folder is a data set. Files, RECORDS files and patterns in one folder form one data set.
    tables : str or Path, or several
        Tables of patients: none, one for all, or one per data set in their order ("none" for no table).
    without : str or Path, optional
        A folder to leave out.

    Returns
    -------
    sets : list of DataSet
    skipped : list of tuple
        See `find`.
    settings : dict
        `input` and `patients`: hashes that change when the recordings or tables do.

    Raises
    ------
    Failure
        If a data set has no recordings, two share a recording, or the number of tables is wrong.
    """
    folders: dict[str, list[str]] = {}
    for source in _texts(sources):
        folders.setdefault(_folder_of(source), []).append(source)
    listed = [None if table == "none" else table for table in _texts(tables or ())]
    if len(listed) not in (0, 1, len(folders)):
        raise Failure(
            f"{len(listed)} times --patients for {len(folders)} data sets: give one for all, or one for each in "
            "their order (`none` for a data set without)"
        )
    found, skipped = _find_all(list(folders.values()), without, [table for table in listed if table])
    names, shared = _dataset_names(list(folders)), len(listed) == 1
    if shared:
        known = [_known_patients(listed[0], [path for paths in found for path in paths])] * len(found)
    else:
        known = [_known_patients(*pair) for pair in zip(listed or [None] * len(found), found, strict=True)]
    prints = [fingerprint(paths) for paths in found]
    sums = [table and sha256_of(table) for table in listed]
    settings = {
        "input": prints[0] if len(found) == 1 else list(zip(names, prints, strict=True)),
        "patients": sums[0] if shared else sums if any(sums) else None,
    }
    sets = [DataSet(*fields, shared) for fields in zip(names, found, known, strict=True)]
    return sets, skipped, settings


def _find_all(
    data_sets: list[list[str]], without: str | os.PathLike | None, tables: list[str]
) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Find the recordings of each data set, without the tables of patients; no two data sets may share one."""
    table_files = {os.path.realpath(table) for table in tables}
    skipped: list[tuple[str, str]] = []
    found: list[list[str]] = []
    owner: dict[str, list[str]] = {}  # the data set of each file
    for sources in data_sets:
        paths, left_out = find(sources, without)
        if len(sources) > 1 and any(map(os.path.isdir, sources)):
            raise Failure(f"{sources[0]} and {sources[1]} contain the same recordings: name each once")
        paths = [
            p for p in paths if not (p.endswith((".csv", ".tsv")) and os.path.realpath(p) in table_files)
        ]
        if not paths:
            raise Failure(f"{sources[0]} contains no recordings next to the table of patients")
        for path in paths if len(data_sets) > 1 else ():
            before = owner.setdefault(os.path.realpath(split_row(path)[0]), sources)
            if before is not sources:
                raise Failure(f"{before[0]} and {sources[0]} both contain {path}: name each recording once")
        found.append(paths)
        skipped += left_out
    return found, skipped


def _texts(paths: Paths) -> list[str]:
    """Return one path or several as a list of str."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _known_patients(table: str | None, found: list[str]) -> dict[str, tuple[str, str | None]]:
    """Read a table of patients, if there is one."""
    return read_patients(table, found) if table else {}


def _folder_of(source: str) -> str:
    """Return the source if it is a folder, else the closest folder above it."""
    folder = os.path.abspath(source)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _dataset_names(folders: list[str]) -> list[str]:
    """Return a name per folder: as many of the last parts of its path as make it unique, "" for a single folder."""
    parts = [folder.strip(os.sep).split(os.sep) for folder in folders]
    names, count = [""], 0
    while len(set(names)) < len(folders):
        count += 1
        names = ["/".join(part[-count:]) for part in parts]
    return names
