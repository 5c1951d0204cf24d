"""How faithful a decoded ECG is: on beats whose R, J and ST are known."""

import numpy as np
import pytest

from ecgbyte_cli.signal import fidelity

FS = 250


def lead(height=1.0, st=0.2, shift=0.0, seconds=10):
    """Beats a second apart: flat, a QRS of straight lines from R - 40 ms to R + 40 ms, ST level, flat."""
    t = np.arange(seconds * FS) / FS - shift
    phase = t % 1 - 0.5  # R at 0.5 s, 1.5 s, …
    return np.interp(phase, [-0.04, 0, 0.04, 0.16, 0.2], [0, height, st, st, 0])


def errors(x, y, fs):
    return fidelity.beat_errors(x, y, fs, fidelity.beats(x, fs))


def test_differences_by_hand():
    x = np.array([[3.0, 5.0], [0.0, 0.0]])
    squares, prd, snr = fidelity.differences(x, x + [[0.5, 0], [0, 0]])
    assert squares == 0.25
    assert prd == pytest.approx(100 * np.sqrt(0.25 / 34))
    assert snr == pytest.approx(10 * np.log10(2 / 0.25))
    assert np.isnan(fidelity.differences(np.zeros((1, 2)), np.ones((1, 2)))[1:]).all()


@pytest.mark.parametrize("fs", [250, 500])
def test_beats_are_where_they_were_put(fs):
    x = np.interp(np.arange(10 * fs) / fs, np.arange(10 * FS) / FS, lead())
    peaks, begins, ends = fidelity.beats(x, fs).T / fs
    assert len(peaks) >= 8 and set(np.round(peaks % 1, 6)) == {0.5}
    assert np.abs(begins - (peaks - 0.04)).max() <= 0.012 and np.abs(ends - (peaks + 0.04)).max() <= 0.012


def test_each_error_is_the_one_that_was_made():
    x = lead()
    none = errors(x, x, FS)
    assert len(none) >= 8 and not none.any()
    amplitude, time, st = errors(x, lead(height=0.9), FS).T
    assert amplitude == pytest.approx(-0.1) and not time.any() and not st.any()
    amplitude, time, st = errors(x, lead(st=0.15), FS).T
    assert not amplitude.any() and not time.any() and st == pytest.approx(-0.05)
    amplitude, time, st = errors(x, lead(shift=0.008), FS).T
    assert amplitude == pytest.approx(0) and time == pytest.approx(8)
    # another baseline changes nothing
    assert np.abs(errors(x, x + 0.3, FS)).max() < 1e-9


def test_a_peak_of_several_samples_is_at_the_middle_of_them():
    x = lead()
    y = np.minimum(x, 0.73)  # two samples before the peak and three behind it are cut off too
    _, time, _ = errors(x, y, FS).T
    top = np.flatnonzero(y[100:150] == 0.73)
    assert len(top) == 6 and time == pytest.approx((top.mean() + 100 - 125) * 4)


def test_leads_without_beats_have_none():
    for nothing in (np.zeros(2500), np.full(2500, 0.3), 0.001 * np.random.default_rng(0).normal(size=2500)):
        assert errors(nothing, nothing, FS).shape[1] == 3
    assert len(fidelity.beats(np.zeros(2500), FS)) == 0
