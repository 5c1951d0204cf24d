"""Turn recordings into letters, some recordings at a time: the work of `ecgbyte symbolize`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.signal import preprocess, quantizers
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_kernels.quantize import count_upper

FLUSH = 2**23  # samples held in memory before a write, however long the recordings are
FLAT = 0.03  # mV from peak to peak: the noise that IEC 60601-2-25 allows an electrocardiograph
COLUMNS = {  # of the table of segments
    "segment": int,
    "record": str,
    "patient": str,
    "split": str,
    "path": str,
    "start": float,
    "leads": int,
    "samples": int,
    "offset": int,
    "lo": float,
    "hi": float,
}


def make_part(parts: PartialResults, number: int, paths: list[str], asked: dict[str, Any], salt: str) -> int:
    """Turn some recordings into segments and write their part: letters if the quantizer is complete, else signals.

    Parameters
    ----------
    parts : PartialResults
    number : int
        Of the part.
    paths : list of str
    asked : dict
        The stage's settings.
    salt : str
        Key of the hash that replaces patients' numbers in hospital files.

    Returns
    -------
    int
        Number of recordings read.
    """
    quantizer = asked["quantizer"]
    complete = quantizers.is_complete(quantizer) and not asked.get("keep_signal")
    about: dict[str, Any] = {key: [] for key in ("rows", "skipped", "remarks", "lost", "stated")}
    about["placeholders"] = 0
    counts = np.zeros(2**16, np.int64)
    with parts.new(number) as write:
        blocks: list[np.ndarray] = []
        for path in paths:
            try:
                recording, side, cut = _read_segments(path, asked)
            except Failure as error:
                if caused_by_interrupt(error):  # not the recording's fault
                    raise KeyboardInterrupt from None
                about["skipped"].append((path, error.message))
                continue
            patient = _note_patient(recording, salt, about)
            if left_out := preprocess.PROFILES[asked["profile"]].left_out(recording.fs):
                about["remarks"].append([recording.fs, left_out])
            for start, signal in cut:
                block, lo, hi = signal, 0.0, 0.0
                if complete:
                    block, lo, hi = quantizers.quantize(signal, quantizer)
                    about["lost"] += lost_leads([recording.name], signal[None], block[None], asked["leads"])
                else:
                    count_upper(signal, counts)
                blocks.append(block)
                about["rows"].append([recording.name, patient, side, path, start, lo, hi])
                if len(blocks) * block.size >= FLUSH:
                    write(np.array(blocks))
                    blocks = []
        if blocks:
            write(np.array(blocks))
        used = np.flatnonzero(counts)
        write(np.stack([used, counts[used]]))
        write(np.frombuffer(json.dumps(about).encode(), np.uint8))
    return len(paths)


def _read_segments(
    path: str, asked: dict[str, Any]
) -> tuple[readers.Recording, str | None, list[tuple[float, np.ndarray]]]:
    """Read a recording: itself, its side of the split if it states one, and its segments."""
    options = (asked["input_fs"], asked["lead_names"], asked["units"], asked["keep_identity"])
    recording = readers.read_recording(path, *options)
    return recording, readers.stated_side(recording), preprocess.segments(recording, asked)


def _note_patient(recording: readers.Recording, salt: str, about: dict[str, Any]) -> str:
    """Return the patient of a recording, and note in `about` what the file states."""
    stated, patient = readers.stated_patient(recording), readers.patient_of(recording)
    if stated is not None and readers.is_placeholder(stated):
        about["placeholders"] += 1
        stated = None
    elif stated is not None and stated == recording.identity.get("Patient"):
        stated = patient = readers.pseudonym(stated, salt)
    if stated not in about["stated"]:
        about["stated"].append(stated)
    return patient


def parts_on_cluster(
    dask: str, root: Path, lots: list[tuple[readers.DataSet, list[str]]], tasks: Iterable[tuple]
) -> Iterator[int]:
    """Make parts on a cluster whose workers see the recordings of every data set.

    Parameters
    ----------
    dask : str
        Address of the cluster.
    root : Path
        The work folder.
    lots : list of (DataSet, list of str)
        The data set of each part, and its recordings.
    tasks : iterable of tuple
        Arguments of `make_part`.

    Returns
    -------
    iterator of int
        Results of `make_part`, as parts are done.
    """
    sets = {id(data_set): data_set for data_set, _ in lots}.values()
    sampled = [path for data_set in sets for path in cluster.sample(data_set.found)]

    def reads(parts: PartialResults, number: int, paths: list[str], *_: object) -> list[str]:
        return readers.files_of(paths)

    return cluster.map_tasks(dask, root, make_part, tasks, readers.files_of(sampled), reads)


def columns(first: int, rows: list[list], shape: tuple[int, int]) -> list[Any]:
    """Return the columns of the table of segments, for rows that begin with segment `first`."""
    record, patient, split, path, start, lo, hi = (list(column) for column in zip(*rows, strict=True))
    segment = np.arange(first, first + len(rows))
    leads, samples = (np.full(len(rows), size) for size in shape)
    offset = segment * shape[0] * shape[1]
    return [segment, record, patient, split, path, start, leads, samples, offset, lo, hi]


def about_part(parts: PartialResults, number: int) -> tuple[dict[str, Any], np.ndarray]:
    """Read the notes of a part, with a row for each segment, and the counts of its values."""
    counts, about = parts.read(number, slice(-2, None))
    return json.loads(about.tobytes()), counts


def blocks_of_part(parts: PartialResults, number: int) -> Iterator[np.ndarray]:
    """Yield the signals or letters of a part, some segments at a time."""
    yield from parts.read(number, slice(-2))


def lost_leads(
    records: list[str], signals: np.ndarray, letters: np.ndarray, leads: list[str]
) -> list[list[str]]:
    """Find leads that became one letter throughout a segment though they are not flat.

    Parameters
    ----------
    records : list of str
        Name of the recording of each segment.
    signals, letters : numpy.ndarray
        (segments, leads, samples): mV, and letters.
    leads : list of str

    Returns
    -------
    list of list
        Record and leads, for each segment with such leads.
    """
    lost = (letters == letters[..., :1]).all(axis=-1)
    return [
        [records[i], ", ".join(leads[k] for k in np.flatnonzero(lost[i]) if np.ptp(signals[i, k]) > FLAT)]
        for i in np.flatnonzero(lost.any(axis=1))
        if any(np.ptp(signals[i, k]) > FLAT for k in np.flatnonzero(lost[i]))
    ]


def say_what_is_lost(lost: list[list[str]], used: np.ndarray, quantizer: dict[str, Any]) -> None:
    """Print a note where the letters carry little of the signal, most often because the range does not fit.

    Parameters
    ----------
    lost : list of list
        From `lost_leads`.
    used : numpy.ndarray
        (256,): how often each letter occurs.
    quantizer : dict
    """
    if quantizer.get("lo") is not None:
        remedy = (
            f"their range is {quantizer['lo']:.3g} to {quantizer['hi']:.3g} mV; see --range and --quantizer"
        )
    else:
        remedy = "see --quantizer"
    if lost:
        record, leads = lost[0]
        note(
            f"{len({name for name, _ in lost})} recordings have leads that became one letter throughout, though "
            f"they are not flat ({record}: {leads}); {remedy}"
        )
    most = np.sort(used)[-2:].sum() / used.sum()  # two, as the baseline may lie on their edge
    if most > 0.95 and quantizer["levels"] > 4:
        note(f"{100 * most:.1f} % of all letters are the same two, so they say little; {remedy}")
