"""The calibration pulse at either end of a recording: cut off, and nothing of an ECG with it."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from ecgbyte_cli import readers
from ecgbyte_cli.readers.pulse import without_pulse

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
FS = 500


def ecg(leads=12, seconds=5, seed=0):
    """Beats of another height in each lead, and noise: float32 (leads, samples), mV."""
    t = np.arange(seconds * FS) / FS
    rng = np.random.default_rng(seed)
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / 2e-4) + 0.2 * np.exp(-(((t % 0.8) - 0.55) ** 2) / 2e-3)
    rows = np.linspace(-1, 1.5, leads)[:, None] * beat + rng.normal(0, 0.02, (leads, t.size))
    return rows.astype(np.float32)


def pulse(height=1.0, zeros=50, high=100, after=50, leads=12):
    """0, `height` mV, 0 for so many samples each, in all leads."""
    course = np.concatenate([np.zeros(zeros), np.full(high, height), np.zeros(after)])
    return np.tile(course.astype(np.float32), (leads, 1))


def cut(signal, leads=LEADS, start=None):
    return without_pulse(readers.Recording(signal, FS, list(leads), "r", "r", start=start))


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"height": 0.5},
        {"height": 2.0},
        {"high": 20},
        {"zeros": 0},
        {"after": 12},
        {"zeros": 200, "high": 400, "after": 100},
    ],
)
@pytest.mark.parametrize("end", ["start", "end"])
def test_a_pulse_is_cut_off(shape, end):
    signal, noise = ecg(), np.random.default_rng(1).integers(-1, 2, (12, 1000)) * 0.005
    course = pulse(**shape)
    course += noise[:, : course.shape[1]]
    whole = np.concatenate([course, signal] if end == "start" else [signal, course], 1)
    read = cut(whole.astype(np.float32), start=datetime(2020, 1, 1))
    # a sample of ECG in which all leads happen to be alike may go with it
    assert signal.shape[1] - 3 <= read.signal.shape[1] <= signal.shape[1]
    kept = read.signal.shape[1]
    assert np.array_equal(read.signal, signal[:, -kept:] if end == "start" else signal[:, :kept])
    late = timedelta(seconds=(whole.shape[1] - kept) / FS) if end == "start" else timedelta()
    assert read.start == datetime(2020, 1, 1) + late


def test_pulses_at_both_ends_and_of_some_leads_alone():
    signal = ecg()
    assert np.array_equal(cut(np.concatenate([pulse(), signal, pulse()], 1)).signal, signal)
    # derived leads that were computed from the pulse: III is 0, aVR -1 mV
    made = pulse()
    made[2], made[3], made[4:6] = 0, -made[0], made[0] / 2
    assert np.array_equal(cut(np.concatenate([signal, made], 1)).signal, signal)
    eight = [0, 1, *range(6, 12)]
    read = cut(np.concatenate([signal, pulse()], 1)[eight], [LEADS[i] for i in eight])
    assert np.array_equal(read.signal, signal[eight])


@pytest.mark.parametrize(
    "end",
    [
        np.zeros((12, 300)),  # electrodes off, or zeros that fill up
        pulse(height=0.05),
        pulse(high=3),  # a spike
        np.tile(ecg(1)[:, -900:], (12, 1)),  # a beat that all leads share
        pulse() * np.linspace(0.5, 1.5, 12)[:, None],
        np.full((12, 100), np.nan),
    ],
)
def test_what_is_no_pulse_stays(end):
    signal = np.concatenate([ecg(), end.astype(np.float32)], 1)
    assert cut(signal.copy()).signal.shape == signal.shape
    assert cut(signal[:, ::-1].copy()).signal.shape == signal.shape


def test_leads_that_are_one_and_the_same_stay():
    square = np.tile(pulse(leads=1), 10)
    assert cut(square, ["II"]).signal.shape == square.shape
    assert cut(np.repeat(square, 2, 0), ["I", "II"]).signal.shape == (2, square.shape[1])
    assert cut(np.zeros((2, 0), np.float32), ["I", "II"]).signal.shape == (2, 0)


def test_nothing_of_real_recordings_is_cut(real_data):
    for header in sorted((real_data / "cinc2021").glob("*.hea")):
        assert readers.read_recording(header).signal.shape[1] == 5000


def test_every_format_passes(tmp_path):
    """A pulse in a CSV file, and in the Sierra file of an electrocardiograph's."""
    signal = np.concatenate([ecg(), pulse()], 1).round(3)
    rows = "\n".join(",".join(map(str, row)) for row in signal.T.tolist())
    (tmp_path / "r.csv").write_text(",".join(LEADS) + "\n" + rows)
    assert readers.read_recording(tmp_path / "r.csv", fs=FS).signal.shape == (12, 2500)


def test_the_pulse_of_sierra(real_data):
    pytest.importorskip("ecgdatakit")
    read = readers.read_recording(real_data / "hospital" / "sierra_104_demo.xml")
    assert read.signal.shape == (12, 5300)
    assert (np.ptp(read.signal, axis=0)[-50:] > 0.05).all()
