"""From recordings to parts of the letters: what `ecgbyte symbolize` does with some recordings at a time."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.signal import corpus, preprocess
from ecgbyte_cli.storage.partial_results import PartialResults
from ecgbyte_kernels import quantize as kernels

FLUSH = 2**23  # samples that are held before they are written: long recordings take no more than short ones
FLAT = 0.03  # mV: peaks lower than the noise that IEC 60601-2-25 allows an electrocardiograph
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


def make_part(parts, number, paths, asked, salt):
    """Do some recordings and write their part.

    Parameters
    ----------
    parts : Parts
    number : int
        Of the part.
    paths : list of str
    asked : dict
        The stage's settings.
    salt : str
        What turns a number that a hospital gave a patient into a name that says nothing.

    Returns
    -------
    int
        How many recordings were done.
    """
    quantizer = asked["quantizer"]
    ready = quantizer["name"] in corpus.FIXED or quantizer["lo"] is not None
    about = {"rows": [], "skipped": [], "remarks": [], "lost": [], "placeholders": 0, "stated": []}
    counts = np.zeros(2**16, np.int64)
    with parts.new(number) as write:
        blocks = []
        for path in paths:
            try:
                told = (asked["input_fs"], asked["lead_names"], asked["units"], asked["keep_identity"])
                recording = readers.read_recording(path, *told)
                split = readers.stated_side(recording)
                cut = preprocess.segments(recording, asked)
            except Failure as error:
                if caused_by_interrupt(error):  # not the recording's fault
                    raise KeyboardInterrupt from None
                about["skipped"].append((path, error.message))
                continue
            stated, patient = readers.stated_patient(recording), readers.patient_of(recording)
            if stated is not None and readers.is_placeholder(stated):
                about["placeholders"] += 1
                stated = None
            elif stated is not None and stated == recording.identity.get("Patient"):
                stated = patient = readers.pseudonym(stated, salt)
            if stated not in about["stated"]:
                about["stated"].append(stated)
            if asked["profile"] == "paper":
                about["remarks"].append([recording.fs, preprocess.paper_filters(recording.fs)[1]])
            for start, signal in cut:
                lo = hi = 0.0
                block = signal
                if ready:
                    block, lo, hi = kernels.quantize(signal, quantizer)
                    about["lost"] += lost_leads([recording.name], signal[None], block[None], asked["leads"])
                else:
                    kernels.count_upper(signal, counts)
                blocks.append(block)
                about["rows"].append([recording.name, patient, split, path, start, lo, hi])
                if len(blocks) * block.size >= FLUSH:
                    write(np.array(blocks))
                    blocks = []
        if blocks:
            write(np.array(blocks))
        used = np.flatnonzero(counts)
        write(np.stack([used, counts[used]]))
        write(np.frombuffer(json.dumps(about).encode(), np.uint8))
    return len(paths)


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
        What `make_part` takes.

    Returns
    -------
    iterator of int
        What `make_part` returns, as parts are done.
    """
    sets = {id(its): its for its, _ in lots}.values()
    sampled = [path for its in sets for path in cluster.sample(its.found)]

    def reads(parts: PartialResults, number: int, paths: list[str], *_: object) -> list[str]:
        return readers.files_of(paths)

    return cluster.map_tasks(dask, root, make_part, tasks, readers.files_of(sampled), reads)


def columns(first, rows, shape):
    """The columns of the table of segments, of the rows that begin with segment `first`."""
    record, patient, split, path, start, lo, hi = (list(column) for column in zip(*rows, strict=True))
    segment = np.arange(first, first + len(rows))
    leads, samples = (np.full(len(rows), size) for size in shape)
    offset = segment * shape[0] * shape[1]
    return [segment, record, patient, split, path, start, leads, samples, offset, lo, hi]


def about_part(parts, number):
    """What was noted in a part, with a row for each segment, and the counts of its values."""
    counts, about = parts.read(number, slice(-2, None))
    return json.loads(about.tobytes()), counts


def blocks_of_part(parts, number):
    """Yield the signals or letters of a part, some segments at a time."""
    yield from parts.read(number, slice(-2))


def lost_leads(records, signals, letters, leads):
    """Leads that became one letter throughout a segment though they are not flat.

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
        Record and leads, of each segment that has such.
    """
    lost = (letters == letters[..., :1]).all(axis=-1)
    return [
        [records[i], ", ".join(leads[k] for k in np.flatnonzero(lost[i]) if np.ptp(signals[i, k]) > FLAT)]
        for i in np.flatnonzero(lost.any(axis=1))
        if any(np.ptp(signals[i, k]) > FLAT for k in np.flatnonzero(lost[i]))
    ]


def say_what_is_lost(lost, used, quantizer):
    """Say it where the letters carry less than they seem to: most often a range that does not fit."""
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
    most = np.sort(used)[-2:].sum() / used.sum()  # two, as the signal may lie where one becomes the other
    if most > 0.95 and quantizer["levels"] > 4:
        note(f"{100 * most:.1f} % of all letters are the same two, so they say little; {remedy}")
