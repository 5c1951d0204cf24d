"""Rate, intervals, axes, amplitudes and ST of a recording, from its median beat.

Works like an electrocardiograph: detect beats over all leads, classify them, take the median beat of the dominant
class, and find boundaries common to all leads. How far to trust it: docs/measure.md.
"""

from functools import lru_cache

import numpy as np

from ecgbyte_cli.readers.recording import Recording, Unusable, lead_name
from ecgbyte_cli.signal import amplitudes, preprocess
from ecgbyte_cli.signal.amplitudes import FLAT
from ecgbyte_cli.signal.measurement import BOUNDARIES, VALUES, Measurement
from ecgbyte_kernels import beats as beat_kernels
from ecgbyte_kernels import filters, mains, waves
from ecgbyte_kernels.beats import BEFORE, RATE

INDEPENDENT = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
MOST_LEADS = 16  # non-standard leads used, the first by name
SHORTEST = 2.5  # s
SLOWEST_SAMPLING = 80.0  # Hz
LEAD_OFF = 1.0  # s without any change
CHANGING = 0.1  # least share of samples that differ from the previous one
CONTRAST = 6.0  # see `ecgbyte_kernels.beats.lead_contrast`
RATES = (15.0, 300.0)  # beats per minute
STEP = 0.75  # share of the amplitude: a complex returns to its level, an edge does not
IRREGULAR = 0.09  # coefficient of variation of the RR intervals
# correlation of each beat's P wave with the median beat's; f waves come close in irregular rhythms
SAME_P, SAME_P_IRREGULAR = 0.80, 0.88
FLUTTER = 0.90  # correlation of the P wave with a similar wave before it
P_LEAST, P_LEAST_MV = 0.008, 0.015  # of the QRS amplitude, and in mV, combined over the leads
WIDE, FAST = 140.0, 120.0  # ms and beats per minute: ventricular tachycardia or indistinguishable from it
LEVEL = (12, 2)  # start and end in samples before the QRS onset: the reference level for amplitudes
# plausible ranges, in ms
PLAUSIBLE = {"p_ms": (30, 220), "pr_ms": (60, 500), "qrs_ms": (30, 300), "qt_ms": (180, 750)}


def measure(recording: Recording) -> Measurement:
    """Measure rate, intervals, axes, amplitudes and ST of a recording.

    Any leads, and any sampling rate of at least 80 Hz. The whole recording makes one median beat, so cut long
    recordings first, as `ecgbyte measure` does every ten seconds.

    Parameters
    ----------
    recording : Recording
        From `read`.

    Returns
    -------
    Measurement
        A value that cannot be measured is None, with the reason in `quality`. A recording that cannot be measured
        at all raises no error: its reason is in `quality["all"]`.

    Notes
    -----
    Research use only: not a medical device.
    """
    result = Measurement()
    try:
        signal, leads = _prepared(recording, result.flags)
        _measure(signal, leads, result)
    except Unusable as error:
        for name in VALUES:
            setattr(result, name, None)
        result.quality = {"all": error.message}
    return result


def measure_stretch(recording: Recording, start: float, end: float) -> Measurement:
    """Measure a part of a recording, from `start` to `end` in s.

    Parameters
    ----------
    recording : Recording
    start, end : float
        In s; the part ends at the end of the recording.
    """
    return measure(recording.part(start, end))


def heart_rate(recording: Recording) -> float | None:
    """Return the rate of a recording in beats per minute, from its beats alone; None if they cannot be detected.

    Same result as `measure`, in a third of the time.
    """
    try:
        signal, leads = _prepared(recording, [])
        return _rate(_beats(signal, leads, [])[1])
    except Unusable:
        return None


def _rate(beats: np.ndarray) -> float:
    """Return the mean rate of beats (samples) in beats per minute."""
    return 60 * RATE * (beats.size - 1) / float(beats[-1] - beats[0])


def _prepared(recording: Recording, flags: list[str]) -> tuple[np.ndarray, list[str]]:
    """The leads to measure on, float64 (samples, leads) at 500 Hz; unusable leads become flags."""
    seconds = recording.signal.shape[1] / recording.fs if recording.fs > 0 else 0.0
    if seconds < SHORTEST:
        raise Unusable(f"too short: {seconds:.3g} s of {SHORTEST:g} s")
    if not SLOWEST_SAMPLING <= recording.fs <= 100_000:
        raise Unusable(f"sampling rate out of range: {recording.fs:g} Hz")
    rows, leads = _leads(recording)
    if len(rows) * max(seconds * RATE, recording.signal.shape[1]) > preprocess.MOST_SAMPLES:
        raise Unusable(f"too long: {seconds:.0f} s; measure it in segments")
    kept: list[np.ndarray] = []
    names: list[str] = []
    for row, lead in zip(rows, leads, strict=True):
        try:
            whole = preprocess.without_gaps(row[None], recording.fs, "linear", [lead])[0]
        except (Unusable, ValueError):
            flags.append(f"gaps {lead}")
            continue
        fault = _fault(whole, recording.fs)
        if fault:
            flags.append(f"{fault} {lead}")
        else:
            kept.append(whole)
            names.append(lead)
    if not kept:
        raise Unusable(f"no signal: {', '.join(flags)}" if flags else "no leads")
    signal = np.stack(kept)
    preprocess.check_range(signal, names)
    signal = signal.astype(float) - np.median(signal, axis=1, keepdims=True)
    if recording.fs != RATE:
        signal = preprocess.resample(signal, recording.fs, RATE).astype(float)
    return np.ascontiguousarray(signal.T), names


def _leads(recording: Recording) -> tuple[list[np.ndarray], list[str]]:
    """The leads that are not derived from others, in an order independent of the file."""
    at: dict[str, int] = {}
    for i, name in enumerate(recording.leads):
        at.setdefault(lead_name(name), i)
    derived = "I" in at and "II" in at
    names = [lead for lead in preprocess.LEADS if lead in at and not (derived and lead in preprocess.DERIVED)]
    if len(names) < len(INDEPENDENT):
        names += sorted(name for name in at if name not in preprocess.LEADS)[:MOST_LEADS]
    return [recording.signal[at[name]] for name in names], names


def _fault(row: np.ndarray, fs: float) -> str | None:
    """Why a lead is unusable, or None."""
    if np.ptp(row) < FLAT:
        return "flat"
    changes = np.flatnonzero(np.diff(row))
    if changes.size < CHANGING * row.size:
        return "lead off"  # or a calibration pulse
    still = np.diff(np.concatenate([[-1], changes, [row.size - 1]])).max()
    return "lead off" if still >= LEAD_OFF * fs else None


@lru_cache
def _filter(kind: str, edges: tuple[float, ...], order: int, pad: int) -> list[tuple]:
    """A Butterworth filter as `ecgbyte_kernels.filters.zero_phase` takes it."""
    from scipy.signal import butter, sosfilt_zi

    sos = butter(order, edges if len(edges) > 1 else edges[0], kind, fs=RATE, output="sos")
    return [(sos, sosfilt_zi(sos), pad)]


def _measure(signal: np.ndarray, leads: list[str], result: Measurement) -> None:
    """Fill in a measurement from leads at 500 Hz."""
    signal, beats, leads = _beats(signal, leads, result.flags)
    clean = filters.zero_phase(mains.remove_mains(signal, beats), _filter("highpass", (0.5,), 2, 500))
    shapes = filters.zero_phase(clean, _filter("bandpass", (1.5, 40.0), 2, 250))
    classes, lags = beat_kernels.beat_classes(shapes, beats)
    members, rr = _dominant(beats, classes)
    centres = beats[members] + lags[members]
    raw = beat_kernels.median_beat(clean, centres, beats)
    first, last = _measured_stretch(raw)
    beat = np.stack([_filled(row) for row in raw.T], axis=1)
    onset, offset, amplitude = waves.qrs_bounds(beat)
    _check_complex(beat, onset, offset, amplitude)

    result.beats, result.beat_times = beats.size, beats / RATE
    result.dominant = np.isin(np.arange(beats.size), members)
    _rhythm(beats, classes, result)
    bounds = {"qrs_onset": float(onset), "qrs_offset": float(offset)}
    result.qrs_ms = (offset - onset) * 1000 / RATE
    _t_wave(beat, offset, rr, last, amplitude, bounds)
    no_p = _p_wave(clean, centres, beat, rr, first, amplitude, "irregular" in result.flags, bounds)
    _intervals(bounds, no_p, result)
    result.median_leads, levelled = amplitudes.all_leads(
        leads, beat - beat[onset - LEVEL[0] : onset - LEVEL[1]].mean(axis=0)
    )
    amplitudes.fill_in(levelled, bounds, result)
    empty = np.isnan(raw).any(axis=1)
    result.median_beat = levelled.T.astype(np.float32)
    result.median_beat[:, empty] = np.nan
    result.boundaries = {name: (bounds[name] - BEFORE) * 1000 / RATE for name in BOUNDARIES if name in bounds}


def _beats(
    signal: np.ndarray, leads: list[str], flags: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The signal without pacing spikes and noisy leads, its beats, and the remaining leads."""

    def detect(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        band = filters.zero_phase(of, _filter("bandpass", (6.0, 28.0), 2, 250))
        fine = beat_kernels.lead_contrast(band) >= CONTRAST
        return beat_kernels.detect_beats(band[:, fine] if fine.any() else band), fine

    beats, fine = detect(signal)
    spikes = mains.find_spikes(signal[:, fine] if fine.any() else signal)
    if spikes.size:
        blanked = mains.blank(signal, spikes)
        paced, its_fine = detect(blanked)
        if _is_paced(spikes, paced):
            signal, beats, fine = blanked, paced, its_fine
            flags.append("pacing spikes")
    if not fine.any():
        raise Unusable("no beats: noise")
    flags += [f"noisy {lead}" for lead, good in zip(leads, fine, strict=True) if not good]
    if beats.size < 3:
        raise Unusable("no beats" if not beats.size else "fewer than three beats")
    rate = _rate(beats)
    if not RATES[0] <= rate <= RATES[1]:
        raise Unusable(f"no beats: the signal repeats {rate:.0f} times a minute")
    kept = [lead for lead, good in zip(leads, fine, strict=True) if good]
    return np.ascontiguousarray(signal[:, fine]), beats, kept


def _is_paced(spikes: np.ndarray, beats: np.ndarray) -> bool:
    """Whether at least six of ten beats have a spike 300 to 10 ms before the R peak."""
    before = [((spikes > beat - 150) & (spikes < beat - 5)).any() for beat in beats]
    return len(before) > 1 and float(np.mean(before)) >= 0.6


def _dominant(beats: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, float]:
    """The beats of the largest class, without early beats if the others are regular; and the usual RR interval."""
    intervals = np.diff(beats)
    rr = float(np.median(intervals))
    sizes = np.bincount(classes[classes >= 0], minlength=1)
    members = np.flatnonzero(classes == sizes.argmax())
    if members.size < 2 or members.size < 0.3 * beats.size:
        raise Unusable("no similar beats")
    if intervals.std() < 0.25 * rr:
        on_time = np.array([b == 0 or beats[b] - beats[b - 1] >= 0.85 * rr for b in members])
        if on_time.sum() >= max(2, 0.4 * members.size):
            members = members[on_time]
    return members, rr


def _measured_stretch(raw: np.ndarray) -> tuple[int, int]:
    """The first and last sample of the gap-free part around the R peak."""
    missing = np.flatnonzero(np.isnan(raw).any(axis=1))
    before, after = missing[missing < BEFORE], missing[missing > BEFORE]
    if (
        BEFORE in missing
        or (before.size and before[-1] > BEFORE - 60)
        or (after.size and after[0] < BEFORE + 60)
    ):
        raise Unusable("beats too close to one another, or to the ends")
    return (int(before[-1]) + 1 if before.size else 0), (int(after[0]) - 1 if after.size else len(raw) - 1)


def _filled(row: np.ndarray) -> np.ndarray:
    """A lead of the median beat with its missing ends filled with the nearest sample."""
    good = np.flatnonzero(np.isfinite(row))
    return np.interp(np.arange(row.size), good, row[good])


def _check_complex(beat: np.ndarray, onset: int, offset: int, amplitude: float) -> None:
    """Reject shapes that are not QRS complexes, such as the edges of a square wave."""
    if onset < LEVEL[0] or offset + 40 >= len(beat) or not _plausible("qrs_ms", offset - onset):
        raise Unusable("no QRS complex: its boundaries cannot be found")
    step = beat[offset + 10 : offset + 30].mean(axis=0) - beat[onset - LEVEL[0] : onset - LEVEL[1]].mean(
        axis=0
    )
    if np.sqrt((step**2).sum()) > STEP * amplitude:
        raise Unusable("no QRS complex: steps from one level to another")


def _rhythm(beats: np.ndarray, classes: np.ndarray, result: Measurement) -> None:
    """Rate and RR intervals; irregular by the intervals between beats of the dominant class, if there are enough."""
    intervals = np.diff(beats) * 1000 / RATE
    result.rr_ms, result.rr_sd_ms = float(intervals.mean()), float(intervals.std(ddof=1))
    result.rate_bpm = 60000 / result.rr_ms
    main = classes == np.bincount(classes[classes >= 0]).argmax()
    own = intervals[main[1:] & main[:-1]]
    own = own if own.size >= 3 else intervals
    if own.std() > IRREGULAR * own.mean():
        result.flags.append("irregular")


def _plausible(name: str, samples: float) -> bool:
    low, high = PLAUSIBLE[name]
    return low <= samples * 1000 / RATE <= high


def _t_wave(
    beat: np.ndarray, offset: int, rr: float, last: int, amplitude: float, bounds: dict[str, float]
) -> None:
    low = filters.zero_phase(beat, _filter("lowpass", (20.0,), 2, 60))
    peak, end = waves.t_bounds(low, offset, rr, last, amplitude)
    if end >= 0:
        bounds |= {"t_peak": float(peak), "t_offset": float(end)}


def _p_wave(
    clean: np.ndarray,
    centres: np.ndarray,
    beat: np.ndarray,
    rr: float,
    first: int,
    amplitude: float,
    irregular: bool,
    bounds: dict[str, float],
) -> str | None:
    """Find the P wave, and check that single beats have it; if not, return the reason."""
    onset = int(bounds["qrs_onset"])
    held = waves.hold(beat, onset)
    low = filters.zero_phase(held, _filter("lowpass", (25.0,), 2, 60))
    begin = max(first, onset - 160, int(bounds["t_offset"] - rr) + 5 if "t_offset" in bounds else 0)
    peak, start, end = waves.p_bounds(low, onset, begin)
    if peak < 0 or start < 0 or end <= start:
        return "no P waves"
    height = low[peak] - 0.5 * (low[round(start)] + low[min(round(end), onset)])
    if np.sqrt((height**2).sum()) < max(P_LEAST * amplitude, P_LEAST_MV):
        return "no P waves"
    around = max(0, peak - 35), min(onset - 2, peak + 35)
    least = SAME_P_IRREGULAR if irregular else SAME_P
    if beat_kernels.agreement(clean, centres, beat, *around) < least:
        return "no P waves"
    if waves.earlier_copy(low, peak, first) >= FLUTTER:
        return "flutter waves"
    bounds |= {"p_onset": start, "p_offset": end, "p_peak": float(peak)}
    return None


def _intervals(bounds: dict[str, float], no_p: str | None, result: Measurement) -> None:
    """P, PR, QT and QTc, or the reasons why they are missing."""
    onset = bounds["qrs_onset"]
    rate, qrs = result.rate_bpm or 0.0, result.qrs_ms or 0.0
    if qrs > WIDE and rate > FAST:
        bounds.pop("t_offset", None)
        no_p = no_t = "fast and wide complexes"
    else:
        no_p = "paced" if no_p and "pacing spikes" in result.flags else no_p
        no_t = "no clear T waves"
    if no_p is None:
        p, pr = bounds["p_offset"] - bounds["p_onset"], onset - bounds["p_onset"]
        if _plausible("p_ms", p) and _plausible("pr_ms", pr):
            result.p_ms, result.pr_ms = p * 1000 / RATE, pr * 1000 / RATE
        else:
            no_p = "boundaries of the P wave unclear"
    if no_p is not None:
        result.quality |= {"p_ms": no_p, "pr_ms": no_p, "axis_p": no_p}
        for name in ("p_onset", "p_offset", "p_peak"):
            bounds.pop(name, None)
    if "t_offset" in bounds and _plausible("qt_ms", bounds["t_offset"] - onset):
        result.qt_ms = (bounds["t_offset"] - onset) * 1000 / RATE
    else:
        result.quality |= {"qt_ms": no_t, "axis_t": no_t}
        for name in ("t_peak", "t_offset"):
            bounds.pop(name, None)
    if result.qt_ms is not None and result.rr_ms:
        result.qtcb_ms = result.qt_ms / (result.rr_ms / 1000) ** (1 / 2)
        result.qtcf_ms = result.qt_ms / (result.rr_ms / 1000) ** (1 / 3)
    else:
        result.quality |= {name: result.quality["qt_ms"] for name in ("qtcb_ms", "qtcf_ms")}
