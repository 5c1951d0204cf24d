"""Several data sets at once: their recordings, their tables of patients, and names that tell their patients apart."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.find import find, fingerprint
from ecgbyte_cli.readers.patients import find_listed, patient_and_split, read_patients
from ecgbyte_cli.readers.recording import split_row
from ecgbyte_cli.storage.files import sha256_of

Paths = str | os.PathLike | Sequence[str | os.PathLike]
PATIENTS = 5  # so many recordings are not of one patient, whatever they say


@dataclass
class DataSet:
    """Recordings whose patients have one numbering."""

    name: str  # stands in front of its patients; empty where it is the only one
    found: list[str]
    known: dict[str, tuple[str, str | None]]  # from its table of patients
    shared: bool  # whether the table is that of all data sets
    stated: set[str | None] = field(default_factory=set)  # the patients that its files themselves name
    used: int = 0  # how many of its recordings are
    everyone: str | None = None  # the patient whom they all name, where they are too many to be one's

    def settle(self, skipped: set[str]) -> None:
        """Fill in `used` and `everyone`, when all has been read."""
        self.used = len(set(self.found) - skipped)
        if len(self.stated) == 1 and self.used >= PATIENTS and not self.known:
            [self.everyone] = self.stated

    def whose(self, record: str, patient: str, split: str | None, path: str) -> tuple[str, str]:
        """The patient, by a name that no other data set has, and the side of the split.

        The side does not depend on the data set's name: it is the one that the data set has by itself, and that
        its questions were made with. Patients of a table that all data sets share are told apart by the table.
        """
        patient = record if patient == self.everyone else patient
        patient, side = patient_and_split(record, patient, split, self.known, path)
        told = find_listed(record, self.known, path) if self.shared else None
        if self.name and (told is None or told[0] != patient):
            patient = f"{self.name}/{patient}"
        return patient, side


def find_data_sets(
    sources: Paths,
    tables: Paths | None = None,
    without: str | os.PathLike | None = None,
) -> tuple[list[DataSet], list[tuple[str, str]], dict]:
    """Find the recordings of data sets, and whose they are.

    Parameters
    ----------
    sources : str or Path, or several
        Each folder is a data set. So are files, RECORDS files or patterns: all that are in one folder.
    tables : str or Path, or several
        Tables of patients: none, one for all, or one for each data set in their order, which may be "none".
    without : str or Path, optional
        A folder to leave out.

    Returns
    -------
    sets : list of DataSet
    skipped : list of tuple
        As of `find`.
    settings : dict
        `input` and `patients`: what changes when the recordings or tables do.

    Raises
    ------
    Failure
        If a data set has no recordings, two have the same, or the tables do not fit.
    """
    folders: dict[str, list[str]] = {}
    for source in _texts(sources):
        folders.setdefault(_folder_of(source), []).append(source)
    asked = [None if table == "none" else table for table in _texts(tables or ())]
    if len(asked) not in (0, 1, len(folders)):
        raise Failure(
            f"{len(asked)} times --patients for {len(folders)} data sets: give one for all, or one for each in "
            "their order (`none` where there is none)"
        )
    own = {os.path.realpath(table) for table in asked if table}
    skipped: list[tuple[str, str]] = []
    each: list[list[str]] = []
    first: dict[str, list[str]] = {}  # where a file was named first
    for named in folders.values():
        found, left_out = find(named, without)
        if len(named) > 1 and any(map(os.path.isdir, named)):
            raise Failure(f"{named[0]} and {named[1]} hold the same recordings: name each once")
        found = [p for p in found if not (p.endswith((".csv", ".tsv")) and os.path.realpath(p) in own)]
        if not found:
            raise Failure(f"{named[0]} holds no recordings beside the table of patients")
        for path in found if len(folders) > 1 else ():
            before = first.setdefault(os.path.realpath(split_row(path)[0]), named)
            if before is not named:
                raise Failure(f"{before[0]} and {named[0]} both hold {path}: name each recording once")
        each.append(found)
        skipped += left_out
    names, shared = _dataset_names(list(folders)), len(asked) == 1
    if shared:
        known = [_known_patients(asked[0], [path for found in each for path in found])] * len(each)
    else:
        known = [_known_patients(*pair) for pair in zip(asked or [None] * len(each), each, strict=True)]
    prints, sums = [fingerprint(found) for found in each], [table and sha256_of(table) for table in asked]
    settings = {
        "input": prints[0] if len(each) == 1 else list(zip(names, prints, strict=True)),
        "patients": sums[0] if shared else sums if any(sums) else None,
    }
    sets = [DataSet(*its, shared) for its in zip(names, each, known, strict=True)]
    return sets, skipped, settings


def _texts(paths):
    """One path or several, as texts."""
    return [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]


def _known_patients(table, found):
    return read_patients(table, found) if table else {}


def _folder_of(source):
    """The folder that a source is, or that what it names is in."""
    folder = os.path.abspath(source)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _dataset_names(folders):
    """The last part of each folder's path, or as many as tell them apart; of a single one, nothing."""
    parts = [folder.strip(os.sep).split(os.sep) for folder in folders]
    names, count = [""], 0
    while len(set(names)) < len(folders):
        count += 1
        names = ["/".join(part[-count:]) for part in parts]
    return names
