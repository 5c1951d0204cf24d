"""Write twins as WFDB records, as NumPy arrays for ELM, and as pictures of the sheet, with a manifest row for each.

A twin is stored at FORM/CONTROL/NAME, where NAME is the recording's path in the given folder. So each folder
FORM/CONTROL has the layout of the original data, and can replace it.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.evaluation.controls import other_patients
from ecgbyte_cli.evaluation.twins import CONTROLS, OTHER, SIGNAL, Made, make_twin, recording_seed
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.recording import split_row
from ecgbyte_cli.readers.wfdb_write import file_name, record_files
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.preprocess import LEADS
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.row_table import Row

ELM_FS, ELM_SAMPLES = 250, 2500  # Hz, and samples per segment
SECONDS = 10.0  # length of a sheet
STEPS = 1000  # per mV in a WFDB file
COLUMNS: dict[str, type] = {
    **dict.fromkeys(("control", "name", "form", "file", "sha256", "how", "source", "source_record"), str),
    **{"patient": str, "split": str},
}
PRELOAD = ("ecgbyte_cli.evaluation.twin_files", "scipy.signal")


class Described(NamedTuple):
    """The description of a recording, from the first reading."""

    record: str
    patient: str
    stated: str | None
    side: str | None


def read_leads(path: str, reading: dict[str, Any]) -> tuple[readers.Recording, np.ndarray]:
    """Read the twelve leads of a recording.

    Returns
    -------
    (Recording, numpy.ndarray)
        float32 (12, samples), mV, at the recording's rate.

    Raises
    ------
    Unusable
        If it cannot be read, lacks a lead or samples, or its values cannot be an ECG in mV.
    """
    recording = readers.read_recording(path, **reading)
    signal = preprocess.pick(recording, LEADS)
    signal = preprocess.without_gaps(signal, recording.fs, None, LEADS)
    preprocess.check_range(signal, LEADS)
    return recording, signal


def describe(
    number: int, paths: Sequence[str], reading: dict[str, Any], seconds: float
) -> tuple[int, list[tuple[str, Described | str]]]:
    """Return the part's number, and for each path the recording's description or the reason it was skipped.

    Recordings shorter than `seconds` are skipped.
    """
    told: list[tuple[str, Described | str]] = []
    for path in paths:
        try:
            recording, signal = read_leads(path, reading)
            if signal.shape[1] / recording.fs < seconds:
                raise readers.Unusable(f"shorter than {seconds:g} s: the forms npy and png show ten")
        except Failure as error:
            told.append((path, error.message))
        else:
            stated = readers.stated_patient(recording)
            side = readers.stated_side(recording)
            told.append((path, Described(recording.name, readers.patient_of(recording), stated, side)))
    return number, told


def names_of(paths: Sequence[str], records: Sequence[str], base: str) -> list[str]:
    """Return the name of each recording's twins: its folders inside `base` plus the record name."""
    names = []
    for path, record in zip(paths, records, strict=True):
        folders = os.path.relpath(os.path.dirname(split_row(path)[0]), base).split(os.sep)
        names.append("/".join(file_name(part) for part in [*folders, record] if part != "."))
    return names


def donors_of(patients: Sequence[str], seed: int) -> list[int] | None:
    """Return for each recording the number of another patient's; None if there is only one patient."""
    if len(set(patients)) < 2:
        return None
    return [other for (other,) in other_patients(patients, [(i,) for i in range(len(patients))], seed)]


def twin_rows(
    paths: Sequence[str], asked: dict[str, Any], folder: str
) -> Iterator[tuple[str, list[Row] | Failure]]:
    """Write the twins of some recordings, and yield the rows of the manifest for each, or the reason it was skipped.

    Parameters
    ----------
    paths : list of str
    asked : dict
        `reading` (arguments of `readers.read_recording`), `seed` and `forms`.
    folder : str
        Output folder; its `plan_file` holds the names, patients and donors.
    """
    plan = read_json(plan_file(Path(folder)))
    for path in paths:
        about = plan[path]
        if "skip" in about:
            yield path, Failure(about["skip"])
            continue
        try:
            yield path, _rows_of(path, about, asked, Path(folder))
        except readers.Unusable as error:
            yield path, error


def plan_file(folder: Path) -> Path:
    """Return the path of the file with the names, patients and donors of all recordings; it is removed at the end."""
    return folder / ".plan.json"


def _rows_of(path: str, about: dict[str, Any], asked: dict[str, Any], folder: Path) -> list[Row]:
    """Write the twins of a recording, and return the rows of the manifest."""
    recording, signal = read_leads(path, asked["reading"])
    rows: list[Row] = []
    for control in CONTROLS:
        fs = recording.fs
        if control != OTHER:
            made = make_twin(control, signal, recording_seed(asked["seed"], about["name"]))
        elif about["donor"] is None:
            continue
        else:
            donor, other = read_leads(about["donor"], asked["reading"])
            made, fs = (other, f"the recording {about['donor_name']} of another patient"), donor.fs
        for form in asked["forms"]:
            for file, content in FORMS[form](control, about["name"], made, fs):
                _write(folder / file, content)
                rows.append(
                    {
                        **{"control": control, "name": about["name"], "form": form, "file": file},
                        **{"sha256": hashlib.sha256(content).hexdigest(), "how": made[1], "source": path},
                        **{"source_record": about["record"], "patient": about["patient"]},
                        "split": about["split"],
                    }
                )
    return rows


def _write(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, without `atomic_write`'s fsync, which takes longer than making the twin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    beside.replace(path)


Files = Iterator[tuple[str, bytes]]


def wfdb_files(control: str, name: str, made: Made, fs: float) -> Files:
    """Yield the files of a WFDB record in steps of 1 µV. The header says nothing about the patient or the labels."""
    signal, _ = made
    steps = np.round(signal.T.astype(np.float64) * STEPS).clip(-32767, 32767).astype(np.int64)
    record = name.rpartition("/")[2]
    comments = [] if control == SIGNAL else ["Made by ecgbyte as a control: not a recording of a patient"]
    header, samples = record_files(record, steps, fs, STEPS, LEADS, comments)
    yield f"wfdb/{control}/{name}.dat", samples
    yield f"wfdb/{control}/{name}.hea", header


def npy_files(control: str, name: str, made: Made, fs: float) -> Files:
    """Yield the first segment as ELM preprocesses it: float32 (12, 2500), mV at 250 Hz, without filters."""
    signal = preprocess.elm(made[0], fs, ELM_FS)[:, :ELM_SAMPLES]
    yield f"npy/{control}/{name}_0.npy", _array_bytes(np.ascontiguousarray(signal, np.float32))


def _array_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def png_files(control: str, name: str, made: Made, fs: float) -> Files:
    """Yield the sheet of the first ten seconds, without a title: measured values in it would give away answers."""
    from ecgbyte_cli.render import figures

    yield f"png/{control}/{name}.png", figures.png_bytes(figures.plot_sheet(made[0], fs, LEADS, ""))


FORMS: dict[str, Callable[[str, str, Made, float], Files]] = {
    "wfdb": wfdb_files,
    "npy": npy_files,
    "png": png_files,
}
WHOLE = ("npy", "png")  # forms that show ten seconds


def rows_maker(folder: Path) -> Callable[..., Iterator[tuple[str, list[Row] | Failure]]]:
    """Return the function that writes the twins into a folder, for `TableWork`."""
    return partial(twin_rows, folder=str(folder))


def remove_unlisted(folder: Path, listed: set[str]) -> None:
    """Remove files among the twins that the manifest does not list: from other settings, or from a killed run."""
    for form in FORMS:
        for place, _, files in os.walk(folder / form, topdown=False):
            for file in files:
                path = Path(place) / file
                if str(path.relative_to(folder)) not in listed:
                    path.unlink()
            if not os.listdir(place):
                os.rmdir(place)
