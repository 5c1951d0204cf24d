"""Write WFDB records in format 16: a header and a signal file."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ecgbyte_cli.failure import printable


def record_files(
    name: str, steps: np.ndarray, fs: float, gain: float, leads: Sequence[str], comments: Sequence[str]
) -> tuple[bytes, bytes]:
    """Return the files of a WFDB record.

    Parameters
    ----------
    name : str
        Letters, digits, "-" and "_".
    steps : numpy.ndarray
        int, (samples, leads), -32767 to 32767.
    fs : float
        Hz.
    gain : float
        Steps per mV.
    leads : list of str
    comments : list of str
        Lines after "#" in the header; control characters are made visible.

    Returns
    -------
    header, signal : bytes
        The content of NAME.hea and NAME.dat.
    """
    checksums = (steps.sum(axis=0, dtype=np.int64) + 32768) % 65536 - 32768
    header = [f"{name} {len(leads)} {fs:.12g} {len(steps)}"]
    for i, lead in enumerate(leads):
        header.append(f"{name}.dat 16 {gain:g}(0)/mV 16 0 {steps[0, i]} {checksums[i]} 0 {lead}")
    header += [f"# {printable(comment)}" for comment in comments]
    return ("\n".join(header) + "\n").encode(), steps.astype("<i2", copy=False).tobytes()


def file_name(record: str) -> str:
    """Return a record's name with the characters that WFDB allows: letters, digits, "-" and "_"."""
    return re.sub(r"[^-A-Za-z0-9_]", "_", record)[:100]


def write_record(folder: Path, name: str, signal: np.ndarray, settings: dict, comments: list[str]) -> None:
    """Write a segment in mV as a WFDB record, in steps of 1 µV.

    Parameters
    ----------
    folder : Path
    name : str
    signal : numpy.ndarray
        (leads, samples), mV.
    settings : dict
        `fs` and `leads` of a tokenizer.
    comments : list of str
    """
    steps = np.round(signal.T.astype(np.float64) * 1000).clip(-32767, 32767).astype(np.int64)
    header, samples = record_files(name, steps, settings["fs"], 1000, settings["leads"], comments)
    # the header last: a record with a header is complete. Without the fsync of `atomic_write`, which is slow
    for ending, content in ((".dat", samples), (".hea", header)):
        part = folder / f".{name}{ending}.part"
        part.write_bytes(content)
        part.replace(folder / f"{name}{ending}")
