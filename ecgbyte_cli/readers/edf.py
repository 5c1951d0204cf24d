"""EDF, EDF+ and BDF."""

import os
import warnings

import numpy as np

from ecgbyte_cli.readers.recording import MILLIVOLTS, MOST_SAMPLES, Recording, Unusable, check_promise, stem


def read(path, fs, lead_names):
    """EDF, EDF+ and BDF through edfio. Of several sampling rates the one that most leads share is taken."""
    import edfio

    if os.path.getsize(path) > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    warnings.simplefilter("error", UserWarning)  # edfio warns of a file shorter than its header says
    edf = (edfio.read_bdf if path.lower().endswith(".bdf") else edfio.read_edf)(path)
    if not edf.is_continuous:
        raise Unusable("samples missing: the recording is discontinuous (EDF+D)")
    scales = [(s, MILLIVOLTS.get(s.physical_dimension.strip().lower())) for s in edf.signals]
    scales = [(s, scale) for s, scale in scales if scale is not None]
    rates = [s.sampling_frequency for s, _ in scales]
    if not rates:
        raise Unusable("no leads in volts")
    rate = max(set(rates), key=lambda r: (rates.count(r), r))
    chosen = [(s, scale) for s, scale in scales if s.sampling_frequency == rate]
    check_promise(len(chosen), len(chosen[0][0].digital))
    signal = np.array([s.data * scale for s, scale in chosen], np.float32)
    comments = []
    if edf.reserved[3:4] == "+" and edf.patient.code not in ("", "X"):
        comments.append(f"Patient: {edf.patient.code}")
    return Recording(signal, rate, [s.label for s, _ in chosen], stem(path), path, comments, _start(edf))


def _start(edf):
    try:
        return edf.startdatetime
    except ValueError:  # anonymised
        return None
