import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import interpolate
from scipy import signal as sps

import naive
from ecgbyte_cli import readers
from ecgbyte_cli.readers import Recording, Unusable
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.quantizers import quantize
from ecgbyte_kernels import filters

SETTINGS = {
    "fs": 250.0,
    "leads": preprocess.LEADS,
    "segment_seconds": 10.0,
    "samples": 2500,
    "profile": "paper",
    "fill_nan": None,
}


def recording(leads, seconds=10, fs=500, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.normal(0, 0.3, (len(leads), int(seconds * fs))).cumsum(axis=1) * 0.05
    return Recording(signal.astype(np.float32), float(fs), list(leads), "made", "made.hea")


@pytest.fixture(scope="module")
def real_segments(real_data):
    found, _ = readers.find(real_data / "cinc2021")
    read = [readers.read_recording(path) for path in found]
    return {r.name: preprocess.segments(r, SETTINGS)[0][1] for r in read}


def test_paper_agrees_with_the_reference(real_segments, golden):
    reference = np.load(golden / "preprocessed.npz")
    assert len(reference.files) == 6
    for name in reference.files:
        assert np.abs(real_segments[name] - reference[name]).max() < 1e-3


def test_letters_agree_with_the_reference(real_segments, golden):
    reference, about = np.load(golden / "symbols.npz"), json.loads((golden / "tokenizer.json").read_text())
    lo, hi = about["percentile_1"] - 0.5, about["percentile_99"] + 0.5
    quantizer = {"name": "paper", "levels": 26, "lo": lo, "hi": hi}
    ours = np.stack([quantize(real_segments[name], quantizer)[0] for name in about["order"]])
    theirs = np.stack([reference[name] for name in about["order"]])
    assert (ours == theirs).mean() >= 0.995
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_the_corpus_range_agrees_with_the_reference(real_segments, golden):
    about = json.loads((golden / "tokenizer.json").read_text())
    p1, p99 = np.percentile(np.concatenate([real_segments[name].ravel() for name in about["order"]]), [1, 99])
    # The reference's 0.05 Hz high-pass in transfer-function form is off by up to 0.016 mV on drifting leads.
    assert abs(p1 - about["percentile_1"]) < 0.002 and abs(p99 - about["percentile_99"]) < 0.002


@pytest.mark.parametrize("fs, seconds", [(500, 10), (400, 10), (1000, 4.003), (257.5, 12)])
def test_paper_is_the_slow_version(fs, seconds):
    signal = recording(["I", "II", "V1"], seconds, fs).signal
    expected = naive.paper_preprocessing(signal, fs, 250)
    assert np.abs(preprocess.paper(signal, fs, 250) - expected).max() < 1e-5


def test_elm_agrees_with_elm(real_data, golden_elm):
    theirs = np.load(golden_elm / "preprocessed.npz")
    ranges = json.loads((golden_elm / "ranges.json").read_text())
    assert len(theirs.files) == 3
    for name in theirs.files:
        recording = readers.read_recording(real_data / "cinc2021" / f"{name}.hea")
        [(_, segment)] = preprocess.segments(recording, SETTINGS | {"profile": "elm"})
        assert segment.dtype == np.float32 and np.abs(segment - theirs[name]).max() < 1e-6
        assert np.allclose([segment.min(), segment.max()], ranges[name], atol=1e-6)


@pytest.mark.parametrize("fs, seconds", [(100, 10), (360, 10), (400, 10.24), (500, 12), (1000, 10)])
def test_elm_is_the_slow_version(fs, seconds):
    made = recording(["I", "II", "V1"], seconds, fs)
    expected = naive.elm_preprocessing(made.signal, fs, 250)[:, :2500]
    wanted = SETTINGS | {"leads": ["I", "II", "V1"], "profile": "elm"}
    [(_, segment)] = preprocess.segments(made, wanted)
    assert np.abs(segment - expected).max() < 1e-6
    if seconds == 10:  # both grids end with the recording
        ends = made.signal[:, [0, -1]]
        assert np.allclose(segment[:, [0, -1]], ends, atol=1e-6)


def test_elm_at_its_own_rate_changes_nothing():
    made = recording(["I", "II"], 23, 250)
    cut = preprocess.segments(made, SETTINGS | {"leads": ["I", "II"], "profile": "elm"})
    assert np.array_equal(np.hstack([signal for _, signal in cut]), made.signal[:, :5000])


@pytest.mark.parametrize("profile", preprocess.PROFILES)
def test_every_profile_refuses_what_cannot_be_read(profile):
    wanted = SETTINGS | {"leads": ["I"], "profile": profile}
    with pytest.raises(Unusable, match="shorter than a segment: 9.996 s"):
        preprocess.segments(recording(["I"], 9.996), wanted)
    made = recording(["I"])
    made.signal[0, 7] = np.nan
    with pytest.raises(Unusable, match="NaN"):
        preprocess.segments(made, wanted)
    assert len(preprocess.segments(made, wanted | {"fill_nan": "linear"})) == 1
    flat = recording(["I"])
    flat.signal[:] = 0
    [(_, segment)] = preprocess.segments(flat, wanted)
    assert not segment.any()


def test_elm_says_when_there_are_too_few_samples():
    wanted = SETTINGS | {"leads": ["I"], "profile": "elm", "segment_seconds": 0.1, "samples": 25}
    made = recording(["I"], 0.12, 25)
    made.signal *= 100
    with pytest.raises(Unusable, match="too short.*4 samples"):
        preprocess.segments(made, wanted)


@pytest.mark.kernels
@given(st.integers(40, 90), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_filters_are_scipys(samples, leads, seed):
    x = np.random.default_rng(seed).normal(size=(samples, leads))
    designs = [
        sps.butter(4, [0.5, 100], "bandpass", fs=500, output="sos"),
        sps.tf2sos(*sps.iirnotch(50, 30, 500)),
    ]
    expected = x
    for sos in designs:
        expected = sps.sosfiltfilt(sos, expected, axis=0)
    ours = filters.zero_phase(
        x, [(s, sps.sosfilt_zi(s), pad) for s, pad in zip(designs, (27, 9), strict=True)]
    )
    assert np.allclose(ours, expected, atol=1e-9)


@pytest.mark.kernels
def test_filters_refuse_a_signal_shorter_than_their_extension():
    sos = sps.butter(4, 0.5, "highpass", fs=500, output="sos")
    with pytest.raises(ValueError, match="16"):
        filters.zero_phase(np.zeros((15, 2)), [(sos, sps.sosfilt_zi(sos), 15)])


@pytest.mark.kernels
@given(st.integers(4, 60), st.integers(2, 90), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_cubic_is_scipys(samples, made, seed):
    x = np.random.default_rng(seed).normal(size=(samples, 2))
    spline = interpolate.make_interp_spline(np.linspace(0, 1, samples), x, k=3)
    assert np.allclose(filters.cubic(x, made), spline(np.linspace(0, 1, made)), atol=1e-4)


@pytest.mark.kernels
@given(st.integers(100, 160), st.integers(0, 99), st.sampled_from(["db6", "db4", "sym5"]))
@settings(max_examples=15, deadline=None)
def test_denoise_is_pywavelets(samples, seed, wavelet):
    import pywt

    x = np.random.default_rng(seed).normal(size=(samples, 2))
    coarse, *details = pywt.wavedec(x, wavelet, level=3, axis=0)
    threshold = np.median(np.abs(details[0]), axis=0) / 0.6745
    details = [np.sign(d) * np.maximum(np.abs(d) - threshold, 0) for d in details]
    expected = pywt.waverec([coarse, *details], wavelet, axis=0)[:samples]
    before = x.copy()
    ours = filters.denoise(x, tuple(map(np.array, pywt.Wavelet(wavelet).filter_bank)), 3)
    assert np.allclose(ours, expected, atol=1e-12) and np.array_equal(x, before)


def test_leads_are_taken_by_name_whatever_their_case_and_order():
    made = recording(["v1", "Lead aVR (Goldberger)", "DI", "ecg ii", "pleth"])
    picked = preprocess.pick(made, ["II", "I", "aVR", "V1"])
    assert np.array_equal(picked, made.signal[[3, 2, 1, 0]])


def test_limb_leads_are_derived_from_i_and_ii():
    made = recording(["II", "I"])
    ii, i = made.signal.astype(float)
    iii, avr, avl, avf = preprocess.pick(made, ["III", "aVR", "aVL", "aVF"])
    assert np.allclose(iii, ii - i, atol=1e-6) and np.allclose(avr, -(i + ii) / 2, atol=1e-6)
    assert np.allclose(avl, i - ii / 2, atol=1e-6) and np.allclose(avf, ii - i / 2, atol=1e-6)
    assert np.allclose(avr + avl + avf, 0, atol=1e-5)


@pytest.mark.parametrize("there", [("III", "aVF"), ("aVL", "II"), ("aVR", "I"), ("aVR", "aVL")])
def test_limb_leads_are_derived_from_any_two(there):
    whole = recording(["I", "II"])
    whole.signal = preprocess.pick(whole, preprocess.LEADS[:6])
    whole.leads = preprocess.LEADS[:6]
    two = recording(list(there))
    two.signal = preprocess.pick(whole, there)
    assert np.allclose(preprocess.pick(two, preprocess.LEADS[:6]), whole.signal, atol=1e-5)


def test_any_leads_are_read_and_the_others_are_flat():
    made = recording(["V1", "pleth"])
    picked = preprocess.pick(made, ["II", "V1"], any_leads=True)
    assert np.array_equal(picked[1], made.signal[0]) and not picked[0].any()
    with pytest.raises(Unusable, match="leads missing: II, V5$"):
        preprocess.pick(made, ["II", "V5"], any_leads=True)
    holter = recording(["MLII", "V5"])
    assert np.array_equal(preprocess.pick(holter, ["II", "V1"], any_leads=True)[0], holter.signal[0])


@pytest.mark.parametrize("fs", [250, 500, 1000])
def test_profile_monitor_gives_the_same_from_any_rate(fs):
    """Waves of an ECG at 100 Hz and at another rate, with drift and an offset that the filters remove."""
    wanted = SETTINGS | {"profile": "monitor", "fs": 100.0, "samples": 1000, "leads": ["I"]}
    found = []
    for rate in (100, fs):
        t = np.arange(10 * rate) / rate
        beat = (t - 0.1) % 0.9 - 0.45
        waves = [(0.1, -0.16, 0.03), (1.2, 0.0, 0.015), (-0.3, 0.04, 0.02), (0.3, 0.3, 0.06)]
        ecg = sum(size * np.exp(-(((beat - at) / width) ** 2)) for size, at, width in waves)
        ecg = ecg + 0.3 + 0.5 * np.sin(2 * np.pi * 0.1 * t)
        made = Recording(ecg.astype(np.float32)[None], float(rate), ["I"], "made", "made.hea")
        found.append(preprocess.segments(made, wanted)[0][1][0])
    assert np.ptp(found[0]) > 1.2 and np.abs(found[0] - found[1]).max() < 0.02
    assert abs(np.median(found[0][100:-100])) < 0.1  # neither drift nor offset


def test_profile_monitor_is_scipys():
    made = recording(["I"], fs=100)
    wanted = SETTINGS | {"profile": "monitor", "fs": 100.0, "samples": 1000, "leads": ["I"]}
    [(_, ours), *_] = preprocess.segments(made, wanted)
    theirs = made.signal.astype(float)
    for order, edge, kind, pad in ((2, 0.5, "highpass", 200), (2, 40, "lowpass", 9)):
        theirs = sps.sosfiltfilt(sps.butter(order, edge, kind, fs=100, output="sos"), theirs, padlen=pad)
    assert np.allclose(ours, theirs[:, :1000], atol=1e-5)


@pytest.mark.parametrize("leads, wanted", [(["MLII", "V5"], "II"), (["I"], "III"), (["I", "II"], "V1")])
def test_what_is_missing_is_named(leads, wanted):
    with pytest.raises(Unusable, match=f"leads missing: {wanted}$"):
        preprocess.pick(recording(leads), [wanted])


def test_a_lead_that_is_no_standard_one_can_be_asked_for():
    made = recording(["MLII", "V5"])
    assert np.array_equal(preprocess.pick(made, ["MLII"]), made.signal[:1])


def test_missing_samples():
    made = recording(["I", "II"], fs=500)
    made.signal[1, 100:120] = np.nan  # 40 ms
    made.signal[1, 3000] = np.inf
    wanted = SETTINGS | {"leads": ["I", "II"], "profile": "resample", "fs": 500.0, "samples": 5000}
    with pytest.raises(Unusable, match="NaN.*II"):
        preprocess.segments(made, wanted)
    [(start, filled)] = preprocess.segments(made, wanted | {"fill_nan": "linear"})
    assert start == 0 and np.array_equal(filled[0], made.signal[0])
    line = np.linspace(made.signal[1, 99], made.signal[1, 120], 22)[1:-1]
    assert np.allclose(filled[1, 100:120], line, atol=1e-6)
    made.signal[1, 120] = np.nan  # 42 ms
    with pytest.raises(Unusable, match="NaN.*42 ms"):
        preprocess.segments(made, wanted | {"fill_nan": "linear"})
    # a lead that is not asked for does no harm
    assert preprocess.segments(made, wanted | {"leads": ["I"]})


def test_filters_above_half_the_rate_are_left_out():
    assert preprocess.paper_filters(500.0)[1] == []
    assert preprocess.paper_filters(128.0)[1] == ["low-pass 100 Hz"]
    assert preprocess.paper_filters(100.0)[1] == ["notch 50 Hz", "notch 60 Hz", "low-pass 100 Hz"]
    made = recording(["I"], fs=100)
    assert len(preprocess.segments(made, SETTINGS | {"leads": ["I"]})) == 1


@pytest.mark.parametrize("fs", [128, 250, 257.3, 360, 1000])
def test_resampling_keeps_a_waves_place_and_size(fs):
    t = np.arange(int(12 * fs)) / fs
    made = Recording(np.sin(2 * np.pi * 7 * t).astype(np.float32)[None], fs, ["I"], "made", "made.hea")
    [(_, segment)] = preprocess.segments(made, SETTINGS | {"leads": ["I"], "profile": "resample"})
    wave = np.sin(2 * np.pi * 7 * np.arange(2500) / 250)
    assert np.abs(segment[0, 50:] - wave[50:]).max() < 0.01


def test_resampling_keeps_out_what_the_new_rate_cannot_hold():
    t = np.arange(5000) / 500
    made = Recording(np.sin(2 * np.pi * 70 * t).astype(np.float32)[None], 500.0, ["I"], "made", "made.hea")
    wanted = SETTINGS | {"leads": ["I"], "profile": "resample", "fs": 100.0, "samples": 1000}
    [(_, segment)] = preprocess.segments(made, wanted)
    assert np.abs(segment[0, 50:-50]).max() < 0.01


def test_segments_are_cut_one_after_the_other():
    made = recording(["I"], seconds=38.4, fs=1000)
    cut = preprocess.segments(made, SETTINGS | {"leads": ["I"]})
    assert [start for start, _ in cut] == [0, 10, 20]
    whole = preprocess.paper(made.signal, 1000.0, 250.0)
    assert np.array_equal(np.hstack([s for _, s in cut]), whole[:, :7500])
    assert all(s.dtype == np.float32 and s.flags.c_contiguous for _, s in cut)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"signal": np.zeros((1, 4999), np.float32)}, "shorter than a segment"),
        ({"fs": 1e-3}, "sampling rate"),
        ({"fs": 1e9}, "sampling rate"),
        ({"fs": float("nan")}, "sampling rate"),
        ({"signal": np.zeros((1, 2**24 + 1), np.float32)}, "too long"),
        ({"signal": np.tile(np.float32([3e38, -3e38]), (1, 2500))}, "out of range"),
    ],
)
def test_what_cannot_be_segmented_is_said(change, reason):
    made = recording(["I"])
    for key, value in change.items():
        setattr(made, key, value)
    with pytest.raises(Unusable, match=reason):
        preprocess.segments(made, SETTINGS | {"leads": ["I"]})


def recorded(signal, fs=500):
    return Recording(signal.astype(np.float32), fs, preprocess.LEADS[: len(signal)], "r", "r")


def wanted(leads):
    settings = {"fs": 250.0, "segment_seconds": 2.0, "samples": 500, "profile": "resample", "fill_nan": None}
    return settings | {"leads": preprocess.LEADS[:leads]}


@pytest.mark.parametrize("leads", [1, 2, 12])
@pytest.mark.parametrize(
    "scale, wrong", [(1000, True), (200, True), (1, False), (3, False), (0.2, False), (1e-3, True)]
)
def test_what_is_no_ecg_in_millivolts_is_refused(leads, scale, wrong):
    signal = beats(leads, 2000) * scale
    if not wrong:
        assert len(preprocess.segments(recorded(signal), wanted(leads))) == 2
    else:
        with pytest.raises(Unusable, match="values out of range"):
            preprocess.segments(recorded(signal), wanted(leads))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s + 300,  # an electrode's offset
        lambda s: s * 0,
        lambda s: np.where(np.arange(len(s))[:, None] == 3, 0, s),  # one flat lead
        lambda s: np.where(np.arange(len(s))[:, None] == 3, np.sign(s) * 32.767, s),  # one from rail to rail
        lambda s: np.where(
            np.arange(s.shape[1]) % 500 == 7, 1000, s
        ),  # spikes, of a pacemaker or a converter
    ],
)
def test_offsets_flat_leads_and_noise_are_not(change):
    assert len(preprocess.segments(recorded(change(beats(12, 2000))), wanted(12))) == 2


def test_one_lead_in_other_units_is_refused():
    signal = beats(12, 2000)
    signal[4] *= 1000
    with pytest.raises(Unusable, match="aVL spans"):
        preprocess.segments(recorded(signal), wanted(12))
    assert len(preprocess.segments(recorded(signal), wanted(3))) == 2  # it is not asked for


def beats(leads, samples):
    """Spikes of 1 mV, with noise of 0.02 mV."""
    rng = np.random.default_rng(1)
    spikes = np.where(np.arange(samples) % 400 < 20, 1.0, 0.0)
    return rng.normal(0, 0.02, (leads, samples)) + spikes * np.linspace(0.5, 1.5, leads)[:, None]


def test_every_real_recording_is_in_range(real_data):
    found = [path for folder in ("cinc2021", "wfdb") for path in readers.find(real_data / folder)[0]]
    found += [real_data / "ptbxl" / "records500" / "11000" / "11813_hr"]  # has a lead at its rails
    for path in found:
        recording = readers.read_recording(path)
        preprocess.check_range(np.nan_to_num(recording.signal), recording.leads)
