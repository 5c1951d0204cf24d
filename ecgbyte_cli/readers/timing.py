"""Derive the sampling rate and the place of each row from a column of times."""

import re
from collections.abc import Sequence

import numpy as np

from ecgbyte_cli.readers.recording import Unusable

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}
SECONDS |= dict.fromkeys(["sec", "secs", "second", "seconds", "sekunden", "sek"], 1.0)
SECONDS |= dict.fromkeys(["msec", "msecs", "millisec", "millisecond", "milliseconds", "millisekunden"], 1e-3)
SECONDS |= dict.fromkeys(["usec", "microsecond", "microseconds"], 1e-6)
SECONDS |= dict.fromkeys(["nanosecond", "nanoseconds"], 1e-9)
TIMES = set("time times t zeit temps tiempo tempo tijd tid timestamp datetime timestamps".split())
BEFORE = set(
    "elapsed relative sample sampling recording ecg ekg date local unix epoch absolute system".split()
)
COUNTS = {
    *(
        "sample",
        "sample #",
        "samples",
        "sample number",
        "sample no",
        "sample index",
        "sample id",
        "sampleindex",
    ),
    *("index", "idx", "frame", "row", "#", "unnamed", "time samples", "time sample", "samplenumber"),
}
CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+)(?:[.,](\d+))?")
LONGEST = 64  # characters of a time
SLOWEST, FASTEST = 25.0, 20_000.0  # Hz; in this range a step fits only one unit
ROUNDED = 1.25  # range of the error of rounded times, in units of the resolution
GAPS = 0.1  # largest share of steps that are gaps
EVEN = 0.02  # largest error of unrounded times, as a share of a step


def _words(name: str) -> list[str]:
    """Return the words of a column's name."""
    return re.findall(r"[^\W\d_]+|#", name.casefold())


def is_time(name: str) -> bool:
    """Return whether the name is of a column of times: "time", "Time (ms)", "t_s", "Elapsed time", "ms"."""
    words = _words(name)
    if is_count(name) or not words:
        return False
    while len(words) > 1 and words[0] in BEFORE:
        words = words[1:]
    return words[0] in TIMES or (len(words) == 1 and words[0] in SECONDS)


def is_count(name: str) -> bool:
    """Return whether the name is of a column of sample numbers: "sample", "Sample #", "index"."""
    return " ".join(_words(name)) in COUNTS


def unit_of(name: str, unit: str = "") -> float | None:
    """Return the unit of a column of times, in seconds, from its name or the line of units; None if unknown."""
    words = [*_words(name), *_words(unit)]
    return next((SECONDS[word] for word in reversed(words) if word in SECONDS), None)


def resolution_of(cells: Sequence[str], decimal: str) -> float:
    """Return the value of the last digit of the most precise number, such as 0.001."""
    places = []
    for cell in cells:
        mantissa, _, exponent = cell.lower().partition("e")
        places.append(len(mantissa.partition(decimal)[2]) - int(exponent[:4] or 0))
    return 10.0 ** -max(min(max(places, default=0), 99), -99)


def seconds_of_clocks(cells: Sequence[str | None]) -> tuple[np.ndarray, float]:
    """Return times such as 0:00.004 or 2024-01-01 12:00:00.004 in seconds, and their resolution.

    Raises
    ------
    TimeError
        If a cell is not a time, or the date changes.
    """
    seconds = np.empty(len(cells))
    date, digits = None, 0
    for row, text in enumerate(cells):
        cell = text or ""
        match = CLOCK.search(cell[:LONGEST])
        if match is None:
            raise TimeError(row, f"{cell[:LONGEST]!r} is not a time" if cell else "the time is missing")
        rest = cell[: match.start()], cell[match.end() :]
        if date not in (None, rest):
            raise TimeError(row, "the date changes")
        date = rest
        hours, minutes, whole, part = match.groups()
        digits = max(digits, len(part or ""))
        seconds[row] = 3600 * int(hours or 0) + 60 * int(minutes) + float(f"{whole}.{part or 0}")
    return seconds, 10.0**-digits


class TimeError(Exception):
    """A row with a bad time: `row`, from 0, and the reason."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row, self.reason = row, reason


def grid(
    times: np.ndarray, resolution: float, unit: float | None, fs: float | None, count: bool = False
) -> tuple[float, np.ndarray]:
    """Put the rows of a recording on an even grid of samples.

    Parameters
    ----------
    times : numpy.ndarray
        float64 (rows,), in `unit`; or the numbers of the samples.
    resolution : float
        To which the times are rounded, in the same unit.
    unit : float or None
        In seconds; None if unknown: then the unit that gives a rate between 25 and 20,000 Hz, or that fits `fs`.
    fs : float or None
        Sampling rate, Hz, if known.
    count : bool
        Whether `times` are the numbers of the samples.

    Returns
    -------
    fs : float
        Sampling rate, Hz.
    places : numpy.ndarray
        int64 (rows,), from 0. Places without a row are missing samples.

    Raises
    ------
    TimeError
        If a time is missing or earlier than the previous time, or the steps are uneven.
    Unusable
        If the rate is ambiguous, or differs from `fs`.
    """
    if not np.isfinite(times).all():
        raise TimeError(int(np.argmin(np.isfinite(times))), "the time is missing")
    times = times - times[0]
    steps = np.diff(times)
    if (steps < 0).any():
        raise TimeError(int(np.argmax(steps < 0)) + 1, "the time goes back")
    if not len(steps) or not times[-1]:
        raise Unusable("times unclear: the column does not advance; remove it, and use --input-fs")
    if count:
        if fs is None:
            raise Unusable("sampling rate unknown: give it with --input-fs")
        if (steps != np.round(steps)).any() or (steps == 0).any():
            raise TimeError(
                int(np.argmax((steps != np.round(steps)) | (steps == 0))) + 1, "not the next sample"
            )
        if steps.min() > 1:
            raise Unusable(
                f"times unclear: the numbers of the samples rise by {steps.min():g}; leave the column out"
            )
        return fs, times.astype(np.int64)
    places, step, slack = _even(times, steps, resolution)
    if unit is None:
        unit = _likely_unit(step, max(EVEN, slack / step), fs)
    return _rate(step * unit, slack * unit, fs), places


def _even(times: np.ndarray, steps: np.ndarray, resolution: float) -> tuple[np.ndarray, float, float]:
    """Return the place of each row, the step, and the error of the step."""
    typical = float(np.median(steps))
    rounded = _uniform(times, steps, resolution)
    if typical > 0:
        usual = np.abs(steps - typical) <= EVEN * typical
        step = float(steps[usual].mean())
        jumps = np.round(steps / step)
        if (
            usual.mean() >= 1 - GAPS
            and (np.abs(steps - jumps * step) <= EVEN * step).all()
            and jumps.min() >= 1
        ):
            # few jumps among even steps are gaps; many evenly spread ones come from rounding
            if rounded is None or np.count_nonzero(jumps > 1) < 3:
                return _fitted(times, np.concatenate([[0], np.cumsum(jumps)]).astype(np.int64))
    if rounded is not None:
        return rounded
    step = float(steps[steps <= 1.5 * typical].mean()) if typical > 0 else 0.0
    if step > 2 * resolution:
        for _ in range(5):  # places improve the estimate of the step, and the step that of the places
            places = np.concatenate([[0], np.cumsum(np.maximum(np.round(steps / step), 1))]).astype(np.int64)
            step = _fitted(times, places)[1]
        jumps = np.diff(places)
        off = np.abs(steps - jumps * step)
        fits = (off <= resolution + EVEN * step).all() and np.count_nonzero(jumps > 1) <= GAPS * len(jumps)
        if fits and np.ptp(times - places * step) <= ROUNDED * resolution:
            return _fitted(times, places)
    else:
        off = np.abs(steps - times[-1] / len(steps))
    raise TimeError(
        int(np.argmax(off)) + 1, "the times are not evenly spaced; if the rows are, leave the column out"
    )


def _uniform(
    times: np.ndarray, steps: np.ndarray, resolution: float
) -> tuple[np.ndarray, float, float] | None:
    """Return the same as `_even` for rounded times without gaps; None for other times."""
    places, step, slack = _fitted(times, np.arange(len(times)))
    close = np.abs(steps - step).max() <= 1.01 * resolution
    return (places, step, slack) if close and np.ptp(times - places * step) <= ROUNDED * resolution else None


def _fitted(times: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the places, the step by least squares, and its error."""
    centred = places - places.mean()
    step = float(centred @ times / (centred @ centred))
    slack = 2 * max(float(np.ptp(times - places * step)), 1e-12 * float(times[-1])) / int(places[-1])
    return places, step, slack


def _likely_unit(step: float, off: float, fs: float | None) -> float:
    """Return the unit of a column that does not state it."""
    units = [SECONDS[name] for name in ("s", "ms", "us", "ns")]
    if fs is not None:
        fits = [unit for unit in units if abs(step * unit * fs - 1) < off]
        if not fits and abs(step - 1) < EVEN:  # the column numbers the samples
            return 1 / fs
    else:
        fits = []
    if not fits:
        fits = [unit for unit in units if SLOWEST <= 1 / (step * unit) <= FASTEST]
        if fs is None and abs(step - 1) < EVEN:
            raise Unusable(
                "sampling rate unclear: the times rise by 1 without a unit, so they may be samples or milliseconds; "
                "use --input-fs, or write the unit after its name, as in `time (ms)`"
            )
    if len(fits) != 1:
        known = f" at {fs:g} Hz" if fs is not None else ""
        raise Unusable(
            f"sampling rate unclear: the times rise by {step:g}, which is not a step of an ECG{known}; check "
            "--input-fs, or write the unit behind its name, as in `time (ms)`"
        )
    return fits[0]


def _rate(step: float, slack: float, fs: float | None) -> float:
    """Return the roundest rate (or step) that fits the times, or `fs` if it fits."""
    rate = 1 / step
    if fs is not None:
        if abs(step * fs - 1) > max(0.002, slack / step):
            raise Unusable(
                f"sampling rate unclear: {rate:.6g} Hz by the times, but --input-fs is {fs:g} Hz; check it"
            )
        return fs
    if slack > 0.005 * step:
        raise Unusable("sampling rate unknown: the times are too coarse for it; give it with --input-fs")
    for digits in range(7):
        for value in (round(rate, digits), 1000 / (round(1000 * step, digits) or np.inf)):
            if value and abs(1 / value - step) <= slack:
                return float(value)
    return rate
