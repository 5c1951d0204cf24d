"""WFDB records of format 16 as bytes: a header and a signal file."""

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
