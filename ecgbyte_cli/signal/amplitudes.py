"""Amplitudes, ST levels, voltage criteria and axes of a median beat whose boundaries are known."""

import numpy as np

from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.measurement import Amplitudes, Measurement

FLAT = 0.03  # mV: the noise from peak to peak that IEC 60601-2-25 allows an electrocardiograph
LARGEST = 10.0  # mV: larger than any QRS complex on the skin
ST_AFTER = 30  # samples at 500 Hz: 60 ms
P_TURNED = 0.02  # mV
T_NEAR = 30  # samples: 60 ms
TOO_SMALL = "amplitude too small in I and III"


def all_leads(leads: list[str], beat: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the measured leads and the leads derived from I and II, standard leads first.

    Parameters
    ----------
    leads : list of str
    beat : numpy.ndarray
        float64 (samples, leads), mV.

    Returns
    -------
    leads : list of str
    beat : numpy.ndarray
        float64 (samples, leads), mV.
    """
    columns = dict(zip(leads, beat.T, strict=True))
    if "I" in columns and "II" in columns:
        for lead, (of_i, of_ii) in preprocess.DERIVED.items():
            columns[lead] = of_i * columns["I"] + of_ii * columns["II"]
    names = [lead for lead in preprocess.LEADS if lead in columns]
    names += [lead for lead in columns if lead not in names]
    return names, np.stack([columns[lead] for lead in names], axis=1)


def fill_in(beat: np.ndarray, bounds: dict[str, float], result: Measurement) -> None:
    """Fill in the amplitudes, voltage criteria and axes of a measurement, and why some are missing.

    Parameters
    ----------
    beat : numpy.ndarray
        float64 (samples, leads) of `result.median_leads`, mV against the level before the QRS complex.
    bounds : dict
        `qrs_onset` and `qrs_offset`, and if there are P and T waves `p_onset`, `p_peak`, `p_offset`, `t_peak`
        and `t_offset`: samples of the beat.
    result : Measurement
    """
    heights: dict[str, tuple[float, float]] = {}
    for lead, row in zip(result.median_leads, beat.T, strict=True):
        found = _r_and_s(row, bounds)
        if found is None:
            result.quality[lead] = f"amplitude out of range: above {LARGEST:g} mV"
            result.leads[lead] = Amplitudes()
        else:
            heights[lead] = found
            result.leads[lead] = Amplitudes(*found, _st_level(row, bounds), _t_height(row, bounds))
    if _all_there("sokolow_mv", ("V1", "V5", "V6"), heights, result):
        result.sokolow_mv = max(heights["V5"][0], heights["V6"][0]) - heights["V1"][1]
    if _all_there("cornell_mv", ("aVL", "V3"), heights, result):
        result.cornell_mv = heights["aVL"][0] - heights["V3"][1]
    _axes(beat, bounds, heights, result)


def _r_and_s(row: np.ndarray, bounds: dict[str, float]) -> tuple[float, float] | None:
    """Heights of R and S, mV; None if they are implausible."""
    part = row[int(bounds["qrs_onset"]) : int(bounds["qrs_offset"]) + 1]
    if np.abs(part).max() > LARGEST:
        return None
    top = int(part.argmax())
    r = max(0.0, float(part[top]))
    return r, min(0.0, float(part[top:].min() if r >= FLAT else part.min()))


def _st_level(row: np.ndarray, bounds: dict[str, float]) -> float:
    at = int(bounds["qrs_offset"]) + ST_AFTER
    return float(row[at - 2 : at + 3].mean())


def _t_height(row: np.ndarray, bounds: dict[str, float]) -> float | None:
    """The largest deflection near the T wave's peak."""
    if "t_peak" not in bounds:
        return None
    peak = int(bounds["t_peak"])
    first, last = max(int(bounds["qrs_offset"]), peak - T_NEAR), min(int(bounds["t_offset"]), peak + T_NEAR)
    part = row[first : last + 1]
    return float(part[np.abs(part).argmax()])


def _all_there(
    name: str, needed: tuple[str, ...], heights: dict[str, tuple[float, float]], result: Measurement
) -> bool:
    """Whether the leads of a voltage criterion were measured; if not, store the reason."""
    missing = [lead for lead in needed if lead not in result.leads]
    if missing:
        result.quality[name] = f"leads missing: {', '.join(missing)}"
    elif not all(lead in heights for lead in needed):
        result.quality[name] = "amplitude out of range"
    return all(lead in heights for lead in needed)


def _axes(
    beat: np.ndarray, bounds: dict[str, float], heights: dict[str, tuple[float, float]], result: Measurement
) -> None:
    """The frontal axes, and whether the arm leads seem to be reversed."""
    if not {"I", "III"} <= set(heights):
        result.quality |= {name: "leads missing: I, III" for name in ("axis_p", "axis_qrs", "axis_t")}
        return
    one, three = (beat[:, result.median_leads.index(lead)] for lead in ("I", "III"))
    onset, offset = int(bounds["qrs_onset"]), int(bounds["qrs_offset"])
    net = [float(row[onset : offset + 1].max() + row[onset : offset + 1].min()) for row in (one, three)]
    p_net = [_p_height(row, bounds) for row in (one, three)]
    t_net = [_t_height(row, bounds) for row in (one, three)]
    for name, vector in (("axis_qrs", net), ("axis_p", p_net), ("axis_t", t_net)):
        if vector[0] is not None and vector[1] is not None:
            if np.hypot(*vector) < FLAT:
                result.quality[name] = TOO_SMALL
            else:
                setattr(result, name, _axis(vector[0], vector[1]))
    # P and QRS inverted in I but not in V6, which the arm electrodes do not affect
    turned = net[0] < 0 and p_net[0] is not None and p_net[0] < -P_TURNED
    if turned and "V6" in heights and sum(heights["V6"]) > 0:
        result.flags.append("arm leads reversed")


def _p_height(row: np.ndarray, bounds: dict[str, float]) -> float | None:
    """Height of the P wave above the line between onset and offset."""
    if "p_onset" not in bounds:
        return None
    a, b, peak = (round(bounds[name]) for name in ("p_onset", "p_offset", "p_peak"))
    part = (peak - a) / (b - a)
    return float(row[max(peak - 3, 0) : peak + 4].mean() - (row[a] * (1 - part) + row[b] * part))


def _axis(one: float, three: float) -> float:
    """The angle in degrees of a vector with projections on I (0 degrees) and III (120 degrees)."""
    return float(np.degrees(np.arctan2((one + 2 * three) / np.sqrt(3), one)))
