"""The result of `measure`: values, their units, and reasons for missing values."""

from dataclasses import dataclass, field

import numpy as np

from ecgbyte_kernels.beats import BEFORE, RATE

# names of the values, in the order of the table
INTERVALS = ("rate_bpm", "rr_ms", "rr_sd_ms", "p_ms", "pr_ms", "qrs_ms", "qt_ms", "qtcb_ms", "qtcf_ms")
AXES = ("axis_p", "axis_qrs", "axis_t")
VOLTAGES = ("sokolow_mv", "cornell_mv")
VALUES = INTERVALS + AXES + VOLTAGES
AMPLITUDES = ("r_mv", "s_mv", "st_mv", "t_mv")
DIGITS = {name: 1 for name in INTERVALS} | {name: 0 for name in AXES} | {name: 3 for name in VOLTAGES}
BOUNDARIES = ("p_onset", "p_offset", "qrs_onset", "qrs_offset", "t_peak", "t_offset")


@dataclass(frozen=True)
class Amplitudes:
    """Amplitudes in one lead of the median beat, in mV relative to the level just before the QRS complex.

    Attributes
    ----------
    r_mv : float or None
        Highest deflection of the QRS complex, 0 if none rises above the level.
    s_mv : float or None
        Lowest deflection after the R wave (of the whole complex if there is no R wave): 0 or below.
    st_mv : float or None
        Level 60 ms after the end of the QRS complex.
    t_mv : float or None
        Largest deflection of the T wave, below 0 if it is inverted.
    """

    r_mv: float | None = None
    s_mv: float | None = None
    st_mv: float | None = None
    t_mv: float | None = None


@dataclass
class Measurement:
    """The measured values of a recording or segment. A value that could not be measured is None.

    Attributes
    ----------
    rate_bpm : float or None
        Ventricular rate, 60000 / `rr_ms`, in beats per minute.
    rr_ms, rr_sd_ms : float or None
        Mean and standard deviation of the RR intervals, ms.
    p_ms, pr_ms, qrs_ms, qt_ms : float or None
        Duration of the P wave, interval from its onset to the onset of the QRS complex, duration of the
        complex, and interval from its onset to the end of the T wave, ms.
    qtcb_ms, qtcf_ms : float or None
        QT corrected for the rate: QT / RR^(1/2) (Bazett) and QT / RR^(1/3) (Fridericia), RR in s.
    axis_p, axis_qrs, axis_t : float or None
        Frontal axes in degrees, -180 to 180, from the amplitudes in I and III.
    sokolow_mv : float or None
        Depth of S in V1 and the higher R of V5 and V6, added up, mV.
    cornell_mv : float or None
        R in aVL and the depth of S in V3, added up, mV.
    leads : dict of str to Amplitudes
        Keyed by lead. III, aVR, aVL and aVF are derived from I and II if both are present.
    beats : int
        Number of beats found.
    flags : list of str
        Remarks: `irregular`, `pacing spikes`, `arm leads reversed`, and with a lead `flat V2`, `noisy V2`,
        `lead off V2`, `gaps V2`.
    quality : dict of str to str
        Name of a missing value mapped to the reason. The name `all` stands for all values.
    beat_times : numpy.ndarray
        float64 (beats,): the R peaks in s from the start of the measured part.
    dominant : numpy.ndarray
        bool (beats,): whether a beat is part of the median beat.
    median_leads : list of str
        The leads of `median_beat`.
    median_beat : numpy.ndarray or None
        float32 (leads, 700), mV against the level just before the QRS complex, at 500 Hz: from 600 ms before
        the R peak to 800 ms after it. NaN if fewer than a third of the beats have a sample.
    boundaries : dict of str to float
        `p_onset`, `p_offset`, `qrs_onset`, `qrs_offset`, `t_peak`, `t_offset` in ms from the R peak, if
        found.
    """

    rate_bpm: float | None = None
    rr_ms: float | None = None
    rr_sd_ms: float | None = None
    p_ms: float | None = None
    pr_ms: float | None = None
    qrs_ms: float | None = None
    qt_ms: float | None = None
    qtcb_ms: float | None = None
    qtcf_ms: float | None = None
    axis_p: float | None = None
    axis_qrs: float | None = None
    axis_t: float | None = None
    sokolow_mv: float | None = None
    cornell_mv: float | None = None
    leads: dict[str, Amplitudes] = field(default_factory=dict)
    beats: int = 0
    flags: list[str] = field(default_factory=list)
    quality: dict[str, str] = field(default_factory=dict)
    beat_times: np.ndarray = field(default_factory=lambda: np.empty(0))
    dominant: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    median_leads: list[str] = field(default_factory=list)
    median_beat: np.ndarray | None = None
    boundaries: dict[str, float] = field(default_factory=dict)

    @property
    def median_times(self) -> np.ndarray:
        """The times of the samples of `median_beat`, in ms from the R peak."""
        count = 0 if self.median_beat is None else self.median_beat.shape[1]
        return (np.arange(count) - BEFORE) * 1000 / RATE

    @property
    def reasons(self) -> str:
        """`quality` as a line: each reason with the values it affects."""
        about: dict[str, list[str]] = {}
        for name, reason in self.quality.items():
            about.setdefault(reason, []).append(name)
        return "; ".join(
            reason if names == ["all"] else f"{', '.join(names)}: {reason}" for reason, names in about.items()
        )

    def values(self) -> dict[str, str | int | float | None]:
        """The measured columns of a row of the table, rounded: ms and beats to 0.1, mV to 0.001, axes to 1."""
        row: dict[str, str | int | float | None] = {
            name: _rounded(getattr(self, name), DIGITS[name]) for name in VALUES
        }
        for lead, amplitudes in self.leads.items():
            for name in AMPLITUDES:
                row[f"{lead}_{name}"] = _rounded(getattr(amplitudes, name), 3)
        return row | {"beats": self.beats, "flags": ";".join(self.flags), "quality": self.reasons}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits) + 0.0  # no -0.0


def lead_columns(leads: list[str]) -> list[str]:
    """The columns of some leads."""
    return [f"{lead}_{name}" for lead in leads for name in AMPLITUDES]
