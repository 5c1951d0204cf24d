"""The quantizers: one table of how millivolts become letters, and letters millivolts.

The settings of a quantizer are a dict that symbols/settings.json and ecg_tokenizer.json hold: `name`, `levels` and the
quantizer's own numbers. Everything else looks a quantizer up here. To add one, add a row to `QUANTIZERS`, its kernel to
`ecgbyte_kernels.quantize`, and its test.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.preprocess import PROFILES
from ecgbyte_kernels import quantize as kernels

Settings = dict[str, Any]
Blocks = Callable[[], Iterable[np.ndarray]]
Letters = tuple[np.ndarray, float, float]


@dataclass(frozen=True)
class Quantizer:
    """A row of the table.

    Attributes
    ----------
    help : str
        Its formula in a few words, for `--quantizer`.
    check : callable
        Raises KeyError, TypeError or ValueError for settings, read from a file, that make no sense.
    quantize : callable
        Settings and a segment in mV to letters (uint8, the segment's shape), and the range lo, hi in mV that these
        stand for.
    values : callable
        Settings and a segment's lo and hi to the mV of each letter, float64 (levels,).
    own_settings : callable
        `--mu` and the margin of the profile to the numbers that `describe` adds to name, levels, lo and hi.
    smooth : callable or None
        Settings, hi, letters and their mV to better mV, where the value of each letter by itself is not all.
    fit : callable or None
        Settings, counts by `count_upper` and all signals to complete settings; None if the corpus has no part in it.
    fitted : str
        The setting that `fit` fills in.
    has_size : bool
        Whether a letter stands for mV by itself, and not relative to its segment.
    takes_range : bool
        Whether `--range` sets it.
    """

    help: str
    check: Callable[[Settings], None]
    quantize: Callable[[Settings, np.ndarray], Letters]
    values: Callable[[Settings, float | None, float | None], np.ndarray]
    own_settings: Callable[[float, float], Settings] = lambda mu, margin: {}
    smooth: Callable[[Settings, float, np.ndarray, np.ndarray], np.ndarray] | None = None
    fit: Callable[[Settings, np.ndarray, Blocks], Settings] | None = None
    fitted: str = ""
    has_size: bool = True
    takes_range: bool = False


def describe(
    name: str | None,
    levels: int,
    bounds: tuple[float, float] | None = None,
    mu: float = 20.0,
    profile: str = "paper",
) -> Settings:
    """Return a quantizer's settings as far as the command line decides them; `fit` completes them.

    Parameters
    ----------
    name : str or None
        None is the profile's own quantizer.
    levels : int
    bounds : tuple of float or None
        `--range`, mV.
    mu : float
    profile : str
    """
    lo, hi = bounds or (None, None)
    name = name or PROFILES[profile].quantizer
    own = QUANTIZERS[name].own_settings(mu, PROFILES[profile].margin)
    return {"name": name, "levels": levels, "lo": lo, "hi": hi} | own


def check(settings: Settings) -> None:
    """Check settings from a file.

    Raises
    ------
    KeyError, TypeError or ValueError
        If something is missing, of another type or out of range.
    """
    check_number(settings["levels"], 2, 256, int)
    _row(settings).check(settings)


def is_complete(settings: Settings) -> bool:
    """Return whether the settings need nothing more from the corpus."""
    row = _row(settings)
    return row.fit is None or settings.get(row.fitted) is not None


def fit(settings: Settings, counts: np.ndarray, blocks: Blocks) -> Settings:
    """Complete settings from the corpus; complete ones stay as they are.

    Parameters
    ----------
    settings : dict
        From `describe`.
    counts : numpy.ndarray
        From `ecgbyte_kernels.quantize.count_upper`, over all signals.
    blocks : callable
        Returns an iterator over all signals, float32 arrays in mV, for a second pass.

    Raises
    ------
    Failure
        If the corpus has too few distinct values.
    """
    row = _row(settings)
    if row.fit is None or is_complete(settings):
        return settings
    return settings | row.fit(settings, counts, blocks)


def quantize(signal: np.ndarray, settings: Settings) -> Letters:
    """Turn one segment into letters.

    Parameters
    ----------
    signal : numpy.ndarray
        float32 or float64, any shape with time last, mV, finite.
    settings : dict
        `name`, `levels` (2 to 256) and the quantizer's own numbers.

    Returns
    -------
    letters : numpy.ndarray
        uint8, the shape of `signal`.
    lo, hi : float
        The range in mV that the letters stand for.

    Raises
    ------
    ValueError
        If the quantizer is unknown or its numbers make no sense.
    """
    if not 2 <= int(settings["levels"]) <= 256:
        raise ValueError(f"levels must be 2 to 256, not {settings['levels']}")
    return _row(settings).quantize(settings, signal)


def dequantize(
    letters: np.ndarray, settings: Settings, lo: float | None = None, hi: float | None = None
) -> np.ndarray:
    """Turn letters back into millivolts.

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, any shape with time last, each below the quantizer's `levels`.
    settings : dict
        As for `quantize`.
    lo, hi : float, optional
        The segment's range in mV; needed by quantizers without a size of their own.

    Returns
    -------
    numpy.ndarray
        float32, mV, the shape of `letters`.

    Raises
    ------
    ValueError
        If the quantizer is unknown, or needs a range and gets none.
    """
    row = _row(settings)
    values = row.values(settings, lo, hi).astype(np.float32)[letters]
    return values if row.smooth is None or hi is None else row.smooth(settings, hi, letters, values)


def values_of_levels(settings: Settings, lo: float | None = None, hi: float | None = None) -> np.ndarray:
    """Return the millivolts that each letter stands for: float64 (levels,)."""
    return _row(settings).values(settings, lo, hi)


def has_size(settings: Settings) -> bool:
    """Return whether a letter stands for mV by itself, and not relative to its segment."""
    return _row(settings).has_size


def help_text() -> str:
    """Return the help of `--quantizer`."""
    return " ".join(f"`{name}`: {row.help}." for name, row in QUANTIZERS.items())


def check_number(
    value: object, least: float, most: float, kind: type | tuple[type, ...] = (int, float)
) -> float:
    """Return a number from JSON if it has the type and lies in the range; True and NaN are no numbers.

    Raises
    ------
    TypeError or ValueError
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(value, kind):
        raise TypeError(f"{str(value)[:80]!r} is no {'whole number' if kind is int else 'number'}")
    if not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{str(value)[:80]} is not from {least} to {most}")
    return value


def _row(settings: Settings) -> Quantizer:
    name = settings["name"]
    if not isinstance(name, str) or name not in QUANTIZERS:
        raise ValueError(f"no quantizer is called {str(name)[:80]!r}")
    return QUANTIZERS[name]


def _range(lo: float, hi: float) -> tuple[float, float]:
    lo, hi = float(lo), float(hi)
    if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
        raise ValueError(f"no range goes from {lo} to {hi} mV")
    return lo, hi


def _segment_range(settings: Settings, lo: float | None, hi: float | None) -> tuple[float, float]:
    if lo is None or hi is None:
        raise ValueError(f"{settings['name']} needs the segment's own range (lo, hi)")
    return lo, hi


# paper -------------------------------------------------------------------------------------------------------


def _check_paper(settings: Settings) -> None:
    lo, hi = settings.get("lo"), settings.get("hi")
    # an imported tokenizer may not know its range
    if (lo, hi) != (None, None) and not check_number(lo, -1e6, 1e6) < check_number(hi, -1e6, 1e6):
        raise ValueError(f"range {lo} to {hi} mV")


def _quantize_paper(settings: Settings, signal: np.ndarray) -> Letters:
    lo, hi = _range(settings["lo"], settings["hi"])
    return kernels.equal_steps(signal, lo, hi, int(settings["levels"])), lo, hi


def _values_paper(settings: Settings, lo: float | None, hi: float | None) -> np.ndarray:
    lo, hi = _range(settings["lo"], settings["hi"])
    return lo + (hi - lo) * kernels.middles(int(settings["levels"]))


def _fit_paper(settings: Settings, counts: np.ndarray, blocks: Blocks) -> Settings:
    p1, p99 = _percentiles(blocks, counts, (1, 99))
    return {"lo": p1 - 0.5, "hi": p99 + 0.5}


def _percentiles(blocks: Blocks, counts: np.ndarray, percents: Sequence[float]) -> list[float]:
    """Return exact percentiles of all signals, equal to numpy.percentile's, in one more pass over them."""
    total, below = int(counts.sum()), np.cumsum(counts) - counts
    ranks = [kernels.ranks_of(percent, total) for percent in percents]
    uppers = {r: int(np.searchsorted(below, r, "right") - 1) for a, b, _ in ranks for r in (a, b)}
    lowers = {upper: np.zeros(2**16, np.int64) for upper in uppers.values()}
    for block in blocks():
        for upper, lower in lowers.items():
            kernels.count_lower(block, upper, lower)

    def value(rank: int) -> float:
        upper = uppers[rank]
        within = np.searchsorted(np.cumsum(lowers[upper]), rank - below[upper], "right")
        return float(kernels.value_of(upper, within))

    return [value(a) + (value(b) - value(a)) * part for a, b, part in ranks]


# minmax ------------------------------------------------------------------------------------------------------


def _check_minmax(settings: Settings) -> None:
    check_number(settings.get("margin", 0), 0, 1)


def _quantize_minmax(settings: Settings, signal: np.ndarray) -> Letters:
    lo, hi = float(signal.min()), float(signal.max())
    margin = float(settings.get("margin", 0.0))
    return kernels.equal_steps(signal, lo, hi, int(settings["levels"]), margin), lo, hi


def _values_minmax(settings: Settings, lo: float | None, hi: float | None) -> np.ndarray:
    lo, hi = _segment_range(settings, lo, hi)
    return lo + (hi - lo + float(settings.get("margin", 0.0))) * kernels.middles(int(settings["levels"]))


# mulaw -------------------------------------------------------------------------------------------------------


def _check_companding(settings: Settings) -> None:
    check_number(settings["mu"], 1e-6, 1e6)
    check_number(settings["limit"], 1e-6, 1e6)


def _quantize_mulaw(settings: Settings, signal: np.ndarray) -> Letters:
    limit = float(settings["limit"])
    lo, hi = _range(-limit, limit)
    edges = kernels.companded_edges(int(settings["levels"]), settings["mu"], limit)
    return kernels.by_edges(signal, edges), lo, hi


def _values_mulaw(settings: Settings, lo: float | None, hi: float | None) -> np.ndarray:
    return kernels.companded_middles(int(settings["levels"]), settings["mu"], settings["limit"])


# lloyd -------------------------------------------------------------------------------------------------------


def _check_lloyd(settings: Settings) -> None:
    for key, count in (("edges", settings["levels"] + 1), ("centroids", settings["levels"])):
        values = [check_number(v, -1e6, 1e6) for v in settings[key]]
        if len(values) != count or sorted(values) != values:
            raise ValueError(f"{key} of the quantizer lloyd: {count} numbers, rising")


def _quantize_lloyd(settings: Settings, signal: np.ndarray) -> Letters:
    edges = np.asarray(settings["edges"], float)
    lo, hi = _range(edges[0], edges[-1])
    return kernels.by_edges(signal, edges), lo, hi


def _fit_lloyd(settings: Settings, counts: np.ndarray, blocks: Blocks) -> Settings:
    try:
        edges, centroids = kernels.fit_lloyd(counts, settings["levels"])
    except ValueError as error:
        raise Failure(f"--quantizer lloyd: {error}; take fewer --levels") from error
    return {"edges": edges.tolist(), "centroids": centroids.tolist()}


# trellis -----------------------------------------------------------------------------------------------------


def _check_trellis(settings: Settings) -> None:
    _check_companding(settings)
    check_number(settings["penalty"], 0, 1e6)


def _quantize_trellis(settings: Settings, signal: np.ndarray) -> Letters:
    size = float(np.sqrt(np.mean(np.square(np.ascontiguousarray(signal).reshape(-1), dtype=float))))
    lo, hi = -settings["limit"] * size, settings["limit"] * size
    centres = _values_trellis(settings, lo, hi)
    cost = settings["penalty"] * np.diff(centres).min() ** 2
    return kernels.with_few_changes(signal, centres, cost), lo, hi


def _values_trellis(settings: Settings, lo: float | None, hi: float | None) -> np.ndarray:
    _, hi = _segment_range(settings, lo, hi)
    return hi * kernels.companded_middles(int(settings["levels"]), settings["mu"], 1)


def _smooth_trellis(settings: Settings, hi: float, letters: np.ndarray, values: np.ndarray) -> np.ndarray:
    edges = (hi * kernels.companded_edges(int(settings["levels"]), settings["mu"], 1)).astype(np.float32)
    return kernels.smooth_steps(values, letters, edges)


QUANTIZERS = {
    "paper": Quantizer(
        help="equal steps over the corpus' range",
        check=_check_paper,
        quantize=_quantize_paper,
        values=_values_paper,
        fit=_fit_paper,
        fitted="lo",
        takes_range=True,
    ),
    "minmax": Quantizer(
        help="equal steps over each segment's own range",
        check=_check_minmax,
        quantize=_quantize_minmax,
        values=_values_minmax,
        own_settings=lambda mu, margin: {"margin": margin} if margin else {},
        has_size=False,
    ),
    "mulaw": Quantizer(
        help="companded steps (see --mu)",
        check=_check_companding,
        quantize=_quantize_mulaw,
        values=_values_mulaw,
        own_settings=lambda mu, margin: {"mu": mu, "limit": 5.0},
    ),
    "lloyd": Quantizer(
        help="levels of least squared error, fitted to the corpus",
        check=_check_lloyd,
        quantize=_quantize_lloyd,
        values=lambda settings, lo, hi: np.asarray(settings["centroids"], float),
        fit=_fit_lloyd,
        fitted="edges",
    ),
    "trellis": Quantizer(
        help="steps of each segment's RMS, changing only where it pays (most faithful for its tokens with 43 levels)",
        check=_check_trellis,
        quantize=_quantize_trellis,
        values=_values_trellis,
        smooth=_smooth_trellis,
        # the best of examples/experiments/rate_distortion.py
        own_settings=lambda mu, margin: {"mu": 2.0, "limit": 16.0, "penalty": 0.25},
        has_size=False,
    ),
}
