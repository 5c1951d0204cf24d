"""WFDB records of format 16: a header and a signal file."""

import re

import numpy as np

from ecgbyte_cli.failure import printable


def record_files(name, steps, fs, gain, leads, comments):
    """A WFDB record.

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
        Lines behind "#" in the header; what would break a line is made visible.

    Returns
    -------
    header, signal : bytes
        To be NAME.hea and NAME.dat.
    """
    checksums = (steps.sum(axis=0, dtype=np.int64) + 32768) % 65536 - 32768
    header = [f"{name} {len(leads)} {fs:.12g} {len(steps)}"]
    for i, lead in enumerate(leads):
        header.append(f"{name}.dat 16 {gain:g}(0)/mV 16 0 {steps[0, i]} {checksums[i]} 0 {lead}")
    header += [f"# {printable(comment)}" for comment in comments]
    return ("\n".join(header) + "\n").encode(), steps.astype("<i2", copy=False).tobytes()


def file_name(record):
    """A record's name as WFDB allows it for a file: letters, digits, "-" and "_"."""
    return re.sub(r"[^-A-Za-z0-9_]", "_", record)[:100]


def write_record(folder, name, signal, settings, comments):
    """Write a segment in mV as a WFDB record, 1 µV a step.

    Parameters
    ----------
    folder : Path
    name : str
    signal : numpy.ndarray
        (leads, samples), mV.
    settings : dict
        Of a tokenizer: `fs` and `leads` are used.
    comments : list of str
    """
    steps = np.round(signal.T.astype(np.float64) * 1000).clip(-32767, 32767).astype(np.int64)
    header, samples = record_files(name, steps, settings["fs"], 1000, settings["leads"], comments)
    # the header last: a record that has one is whole. Without the fsync of workdir.whole(), which costs more
    for ending, content in ((".dat", samples), (".hea", header)):
        beside = folder / f".{name}{ending}.part"
        beside.write_bytes(content)
        beside.replace(folder / f"{name}{ending}")
