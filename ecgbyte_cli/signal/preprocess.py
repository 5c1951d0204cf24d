"""Turn a recording into segments: select leads, filter, resample, cut.

The settings are stored in the tokenizer file under the key `signal`.
"""

from collections.abc import Callable, Container, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.readers.recording import Recording, Unusable, lead_name
from ecgbyte_kernels import filters as kernels
from ecgbyte_kernels.augment import LIMB

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
DERIVED = {lead: factors for lead, factors in LIMB.items() if lead not in ("I", "II")}
LONGEST_GAP = 0.04  # seconds that --fill-nan may interpolate
# Electrocardiographs accept +-5 mV (IEC 60601-2-25 and -2-27), Holter recorders 10 mV from peak to peak
# (-2-47), on an offset of up to 300 mV. Twice that in most leads cannot be an ECG in mV. A single lead may span
# the whole range of its converter, and the common 16 bits of 1 uV span 65.5 mV. In 3,000 real
# recordings the median lead spans at most 3.4 mV, and the largest lead at least 0.9 mV.
WIDEST, WIDEST_LEAD = 20.0, 70.0  # mV between the percentiles 1 and 99
NARROWEST = 0.01  # mV from peak to peak, in the largest lead; a monitor must ignore even 0.15 mV as a beat
MOST_SAMPLES = 2**24  # in all selected leads, before or after resampling: 23 minutes of 12 leads at 1000 Hz


def segments(recording: Recording, settings: dict[str, Any]) -> list[tuple[float, np.ndarray]]:
    """Preprocess a recording and cut it into segments, by a tokenizer's settings.

    Parameters
    ----------
    recording : ecgbyte_cli.readers.Recording
    settings : dict
        `leads`, `fs`, `segment_seconds`, `samples`, `profile`, `fill_nan` and optionally `any_leads` (see `signal` in
        the tokenizer file).

    Returns
    -------
    list of tuple
        (start in seconds, float32 (leads, samples) in mV) for each whole segment.

    Raises
    ------
    Unusable
        If a lead is missing or has gaps, if the recording is shorter than a segment, or if its values cannot be an
        ECG in mV.
    """
    fs, target = recording.fs, settings["fs"]
    # Holter recorders and research amplifiers are well within this range
    if not 25 <= fs <= 100_000:
        raise Unusable(f"sampling rate out of range: {fs:g} Hz")
    resampled = samples_made(recording.signal.shape[1], fs, target)
    if resampled < settings["samples"]:
        seconds = recording.signal.shape[1] / fs
        raise Unusable(f"shorter than a segment: {seconds:.6g} s of {settings['segment_seconds']:g} s")
    if max(resampled, recording.signal.shape[1]) * len(settings["leads"]) > MOST_SAMPLES:
        raise Unusable(f"too long: {recording.signal.shape[1] / fs:.0f} s; cut it into shorter records")
    signal = pick(recording, settings["leads"], bool(settings.get("any_leads")))
    signal = without_gaps(signal, fs, settings["fill_nan"], settings["leads"])
    check_range(signal, settings["leads"])
    whole = PROFILES[settings["profile"]].apply(signal, fs, target)
    # a wrong gain can produce numbers that break the filters
    if not np.isfinite(whole).all():
        raise Unusable("values out of range: wrong gain or unit")
    samples = settings["samples"]
    return [
        (i * samples / target, np.ascontiguousarray(whole[:, i * samples : (i + 1) * samples]))
        for i in range(whole.shape[1] // samples)
    ]


def pick(recording: Recording, leads: Sequence[str], any_leads: bool = False) -> np.ndarray:
    """Select leads by name, ignoring case and order, and derive missing limb leads from two others.

    III = II - I, aVR = -(I + II)/2, aVL = I - II/2, aVF = II - I/2 (Einthoven; Goldberger).

    Parameters
    ----------
    recording : ecgbyte_cli.readers.Recording
    leads : list of str
    any_leads : bool
        Whether missing leads become lines at 0 mV, if at least one lead is present.

    Returns
    -------
    numpy.ndarray
        float32 (leads, samples), mV.

    Raises
    ------
    Unusable
        If a lead is missing and cannot be derived; with `any_leads`, if all are.
    """
    at: dict[str, int] = {}
    for i, name in enumerate(recording.leads):
        at.setdefault(lead_name(name), i)
    if any_leads and "II" not in at and "MLII" in at:
        at["II"] = at["MLII"]  # the modified lead II of Holter recorders
    missing = missing_leads(at, leads)
    if missing and not (any_leads and len(missing) < len(leads)):
        raise Unusable(f"leads missing: {', '.join(missing)}")
    picked = np.empty((len(leads), recording.signal.shape[1]), np.float32)
    for row, lead in zip(picked, leads, strict=True):
        if lead in at:
            row[:] = recording.signal[at[lead]]
        elif lead in missing:
            row[:] = 0
        else:
            first, second = [limb for limb in LIMB if limb in at][:2]
            a, b = np.linalg.solve(np.array([LIMB[first], LIMB[second]]).T, LIMB[lead]).tolist()
            row[:] = a * recording.signal[at[first]] + b * recording.signal[at[second]]
    return picked


def missing_leads(there: Container[str], leads: Sequence[str]) -> list[str]:
    """Return the leads that are missing and cannot be derived from two limb leads."""
    derivable = LIMB if sum(limb in there for limb in LIMB) > 1 else ()
    return [lead for lead in leads if lead not in there and lead not in derivable]


def without_gaps(signal: np.ndarray, fs: float, fill: str | None, leads: Sequence[str]) -> np.ndarray:
    """Return the signal with short gaps interpolated, if `fill` allows it.

    Raises
    ------
    Unusable
        If samples are missing and `fill` is not "linear", or a gap is longer than 40 ms.
    """
    good = np.isfinite(signal)
    if good.all():
        return signal
    bad = [lead for lead, row in zip(leads, good, strict=True) if not row.all()]
    if fill != "linear":
        raise Unusable(f"samples missing (NaN): in {', '.join(bad)}")
    signal = signal.copy()
    for lead, row, ok in zip(leads, signal, good, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[True], ok, [True]])))
        longest = (edges[1::2] - edges[::2]).max(initial=0)
        if longest > LONGEST_GAP * fs:
            raise Unusable(f"samples missing (NaN): {longest / fs * 1000:.0f} ms in a row in {lead}")
        row[~ok] = np.interp(np.flatnonzero(~ok), np.flatnonzero(ok), row[ok])
    return signal


def check_range(signal: np.ndarray, leads: Sequence[str]) -> None:
    """Check that the values can be a surface ECG in mV: a wrong unit or gain fails, offsets and flat leads pass.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV, finite.
    leads : list of str

    Raises
    ------
    Unusable
        If the leads span too much, or almost nothing without being flat.
    """
    spans = np.ptp(signal, axis=1)
    widest = spans.max()
    if 0 < widest < NARROWEST:
        raise Unusable(f"values out of range: {widest * 1000:.2g} uV from peak to peak; volts taken for mV?")
    if widest > WIDEST:  # rare, so most recordings need no percentiles
        spans = np.subtract(*np.percentile(signal, [99, 1], axis=1))
        middle = np.median(spans[spans > 0]) if spans.any() else 0.0
        if middle > WIDEST or spans.max() > WIDEST_LEAD:
            lead = leads[int(spans.argmax())]
            raise Unusable(f"values out of range: {lead} spans {spans.max():.0f} mV; a wrong unit or gain?")


def elm(signal: np.ndarray, fs: float, target: float) -> np.ndarray:
    """Apply profile `elm`: cubic interpolation only, like ECG-Bench and ELM.

    Both grids run from 0 to the duration, ends included, so the first and last samples stay (ECG-Preprocess,
    `nsample_ecg`). At the target rate nothing is interpolated.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV, finite.
    fs, target : float
        Sampling rates before and after, in Hz.

    Returns
    -------
    numpy.ndarray
        float32 (leads, floor(samples * target / fs)).

    Raises
    ------
    Unusable
        If there are fewer than 4 samples.
    """
    if fs == target:
        return signal
    try:
        return kernels.cubic(signal.T.astype(float), samples_made(signal.shape[1], fs, target)).T
    except ValueError as error:
        raise Unusable(f"too short: {error}") from error


@lru_cache
def samples_made(samples: int, fs: float, target: float) -> int:
    """Return the number of whole samples of a signal at the target rate."""
    return int(samples * Fraction(target) / Fraction(fs))


def resample(signal: np.ndarray, fs: float, target: float) -> np.ndarray:
    """Apply profile `resample`: only polyphase resampling with its anti-aliasing low-pass."""
    if fs == target:
        return signal
    from scipy.signal import resample_poly

    ratio = Fraction(target / fs).limit_denominator(10_000)
    # relative to the line from the first to the last sample, so that an offset does not ring at the ends
    resampled = resample_poly(signal, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    return resampled.astype(np.float32, copy=False)


def monitor(signal: np.ndarray, fs: float, target: float) -> np.ndarray:
    """Apply profile `monitor`: polyphase resampling, then 0.5 to 40 Hz, forwards and backwards.

    This is the monitoring bandwidth of the AHA/ACC/HRS (Kligfield et al., Circulation 2007;115:1306). Recorders differ
    outside of it, and so do recordings of one ECG at several rates. Without phase shift the ST level hardly
    changes. Parameters, result and errors are those of `elm`.
    """
    resampled = resample(signal, fs, target)[:, : samples_made(signal.shape[1], fs, target)]
    try:
        return kernels.zero_phase(resampled.T, monitor_filters(target)).T.astype(np.float32)
    except ValueError as error:
        raise Unusable(f"too short for the filters: {error}") from error


@lru_cache
def monitor_filters(fs: float) -> list[tuple]:
    """Design the filters of profile `monitor` for a sampling rate: (sections, start values, extension) of each.

    The low-pass is skipped below 100 Hz, where resampling has removed nearly as much.
    """
    from scipy.signal import butter, sosfilt_zi

    designs = [butter(2, 0.5, "highpass", fs=fs, output="sos")]
    if fs >= 100:
        designs.append(butter(2, 40, "lowpass", fs=fs, output="sos"))
    # the high-pass settles in about two seconds
    return [(sos, sosfilt_zi(sos), round(2 * fs) if i == 0 else 9) for i, sos in enumerate(designs)]


def paper(signal: np.ndarray, fs: float, target: float) -> np.ndarray:
    """Apply profile `paper`: the published preprocessing (ECG-Byte, arXiv 2412.14373, and its code).

    Notches, band-pass and high-pass, each forwards and backwards; a soft wavelet threshold (db6, four
    levels); resampling by a cubic spline, both grids running from the first sample to the last.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV, finite.
    fs, target : float
        Sampling rates before and after, in Hz.

    Returns
    -------
    numpy.ndarray
        float32 (leads, floor(samples * target / fs)).
    """
    try:
        filtered = kernels.zero_phase(signal.T, [f for f, _ in paper_filters(fs)[0]])
        denoised = kernels.denoise(filtered, db6(), 4)
        return kernels.cubic(denoised, samples_made(signal.shape[1], fs, target)).T
    except ValueError as error:
        raise Unusable(f"too short for the filters: {error}") from error


@lru_cache
def paper_filters(fs: float) -> tuple[list[tuple[tuple, str]], list[str]]:
    """Design the filters of profile `paper` for a sampling rate.

    A notch at or above half the sampling rate is skipped, and so is the upper edge of the band-pass.

    Returns
    -------
    filters : list of tuple
        ((sections, start values, extension), name) for each.
    left_out : list of str
        Names of the skipped filters.
    """
    from scipy.signal import butter, iirnotch, sosfilt_zi, tf2sos

    designs, left_out = [], []
    for notch in (50, 60):
        if notch < fs / 2:
            designs.append((tf2sos(*iirnotch(notch, 30, fs)), 3, f"notch {notch} Hz"))
        else:
            left_out.append(f"notch {notch} Hz")
    if fs > 200:
        designs.append((butter(4, [0.5, 100], "bandpass", fs=fs, output="sos"), 9, "band-pass 0.5-100 Hz"))
    else:
        designs.append((butter(4, 0.5, "highpass", fs=fs, output="sos"), 5, "high-pass 0.5 Hz"))
        left_out.append("low-pass 100 Hz")
    designs.append((butter(4, 0.05, "highpass", fs=fs, output="sos"), 5, "high-pass 0.05 Hz"))
    # scipy's filtfilt extends by three times the number of coefficients
    return [((sos, sosfilt_zi(sos), 3 * taps), name) for sos, taps, name in designs], left_out


@lru_cache
def db6() -> tuple[np.ndarray, ...]:
    """Return the wavelet filters of profile `paper`, for `ecgbyte_kernels.filters.denoise`."""
    import pywt

    return tuple(np.array(f) for f in pywt.Wavelet("db6").filter_bank)


class Profile(NamedTuple):
    """A way to filter and resample signals: a row of `PROFILES`."""

    help: str
    apply: Callable[[np.ndarray, float, float], np.ndarray]  # signal, its rate, target rate
    quantizer: str = "paper"  # default quantizer
    margin: float = 0.0  # mV, see the quantizer `minmax`
    left_out: Callable[[float], list[str]] = lambda fs: []  # names of filters not applied at a rate


PROFILES = {
    "paper": Profile("the published filters", paper, left_out=lambda fs: paper_filters(fs)[1]),
    # ECG-Bench and ELM divide by max - min + 1e-6
    "elm": Profile(
        "no filters, cubic interpolation, like ECG-Bench and ELM", elm, quantizer="minmax", margin=1e-6
    ),
    "monitor": Profile("0.5 to 40 Hz, independent of the sampling rate", monitor),
    "resample": Profile("no filters, resampling with a low-pass", resample),
}


def help_text() -> str:
    """Return the help of `--profile`."""
    return " ".join(f"`{name}`: {row.help}." for name, row in PROFILES.items())
