"""Measurements of recordings: right on synthetic ones, the same however a recording is stored, none of what is no ECG.

ECGBYTE_MUTATIONS says how many damaged recordings are tried (150).
"""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import wfdb
from scipy.signal import resample_poly

from ecgbyte_cli import Failure, Measurement, Recording, measure, read
from ecgbyte_cli.signal import measure_table
from ecgbyte_cli.signal.measurement import AMPLITUDES, VALUES
from ecgbyte_cli.signal.preprocess import LEADS
from ecgbyte_cli.signal.simulate import make_record, plan_records
from ecgbyte_cli.stages.measure import measure as measure_files
from ecgbyte_cli.storage import row_table

MUTATIONS = int(os.environ.get("ECGBYTE_MUTATIONS", 150))
FS = 500
INTERVALS = ("p_ms", "pr_ms", "qrs_ms", "qt_ms")


def synthetic(condition, seconds=10, seed=5, fs=FS):
    """A synthetic recording, and what its comments say: by key."""
    row = next(row for row in plan_records(40, seed) if row["condition"] == condition)
    steps, comments = make_record(row, seconds, fs, seed)
    told = dict(line.split(": ", 1) for line in comments)
    return Recording((steps.T / 1000).astype(np.float32), float(fs), list(LEADS), row["name"], "x"), told


@pytest.fixture(scope="module")
def sinus():
    return synthetic("sinus rhythm")[0]


def changed(recording, signal, **more):
    return replace(recording, signal=np.asarray(signal, np.float32), **more)


def none_measured(measured):
    return all(getattr(measured, name) is None for name in VALUES) and not measured.leads


# what is true


@pytest.mark.parametrize("condition", ["sinus rhythm", "sinus bradycardia", "sinus tachycardia"])
def test_rate_and_pr_of_synthetic_recordings(condition):
    recording, told = synthetic(condition, seed=8)  # of 112 beats a minute: from 135 on P lies on T
    found = measure(recording)
    assert found.rate_bpm == pytest.approx(float(told["Heart rate"]), abs=0.5)
    assert found.rr_ms == pytest.approx(60000 / found.rate_bpm)
    assert found.pr_ms == pytest.approx(1000 * float(told["PR interval"]), abs=25)
    assert "irregular" not in found.flags
    peaks = np.array([float(t) for t in told["R peaks"].split()])
    assert all(np.abs(peaks - t).min() < 0.05 for t in found.beat_times)


def test_conditions_show_in_the_values():
    block = measure(synthetic("first-degree AV block")[0])
    bundle = measure(synthetic("left bundle branch block")[0])
    fibrillation = measure(synthetic("atrial fibrillation")[0])
    injury, told = synthetic("anterior ST elevation")
    assert block.pr_ms > 200
    assert bundle.qrs_ms > 120 > measure(synthetic("sinus rhythm")[0]).qrs_ms
    assert fibrillation.pr_ms is None and "irregular" in fibrillation.flags
    assert fibrillation.quality["pr_ms"] == "no P waves"
    levels = {lead: part.st_mv for lead, part in measure(injury).leads.items()}
    assert all(levels[lead] > 0.05 for lead in told["Raised leads"].split())


def drawn(heights, rate=60, seconds=10):
    """Triangular waves on a level: lead -> [(centre s, half width s, mV)], as a recording of that regular rhythm."""
    time = np.arange(seconds * FS) / FS
    rows = []
    for waves in heights.values():
        row = np.zeros(time.size)
        for beat in np.arange(0.5, seconds, 60 / rate):
            for centre, half, height in waves:
                row += height * np.clip(1 - np.abs(time - beat - centre) / half, 0, None)
        rows.append(row + 0.002 * np.random.default_rng(len(rows)).standard_normal(time.size))
    return Recording(np.array(rows, np.float32), float(FS), list(heights), "drawn", "x")


def limb(one, two):
    """P, QRS (R and S) and T with heights of these parts in I and II."""
    waves = [(-0.16, 0.05, 0.2), (0, 0.04, 1.0), (0.25, 0.1, 0.4)]
    return {
        lead: [(centre, half, part * height) for centre, half, height in waves]
        for lead, part in (("I", one), ("II", two))
    }


@pytest.mark.parametrize(
    ("one", "two", "axis"),
    [(1, 0.5, 0), (0.5, 1, 60), (0.1, 1, 85), (1, 1, 30), (1, -0.5, -49), (-1, -0.5, 180)],
)
def test_axes_are_those_of_the_amplitudes_in_i_and_iii(one, two, axis):
    # the angle of the vector whose projections on 0 and on 120 degrees are I and III = II - I
    chest = {f"V{i}": [(0, 0.03, 0.5), (0.25, 0.1, 0.2)] for i in range(1, 7)}
    found = measure(drawn(limb(one, two) | chest))
    for value in (found.axis_qrs, found.axis_t):
        assert (value - axis + 180) % 360 - 180 == pytest.approx(0, abs=6)


def test_amplitudes_st_and_voltage_criteria():
    waves = {
        "I": [(0, 0.03, 1.0)],
        "II": [(0, 0.03, 0.8)],
        "V1": [(-0.02, 0.02, 0.3), (0.02, 0.02, -1.5), (0.25, 0.1, 0.3)],
        "V3": [(0, 0.03, -0.9), (0.25, 0.1, -0.4)],
        "V5": [(0, 0.03, 2.0), (0.25, 0.1, 0.5)],
        "V6": [(0, 0.03, 1.2), (0.25, 0.1, 0.3)],
    }
    found = measure(drawn(waves))
    v1, v3 = found.leads["V1"], found.leads["V3"]
    assert (v1.r_mv, v1.s_mv) == pytest.approx((0.3, -1.5), abs=0.08)
    assert (v3.r_mv, v3.s_mv) == pytest.approx((0.0, -0.9), abs=0.08)
    assert v1.t_mv == pytest.approx(0.3, abs=0.05) and v3.t_mv == pytest.approx(-0.4, abs=0.05)
    assert v1.st_mv == pytest.approx(0.0, abs=0.12)
    assert found.sokolow_mv == pytest.approx(3.5, abs=0.15)
    assert found.leads["aVL"].r_mv == pytest.approx(0.6, abs=0.05)  # I - II / 2
    assert found.cornell_mv == pytest.approx(1.5, abs=0.1)


def test_median_beat_and_boundaries_lie_on_the_waves(sinus):
    found = measure(sinus)
    assert found.median_beat.shape == (12, 700) and found.median_leads == list(LEADS)
    assert found.median_times[300] == 0
    order = [
        found.boundaries[n] for n in ("p_onset", "p_offset", "qrs_onset", "qrs_offset", "t_peak", "t_offset")
    ]
    assert order == sorted(order)
    assert found.boundaries["qrs_offset"] - found.boundaries["qrs_onset"] == found.qrs_ms
    assert found.boundaries["qrs_onset"] - found.boundaries["p_onset"] == found.pr_ms
    assert found.boundaries["t_offset"] - found.boundaries["qrs_onset"] == found.qt_ms
    assert len(found.beat_times) == len(found.dominant) == found.beats
    assert found.qtcb_ms == pytest.approx(found.qt_ms / (found.rr_ms / 1000) ** 0.5)
    assert found.qtcf_ms == pytest.approx(found.qt_ms / (found.rr_ms / 1000) ** (1 / 3))


def test_early_beats_are_not_in_the_median():
    recording, told = synthetic("premature ventricular complexes")
    found = measure(recording)
    early = [float(t) for t in told["Premature beats"].split()]
    for time, dominant in zip(found.beat_times, found.dominant, strict=True):
        if any(abs(time - t) < 0.08 for t in early):
            assert not dominant
    assert found.qrs_ms < 120


# however it is stored


@pytest.mark.parametrize("fs", [100, 250, 1000])
def test_other_rates_measure_the_same(sinus, fs):
    signal = resample_poly(sinus.signal, fs, FS, axis=1, padtype="line")
    before, after = measure(sinus), measure(changed(sinus, signal, fs=float(fs)))
    for name in INTERVALS:
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=8)
    assert after.rate_bpm == pytest.approx(before.rate_bpm, abs=0.3)


def test_order_and_names_of_leads_change_nothing(sinus):
    names = [f"Lead {lead.lower()}" for lead in sinus.leads]
    turned = replace(sinus, signal=sinus.signal[::-1], leads=names[::-1])
    assert measure(turned).values() == measure(sinus).values()


def test_an_offset_changes_nothing_and_a_gain_no_interval(sinus):
    before = measure(sinus)
    shifted = measure(changed(sinus, sinus.signal + np.float32(0.5)))
    louder = measure(changed(sinus, sinus.signal * 2))
    for name in INTERVALS:
        assert getattr(shifted, name) == pytest.approx(getattr(before, name), abs=0.01)
        assert getattr(louder, name) == pytest.approx(getattr(before, name), abs=0.01)
    assert louder.leads["V5"].r_mv == pytest.approx(2 * before.leads["V5"].r_mv, rel=1e-4)
    assert louder.axis_qrs == pytest.approx(before.axis_qrs, abs=0.01)


def test_a_shift_in_time_changes_nothing():
    """Two cuts of one recording that is the same beat again and again."""
    recording, _ = synthetic("sinus rhythm")
    found = measure(recording)
    beat = int(found.beat_times[3] * FS)
    period = recording.signal[:, beat : beat + round(found.rr_ms / 1000 * FS)]
    ramp = np.linspace(0, 1, period.shape[1]) * (period[:, :1] - period[:, -1:])  # ends where it begins
    endless = np.tile(period + ramp, 18)
    size = period.shape[1]
    cuts = [measure(changed(recording, endless[:, start : start + 12 * size])) for start in (0, 111, 222)]
    for name in INTERVALS + ("rate_bpm", "axis_qrs"):
        values = [getattr(cut, name) for cut in cuts]
        assert max(values) - min(values) <= (2 if name in INTERVALS else 1)


def test_eight_leads_measure_as_twelve_and_one_lead_measures_what_it_can(sinus):
    eight = [0, 1, *range(6, 12)]
    without = replace(sinus, signal=sinus.signal[eight], leads=[sinus.leads[i] for i in eight])
    assert measure(without).values() == measure(sinus).values()
    alone = measure(replace(sinus, signal=sinus.signal[1:2], leads=["II"]))
    assert alone.rate_bpm == pytest.approx(measure(sinus).rate_bpm, abs=0.5)
    assert list(alone.leads) == ["II"] and alone.axis_qrs is None
    assert alone.quality["axis_qrs"] == "leads missing: I, III"
    assert alone.quality["sokolow_mv"] == "leads missing: V1, V5, V6"


def test_other_leads_than_the_standard_ones(sinus):
    found = measure(replace(sinus, signal=sinus.signal[1:3], leads=["MLII", "X"]))
    assert list(found.leads) == ["MLII", "X"] and found.qrs_ms is not None


# what is no ECG, or not all of one


def of(rows, fs=500.0, leads=LEADS):
    rows = np.atleast_2d(np.asarray(rows, np.float32))
    return Recording(rows, float(fs), list(leads)[: len(rows)], "x", "x")


RANDOM = np.random.default_rng(0)
TIME = np.arange(5000) / FS
NO_ECG = {
    "flat": np.zeros((8, 5000)),
    "nothing": np.zeros((0, 5000)),
    "no samples": np.zeros((8, 0)),
    "noise": 0.3 * RANDOM.standard_normal((8, 5000)),
    "one lead of noise": 0.3 * RANDOM.standard_normal((1, 5000)),
    "the same noise": np.tile(0.3 * RANDOM.standard_normal(5000), (8, 1)),
    "wandering": np.cumsum(0.05 * RANDOM.standard_normal((8, 5000)), axis=1),
    "1 s": 0.3 * RANDOM.standard_normal((8, 500)),
    "square wave": np.tile((TIME * 1.2 % 1 < 0.5).astype(float), (8, 1)),
    "noisy square wave": np.tile(TIME % 1 < 0.5, (8, 1)) + 0.01 * RANDOM.standard_normal((8, 5000)),
    "pulses": np.tile((TIME % 1 < 0.1).astype(float), (8, 1)),
    "sine": np.tile(np.sin(2 * np.pi * 1.1 * TIME), (8, 1)),
    "hum": np.tile(np.sin(2 * np.pi * 50 * TIME), (8, 1)),
    "saw tooth": np.tile(TIME * 1.2 % 1, (8, 1)),
    "triangle": np.tile(np.abs(TIME * 1.2 % 1 - 0.5), (8, 1)),
    "missing": np.full((8, 5000), np.nan),
    "infinite": np.full((8, 5000), np.inf),
    "volts taken for mV": 1e-4 * RANDOM.standard_normal((8, 5000)),
    "huge": 1e30 * RANDOM.standard_normal((8, 5000)),
}


@pytest.mark.parametrize("name", NO_ECG)
def test_what_is_no_ecg_has_no_values(name):
    found = measure(of(NO_ECG[name]))
    assert none_measured(found)
    assert list(found.quality) == ["all"] and found.quality["all"]


@pytest.mark.parametrize("fs", [0.0, -5.0, 20.0, 1e6, float("nan"), float("inf")])
def test_a_rate_that_cannot_be_is_a_reason(sinus, fs):
    found = measure(replace(sinus, fs=fs))
    assert none_measured(found) and found.quality["all"].startswith(("too short", "sampling rate"))


def test_leads_that_are_of_no_use_are_flags_and_not_measured(sinus):
    before, signal = measure(sinus), sinus.signal.copy()
    random = np.random.default_rng(3)
    signal[6] = 0.001
    signal[7] = 2 * random.standard_normal(5000)
    signal[8, 1000:2000] = 0.4
    signal[9, 1000:1100] = np.nan
    signal[10, 1000:1010] = np.nan  # short enough to be filled
    found = measure(changed(sinus, signal))
    assert found.flags == ["flat V1", "lead off V3", "gaps V4", "noisy V2"]
    assert not {"V1", "V2", "V3", "V4"} & set(found.leads) and "V5" in found.leads
    for name in INTERVALS:
        assert getattr(found, name) == pytest.approx(getattr(before, name), abs=20)


def test_pacing_spikes_are_told_and_do_not_count_as_the_complex(sinus):
    before, signal = measure(sinus), sinus.signal.copy()
    for time in before.beat_times:
        at = round((time - 0.075) * FS)
        signal[:, at : at + 2] += np.linspace(1, 2, 12)[:, None]
    found = measure(changed(sinus, signal))
    assert "pacing spikes" in found.flags and "pacing spikes" not in before.flags
    assert found.rate_bpm == pytest.approx(before.rate_bpm, abs=0.5)
    assert found.qrs_ms == pytest.approx(before.qrs_ms, abs=25)


def test_reversed_arm_leads_are_told():
    chest = {f"V{i}": [(0, 0.03, 0.8), (0.25, 0.1, 0.2)] for i in range(1, 7)}
    right = drawn(limb(0.8, 1) | chest)
    turned = right.signal.copy()
    turned[0] *= -1
    turned[1] = right.signal[1] - right.signal[0]  # II becomes III
    assert "arm leads reversed" in measure(changed(right, turned)).flags
    assert "arm leads reversed" not in measure(right).flags


def test_hum_noise_and_drift_move_little(sinus):
    before = measure(sinus)
    hum = 0.05 * np.sin(2 * np.pi * 50.05 * TIME + 1)
    drift = 0.3 * np.sin(2 * np.pi * 0.3 * TIME)
    for disturbance, most in ((hum, 8), (drift, 16)):
        found = measure(changed(sinus, sinus.signal + disturbance))
        for name in INTERVALS:
            assert getattr(found, name) == pytest.approx(getattr(before, name), abs=most)


def test_an_amplitude_that_no_heart_makes_is_none(sinus):
    signal = sinus.signal.copy()
    signal[6] *= 15
    found = measure(changed(sinus, signal))
    assert found.leads["V1"].r_mv is None and found.sokolow_mv is None
    assert found.quality["V1"] == "amplitude out of range: above 10 mV"
    assert found.qrs_ms is not None and found.cornell_mv is not None


def mutated(recording, random):
    """A recording with one to three things wrong."""
    signal, fs, leads = recording.signal.astype(np.float64), recording.fs, list(recording.leads)
    for _ in range(random.integers(1, 4)):
        if not signal.size:
            break
        kind = random.integers(14)
        lead, at = random.integers(len(signal)), random.integers(signal.shape[1])
        size = random.integers(1, signal.shape[1] + 1)
        if kind == 0:
            signal[lead, at : at + size] = random.choice([np.nan, np.inf, -np.inf, 0, 1e9, -32.768])
        elif kind == 1:
            signal = signal[:, at : at + size]
        elif kind == 2:
            signal = signal * random.choice([0, 1e-9, 1e-3, 1e3, 1e12, -1])
        elif kind == 3:
            fs = float(random.choice([0.1, 60, 80, 97.3, 128, 257, 360, 1000, 8000, 1e5, np.nan, fs]))
        elif kind == 4:
            keep = np.sort(random.choice(len(signal), random.integers(0, len(signal) + 1), replace=False))
            signal, leads = signal[keep], [leads[i] for i in keep]
        elif kind == 5:
            leads[lead] = str(random.choice(["II", "", "=1+1", "x" * 300, "\n", leads[0], "V9"]))
        elif kind == 6:
            signal = signal + random.choice([0.01, 0.1, 1]) * random.standard_normal(signal.shape)
        elif kind == 7:
            signal = np.clip(signal, -0.1, random.choice([0.0, 0.1, 0.5]))
        elif kind == 8:
            signal[lead] = random.choice([-1, 50]) * signal[lead][::-1]
        elif kind == 9:
            signal = np.round(signal / random.choice([0.05, 0.3])) * 0.3
        elif kind == 10:
            signal = np.repeat(signal, random.integers(2, 9), axis=1)
        elif kind == 11:
            signal[:, :: random.integers(2, 400)] += random.choice([0.5, 5])
        elif kind == 12:
            signal = np.roll(signal, at, axis=1)
        else:
            signal = np.cumsum(signal, axis=1) if random.random() < 0.5 else np.diff(signal, axis=1)
    with np.errstate(over="ignore"):
        return Recording(signal.astype(np.float32), fs, leads, recording.name, "x")


def test_damaged_recordings_are_measured_or_refused_and_never_absurd():
    conditions = ("sinus rhythm", "atrial fibrillation", "left bundle branch block", "sinus tachycardia")
    whole = [synthetic(condition, fs=fs)[0] for condition in conditions for fs in (100, 500)]
    random = np.random.default_rng(int(os.environ.get("ECGBYTE_SEED", 1)))
    answered = 0
    for number in range(MUTATIONS):
        found = measure(mutated(whole[number % len(whole)], random))
        values = found.values()
        numbers = [v for v in values.values() if isinstance(v, float)]
        assert np.isfinite(numbers).all()
        json.dumps(values)
        if found.rate_bpm is None:
            assert none_measured(found) and "all" in found.quality
            continue
        answered += 1
        assert 15 <= found.rate_bpm <= 300 and found.beats >= 3 and 30 <= found.qrs_ms <= 300
        for name in VALUES:
            assert getattr(found, name) is not None or name in found.quality
        assert all(
            abs(v) <= 12 for lead in found.leads.values() for v in vars(lead).values() if v is not None
        )
    assert answered > MUTATIONS / 10


def test_quality_reads_as_a_line():
    result = Measurement(quality={"p_ms": "no P waves", "pr_ms": "no P waves", "qt_ms": "no clear T waves"})
    assert result.reasons == "p_ms, pr_ms: no P waves; qt_ms: no clear T waves"
    assert Measurement(quality={"all": "too short"}).values()["quality"] == "too short"


# the command


def written(folder, name, seconds=10, fs=250, condition="sinus rhythm"):
    recording, _ = synthetic(condition, seconds, fs=fs)
    np.savez(folder / f"{name}.npz", signal=recording.signal, fs=fs, leads=recording.leads, units="mV")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three recordings, of which one has three segments, and two files that cannot be read."""
    made = tmp_path_factory.mktemp("recordings")
    written(made, "a")
    written(made, "b", 25)
    written(made, "c", condition="atrial fibrillation")
    (made / "bad.npz").write_bytes(b"no archive")
    (made / "none.hea").write_text("")
    return made


def rows_of_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_as_csv_parquet_and_json_lines(folder, tmp_path, ecgbyte):
    for ending in ("csv", "parquet", "jsonl"):
        result = ecgbyte("measure", folder, "--out", tmp_path / f"m.{ending}", "--jobs", 1, "--json")
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["records"], told["skipped"], told["out"]) == (3, 2, str(tmp_path / f"m.{ending}"))
        assert sum(told["skipped_reasons"].values()) == 2
    rows = rows_of_csv(tmp_path / "m.csv")
    assert [(row["record"], row["segment"], row["start"]) for row in rows] == [
        ("a", "0", "0.0"), ("b", "0", "0.0"), ("b", "1", "10.0"), ("b", "2", "20.0"), ("c", "0", "0.0"),
    ]  # fmt: skip
    columns = ["record", "path", "segment", "start", *VALUES]
    columns += [f"{lead}_{name}" for lead in LEADS for name in AMPLITUDES] + ["beats", "flags", "quality"]
    assert list(rows[0]) == columns
    table = pyarrow.parquet.read_table(tmp_path / "m.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert table == lines
    assert [list(row) for row in lines] == [columns] * 5
    assert [row["rate_bpm"] for row in lines] == [float(row["rate_bpm"]) for row in rows]
    assert lines[-1]["pr_ms"] is None and rows[-1]["pr_ms"] == "" and "no P waves" in rows[-1]["quality"]
    assert rows[0]["quality"] == "" == rows[0]["flags"]
    found = measure(read(folder / "a.npz"))
    assert lines[0]["qrs_ms"] == found.qrs_ms and lines[0]["V5_r_mv"] == round(found.leads["V5"].r_mv, 3)


def test_skipped_recordings_are_listed_with_their_reasons(folder, tmp_path, ecgbyte):
    out = tmp_path / "m.csv"
    result = ecgbyte("measure", folder, "--out", out, "--jobs", 1)
    assert "bad.npz" in result.stderr and "reason for skipping" in result.stdout
    listed = rows_of_csv(tmp_path / "m.csv.skipped.csv")
    assert {os.path.basename(row["path"]) for row in listed} == {"bad.npz", "none.hea"}
    assert all(row["reason"] for row in listed)
    again = ecgbyte("measure", folder / "a.npz", "--out", out, "--jobs", 1, "--overwrite")
    assert again.exit_code == 0 and not (tmp_path / "m.csv.skipped.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.csv", "m.csv.settings.json"]


def test_a_table_on_the_terminal(folder, ecgbyte):
    one = ecgbyte("measure", folder / "a.npz")
    assert one.exit_code == 0
    assert "QTcF" in one.stdout and "V5" in one.stdout and "not a medical device" in one.stdout
    several = ecgbyte("measure", folder / "b.npz", folder / "c.npz")
    assert "start" in several.stdout and "no P waves" in several.stdout
    told = json.loads(ecgbyte("measure", folder / "c.npz", "--json").stdout)
    assert told["out"] is None and told["rows"][0]["record"] == "c"


def test_wrong_uses_are_told_in_a_line(folder, tmp_path, ecgbyte, monkeypatch):
    out = tmp_path / "m.csv"
    assert ecgbyte("measure", folder, "--out", tmp_path / "m.txt").exit_code == 2
    assert ecgbyte("measure", folder, "--segment", 1).exit_code == 2
    assert ecgbyte("measure", tmp_path / "nowhere").exit_code == 1
    nothing = ecgbyte("measure", folder / "bad.npz", "--out", out)
    assert nothing.exit_code == 1 and "bad.npz cannot be read: " in nothing.stderr and not out.exists()
    assert ecgbyte("measure", folder, "--out", out, "--jobs", 1).exit_code == 0
    other = ecgbyte("measure", folder, "--out", out, "--jobs", 1, "--segment", 5)
    assert other.exit_code == 1 and "--overwrite" in other.stderr
    (tmp_path / "d.csv").mkdir()
    assert "is a folder" in ecgbyte("measure", folder, "--out", tmp_path / "d.csv").stderr
    monkeypatch.setattr("ecgbyte_cli.cli.options.MOST_SHOWN", 2)
    assert ecgbyte("measure", folder).exit_code == 2


def test_a_finished_run_has_nothing_to_do(folder, tmp_path, ecgbyte, monkeypatch):
    out = tmp_path / "m.csv"
    args = ("measure", folder, "--out", out, "--jobs", 1, "--json")
    first, real = ecgbyte(*args), measure_table.rows_of
    monkeypatch.setattr("ecgbyte_cli.signal.measure_table.rows_of", lambda *_: pytest.fail("measured again"))
    again = ecgbyte(*args)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    results = [json.loads(each.stdout) | {"seconds": 0} for each in (first, again)]
    assert results[0] == results[1]
    # a file that was changed, or made by something else, is never replaced
    out.write_text("mine")
    changed = ecgbyte(*args)
    assert changed.exit_code == 1 and "--overwrite" in changed.stderr and out.read_text() == "mine"
    # a file that was removed is written again
    out.unlink()
    monkeypatch.setattr("ecgbyte_cli.signal.measure_table.rows_of", real)
    assert ecgbyte(*args).exit_code == 0 and out.exists()


def test_a_run_that_ended_before_it_removed_its_parts(folder, tmp_path, ecgbyte, monkeypatch):
    out = tmp_path / "m.csv"
    with monkeypatch.context() as patch:
        patch.setattr("ecgbyte_cli.runtime.row_parts.PartialResults.remove", lambda self: None)
        assert ecgbyte("measure", folder, "--out", out, "--jobs", 1).exit_code == 0
    assert (tmp_path / ".m.csv.parts").exists()
    again = ecgbyte("measure", folder, "--out", out, "--jobs", 1)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    assert not (tmp_path / ".m.csv.parts").exists()


def test_a_run_that_was_stopped_goes_on_and_writes_the_same(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ecgbyte_cli.runtime.row_parts.PART", 1)
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    measure_files([str(folder)], out=whole, jobs=1)
    real, done = measure_table.rows_of, []

    def until_the_third(path, *more):
        if len(done) == 2:
            raise MemoryError
        done.append(path)
        return real(path, *more)

    monkeypatch.setattr("ecgbyte_cli.signal.measure_table.rows_of", until_the_third)
    with pytest.raises(MemoryError):
        measure_files([str(folder)], out=stopped, jobs=1)
    assert not stopped.exists()
    again = []

    def counted(path, *more):
        again.append(path)
        return real(path, *more)

    monkeypatch.setattr("ecgbyte_cli.signal.measure_table.rows_of", counted)
    with pytest.raises(Failure, match="other settings"):
        measure_files([str(folder)], out=stopped, jobs=1, segment=5)
    measure_files([str(folder)], out=stopped, jobs=1)
    assert "resuming" in capsys.readouterr().err
    assert not set(again) & set(done) and again
    assert stopped.read_bytes() == whole.read_bytes()


def test_several_processes_and_dask_write_the_same(folder, tmp_path, ecgbyte):
    outs = [tmp_path / f"{name}.csv" for name in ("alone", "two", "dask")]
    for out, more in zip(outs, (["--jobs", "1"], ["--jobs", "2"], ["--dask", "local:1"]), strict=True):
        if out.stem == "dask":
            pytest.importorskip("distributed")
        result = ecgbyte("measure", folder, "--out", out, *more)
        assert result.exit_code == 0, result.stderr
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("  -2+3", "'  -2+3"),
        ("+a", "'+a"),
        ("a\nb", "a b"),
        ("\t=1", "' =1"),
        ("x\x1b[31m", "x\\x1b[31m"),
        ("plain", "plain"),
        ("", ""),
        (None, None),
        (-1.5, -1.5),
    ],
)
def test_cells_are_harmless(text, shown):
    assert row_table.cell(text) == shown


def test_hostile_names_are_harmless(tmp_path, ecgbyte):
    recording, _ = synthetic("sinus rhythm", fs=250)
    folder = tmp_path / "in"
    folder.mkdir()
    name = "=cmd|' C calc'!A0\n[red]x"
    leads = ["=II", *recording.leads[6:8]]
    np.savez(folder / f"{name}.npz", signal=recording.signal[[1, 6, 7]], fs=250, leads=leads)
    result = ecgbyte("measure", folder, "--out", tmp_path / "m.csv", "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    [row] = rows_of_csv(tmp_path / "m.csv")
    assert row["record"].startswith("'=") and "\n" not in row["record"] and "'=II_r_mv" in row
    shown = ecgbyte("measure", folder)
    assert shown.exit_code == 0 and "[red]x" in shown.stdout.replace("\n", "")


def test_too_many_other_leads_have_no_columns(tmp_path, ecgbyte, monkeypatch):
    monkeypatch.setattr("ecgbyte_cli.signal.measure_table.MOST_OTHERS", 1)
    recording, _ = synthetic("sinus rhythm", fs=250)
    np.savez(tmp_path / "r.npz", signal=recording.signal[:3], fs=250, leads=["A", "B", "C"])
    result = ecgbyte("measure", tmp_path, "--out", tmp_path / "m.csv", "--jobs", 1)
    assert "2 leads have no columns" in result.stderr
    assert "A_r_mv" in rows_of_csv(tmp_path / "m.csv")[0]


# real recordings


def test_real_recordings_of_every_kind(real_data, tmp_path, ecgbyte):
    out = tmp_path / "m.jsonl"
    result = ecgbyte(
        "measure",
        real_data / "cinc2021",
        real_data / "hospital",
        real_data / "wfdb" / "s0010_re.hea",
        "--out",
        out,
    )
    assert result.exit_code == 0, result.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    long = [row for row in rows if row["record"] == "s0010_re"]
    assert [row["start"] for row in long] == [0, 10, 20, 30]
    assert max(row["qrs_ms"] for row in long) - min(row["qrs_ms"] for row in long) <= 4
    assert sum(row["qrs_ms"] is not None for row in rows) >= 0.9 * len(rows)
    flat = next(row for row in rows if row["record"] == "JS20004")
    assert {"flat V2", "flat V4", "flat V6"} <= set(flat["flags"].split(";"))


def test_intervals_are_near_the_cardiologists_marks(real_data):
    """Of the ten recordings of LUDB that come first; all of them are scored by examples/benchmarks/bench_measure.py."""
    names = (real_data / "ludb" / "RECORDS").read_text().split()[:10]
    wrong = []
    for name in names:
        path = str(real_data / "ludb" / name)
        notes = wfdb.rdann(path, "v5")
        found = measure(read(path))
        pairs = [
            (notes.sample[i + 1] - notes.sample[i - 1]) * 1000 / FS
            for i in range(1, len(notes.sample) - 1)
            if notes.symbol[i] == "N" and notes.symbol[i - 1] == "(" and notes.symbol[i + 1] == ")"
        ]
        if "pacing" not in str(read(path).comments):
            wrong.append(found.qrs_ms - np.median(pairs))
    assert len(wrong) >= 8 and np.abs(wrong).mean() < 15
