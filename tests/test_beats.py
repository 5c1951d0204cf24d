"""The kernels that find beats, their boundaries and what disturbs them, against their plain versions."""

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

import naive
from ecgbyte_cli.signal.simulate import make_record, plan_records
from ecgbyte_kernels import beats as beat_kernels
from ecgbyte_kernels import mains, waves

pytestmark = pytest.mark.kernels

FS = 500


def filtered(signal, kind, edges):
    return sosfiltfilt(butter(2, edges, kind, fs=FS, output="sos"), signal, axis=0)


def record(condition, seconds=8, seed=3):
    """The eight recorded leads of a synthetic record in mV, (samples, leads), and its comments."""
    plan = plan_records(24, seed)
    row = next(row for row in plan if row["condition"] == condition)
    steps, comments = make_record(row, seconds, FS, seed)
    return steps[:, [0, 1, 6, 7, 8, 9, 10, 11]] / 1000, comments


RHYTHMS = (
    "sinus rhythm",
    "atrial fibrillation",
    "premature ventricular complexes",
    "left bundle branch block",
)


@pytest.fixture(scope="module", params=RHYTHMS)
def ecg(request):
    signal, comments = record(request.param)
    told = next(line for line in comments if line.startswith("R peaks"))
    peaks = [float(t) * FS for t in told.partition(": ")[2].split()]
    return signal, np.array(peaks), filtered(signal, "bandpass", [6, 28])


def test_every_beat_is_found_and_nothing_else(ecg):
    signal, peaks, band = ecg
    found = beat_kernels.detect_beats(band)
    inside = peaks[(peaks > 100) & (peaks < len(signal) - 100)]
    assert all(np.abs(found - peak).min() < 40 for peak in inside)
    assert all(np.abs(peaks - beat).min() < 40 for beat in found)


def test_detection_equals_the_plain_version(ecg):
    _, _, band = ecg
    for cut in (slice(None), slice(0, 700), slice(1234, 3456)):
        assert beat_kernels.detect_beats(band[cut]).tolist() == naive.detect_beats(band[cut])


def test_a_missed_beat_is_searched_for_with_a_lower_threshold():
    signal, _ = record("sinus rhythm")
    band = filtered(signal, "bandpass", [6, 28])
    beats = beat_kernels.detect_beats(band)
    weak = band.copy()
    middle = beats[4]
    weak[middle - 100 : middle + 100] *= 0.22
    assert beat_kernels.detect_beats(weak).size == beats.size
    assert beat_kernels.detect_beats(weak).tolist() == naive.detect_beats(weak)


def test_noise_has_no_beats():
    band = filtered(np.random.default_rng(0).standard_normal((3000, 3)), "bandpass", [6, 28])
    assert beat_kernels.detect_beats(band).size == 0
    assert naive.detect_beats(band) == []
    assert beat_kernels.lead_contrast(band).max() < 6


def test_contrast_tells_an_ecg_from_noise_and_from_nothing(ecg):
    _, _, band = ecg
    noise = filtered(np.random.default_rng(1).standard_normal((len(band), 1)), "bandpass", [6, 28])
    found = beat_kernels.lead_contrast(np.hstack([band, noise, np.zeros((len(band), 1))]))
    assert found[:8].min() > 6 > found[8] > found[9] == 0


def test_classes_equal_the_plain_version(ecg):
    signal, _, band = ecg
    beats, shapes = beat_kernels.detect_beats(band), filtered(signal, "bandpass", [1.5, 40])
    classes, lags = beat_kernels.beat_classes(shapes, beats)
    expected = naive.beat_classes(shapes, beats)
    assert classes.tolist() == expected[0].tolist()
    assert lags.tolist() == expected[1].tolist()


def test_beats_of_two_shapes_are_two_classes():
    signal, comments = record("premature ventricular complexes", 10)
    beats = beat_kernels.detect_beats(filtered(signal, "bandpass", [6, 28]))
    classes, _ = beat_kernels.beat_classes(filtered(signal, "bandpass", [1.5, 40]), beats)
    told = next(line for line in comments if line.startswith("Premature"))
    early = [float(t) * FS for t in told.partition(": ")[2].split() if t != "none"]
    is_early = np.array([any(abs(beat - t) < 50 for t in early) for beat in beats])
    judged = classes >= 0
    assert set(classes[is_early & judged]) & set(classes[~is_early & judged]) == set()


def test_median_beat_equals_the_plain_version(ecg):
    signal, _, band = ecg
    beats = beat_kernels.detect_beats(band)
    for members in (beats, beats[:1], beats[-3:]):
        expected = naive.median_beat(signal, members, beats)
        assert beat_kernels.median_beat(signal, members, beats) == pytest.approx(expected, nan_ok=True)


def test_agreement_equals_the_plain_version(ecg):
    signal, _, band = ecg
    beats = beat_kernels.detect_beats(band)
    beat = np.nan_to_num(beat_kernels.median_beat(signal, beats, beats))
    for stretch in ((200, 260), (0, 50), (290, 400)):
        expected = naive.agreement(signal, beats, beat, *stretch)
        assert beat_kernels.agreement(signal, beats, beat, *stretch) == pytest.approx(expected)
    assert beat_kernels.agreement(signal[:50], beats[:0], beat, 0, 9) == 0


def median_of(signal, band):
    beats = beat_kernels.detect_beats(band)
    beat = beat_kernels.median_beat(filtered(signal, "highpass", 0.5), beats, beats)
    rows = [
        np.interp(np.arange(700), np.flatnonzero(np.isfinite(row)), row[np.isfinite(row)]) for row in beat.T
    ]
    return np.stack(rows, axis=1), float(np.median(np.diff(beats)))


def test_boundaries_equal_the_plain_versions(ecg):
    signal, _, band = ecg
    beat, rr = median_of(signal, band)
    for leads in (slice(None), slice(1, 2), slice(2, 5)):
        one = np.ascontiguousarray(beat[:, leads])
        onset, offset, amplitude = waves.qrs_bounds(one)
        assert (onset, offset) == naive.qrs_bounds(one)[:2]
        assert amplitude == pytest.approx(naive.qrs_bounds(one)[2])
        low = filtered(one, "lowpass", 20)
        for last in (699, 420):
            found = waves.t_bounds(low, offset, rr, last, amplitude)
            assert found == pytest.approx(naive.t_bounds(low, offset, rr, last, amplitude))
        held = filtered(waves.hold(one, onset), "lowpass", 25)
        for first in (150, 200, onset - 30):
            found = waves.p_bounds(held, onset, first)
            assert found == pytest.approx(naive.p_bounds(held, onset, first))
            copy = waves.earlier_copy(held, max(found[0], 60), 0)
            assert copy == pytest.approx(naive.earlier_copy(held, max(found[0], 60), 0))


def test_boundaries_of_a_beat_that_is_flat():
    flat = np.zeros((700, 2))
    assert waves.qrs_bounds(flat)[:2] == (-1, -1)
    assert waves.p_bounds(flat, 280, 100) == (-1, -1, -1)
    assert waves.t_bounds(flat, 330, 400.0, 699, 1.0)[1] == -1


def test_waves_that_repeat_before_the_complex_are_told_from_one_wave():
    time = np.arange(700)[:, None]
    bumps = [np.exp(-0.5 * ((time - at) / 12) ** 2) * [0.1, 0.2] for at in (130, 240)]
    assert waves.earlier_copy(bumps[0] + bumps[1], 240, 0) > 0.95
    assert waves.earlier_copy(bumps[1] + 3 * bumps[0], 240, 0) < 0.5
    assert waves.earlier_copy(bumps[1], 240, 0) == -1
    assert waves.earlier_copy(bumps[1], 20, 0) == naive.earlier_copy(bumps[1], 20, 0) == -1


def test_a_gain_changes_no_boundary(ecg):
    signal, _, band = ecg
    beat, _ = median_of(signal, band)
    assert waves.qrs_bounds(beat * 8)[:2] == waves.qrs_bounds(beat)[:2]


def test_held_beat_has_nothing_after_the_onset(ecg):
    signal, _, band = ecg
    beat, _ = median_of(signal, band)
    held = waves.hold(beat, 280)
    assert (held[:276] == beat[:276]).all()
    assert (held[276:] == beat[274:277].mean(axis=0)).all()


@pytest.mark.parametrize(
    ("ecg", "hz"),
    [
        (name, hz)
        for names, rates in ((RHYTHMS[:2], (50.0, 59.95)), (RHYTHMS[2:], (50.07, 60.0)))
        for name in names
        for hz in rates
    ],
    indirect=["ecg"],
)
def test_mains_are_removed_and_little_else(ecg, hz):
    signal, _, band = ecg
    beats = beat_kernels.detect_beats(band)
    hum = 0.1 * np.sin(2 * np.pi * hz * np.arange(len(signal)) / FS + 1)[:, None] * np.linspace(1, 2, 8)
    clean = mains.remove_mains(signal, beats)
    cleaned = mains.remove_mains(signal + hum, beats)
    assert cleaned == pytest.approx(naive.remove_mains(signal + hum, beats), abs=1e-9)
    assert np.sqrt(np.mean((cleaned - clean)[250:-250] ** 2)) < 0.012
    assert np.sqrt(np.mean((clean - signal) ** 2)) < 0.01


def test_mains_where_beats_leave_nothing_to_look_at_and_of_a_short_signal():
    signal = np.random.default_rng(2).standard_normal((400, 2))
    for beats in (np.arange(0, 400, 60), np.empty(0, int)):
        assert mains.remove_mains(signal, beats) == pytest.approx(naive.remove_mains(signal, beats), abs=1e-9)


def test_spikes_are_found_and_blanked(ecg):
    signal, _, band = ecg
    assert mains.find_spikes(signal).size == 0
    at = beat_kernels.detect_beats(band)[1:-1] - 60
    spiky = signal.copy()
    spiky[at] += 1.5
    spiky[at + 1] += 1.2
    assert mains.find_spikes(spiky).tolist() == at.tolist() == naive.find_spikes(spiky)
    blanked = mains.blank(spiky, at)
    assert np.abs(blanked - signal).max() < 0.3
    assert mains.find_spikes(blanked).size == 0
    assert (spiky[at] != blanked[at]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: beat_kernels.detect_beats(np.zeros(9)), "of samples and leads"),
        (lambda: beat_kernels.beat_classes(np.zeros((0, 2)), []), "of samples and leads"),
        (lambda: beat_kernels.median_beat(np.zeros((9, 1)), [], []), "centres"),
        (lambda: beat_kernels.median_beat(np.zeros((9, 1)), [9], [9]), "centres"),
        (lambda: beat_kernels.agreement(np.zeros((9, 1)), [5], np.zeros((700, 1)), 5, 6), "not a part of"),
        (lambda: mains.remove_mains(np.zeros((9, 1)), [], (250.0,)), "mains frequencies"),
        (lambda: mains.find_spikes(np.zeros(5)), "of samples and leads"),
        (lambda: waves.qrs_bounds(np.zeros((699, 1))), "a median beat is"),
        (lambda: waves.qrs_bounds(np.full((700, 1), np.nan)), "finite"),
        (lambda: waves.t_bounds(np.zeros((700, 1)), -1, 400, 699, 1), "do not fit"),
        (lambda: waves.hold(np.zeros((700, 1)), 5), "does not fit"),
        (lambda: waves.p_bounds(np.zeros((700, 1)), 700, 0), "do not fit"),
        (lambda: waves.earlier_copy(np.zeros((700, 1)), 3, 5), "do not fit"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_signal_of_two_samples_has_no_beats():
    assert beat_kernels.detect_beats(np.zeros((2, 1))).size == 0
