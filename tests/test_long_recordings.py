"""Long recordings: opened without reading the signal, read in parts, segments, and the rate over time."""

import math

import numpy as np
import pytest
import wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.readers import stored
from ecgbyte_cli.readers.recording import Unusable
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.long_recordings import StoredSegments, is_stored
from ecgbyte_cli.signal.measure import heart_rate, measure

FS, SECONDS = 250, 130
SETTINGS = {
    "leads": ["II", "V1"],
    "fs": 100,
    "segment_seconds": 10.0,
    "samples": 1000,
    "profile": "resample",
    "fill_nan": None,
}


@pytest.fixture(autouse=True)
def short_is_long(monkeypatch):
    monkeypatch.setattr(stored, "LONG_SECONDS", 100.0)


def beats(rate=72.0):
    """Two leads with a beat every 60 / rate s."""
    time = np.arange(FS * SECONDS) / FS
    phase = (time % (60 / rate)) - 0.3
    beat = np.exp(-(phase**2) / (2 * 0.012**2)) + 0.2 * np.exp(-((phase - 0.25) ** 2) / (2 * 0.04**2))
    return np.stack([beat, -0.7 * beat]) + 0.01 * np.random.default_rng(0).standard_normal((2, time.size))


def write_wfdb(folder, form="16", signal=None):
    wfdb.wrsamp(
        *("long", FS, ["mV"] * 2, ["II", "V1"], (beats() if signal is None else signal).T),
        fmt=[form] * 2,
        adc_gain=[200.0] * 2,
        baseline=[0] * 2,
        write_dir=str(folder),
    )
    return folder / "long.hea"


def write_edf(folder):
    """Write EDF of 1 s in a record, 1 uV steps of 0.2."""
    fields = [("II", "V1"), ("", ""), ("mV", "mV"), ("-5", "-5"), ("5", "5"), ("-32768",) * 2, ("32767",) * 2]
    fields += [("", ""), (str(FS),) * 2, ("", "")]
    widths = [16, 80, 8, 8, 8, 8, 8, 80, 8, 32]
    head = b"0       " + b" " * 160 + b"01.05.2409.30.00" + b"768".ljust(8) + b" " * 44
    head += str(SECONDS).encode().ljust(8) + b"1".ljust(8) + b"2".ljust(4)
    head += b"".join(
        one.encode().ljust(width) for pair, width in zip(fields, widths, strict=True) for one in pair
    )
    digital = np.rint((beats() + 5) / 10 * 65535 - 32768).astype("<i2").reshape(2, SECONDS, FS)
    (folder / "long.edf").write_bytes(head + digital.transpose(1, 0, 2).tobytes())
    return folder / "long.edf"


@pytest.mark.parametrize("form", ["16", "24", "32", "61", "80", "160", "212", "310", "311"])
def test_parts_of_wfdb_equal_those_of_the_whole(tmp_path, form):
    bytes_of_two = {
        "16": 4,
        "24": 6,
        "32": 8,
        "61": 4,
        "80": 2,
        "160": 4,
        "212": 3,
        "310": 8 / 3,
        "311": 8 / 3,
    }
    stored_bytes = np.random.default_rng(0).bytes(math.ceil(bytes_of_two[form] * FS * SECONDS) + 8)
    (tmp_path / "long.dat").write_bytes(stored_bytes)
    lines = [f"long.dat {form}+8 200(3)/mV 12 0 0 0 0 {lead}\n" for lead in ("II", "V1")]
    path = tmp_path / "long.hea"
    path.write_text(f"long 2 {FS} {FS * SECONDS}\n{''.join(lines)}")
    whole, opened = readers.read_recording(path), readers.read_recording(path, parts=True)
    assert is_stored(opened) and not is_stored(whole) and opened.signal.nbytes == 0
    assert opened.signal.shape == whole.signal.shape and opened.leads == whole.leads
    for first, stop in ((0, 10), (1, 2), (333, 1001), (32_490, 99_999), (7, 7)):
        assert np.array_equal(opened.signal[:, first:stop], whole.signal[:, first:stop], equal_nan=True)
        assert np.array_equal(opened.signal[1, first:stop], whole.signal[1, first:stop], equal_nan=True)
    assert np.array_equal(opened.part(3.3, 7).signal, whole.part(3.3, 7).signal, equal_nan=True)


def test_parts_of_edf_equal_those_of_the_whole(tmp_path):
    path = write_edf(tmp_path)
    whole, opened = readers.read_recording(path), readers.read_recording(path, parts=True)
    assert is_stored(opened) and opened.start == whole.start and opened.fs == whole.fs == FS
    for first, stop in ((0, 10), (249, 251), (333, 1001), (32_490, 99_999)):
        assert np.array_equal(opened.signal[:, first:stop], whole.signal[:, first:stop])


def test_a_length_that_the_header_does_not_state_is_that_of_the_file(tmp_path):
    path = write_wfdb(tmp_path, "212")
    path.write_text(path.read_text().replace(f" {FS * SECONDS}\n", "\n", 1))
    opened = readers.read_recording(path, parts=True)
    assert is_stored(opened) and opened.signal.shape == (2, FS * SECONDS)


def test_more_than_a_whole_recording_may_have_is_opened(tmp_path, monkeypatch):
    path = write_wfdb(tmp_path)
    monkeypatch.setattr(readers.recording.limits, "SAMPLES", 20_000)
    with pytest.raises(Unusable, match="too large"):
        readers.read_recording(path)
    assert readers.read_recording(path, parts=True).part(60, 70).signal.shape == (2, 10 * FS)


def test_a_file_that_is_too_short_is_refused(tmp_path):
    path = write_wfdb(tmp_path)
    opened = readers.read_recording(path, parts=True)
    data = path.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:-100])
    for read in (lambda: readers.read_recording(path, parts=True), lambda: opened.part(SECONDS - 1, SECONDS)):
        with pytest.raises(Unusable, match="truncated"):
            read()


@pytest.mark.parametrize("profile", ["resample", "paper"])
def test_segments_are_those_of_the_whole(tmp_path, profile):
    path, settings = write_wfdb(tmp_path), SETTINGS | {"profile": profile}
    expected = preprocess.segments(readers.read_recording(path), settings)
    segments = StoredSegments(readers.read_recording(path, parts=True), settings)
    assert len(segments) == len(expected) == 13
    for number in (0, 6, 12):
        start, signal = segments[number]
        assert start == expected[number][0] and signal.dtype == np.float32
        # the paper's wavelet threshold depends on the whole signal
        near = 1e-3 if profile == "resample" else 0.03
        assert np.sqrt(((signal - expected[number][1]) ** 2).mean()) < near
    with pytest.raises(IndexError):
        segments[13]


def test_the_first_segment_is_one_that_can_be_used(tmp_path):
    signal = beats()
    signal[:, : 25 * FS] = np.nan
    segments = StoredSegments(
        readers.read_recording(write_wfdb(tmp_path, signal=signal), parts=True), SETTINGS
    )
    with pytest.raises(Unusable, match="missing"):
        segments[2]
    assert segments.first() == 3 and np.isfinite(segments[3][1]).all()


def test_the_heart_rate_is_that_of_the_measurement(tmp_path):
    part = readers.read_recording(write_wfdb(tmp_path), parts=True).part(40, 55)
    assert heart_rate(part) == pytest.approx(72, abs=0.5)
    assert heart_rate(part) == pytest.approx(measure(part).rate_bpm)
    part.signal[:] = 0
    assert heart_rate(part) is None
