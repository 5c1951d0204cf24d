"""Fidelity of a decoded ECG: RMSE, PRD and SNR, and errors of clinically relevant features of beats."""

import numpy as np

LEAST_FS = 100.0  # Hz: below it, QRS edges lie between samples
QRS = 0.12  # s: longest distance from the R peak to either end of a QRS complex
FLAT, STEEP = 0.02, 0.1  # outside the QRS the slope stays below STEEP times its largest for FLAT s


def differences(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Measure the difference between a segment and its decoded signal.

    Parameters
    ----------
    x, y : numpy.ndarray
        (leads, samples), mV: before and after.

    Returns
    -------
    squares : float
        Sum of squared differences, mV^2.
    prd : float
        Percentage RMS difference, 100 sqrt(sum (x - y)^2 / sum x^2), over all leads (Zigel, Cohen, Katz, IEEE
        Trans. Biomed. Eng. 47(11), 2000, eq. 1: the mean is not subtracted). NaN if x is 0.
    snr : float
        Signal to noise ratio, 10 log10(sum (x - mean of its lead)^2 / sum (x - y)^2) (the same paper), dB.
        NaN if x is flat or nothing differs.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    squares = float(np.square(x - y).sum())
    power = float(np.square(x).sum())
    varying = float(np.square(x - x.mean(axis=1, keepdims=True)).sum())
    prd = 100 * np.sqrt(squares / power) if power else np.nan
    snr = 10 * np.log10(varying / squares) if varying and squares else np.nan
    return squares, float(prd), float(snr)


def beats(lead: np.ndarray, fs: float) -> np.ndarray:
    """Find the beats of a lead: R peaks, starts and ends of the QRS complexes.

    XQRS of wfdb-python (`wfdb.processing.xqrs_detect`) finds the QRS complexes. The R peak is the highest sample within
    60 ms. The complex starts and ends where the slope, outwards from the R peak, first stays below a tenth of its
    largest for 20 ms (slope thresholds after Laguna, Jane, Caminal, Comput. Biomed. Res. 27, 1994); its end is the J
    point.

    Parameters
    ----------
    lead : numpy.ndarray
        (samples,), mV.
    fs : float
        Hz.

    Returns
    -------
    numpy.ndarray
        int64, (beats, 3): R peak, start, J point, in samples. Beats too near an edge, or with a QRS that does not end
        within 120 ms, are skipped.
    """
    from wfdb.processing import xqrs_detect

    rows = []
    if np.ptp(lead) == 0:
        return np.zeros((0, 3), np.int64)
    slope, near, far, flat = np.abs(np.gradient(lead)), round(0.06 * fs), round(QRS * fs), round(FLAT * fs)
    for at in xqrs_detect(np.asarray(lead, float), fs, verbose=False):
        if at < near + far + flat or at + near + far + flat >= len(lead):
            continue
        peak = at - near + int(np.argmax(lead[at - near : at + near + 1]))
        limit = STEEP * slope[peak - near : peak + near + 1].max()
        before = _first_flat(slope[peak - far - flat : peak][::-1] < limit, flat)
        behind = _first_flat(slope[peak + 1 : peak + 1 + far + flat] < limit, flat)
        if before is not None and behind is not None:
            rows.append((peak, peak - 1 - before, peak + 1 + behind))
    return np.unique(np.array(rows, np.int64).reshape(-1, 3), axis=0)


def _first_flat(low: np.ndarray, wanted: int) -> int | None:
    """Return the first index after the peak where `wanted` samples in a row are low, or None."""
    steep = np.flatnonzero(~low)
    if not len(steep):
        return None
    for i in range(steep[0], len(low) - wanted + 1):
        if low[i : i + wanted].all():
            return i
    return None


def beat_errors(x: np.ndarray, y: np.ndarray, fs: float, beats: np.ndarray) -> np.ndarray:
    """Measure the errors of a lead's beats after decoding.

    Both signals use the start and J point of the beats before decoding, so that only amplitudes and R peaks differ.

    Parameters
    ----------
    x, y : numpy.ndarray
        (samples,), mV: the lead before and after.
    fs : float
        Hz.
    beats : numpy.ndarray
        (n, 3): from `beats` for x.

    Returns
    -------
    numpy.ndarray
        (beats, 3): errors (after minus before) of the R amplitude in mV, of the time of the R peak in ms, and
        of the ST level in mV. Amplitudes are above the level just before the QRS complex, the mean of 20 ms
        (CSE Working Party, Eur. Heart J. 6, 1985); the ST level is measured 60 ms after the J point (ACC/AHA
        guidelines for exercise testing, 2002: 60 to 80 ms). A peak of several equal samples is at their middle.
    """
    flat, near, later = max(1, round(FLAT * fs)), round(0.06 * fs), round(0.06 * fs)
    rows = []
    for peak, begin, end in beats:
        if begin - flat < 0 or end + later >= len(x):
            continue
        measured = []
        for signal in (x, y):
            level = signal[begin - flat : begin].mean()
            part = signal[max(0, peak - near) : peak + near + 1]
            at = max(0, peak - near) + _middle_of_top(part)
            measured.append((part.max() - level, 1000 * at / fs, signal[end + later] - level))
        rows.append(np.subtract(measured[1], measured[0]))
    return np.array(rows, float).reshape(-1, 3)


def _middle_of_top(part: np.ndarray) -> float:
    first = int(np.argmax(part))
    last = first
    while last + 1 < len(part) and part[last + 1] == part[first]:
        last += 1
    return (first + last) / 2
