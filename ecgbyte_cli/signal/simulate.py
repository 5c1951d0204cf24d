"""Synthetic ECGs: the conditions of a set of records, and the signal of each, from a model of the heart vector.

The waves are chosen by hand to look like ECGs; their model is in kernels/vcg.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ecgbyte_kernels.vcg import DOWER, LEADS, twelve_leads, vcg

# condition -> range of the slow and of the fast heart rate, in beats per minute. No record comes within 3 of
# 100, so that it is never in doubt whether the rate is above 100.
CONDITIONS = {
    "sinus rhythm": ((62, 95), None),
    "sinus bradycardia": ((40, 54), None),
    "sinus tachycardia": (None, (110, 150)),
    "atrial fibrillation": ((60, 97), (103, 140)),
    "left bundle branch block": ((60, 97), (103, 130)),
    "anterior ST elevation": ((60, 97), (103, 140)),
    "first-degree AV block": ((60, 95), None),
    "premature ventricular complexes": ((60, 97), (103, 125)),
}
FAST = 0.6  # share of fast records among the conditions with both ranges
SPLITS = ("train", "val", "test")
GAIN = 1000  # steps per mV


def plan_records(records: int, seed: int) -> list[dict[str, Any]]:
    """Plan every record: name, patient, split, condition, and whether its rate is above 100.

    Conditions are balanced within one record, overall and on each side of the split. Validation and test get 5 % of the
    records each, but at least eight (one per condition) from 40 records on, and a fifth below that.

    Returns
    -------
    list of dict
        `name`, `path` (with the subfolder, without extension), `number`, `patient` (number), `split`,
        `condition` and `fast`, by number.
    """
    rng = np.random.default_rng([seed, 0])
    held_out = min(max(8, round(records / 20)), records // 5)
    sides = ["val"] * held_out + ["test"] * held_out + ["train"] * (records - 2 * held_out)
    order = rng.permutation(len(CONDITIONS))
    names = list(CONDITIONS)
    # round robin through the sides, one after the other
    conditions = [names[order[i % len(names)]] for i in range(records)]

    fast = [CONDITIONS[condition][0] is None for condition in conditions]
    for side in SPLITS:
        for condition, (slow_range, fast_range) in CONDITIONS.items():
            if slow_range and fast_range:
                group = [i for i in range(records) if (sides[i], conditions[i]) == (side, condition)]
                # a share of FAST, randomly rounded up or down
                steps = np.floor(FAST * np.arange(len(group) + 1) + rng.random())
                for i, is_fast in zip(group, rng.permutation(np.diff(steps)), strict=True):
                    fast[i] = bool(is_fast)

    # each patient has one to three records of a side, in random order
    patient, patients = np.zeros(records, np.int64), 0
    for side in SPLITS:
        rest = rng.permutation([i for i in range(records) if sides[i] == side])
        while len(rest):
            patients += 1
            n = rng.integers(1, 4)
            patient[rest[:n]] = patients
            rest = rest[n:]
    # shuffle both numbers, so that they carry no information
    patient = 1 + rng.permutation(patients)[patient - 1]
    digits = max(5, len(str(records)))
    plan = []
    for number, i in enumerate(rng.permutation(records), start=1):
        name = f"synth{number:0{digits}d}"
        folder = f"{(number - 1) // 1000 * 1000:0{digits}d}/" if records > 1000 else ""
        plan.append(
            {
                "name": name,
                "path": folder + name,
                "number": number,
                "patient": int(patient[i]),
                "split": sides[i],
                "condition": conditions[i],
                "fast": fast[i],
            }
        )
    return plan


def patient_name(record: Mapping[str, Any]) -> str:
    """Return the name of a record's patient."""
    return f"P{record['patient']:06d}"


def make_record(record: Mapping[str, Any], seconds: int, fs: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Simulate one record of the plan.

    Parameters
    ----------
    record : dict
        From `plan_records`.
    seconds, fs, seed : int
        Length in s, samples per second, and the seed of the plan.

    Returns
    -------
    steps : ndarray, int16, shape (samples, 12)
        The leads in the order of `ecgbyte_kernels.vcg.LEADS`, 1000 steps per mV.
    comments : list of str
        The header's comments, with the truth.
    """
    rng = np.random.default_rng([seed, 1, record["number"]])
    condition, samples = record["condition"], seconds * fs
    person = _person(np.random.default_rng([seed, 2, record["patient"]]))
    rates = CONDITIONS[condition][record["fast"]]
    assert rates is not None  # the plan picks a range that the condition has
    beats, premature = _beats(rng, condition, rates, seconds)
    inside = beats[(beats >= 0) & (beats < seconds)]
    intervals = np.diff(inside)

    pr = None if condition == "atrial fibrillation" else _pr_interval(rng, condition, intervals.mean())
    waves, raised_by = _waves(rng, condition, person, beats, premature, pr, intervals.mean())
    if condition == "atrial fibrillation":
        waves = np.vstack([waves, _fibrillation(rng, seconds)])
    heart = vcg(waves[:, 0], waves[:, 1], waves[:, 2], waves[:, 3:], fs, samples)

    sources, seen = _interference(rng, samples, fs)
    noise = rng.standard_normal((8, samples), np.float32)
    noise *= rng.uniform(0.005, 0.025) * rng.uniform(0.7, 1.3, (8, 1)).astype(np.float32)
    steps = twelve_leads(np.vstack([heart, sources]), np.hstack([DOWER, seen]), noise, GAIN)

    def listed(times: np.ndarray) -> str:
        return " ".join(f"{t:.3f}" for t in times) or "none"

    return steps, [
        "Source: synthetic (ecgbyte synth)",
        f"Patient: {patient_name(record)}",
        f"Split: {record['split']}",
        f"Condition: {condition}",
        f"Heart rate: {60 / intervals.mean():.1f}",
        f"RR variation: {intervals.std() / intervals.mean():.3f}",
        f"R peaks: {listed(inside)}",
        f"PR interval: {f'{pr:.3f}' if pr else 'none'}",
        f"Premature beats: {listed(beats[premature & (beats >= 0) & (beats < seconds)])}",
        f"Raised leads: {_raised_leads(raised_by)}",
    ]


def _person(rng: np.random.Generator) -> dict[str, Any]:
    """Draw the sizes, directions and shapes that the records of one patient share."""
    return {
        "gain": rng.uniform(0.75, 1.25),
        "frontal": np.radians(rng.uniform(-18, 18)),
        "horizontal": np.radians(rng.uniform(-12, 12)),
        "septum": rng.uniform(0.7, 1.3),
        "late": rng.uniform(0.7, 1.2),
        "t_gain": rng.uniform(0.75, 1.3),
        "t_frontal": np.radians(rng.uniform(-10, 10)),
        "p_gain": rng.uniform(0.85, 1.35),
        "qtc": rng.uniform(0.38, 0.42),
        "width": rng.uniform(0.94, 1.1),
        "focus": int(rng.integers(2)),
    }


def _beats(
    rng: np.random.Generator, condition: str, rate_range: tuple[float, float], seconds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the times of the beats in s, from before the record to after it, and which are premature."""
    low, high = rate_range
    while True:
        rr = 60 / rng.uniform(low, high)
        count = int((seconds + 5) / rr * 1.5) + 8
        if condition == "atrial fibrillation":
            variation = rng.uniform(0.2, 0.27)
            intervals = rr * rng.gamma(1 / variation**2, variation**2, count)
            # the refractory period of the AV node
            intervals = np.maximum(intervals, max(0.27, 0.55 * rr))
        else:
            # respiration, and a little noise
            breaths = rng.uniform(0.18, 0.3) * rr * np.arange(count) + rng.random()
            depth = rng.uniform(0.005, 0.035) * min(1, rr / 0.8)
            intervals = rr * (1 + depth * np.sin(2 * np.pi * breaths) + 0.006 * rng.standard_normal(count))
        beats = np.cumsum(intervals) - 2.5 + rr * rng.random()
        beats = beats[: np.searchsorted(beats, seconds + 2) + 1]
        premature = np.zeros(len(beats), bool)
        if condition == "premature ventricular complexes":
            _make_premature(rng, beats, premature, rr, seconds)
        inside = beats[(beats >= 0) & (beats < seconds)]
        if len(inside) < 3:
            continue
        intervals = np.diff(inside)
        if not low <= 60 / intervals.mean() <= high:
            continue
        if condition == "atrial fibrillation" and intervals.std() < 0.18 * intervals.mean():
            continue
        return beats, premature


def _make_premature(
    rng: np.random.Generator, beats: np.ndarray, premature: np.ndarray, rr: float, seconds: int
) -> None:
    """Make one to three beats in ten seconds premature, in place; the beat after keeps its time."""
    # inside the record, with a normal beat before and the pause after
    candidates = np.flatnonzero((beats > 1.2 * rr + 0.3) & (beats < seconds - rr - 0.4))
    wanted = max(1, round(rng.integers(1, 4) * seconds / 10))
    coupling = rng.uniform(0.6, 0.7)
    for k in rng.permutation(candidates):
        if premature.sum() < wanted and not premature[k - 2 : k + 3].any():
            premature[k] = True
    for k in np.flatnonzero(premature):
        beats[k] = beats[k - 1] + rr * (coupling + 0.01 * rng.standard_normal())


def _pr_interval(rng: np.random.Generator, condition: str, rr: float) -> float:
    if condition == "first-degree AV block":
        return rng.uniform(0.245, max(0.26, min(0.335, rr - 0.37)))
    return rng.uniform(0.125, 0.185 if rr > 0.6 else 0.155)


# Waves of a beat: time of the peak relative to the beat (s), width before and after (s), and height on x
# (left), y (feet), z (back) in mV.
P_WAVE = np.array(  # time from the start of P: the right atrium, in front, then the left one, at the back
    [
        [0.038, 0.015, 0.017, 0.030, 0.095, -0.055],
        [0.072, 0.016, 0.015, 0.060, 0.065, 0.045],
    ]
)
NORMAL_QRS = np.array(  # septum, left ventricle, its side and back wall, base
    [
        [-0.022, 0.007, 0.007, -0.13, -0.07, -0.24],
        [0.000, 0.011, 0.010, 1.15, 0.80, 0.30],
        [0.018, 0.010, 0.010, 0.05, 0.02, 0.62],
        [0.034, 0.008, 0.009, -0.16, -0.12, 0.20],
    ]
)
LBBB_QRS = np.array(  # no septal r to the right: slowly to the back, then to the left
    [
        [-0.034, 0.018, 0.020, 0.58, 0.46, 0.75],
        [0.000, 0.020, 0.020, 0.25, 0.08, 0.66],
        [0.034, 0.019, 0.019, 0.88, 0.18, 0.56],
    ]
)
PREMATURE_QRS = (
    np.array(  # from the right ventricle's outflow: to the left, the feet and the back
        [
            [-0.032, 0.025, 0.028, 0.35, 0.95, 0.60],
            [0.028, 0.029, 0.026, 0.38, 0.90, 0.80],
        ]
    ),
    np.array(  # from the left ventricle's lower wall: to the right, the head and the front
        [
            [-0.032, 0.025, 0.028, -0.10, -0.70, -0.75],
            [0.028, 0.029, 0.026, -0.45, -0.95, -0.60],
        ]
    ),
)
NORMAL_T, LBBB_T = np.array([0.26, 0.21, -0.17]), np.array([-0.34, -0.14, -0.34])
ST_INJURY = np.array([0.15, -0.08, -1.0])  # to the front, and a little up
NORMAL_START, LBBB_START = -0.042, -0.082  # start of the QRS complex


def _waves(
    rng: np.random.Generator,
    condition: str,
    person: dict[str, Any],
    beats: np.ndarray,
    premature: np.ndarray,
    pr: float | None,
    rr: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the waves of all beats, rows of (centre, before, after, x, y, z), and the vector that raises ST."""
    gain = person["gain"]
    qt = (person["qtc"] + 0.03 * (condition == "left bundle branch block")) * rr ** (1 / 3)  # Fridericia
    t_peak, t_before, t_after = 0.72 * qt - 0.02, 0.13 * qt, 0.08 * qt
    t_vector = NORMAL_T * person["t_gain"]
    injury = np.zeros(3)

    if condition == "left bundle branch block":
        qrs, start = LBBB_QRS.copy(), LBBB_START * person["width"]
        qrs[:, :3] *= person["width"]
        t_vector = LBBB_T * person["t_gain"]
        # ST is opposite to the QRS complex too
        qrs = np.vstack([qrs, [0.45 * t_peak + 0.02, 0.035, 0.06, *(0.3 * t_vector)]])
    else:
        qrs, start = NORMAL_QRS.copy(), NORMAL_START
        qrs[0, 3:] *= person["septum"]
        qrs[2:, 3:] *= person["late"]
    if condition == "anterior ST elevation":
        # 0.15 to 0.35 mV in V1 for every patient
        injury = ST_INJURY * rng.uniform(0.17, 0.33) / (DOWER[2] @ ST_INJURY)
        t_vector = 0.7 * t_vector + 0.6 * injury
        qrs[0, 3:] *= 0.6  # the injured front wall is weaker
    qrs[:, 3:] = _turned(qrs[:, 3:], person["frontal"], person["horizontal"]) * gain
    t_vector = _turned(t_vector[None], person["t_frontal"], 0.5 * person["horizontal"]) * gain
    beat = np.vstack([qrs, [t_peak, t_before, t_after, *t_vector[0]]])
    if condition == "anterior ST elevation":
        # a dome that joins the QRS complex to the T wave
        between = t_peak - 0.05
        dome = [[0.05 + 0.25 * between, 0.018, 0.4 * between, *injury]]
        beat = np.vstack([beat, dome])

    size = 1 + 0.03 * np.sin(2 * np.pi * rng.uniform(0.18, 0.3) * beats + 2 * np.pi * rng.random())
    size += 0.015 * rng.standard_normal(len(beats))
    rows = [_repeat(beat, beats[~premature], size[~premature])]
    if pr:
        p_wave = P_WAVE.copy()
        p_wave[:, 0] += start - pr
        p_wave[:, 3:] *= person["p_gain"] * np.sqrt(gain)
        rows.append(_repeat(p_wave, beats[~premature], size[~premature]))
    if premature.any():
        early = PREMATURE_QRS[person["focus"]].copy()
        early[:, :3] *= person["width"]
        early[:, 3:] *= gain * rng.uniform(1.0, 1.25)
        t_wave = [0.70 * qt + 0.04, 0.16 * qt, 0.12 * qt, *(-0.36 * early[:, 3:].mean(axis=0))]
        st = [0.36 * qt + 0.03, 0.04, 0.06, *(-0.12 * early[:, 3:].mean(axis=0))]
        rows.append(_repeat(np.vstack([early, st, t_wave]), beats[premature], size[premature]))
    return np.vstack(rows), injury


def _repeat(waves: np.ndarray, beats: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Repeat the waves of one beat at each beat, scaled by `size`."""
    rows = np.tile(waves, (len(beats), 1))
    rows[:, 0] += np.repeat(beats, len(waves))
    rows[:, 3:] *= np.repeat(size, len(waves))[:, None]
    return rows


def _turned(vectors: np.ndarray, frontal: float, horizontal: float) -> np.ndarray:
    """Rotate vectors in the frontal plane (from left to feet), then in the horizontal one (left to back)."""
    x, y, z = vectors.T
    x, y = x * np.cos(frontal) - y * np.sin(frontal), x * np.sin(frontal) + y * np.cos(frontal)
    x, z = x * np.cos(horizontal) - z * np.sin(horizontal), x * np.sin(horizontal) + z * np.cos(horizontal)
    return np.stack([x, y, z], axis=1)


def _fibrillation(rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Return irregular f-waves: rows of (centre, before, after, x, y, z), alternately up and down."""
    half = 0.5 / rng.uniform(5.5, 8.0)
    intervals = half * rng.uniform(0.75, 1.25, int((seconds + 2) / half * 1.2))
    centres = np.cumsum(intervals) - 1
    swell = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 0.5) * centres + 2 * np.pi * rng.random())
    height = rng.uniform(0.055, 0.11) * swell * np.where(np.arange(len(centres)) % 2, 1, -1)
    vectors = height[:, None] * np.array([0.25, 0.75, -0.95])
    return np.column_stack([centres, 0.5 * intervals, 0.5 * intervals, vectors])


def _interference(rng: np.random.Generator, samples: int, fs: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw baseline wander and sometimes mains hum, (sources, samples) in mV, and their weight in each lead."""
    t = np.arange(samples) / fs
    frequencies = [rng.uniform(0.05, 0.12), rng.uniform(0.15, 0.35), rng.uniform(0.35, 0.6)]
    heights = rng.uniform(0.0, 1.0, 3) * [0.06, 0.06, 0.025]
    if fs > 100 and rng.random() < 0.25:
        frequencies.append(50.0)
        heights = np.append(heights, rng.uniform(0.004, 0.012))
    phases = rng.uniform(0, 2 * np.pi, len(frequencies))
    sources = np.sin(2 * np.pi * np.multiply.outer(frequencies, t) + phases[:, None]) * heights[:, None]
    return sources, rng.uniform(0.2, 1.0, (8, len(frequencies))) * rng.choice([-1, 1], (8, len(frequencies)))


def _raised_leads(injury: np.ndarray) -> str:
    """Return the names of the leads that the vector raises by 0.1 mV or more, or `none`."""
    one, two, *chest = DOWER @ injury
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return " ".join(name for name, mv in zip(LEADS, limbs + chest, strict=True) if mv >= 0.1) or "none"
