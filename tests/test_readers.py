import os
import re
import socket
from collections import Counter
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import Recording, Unusable, limits, wfdb_header
from ecgbyte_cli.readers.formats import EXTENSIONS, FORMATS, Format
from ecgbyte_cli.signal import preprocess

LEADS = preprocess.LEADS


def wave(leads=12, samples=1500, seed=0):
    """Something like drifting ECG leads, (leads, samples) in mV."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0, 0.05, (leads, samples)).cumsum(axis=1), -3, 3)


def write_wfdb(folder, name="rec", signal=None, leads=LEADS, fs=250, fmt="16", gain=1000, units="mV", **more):
    signal = wave(len(leads)) if signal is None else signal
    many = len(leads)
    wfdb.wrsamp(
        name,
        fs=fs,
        units=[units] * many,
        sig_name=list(leads),
        p_signal=signal.T,
        fmt=[fmt] * many,
        adc_gain=[gain] * many,
        baseline=[0] * many,
        write_dir=str(folder),
        **more,
    )
    return signal


def reason(path, **options):
    with pytest.raises(Unusable) as error:
        readers.read_recording(path, **options)
    return error.value.message


# WFDB


@pytest.mark.parametrize("fmt, gain", [("16", 1000), ("212", 200), ("24", 10000), ("32", 10000), ("80", 40)])
def test_wfdb_storage_formats(tmp_path, fmt, gain):
    signal = write_wfdb(tmp_path, fmt=fmt, gain=gain, comments=["Patient: P7", "Split: val"])
    read = readers.read_recording(tmp_path / "rec")
    assert read.signal.dtype == np.float32 and read.signal.shape == (12, 1500)
    assert np.abs(read.signal - signal).max() <= 0.51 / gain
    assert (read.fs, read.leads, read.name) == (250, LEADS, "rec")
    assert read.comment("patient") == "P7" and read.comment("split") == "val" and read.comment("age") is None


@pytest.mark.parametrize("units, scale", [("uV", 1000), ("mV", 1), ("V", 0.001), ("mv", 1)])
def test_wfdb_units(tmp_path, units, scale):
    signal = wave()
    write_wfdb(tmp_path, signal=signal * scale, units=units, gain=1000 / scale)
    assert np.allclose(readers.read_recording(tmp_path / "rec").signal, signal, atol=6e-4)


def test_the_short_way_reads_what_wfdb_reads(real_data):
    found = [path for folder in ("cinc2021", "wfdb") for path in readers.find(real_data / folder)[0]]
    for path in [*found, *readers.find(real_data / "ptbxl" / "records500" / "00000")[0][:5]]:
        ours, theirs = readers.read_recording(path), wfdb.rdrecord(path[: -len(".hea")])
        keep = [i for i, unit in enumerate(theirs.units) if unit.lower() in ("mv", "uv", "v")]
        assert ours.fs == theirs.fs and ours.leads == [theirs.sig_name[i] for i in keep]
        assert np.allclose(ours.signal, theirs.p_signal[:, keep].T, rtol=1e-6, atol=1e-6)
        assert ours.comments == [line.strip() for line in theirs.comments]


def test_header_defaults_and_missing_samples(tmp_path):
    digital = np.array([[10, 400], [-32768, 0], [30, -200]], "<i2")
    digital.tofile(tmp_path / "d.dat")
    # gain 0 means 200; no baseline means the ADC's zero; -32768 is a missing sample
    (tmp_path / "d.hea").write_text(
        "d 2 360 3 08:05:01 24/12/1999\nd.dat 16 0 11 10 0 0 0 MLII\nd.dat 16 100(200)/uV 11 0 0 0 0 V5\n# x\n"
    )
    read, theirs = readers.read_recording(tmp_path / "d"), wfdb.rdrecord(str(tmp_path / "d"))
    assert np.allclose(read.signal[0], [0, np.nan, 0.1], equal_nan=True)
    assert np.allclose(read.signal[1], [0.002, -0.002, -0.004])
    assert np.allclose(read.signal, theirs.p_signal.T * [[1], [1e-3]], equal_nan=True)
    assert read.start == theirs.base_datetime == datetime(1999, 12, 24, 8, 5, 1)


def test_a_lead_without_volts_is_left_out(real_data):
    assert readers.read_recording(real_data / "wfdb" / "a103l").leads == ["II", "V"]


def test_several_signal_files(real_data):
    read = readers.read_recording(real_data / "wfdb" / "s0010_re")
    assert read.leads[:2] == ["i", "ii"] and read.leads[-1] == "vz" and read.signal.shape == (15, 38400)


def write_segmented(folder):
    a, b = wave(2, 700, 1), wave(2, 500, 2)
    write_wfdb(folder, "part1", a, ["I", "II"])
    write_wfdb(folder, "part2", b, ["I", "II"])
    (folder / "multi.hea").write_text("multi/2 2 250 1200\npart1 700\npart2 500\n")
    return np.hstack([a, b])


def test_segments_of_a_record_are_read_with_it_and_not_again(tmp_path):
    signal = write_segmented(tmp_path)
    found, skipped = readers.find(tmp_path)
    assert [os.path.basename(path) for path in found] == ["multi.hea"]
    assert [(os.path.basename(path), text[:21]) for path, text in skipped] == [
        ("part1.hea", "part of another recor"),
        ("part2.hea", "part of another recor"),
    ]
    read = readers.read_recording(found[0])
    assert read.leads == ["I", "II"] and np.abs(read.signal - signal).max() < 6e-4


def test_a_gap_between_segments_is_missing_samples(tmp_path):
    signal = write_segmented(tmp_path)
    (tmp_path / "part2.hea").write_text((tmp_path / "part2.hea").read_text().replace("0 II", "0 V"))
    (tmp_path / "v.hea").write_text("v/4 3 250 1500\nv_layout 0\npart1 700\n~ 300\npart2 500\n")
    line = "~ 0 1000/mV 16 0 0 0 0 "
    (tmp_path / "v_layout.hea").write_text(f"v_layout 3 250 0\n{line}I\n{line}II\n{line}V\n")
    read = readers.read_recording(tmp_path / "v")
    assert read.leads == ["I", "II", "V"] and read.signal.shape == (3, 1500)
    nothing = np.full((2, 300), np.nan)
    assert np.allclose(
        read.signal[0], np.concatenate([signal[0, :700], nothing[0], signal[0, 700:]]), 0, 6e-4, True
    )
    assert np.isnan(read.signal[1, 700:]).all() and np.isnan(read.signal[2, :1000]).all()
    assert np.allclose(read.signal[2, 1000:], signal[1, 700:], 0, 6e-4)


MICRO, MU = "\u00b5V", "\u03bcV"  # two letters that look alike


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80", "516"])
@pytest.mark.parametrize(
    "sign, encoding", [(MICRO, "utf-8"), (MICRO, "latin-1"), (MU, "utf-8"), ("UV", "ascii")]
)
def test_a_micro_sign_is_read_in_any_storage_format(tmp_path, fmt, sign, encoding):
    gain = 0.04 if fmt == "80" else 0.2
    signal = wave(2)
    write_wfdb(tmp_path, signal=signal * 1000, leads=["I", "II"], units="uV", fmt=fmt, gain=gain)
    header = (tmp_path / "rec.hea").read_text().replace("/uV", f"/{sign}")
    (tmp_path / "rec.hea").write_bytes(
        f"{header}# Größe: 1\n".encode(encoding if sign != "UV" else "latin-1")
    )
    read = readers.read_recording(tmp_path / "rec")
    assert np.abs(read.signal - signal).max() <= 0.51e-3 / gain and read.comment("größe") == "1"


@pytest.mark.parametrize("form", [8, 16, 24, 32, 61, 80, 160, 212, 310, 311])
@pytest.mark.parametrize("frames", [(1, 1), (1, 1, 1), (2, 2), (3, 3, 3)])
def test_any_bytes_are_read_as_wfdb_reads_them(tmp_path, form, frames):
    rng = np.random.default_rng(form)
    data = rng.integers(0, 256, 6000, np.uint8)
    if form == 311:
        data[3::4] &= 63  # wfdb lets the two bits that are not used through
    (tmp_path / "x.dat").write_bytes(data.tobytes())
    lines = [f"x.dat {form}x{frame}+12 200(7)/mV 16 0 {i * 5} 0 0 lead {i}" for i, frame in enumerate(frames)]
    (tmp_path / "x.hea").write_text("\n".join([f"x {len(frames)} 100 150", *lines]))
    read, theirs = (
        readers.read_recording(tmp_path / "x"),
        wfdb.rdrecord(str(tmp_path / "x"), smooth_frames=False),
    )
    assert read.fs == 100 * frames[0] and read.leads == theirs.sig_name
    assert np.allclose(read.signal, theirs.e_p_signal, 1e-6, 1e-6, True)


def test_signals_of_several_rates(tmp_path):
    signal = wave(4, 2000)
    rates = [4, 4, 1, 2]
    more = {"samps_per_frame": rates, "fmt": ["16"] * 4, "adc_gain": [1000.0] * 4, "baseline": [0] * 4}
    rows = [np.round(row[: 500 * rate] * 1000).astype(int) for row, rate in zip(signal, rates, strict=True)]
    units = ["mV", "mV", "mV", "NU"]
    names = ["I", "II", "resp", "pleth"]
    wfdb.wrsamp("m", 62.5, units, names, e_d_signal=rows, write_dir=str(tmp_path), **more)
    read = readers.read_recording(tmp_path / "m")
    assert read.fs == 250 and read.leads == ["I", "II"] and np.abs(read.signal - signal[:2]).max() <= 0.51e-3


def test_skew_is_taken_out_or_refused(tmp_path):
    signal = write_wfdb(tmp_path, signal=wave(2), leads=["I", "II"])
    header = (tmp_path / "rec.hea").read_text()
    (tmp_path / "rec.hea").write_text(header.replace("rec.dat 16 ", "rec.dat 16:9 ", 1))
    read = readers.read_recording(tmp_path / "rec")
    assert np.abs(read.signal[0, :-9] - signal[0, 9:]).max() < 6e-4 and np.isnan(read.signal[0, -9:]).all()
    assert np.abs(read.signal[1] - signal[1]).max() < 6e-4
    for skew in (1500, 10**9):
        (tmp_path / "rec.hea").write_text(header.replace("rec.dat 16 ", f"rec.dat 16:{skew} ", 1))
        assert "skew" in reason(tmp_path / "rec")


@pytest.mark.parametrize(
    "when", ["00:00:00 00/00/0000", "25:61:00 01/01/2020", "12:00:00", "x y", "10:00:00.5 1/2/2020"]
)
def test_no_date_refuses_a_signal(tmp_path, when):
    signal = write_wfdb(tmp_path, signal=wave(2), leads=["I", "II"], fmt="212", gain=200)
    header = (tmp_path / "rec.hea").read_text()
    (tmp_path / "rec.hea").write_text(header.replace("250 1500", f"250 1500 {when}"))
    read = readers.read_recording(tmp_path / "rec")
    assert np.abs(read.signal - signal).max() < 6e-3
    assert read.start == (datetime(2020, 2, 1, 10) if when.endswith("1/2/2020") else None)


@pytest.mark.parametrize(
    "gain", ["nan/mV", "inf(0)/mV", "1e999/mV", "0x10/mV", "1,000/mV", "1e-300/mV", "1000(a)/mV"]
)
def test_a_gain_that_is_no_number_is_refused(tmp_path, gain):
    write_wfdb(tmp_path, leads=["I"])
    header = (tmp_path / "rec.hea").read_text()
    (tmp_path / "rec.hea").write_text(re.sub(r"1000\S+/mV", gain, header))
    assert "gain" in reason(tmp_path / "rec")


numbers = st.integers(-(10**6), 10**6)


@given(
    st.tuples(
        st.sampled_from(["16", "212", "80"]), st.integers(1, 9), st.integers(0, 9), st.integers(0, 999)
    ),
    st.tuples(st.floats(1e-3, 1e6), numbers, st.sampled_from(["mV", "uV", "mmHg", "NU", "%"])),
    st.lists(numbers, max_size=5),
    st.sampled_from(["MLII", "ECG lead I", "a (b) c", "V"]),
)
def test_a_signals_line_is_read_as_wfdb_reads_it(shape, scale, integers, name):
    form, frame, skew, offset = shape
    # resolution and block size are not negative
    integers = [abs(n) if i in (0, 4) else n for i, n in enumerate(integers)]
    line = f"x.dat {form}x{frame}:{skew}+{offset} {scale[0]!r}({scale[1]})/{scale[2]} {' '.join(map(str, integers))}"
    if len(integers) == 5:
        line = f"{line} {name}"
    ours = wfdb_header._signal(line.encode())
    theirs = {key: value[0] for key, value in wfdb.io._header._parse_signal_lines([line]).items()}
    assert (ours.file, ours.form, ours.frame, ours.skew, ours.offset) == (
        "x.dat",
        int(form),
        frame,
        skew,
        offset,
    )
    assert (ours.gain, ours.baseline, ours.unit) == (theirs["adc_gain"], theirs["baseline"], theirs["units"])
    assert ours.initial == (theirs["init_value"] or 0) and ours.name == (theirs["sig_name"] or "")


@pytest.mark.parametrize(
    "line",
    [
        "r 1 " + "1" * 10**6,
        "r" * 10**6 + " 1 250",
        "r 1 250" + " " * 10**6 + "x",
        "r 1 250 10\nr.dat 16 " + "1" * 4000,
    ]
    + ["r 1 250 10\nr.dat 16 200 " + "0 " * 2000, "r 1 250 10\nr.dat 16 200(" + "(" * 4000]
    + ["r 500 250 10\n" + ("r.dat 16 200" + " " * 4000 + "x\n") * 500, "r 1 250 10\n" + "\n" * 10**6],
    ids=range(8),
)
def test_no_header_takes_long(tmp_path, line):
    (tmp_path / "r.hea").write_text(line)
    started = process_time()
    assert reason(tmp_path / "r.hea")
    assert process_time() - started < 1


def test_a_segment_in_other_units(tmp_path):
    signal = write_segmented(tmp_path)
    second = (tmp_path / "part2.hea").read_text()
    (tmp_path / "part2.hea").write_bytes(second.replace("/mV", f"/{MICRO}").encode("latin-1"))
    read = readers.read_recording(tmp_path / "multi")
    assert np.abs(read.signal[:, :700] - signal[:, :700]).max() < 6e-4
    assert np.abs(read.signal[:, 700:] * 1000 - signal[:, 700:]).max() < 6e-4
    (tmp_path / "part2.hea").write_text(second.replace(" 250 ", " 500 "))
    assert "does not match its header" in reason(tmp_path / "multi")


PLAIN = "r 2 250 1000\nr.dat 16 1000/mV 16 0 0 0 0 I\nr.dat 16 1000/mV 16 0 0 0 0 II\n"


@pytest.mark.parametrize(
    "header, expected",
    [
        ("", "header empty"),
        ("# only a comment\n", "header empty"),
        (PLAIN.replace("r.dat", "gone.dat"), "signal file missing: gone.dat"),
        (PLAIN.replace("250 1000", "250 1001"), "signal file truncated: 4000 of 4004 bytes"),
        (PLAIN.replace("r.dat", "../r.dat"), "outside its folder"),
        (PLAIN.replace("r.dat", "/etc/passwd"), "outside its folder"),
        (PLAIN.replace("r.dat", "s3://bucket/r.dat"), "outside its folder"),
        (PLAIN.replace("250 1000", "250 1000000000"), "too large|truncated"),
        (PLAIN.replace("r 2", "r 1000000000"), "header|cannot be read"),
        (
            PLAIN.replace("r.dat 16 ", "r.dat 212 ").replace("250 1000", "250 900000000"),
            "too large|truncated",
        ),
        (PLAIN.replace("r.dat 16 ", "r.dat 24 "), "truncated"),
        (PLAIN.replace("/mV", "/mmHg"), "no leads in volts"),
        ("r/2 2 250 2000\n../r 1000\nr 1000\n", "outside its folder"),
        ("r/1 2 250 1000\nr 1000\n", "does not match its header"),
        ("r/9 2 250 2000000000\nr 1000\n", "not as many"),
        ("r/1000000000 2 250 1000\nr 1000\n", "not as many"),
        ("r/1 2 250 900\nr 900\n", "does not match its header"),
        ("\0\1\2", "cannot be read|header"),
    ],
)
def test_a_header_is_not_believed(tmp_path, header, expected):
    (tmp_path / "in").mkdir()
    np.zeros(2000, "<i2").tofile(tmp_path / "in" / "r.dat")
    np.zeros(2000, "<i2").tofile(tmp_path / "r.dat")
    (tmp_path / "r.hea").write_text(PLAIN)
    (tmp_path / "in" / "r.hea").write_text(header)
    assert re.search(expected, reason(tmp_path / "in" / "r.hea"))


# Other formats


def write_edf(path, signal, fs=250, labels=LEADS, unit="mV"):
    import edfio

    kind = edfio.Bdf if path.suffix == ".bdf" else edfio.Edf
    single = edfio.BdfSignal if path.suffix == ".bdf" else edfio.EdfSignal
    kind(
        [
            single(row, fs, label=label, physical_dimension=unit, physical_range=(-4, 4))
            for row, label in zip(signal, labels, strict=True)
        ],
        patient=edfio.Patient(code="P12"),
        recording=edfio.Recording(startdate=date(2020, 1, 2)),
        starttime=clock(3, 4, 5),
        annotations=[edfio.EdfAnnotation(1, None, "beat")],
    ).write(path)


@pytest.mark.parametrize("kind", [".edf", ".bdf"])
def test_edf(tmp_path, kind):
    signal = wave()
    write_edf(tmp_path / f"e{kind}", signal, labels=[f"ECG {lead}" for lead in LEADS])
    read = readers.read_recording(tmp_path / "e")
    assert np.abs(read.signal - signal).max() <= 8 / 2 ** (24 if kind == ".bdf" else 16)
    assert read.fs == 250 and [readers.lead_name(name) for name in read.leads] == LEADS
    assert readers.patient_of(read) == "P12" and read.start == datetime(2020, 1, 2, 3, 4, 5)


def test_edf_with_other_signals_and_a_wrong_length(tmp_path):
    import edfio

    path, row = tmp_path / "mixed.edf", wave(1)[0]
    signals = [
        edfio.EdfSignal(row, 250, label="II", physical_dimension="mV", physical_range=(-4, 4)),
        edfio.EdfSignal(row * 1000, 250, label="I", physical_dimension="uV", physical_range=(-4000, 4000)),
        edfio.EdfSignal(row[::10].copy(), 25, label="resp", physical_dimension="mV", physical_range=(-4, 4)),
        edfio.EdfSignal(row, 250, label="SpO2", physical_dimension="%", physical_range=(-4, 4)),
    ]
    edfio.Edf(signals).write(path)
    read = readers.read_recording(path)
    assert read.leads == ["II", "I"] and np.allclose(read.signal, row, atol=2e-4)
    path.write_bytes(path.read_bytes()[:-100])
    assert reason(path).startswith("signal file truncated")


def test_dicom():
    from pydicom.data import get_testdata_file

    path = get_testdata_file("waveform_ecg.dcm", download=False)
    read = readers.read_recording(path)
    assert read.signal.shape == (12, 10000) and read.fs == 1000
    assert [readers.lead_name(name) for name in read.leads] == LEADS
    # 1.25 uV a step, and Einthoven holds to a step
    steps = read.signal / 0.00125
    assert np.allclose(steps, np.round(steps), atol=1e-2)
    assert np.abs(read.signal[1] - read.signal[0] - read.signal[2]).max() <= 0.0026
    assert 0.5 < np.abs(read.signal).max() < 5 and readers.patient_of(read) == "642341"


def edf_field(path, field, text, signal=0):
    """Overwrite a field of an EDF header: by its place, or of a signal by its name."""
    from ecgbyte_cli.readers.edf import FIELDS

    data = bytearray(path.read_bytes())
    if isinstance(field, str):
        names = list(FIELDS)
        width = FIELDS[field]
        field = (
            256 + int(data[252:256]) * sum(FIELDS[n] for n in names[: names.index(field)]) + signal * width
        )
    data[field : field + len(text)] = text
    path.write_bytes(data)


@pytest.mark.parametrize("field", ["physical_min", "physical_max", "digital_min", "digital_max"])
@pytest.mark.parametrize(
    "text", [b"nan     ", b"abc     ", b"        ", b"1e999   ", b"-,      ", b"1.2.3   ", b"\xb2       "]
)
def test_an_edf_calibration_that_is_no_number_is_refused(tmp_path, field, text):
    write_edf(tmp_path / "e.edf", wave(2), labels=["I", "II"])
    edf_field(tmp_path / "e.edf", field, text, 1)
    assert "not a number" in reason(tmp_path / "e.edf") or "out of range" in reason(tmp_path / "e.edf")


def test_an_edf_calibration_without_a_span_is_refused_and_a_comma_understood(tmp_path):
    signal = wave(2)
    write_edf(tmp_path / "e.edf", signal, labels=["I", "II"])
    edf_field(tmp_path / "e.edf", "physical_min", b"-4,0    ", 0)
    assert np.abs(readers.read_recording(tmp_path / "e.edf").signal - signal).max() < 2e-4
    edf_field(tmp_path / "e.edf", "physical_min", b"4       ", 0)
    assert "no span" in reason(tmp_path / "e.edf")
    write_edf(tmp_path / "e.edf", signal, labels=["I", "II"])
    edf_field(tmp_path / "e.edf", "digital_min", b"32767   ", 1)
    assert "no span" in reason(tmp_path / "e.edf")


@pytest.mark.parametrize("unit", [b"\xb5V", "µV".encode(), "μV".encode(), b"uV"])
def test_a_micro_sign_in_edf(tmp_path, unit):
    signal = wave(2)
    write_edf(tmp_path / "e.edf", signal, labels=["I", "II"])
    for i in (0, 1):
        edf_field(tmp_path / "e.edf", "unit", unit.ljust(8), i)
    assert np.abs(readers.read_recording(tmp_path / "e.edf").signal * 1000 - signal).max() < 2e-4


@pytest.mark.parametrize("day", [b"00.00.00", b"99.99.99", b"        ", b"\xff" * 8])
def test_no_date_refuses_an_edf_signal(tmp_path, day):
    write_edf(tmp_path / "e.edf", wave(2), labels=["I", "II"])
    edf_field(tmp_path / "e.edf", 168, day)
    edf_field(tmp_path / "e.edf", 88, b"Startdate 99-XXX-9999")
    read = readers.read_recording(tmp_path / "e.edf")
    assert read.start is None and read.signal.shape == (2, 1500)


@pytest.fixture
def dicom(tmp_path):
    """The DICOM file that comes with pydicom; `save` writes it as it is then, and gives its path."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    read = pydicom.dcmread(get_testdata_file("waveform_ecg.dcm", download=False))
    read.save = lambda: read.save_as(tmp_path / "d.dcm") or tmp_path / "d.dcm"
    return read


@pytest.mark.parametrize(
    "name", ["ChannelSensitivity", "ChannelSensitivityCorrectionFactor", "ChannelBaseline"]
)
@pytest.mark.parametrize("value", ["0", "nan", "inf", None])
def test_a_dicom_calibration_that_is_none_is_refused(dicom, name, value):
    import pydicom

    channel = dicom.WaveformSequence[0].ChannelDefinitionSequence[3]
    with pydicom.config.disable_value_validation():
        setattr(channel, name, value)
        path = dicom.save()
    fine = name == "ChannelBaseline" and value in ("0", None)
    fine |= name == "ChannelSensitivityCorrectionFactor" and value is None
    if fine:
        assert readers.read_recording(path).signal.shape == (12, 10000)
    else:
        assert re.search("sensitivity|calibration factor", reason(path))


def test_a_dicom_file_of_too_much_is_refused(dicom, monkeypatch):
    channels = dicom.WaveformSequence[0].ChannelDefinitionSequence
    dicom.WaveformSequence[0].WaveformSampleInterpretation = "MB"
    assert "companded" in reason(dicom.save())
    monkeypatch.setattr(limits, "DICOM_ELEMENTS", 2000)
    channels.extend([channels[0]] * 200)
    assert "elements" in reason(dicom.save())


@pytest.mark.parametrize("mark, kind", [(",", ".csv"), ("\t", ".tsv")])
def test_csv(tmp_path, mark, kind):
    signal = wave(3, 40).round(4)
    lines = [mark.join(["time", "ii", "I", "note", "V1"])]
    for i, (a, b, c) in enumerate(signal.T):
        lines.append(mark.join([str(i / 500), "" if i == 7 else f"{a:.4f}", f"{b:.4f}", "x", f"{c:.4f}"]))
    (tmp_path / f"t{kind}").write_text("\n".join(lines) + "\n")
    read = readers.read_recording(tmp_path / "t", fs=500)
    assert read.fs == 500 and read.leads == ["ii", "I", "V1"]
    signal[0, 7] = np.nan
    assert np.allclose(read.signal, signal, atol=1e-6, equal_nan=True)
    assert readers.read_recording(tmp_path / "t").fs == 500


def write_csv(path, names, signal, more=(), encoding="utf-8"):
    rows = [",".join(names), *more, *(",".join(f"{v:.5f}" for v in row) for row in signal.T)]
    path.write_bytes("\n".join(rows).encode(encoding))


@pytest.mark.parametrize(
    "pattern, scale",
    [
        ("{} (uV)", 1e-3),
        ("{} [µV]", 1e-3),
        ("{}[mV]", 1),
        ("{}/mV", 1),
        ("{}_uV", 1e-3),
        ("{} V", 1e3),
        ("{} (V)", 1e3),
    ]
    + [
        ("{}_mv", 1),
        ("{}.uV", 1e-3),
        ("{} {{nV}}", 1e-6),
        ("ECG {} (microvolts)", 1e-3),
        ("{} (Wilson)", 1),
        ("{}", 1),
    ]
    + [("{} (adu)", None), ("{} [counts]", None), ("{}/mmHg", None), ("{} (%)", None), ("{} ()", None)],
)
def test_a_unit_in_a_columns_name_is_honoured(tmp_path, pattern, scale):
    signal = wave(3, 200)
    write_csv(
        tmp_path / "t.csv", [pattern.format(lead) for lead in ("I", "aVR", "V1")], signal / (scale or 1)
    )
    if scale is None:
        assert reason(tmp_path / "t", fs=500) == "no leads in volts"
    else:
        read = readers.read_recording(tmp_path / "t", 500, units="mV")  # what the file says goes before
        assert [readers.lead_name(name) for name in read.leads] == ["I", "aVR", "V1"]
        assert np.abs(read.signal - signal).max() <= max(1e-5 * scale, 1e-5)


@pytest.mark.parametrize(
    "units", ["uV,uV,mmHg,s", "'uV','uV','%',''", "(µV),(µV),(bpm),(s)", "[uV],[uV],[],[ms]"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_line_of_units(tmp_path, units, encoding):
    signal = wave(4, 200)
    write_csv(tmp_path / "t.csv", ["I", "II", "ABP", "beat"], signal * 1000, [units], encoding)
    read = readers.read_recording(tmp_path / "t", 500)
    assert read.leads == ["I", "II"] and np.allclose(read.signal, signal[:2], atol=1e-5)


@pytest.mark.parametrize("units, scale", [(None, 1), ("mV", 1), ("uV", 1e-3), ("V", 1e3)])
def test_units_of_files_that_say_none(tmp_path, units, scale):
    h5py = pytest.importorskip("h5py")
    signal = wave(12, 300)
    write_csv(tmp_path / "a.csv", LEADS, signal)
    np.save(tmp_path / "b.npy", signal)
    np.savez(tmp_path / "c.npz", signal=signal)
    np.savez(tmp_path / "d.npz", signal=signal, units="mV")
    np.savez(tmp_path / "e.npz", signal=signal, units=["mV"] * 6 + ["mmHg"] * 6)
    for name, said in (("f.h5", None), ("g.h5", "mV")):
        with h5py.File(tmp_path / name, "w") as file:
            file["tracings"] = signal.T[None]
            if said:
                file["tracings"].attrs["unit"] = said
    for name in ("a.csv", "b.npy", "c.npz", "f.h5"):
        assert np.allclose(
            readers.read_recording(tmp_path / name, 500, units=units).signal,
            signal * scale,
            1e-4,
            1e-4 * scale,
        )
    for name in ("d.npz", "g.h5"):
        assert np.allclose(
            readers.read_recording(tmp_path / name, 500, units=units).signal, signal, 1e-4, 1e-4
        )
    assert readers.read_recording(tmp_path / "e.npz", 500).leads == LEADS[:6]


def test_numpy(tmp_path):
    signal = wave()
    np.save(tmp_path / "a.npy", signal)
    np.save(tmp_path / "b.npy", signal.T.astype(np.float32))
    np.savez_compressed(tmp_path / "c.npz", signal=signal[:2], fs=500, leads=["II", "V1"])
    for name in ("a.npy", "b.npy"):
        read = readers.read_recording(tmp_path / name, fs=250)
        assert np.allclose(read.signal, signal, atol=1e-6) and read.leads == LEADS and read.fs == 250
    read = readers.read_recording(tmp_path / "c.npz")
    assert np.allclose(read.signal, signal[:2], atol=1e-6) and read.leads == ["II", "V1"] and read.fs == 500
    np.save(tmp_path / "d.npy", signal[:3])
    assert readers.read_recording(tmp_path / "d.npy", 250, ["a", "b", "c"]).leads == ["a", "b", "c"]
    assert "--lead-names" in reason(tmp_path / "d.npy", fs=250)
    np.save(tmp_path / "e.npy", np.array([{}], object), allow_pickle=True)
    assert "cannot be read" in reason(tmp_path / "e.npy", fs=250)


@pytest.mark.parametrize(
    ("times", "fine"),
    [
        (np.arange(1500) / 250 + 7, True),
        (np.round(np.arange(1500) * 1000 / 300), True),  # whole ms
        (np.datetime64("2020-01-01", "ms") + 4 * np.arange(1500), True),
        (np.r_[0:700, 701:1501], False),  # a sample is missing
        (np.r_[0:700, 1000:1800], False),
        (np.r_[0:750, 749:1499], False),  # a part comes twice
        (np.r_[0:750, 750:1650:1.2], False),  # another rate
        (np.arange(1500)[::-1], False),
        (np.r_[0:1499, np.nan], False),
        (np.arange(1499), False),
        (np.zeros(1500), False),
    ],
)
def test_times_of_an_array_must_be_evenly_spaced(tmp_path, times, fine):
    import h5py

    np.savez(tmp_path / "a.npz", ecg=wave(), time=times)
    if times.dtype.kind != "M":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["tracings"], file["time"] = wave().T[None], times
        if fine:
            assert readers.read_recording(tmp_path / "a.h5").signal.shape == (12, 1500)
        else:
            assert re.match("samples missing|header refused", reason(tmp_path / "a.h5"))
    if fine:
        assert readers.read_recording(tmp_path / "a.npz", fs=250).signal.shape == (12, 1500)
    else:
        assert re.match("samples missing|header refused", reason(tmp_path / "a.npz", fs=250))


def test_hdf5_as_code15(tmp_path):
    h5py = pytest.importorskip("h5py")
    signal = wave(12, 2800, 3).astype(np.float32)
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[0, 648:3448] = signal.T
    tracings[1, 48:4048] = wave(12, 4000, 4).T
    with h5py.File(tmp_path / "exams.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array([1169160, 2873686, 0])
    found, _ = readers.find(tmp_path)
    assert [path.rpartition("/")[2] for path in found] == [f"exams.hdf5#{row}" for row in range(3)]
    read = readers.read_recording(found[0])
    assert read.fs == 400 and read.name == "1169160" and read.path == found[0]
    assert np.array_equal(read.signal, signal)
    assert readers.read_recording(found[1]).signal.shape == (12, 4000)
    assert reason(found[2]) == "no samples"
    assert "no such row" in reason(tmp_path / "exams.hdf5#3")


def test_hdf5_that_points_elsewhere_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(4096 * 12 * 4))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "tracings", (1, 4096, 12), "f4", external=[(str(tmp_path / "secret"), 0, 4096 * 48)]
        )
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["tracings"] = h5py.ExternalLink("a.h5", "/tracings")
    assert "outside" in reason(tmp_path / "a.h5")
    assert "not an array" in reason(tmp_path / "b.h5")


@pytest.mark.parametrize(
    "kind", ["external link", "soft link", "external storage", "virtual", "too many", "group"]
)
@pytest.mark.parametrize("name", ["tracings", "exam_id"])
def test_every_array_of_hdf5_is_in_its_file(tmp_path, kind, name):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(b"SECRET01" * 2**16)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["tracings"], file["exam_id"] = np.ones((1, 400, 12), "f4"), np.array([b"SECRET"])
    shape, dtype = ((1, 400, 12), "f4") if name == "tracings" else ((1,), "S8")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["tracings"], file["exam_id"] = np.ones((1, 400, 12), "f4"), np.array([b"mine"])
        del file[name]
        if kind == "external link":
            file[name] = h5py.ExternalLink("other.h5", f"/{name}")
        elif kind == "soft link":
            file[name] = h5py.SoftLink("/x")
            file["x"] = h5py.ExternalLink("other.h5", f"/{name}")
        elif kind == "external storage":
            file.create_dataset(name, shape, dtype, external=[(str(tmp_path / "secret"), 0, 2**17)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), name, shape)
            file.create_virtual_dataset(name, layout)
        elif kind == "too many":
            file.create_dataset(name, (2**40, *shape[1:]), dtype, chunks=(1, *shape[1:]))
        else:
            file.create_group(name)
    if name == "tracings":
        assert re.search("points outside|not an array|too large|no samples", reason(tmp_path / "a.h5"))
        assert readers.find(tmp_path / "a.h5")[0] == [str(tmp_path / "a.h5")]
    else:  # names do not refuse a signal
        assert readers.read_recording(tmp_path / "a.h5").name == "a_0"


def test_an_hdf5_file_that_was_written_anew_is_read_anew(tmp_path):
    h5py = pytest.importorskip("h5py")
    for value in (1, 2, 3):
        with h5py.File(tmp_path / "new.hdf5", "w") as file:
            file["tracings"] = np.full((2, 400, 12), value, "f4")
        (tmp_path / "a.h5").write_bytes((tmp_path / "new.hdf5").read_bytes())  # in its place
        os.utime(tmp_path / "a.h5", ns=(value, value))
        for path in readers.find(tmp_path / "a.h5")[0]:
            assert (readers.read_recording(path).signal == value).all()


@pytest.mark.parametrize(
    "shape, chunks", [((1, 2**21, 12), (1, 1, 1)), ((1, 12, 2**21), (1, 1, 1)), ((2**30, 1, 12), (1, 1, 1))]
)
def test_hdf5_of_too_many_chunks_or_rows_is_refused_at_once(tmp_path, shape, chunks):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("tracings", shape, "f4", chunks=chunks)[0, 0, 0] = 1
    started = process_time()
    assert "too large" in reason(tmp_path / "a.h5") and len(readers.find(tmp_path)[0]) == 1
    assert process_time() - started < 2


def test_an_archive_of_many_entries_is_refused_at_once(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(2000):
            archive.writestr(f"{i}.npy", b"")
    assert "too large" in reason(tmp_path / "a.npz", fs=250)
    for empty in ((2**40, 0), (0, 2**40)):
        np.savez(tmp_path / "b.npz", signal=wave(), leads=np.zeros(empty))
        assert "too large" in reason(tmp_path / "b.npz", fs=250)
    np.savez(tmp_path / "b.npz", signal=wave(), leads=np.array(["x" * 10**6] * 12))
    assert "too large" in reason(tmp_path / "b.npz", fs=250)


def test_a_table_of_too_many_rows_or_columns_is_refused_at_once(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"I,II\n" + b"1,1\n" * (limits.TABLE_CELLS // 2 + 1))
    (tmp_path / "b.csv").write_bytes(b"I," * (limits.LEADS + 1))
    (tmp_path / "c.csv").write_bytes(b"I" * 10**7)
    started = process_time()
    for name in "abc":
        assert "too large" in reason(tmp_path / name, fs=250)
    assert process_time() - started < 2


@pytest.mark.parametrize("name", ["x.hea", "x.edf", "x.bdf", "x.dcm", "x.csv", "x.npy", "x.npz", "x.h5"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert reason(tmp_path / name, fs=250)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.dcm").touch()
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert reason(tmp_path / "x.dcm") == "package missing: pydicom; pip install ecgbyte[formats]"


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_only_regular_files_are_opened(tmp_path, monkeypatch, kind, extension):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    name = f"x{extension}"
    if kind == "FIFO":
        os.mkfifo(name)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(name)
    elif kind == "device":
        os.symlink("/dev/zero", name)
    else:
        os.mkdir(name)
    write_csv(tmp_path / "good.csv", LEADS, wave())
    assert reason(name, fs=250).startswith("not a regular file: a " + kind)
    found = readers.find(tmp_path)[0]
    assert len(found) == (1 if kind == "folder" else 2) and readers.fingerprint(found)


def test_signal_files_segments_and_tables_must_be_regular_too(tmp_path):
    write_segmented(tmp_path)
    for name in ("part1.dat", "part1.hea"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert "a FIFO" in reason(tmp_path / "multi") and readers.fingerprint([str(tmp_path / "multi.hea")])
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(Failure, match="a FIFO"):
        readers.read_patients(tmp_path / "table.csv")


# Where recordings are


@pytest.fixture
def tree(tmp_path):
    for folder, name in [("a", "r1"), ("a", "r2"), ("b/c", "r3")]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        write_wfdb(tmp_path / folder, name, wave(1, 100), ["II"])
    (tmp_path / "notes.txt").write_text("no recording")
    return tmp_path


def names(found):
    return [os.path.splitext(os.path.basename(path))[0] for path in found[0]]


def test_an_empty_folder_names_the_endings_of_all_formats(tmp_path):
    with pytest.raises(Failure, match="contains no recordings") as refused:
        readers.find(tmp_path)
    said = refused.value.message.rpartition("(")[2].rstrip(")").split(", ")
    assert {".hea", ".edf", ".dcm", ".xml", ".scp", ".mwf"} <= {*said}


def test_find(tree, monkeypatch):
    assert names(readers.find(tree)) == ["r1", "r2", "r3"]
    assert names(readers.find(tree / "a" / "r1")) == ["r1"]
    assert names(readers.find(tree / "a" / "r1.hea")) == ["r1"]
    assert names(readers.find(tree / "a" / "r1.dat")) == ["r1"]
    assert names(readers.find(f"{tree}/a/*")) == ["r1", "r2"]  # headers and signal files, none twice
    assert names(readers.find(f"{tree}/**/*.hea")) == ["r1", "r2", "r3"]
    assert names(readers.find(tree, without=tree / "b")) == ["r1", "r2"]
    (tree / "RECORDS").write_text("b/\na/r2\na/r2.dat\ngone\n")
    assert names(readers.find(tree / "RECORDS")) == ["r3", "r2", "gone"]
    assert reason(readers.find(tree / "RECORDS")[0][2]) == "file missing: gone.hea"
    monkeypatch.chdir(tree / "a")
    assert names(readers.find("r1")) == ["r1"] and os.path.isabs(readers.find("r1")[0][0])


def test_links_are_read_by_their_own_names(tmp_path):
    """As a hub's snapshot and a git-annex checkout have them: links to files without a name of their own."""
    for folder in ("raw", "blobs", "snapshot/a", "view"):
        (tmp_path / folder).mkdir(parents=True)
    signal = write_wfdb(tmp_path / "raw", "r0")
    for i, file in enumerate(sorted((tmp_path / "raw").iterdir())):
        (tmp_path / "blobs" / f"{i:064x}").write_bytes(file.read_bytes())
        os.symlink(f"../../blobs/{i:064x}", tmp_path / "snapshot" / "a" / file.name)
    found, skipped = readers.find(tmp_path / "snapshot")
    assert found == [str(tmp_path / "snapshot" / "a" / "r0.hea")] and skipped == []
    read = readers.read_recording(found[0])
    assert read.name == "r0" and np.abs(read.signal - signal).max() < 6e-4
    write_csv(tmp_path / "blobs" / "obj.csv", LEADS, signal)
    os.symlink("../blobs/obj.csv", tmp_path / "view" / "case1.csv")
    os.symlink("../snapshot", tmp_path / "view" / "more")
    os.symlink(".", tmp_path / "view" / "loop")
    assert sorted(names(readers.find(tmp_path / "view"))) == ["case1", "r0"]


def test_a_recording_that_links_name_twice_counts_once(tree):
    os.symlink(tree / "a" / "r1.hea", tree / "a" / "r9.hea")
    found, skipped = readers.find(tree)
    assert names((found, None)) == ["r1", "r2", "r3"]
    assert [(os.path.basename(path), why.partition(":")[0]) for path, why in skipped] == [
        ("r9.hea", "same files as another record")
    ]
    # headers of one text are not the same recording, though a store by content keeps one of them
    for folder in ("p", "q"):
        (tree / folder).mkdir()
        os.symlink(tree / "a" / "r1.hea", tree / folder / "r1.hea")
        write_wfdb(tree / folder, "r8", wave(1, 100, 3), ["II"])
        os.rename(tree / folder / "r8.dat", tree / folder / "r1.dat")
        os.unlink(tree / folder / "r8.hea")
    assert names(readers.find(tree))[3:] == ["r1", "r1"]


def test_records_names_nothing_outside_its_folder(tree):
    (tree / "a" / "RECORDS").write_text(f"../b/c/r3\n{tree}/b/c/r3\nr1\n./x/../../b/c/r3\nr\0x\n.\n")
    found, skipped = readers.find(tree / "a" / "RECORDS")
    assert names((found, None)) == ["r1"] and len(skipped) == 4
    assert all("outside its folder" in why for _, why in skipped)
    (tree / "a" / "RECORDS").write_text("../b/c/r3\n")
    with pytest.raises(Failure, match="outside its folder"):
        readers.find(tree / "a" / "RECORDS")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_records_file_of_another_system(tree, encoding, end):
    write_wfdb(tree / "b", "é")
    lines = [
        "# all records",
        "a\\r1 ",
        "",
        "b\\c\\r3.hea",
        "b/é",
        "  ",
        "c:\\x\\r1",
        "..\\r1",
        "\\r1",
        "b\\gone",
    ]
    (tree / "RECORDS").write_bytes(end.join(lines).encode(encoding))
    found, skipped = readers.find(tree / "RECORDS")
    assert names((found, None)) == ["r1", "r3", "é", "b\\gone"] and len(skipped) == 3
    assert all("outside its folder" in why for _, why in skipped)


def test_a_record_may_be_called_like_a_comment(tree):
    os.rename(tree / "a" / "r1.hea", tree / "#1.hea")
    (tree / "RECORDS").write_text("#1\n#2\n")
    assert names(readers.find(tree / "RECORDS")) == ["#1"]


def test_a_name_that_is_not_utf8_skips_that_file(tree):
    os.link(tree / "a" / "r1.hea", os.fsencode(tree / "a") + b"/bad\xffname.hea")
    found, skipped = readers.find(tree)
    assert names((found, None)) == ["r1", "r2", "r3"]
    assert skipped == [(f"{tree}/a/bad\\xffname.hea", "file name is not UTF-8: rename it")]


@pytest.mark.parametrize("name", ["a#1", "a::b", "s3:x", "a b", "a\nb", "$a_b^c", "[x]", "é", "r.5", "a*"])
def test_names_are_taken_literally(tmp_path, name):
    h5py = pytest.importorskip("h5py")
    signal = wave()
    np.save(tmp_path / f"{name}.npy", signal)
    write_csv(tmp_path / f"{name}.csv", LEADS, signal)
    (tmp_path / "in").mkdir()
    write_wfdb(tmp_path / "in", "r")
    os.rename(tmp_path / "in" / "r.hea", tmp_path / "in" / f"{name}.hea")
    with h5py.File(tmp_path / f"{name}.h5", "w") as file:
        file["tracings"] = signal.T[None]
    found, skipped = readers.find(tmp_path)
    assert len(found) == 4 and not skipped
    for path in found:
        read = readers.read_recording(path, 250)
        assert read.name in (name, f"{name}_0") and np.abs(read.signal - signal).max() < 6e-4
        assert readers.find(path)[0] == [path]


@pytest.mark.parametrize("change", ["multi.hea", "part1.hea", "part2.dat", "gone", "new", "renamed"])
def test_the_fingerprint_covers_every_file_of_a_recording(tmp_path, change):
    write_segmented(tmp_path)
    write_wfdb(tmp_path, "rec")
    found, _ = readers.find(tmp_path)
    before = readers.fingerprint(found)
    assert readers.fingerprint(found) == before
    if change == "gone":
        (tmp_path / "rec.dat").unlink()
    elif change == "new":
        write_wfdb(tmp_path, "rec2")
    elif change == "renamed":
        (tmp_path / "rec.hea").write_text((tmp_path / "rec.hea").read_text().replace("rec", "abc"))
    else:
        stamp = os.stat(tmp_path / change)
        os.utime(tmp_path / change, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1000))
    assert readers.fingerprint(readers.find(tmp_path)[0]) != before


@pytest.mark.parametrize("source", ["nothing", "nothing/*.hea", "empty"])
def test_find_nothing(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="no such folder or recording|no recordings"):
        readers.find(tmp_path / source)


def test_ptbxls_two_rates_count_once(tmp_path):
    for folder, name in [("records100", "00001_lr"), ("records500", "00001_hr"), ("records100", "00002_lr")]:
        (tmp_path / folder / "00000").mkdir(parents=True, exist_ok=True)
        write_wfdb(tmp_path / folder / "00000", name, wave(1, 100), ["II"])
    found, skipped = readers.find(tmp_path)
    assert names((found, None)) == ["00002_lr", "00001_hr"]
    assert [text.partition(":")[0] for _, text in skipped] == ["copy of another record"]


# Whose they are


def test_patients_by_folder():
    def patient(path):
        return readers.patient_of(readers.Recording(np.zeros((1, 1)), 1.0, ["I"], "s1", path))

    assert patient("/d/files/p1000/p10000032/s40689238/40689238.hea") == "10000032"
    assert patient("/d/ptbdb/patient001/s0010_re.hea") == "patient001"
    assert patient("/d/p12/s1.hea") == "p12" and patient("/d/p12/x/s1.hea") == "s1"


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "ecg_id,patient_id,strat_fold,filename_lr,filename_hr\n"
            "1,15709.0,3,records100/00000/00001_lr,records500/00000/00001_hr\n"
            "2,13243.0,10,records100/00000/00002_lr,records500/00000/00002_hr\n"
            "3,20372.0,9,records100/00000/00003_lr,records500/00000/00003_hr\n",
            {"00001_hr": ("15709", "train"), "00002_lr": ("13243", "test"), "00003_hr": ("20372", "val")},
        ),
        (
            "subject_id,study_id,file_name,ecg_time,path\n"
            "10000032,40689238,40689238,2180-07-23 08:44:00,files/p1000/p10000032/s40689238/40689238\n",
            {"40689238": ("10000032", None)},
        ),
        ("exam_id,age,patient_id\n1169160,38,523632\n", {"1169160": ("523632", None)}),
        ("record,patient,split\nr1,P1,val\nr2,P2,\n", {"r1": ("P1", "val"), "r2": ("P2", None)}),
    ],
)
def test_tables_of_patients(tmp_path, text, expected):
    (tmp_path / "table.csv").write_text(text)
    patients = readers.read_patients(tmp_path / "table.csv")
    assert {key: patients[key] for key in expected} == expected


@pytest.mark.parametrize(
    "folder", ["patient001", "Person_02", "sub-03", "subject 4", "PATIENT.5", "participant7", "S06", "p00001"]
)
def test_a_persons_folder_is_the_patient(folder):
    recording = readers.Recording(np.zeros((1, 1)), 1.0, ["I"], "rec_1", f"/d/{folder}/rec_1.hea")
    assert readers.patient_of(recording) == folder


@pytest.mark.parametrize(
    "text", ["ANONYMOUS", "Anonymized", "unknown", "UNKNOWN^PATIENT", "0", "000000", "N/A", "none", "-", ""]
)
def test_a_placeholder_is_nobodys_name(text):
    assert readers.is_placeholder(text)
    recording = readers.Recording(np.zeros((1, 1)), 1.0, ["I"], "r7", "/d/r7.hea", [f"Patient: {text}"])
    assert readers.patient_of(recording) == "r7" and readers.stated_patient(recording) == (text or None)
    assert readers.patient_and_split("r7", "r7", None, {"r7": (text, "val")}) == ("r7", "val")


@pytest.mark.parametrize(
    "text", ["P008", "00016", "10", "anonymous017", "unknown3", "Removic", "Nonez", "patient001", "x1"]
)
def test_a_name_is_no_placeholder(text):
    assert not readers.is_placeholder(text)


@given(
    st.from_regex(r"[0-9]{1,6}", fullmatch=True),
    st.from_regex(r"0[0-9]{0,4}|[0-9]+e[0-9]|[1-9]\.50", fullmatch=True),
)
def test_identifiers_are_text(tmp_path_factory, record, patient):
    table = tmp_path_factory.mktemp("table") / "t.csv"
    table.write_text(f"record,patient,split\n{record},{patient},test\nx,{patient},\n")
    # a row without a split takes that of the patient's others; a placeholder has none
    other = None if readers.is_placeholder(patient) else "test"
    assert readers.read_patients(table) == {record: (patient, "test"), "x": (patient, other)}


def test_records_called_alike_are_known_by_their_folders(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("record,patient\na/P1/rec_1,A\na/P2/rec_1,B\nb/P1/rec_1.hea,C\nlone,D\nx/twice,E\n")
    known = readers.read_patients(table, ["/d/lone.hea", "/d/x/twice.hea", "/d/y/twice.csv"])
    assert known == {
        "a/P1/rec_1": ("A", None),
        "b/P1/rec_1": ("C", None),
        "P2/rec_1": ("B", None),
        "lone": ("D", None),
        "x/twice": ("E", None),
    }

    def whose(path):
        name = os.path.splitext(os.path.basename(path))[0]
        return readers.patient_and_split(name, "?", "val", known, path)[0]

    assert [whose(f"/d/{path}") for path in ("a/P1/rec_1.hea", "a/P2/rec_1.edf", "b/P1/rec_1.hea")] == list(
        "ABC"
    )
    assert [whose(f"/d/{path}") for path in ("x/twice.hea", "lone.hea", "rec_1.hea", "y/twice.csv")] == list(
        "ED"
    ) + ["?"] * 2
    assert readers.find_listed("rec_1", known, "/d/c/P1/rec_1.hea") is None


NAMES = {
    "Test": "test",
    "TEST": "test",
    "testing": "test",
    " valid ": "val",
    "Validation": "val",
    "dev": "val",
}


@pytest.mark.parametrize(
    ("name", "side"), [*NAMES.items(), ("Train", "train"), ("training", "train"), ("", None)]
)
def test_names_of_splits_in_tables_and_comments(tmp_path, name, side):
    (tmp_path / "t.csv").write_text(f"record,patient,split\nr1,P1,{name}\n")
    assert readers.read_patients(tmp_path / "t.csv") == {"r1": ("P1", side)}
    recording = readers.Recording(np.zeros((1, 1)), 1.0, ["I"], "r1", "/d/r1.hea", [f"Split: {name}"])
    assert readers.stated_side(recording) == side


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "record,patient,split\na,P1,test\nb,P2,tset\n",
            "line 3: split 'tset' is not one of train, val, test",
        ),
        ("record,patient,strat_fold\na,P1,0\n", "line 2: strat_fold '0' is not one of 1 to 10"),
        ("record,patient,strat_fold\na,P1,10\nb,P2,11\n", "line 3: strat_fold '11'"),
        ("record,patient,strat_fold\na,P1,2.5\n", "strat_fold '2.5'"),
        ("record,patient,strat_fold\na,P1,-1\n", "strat_fold '-1'"),
        ("record,patient,strat_fold\na,P1,ten\n", "strat_fold 'ten'"),
        ("record,patient,split,strat_fold\na,P1,train,10\n", "line 2: .*two sides"),
        ("record,patient\na,P1\nb,P2\na.hea,P3\n", "line 4: record a has patient P3 .*line 2 patient P1"),
        ("record,patient,split\na,P1,train\nb,P1,test\n", "line 3: patient P1 is on the test side .*line 2"),
        ("record,patient,split\na,0,train\na,0,test\n", "line 3: record a has patient 0 and split test"),
    ],
)
def test_unknown_or_contradicting_splits_are_refused(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(Failure, match=said) as error:
        readers.read_patients(tmp_path / "t.csv")
    assert str(tmp_path / "t.csv") in error.value.message


def test_folds_and_splits_that_agree(tmp_path):
    (tmp_path / "t.csv").write_text(
        "record,patient,split,strat_fold\na,P1,Train,3\na,P1,,3.0\nb,P2,,10\nc,P3,valid,9.0\nd,unknown,test,\n"
        "e,unknown,train,\nf,P4,,\n"
    )
    assert readers.read_patients(tmp_path / "t.csv") == {
        "a": ("P1", "train"),
        "b": ("P2", "test"),
        "c": ("P3", "val"),
        "d": ("unknown", "test"),  # a placeholder is not one patient
        "e": ("unknown", "train"),
        "f": ("P4", None),
    }


def test_comments_of_unknown_or_two_splits(tmp_path):
    for comments in (["Split: holdout"], ["Split: train", "split: Test"]):
        recording = readers.Recording(np.zeros((1, 1)), 1.0, ["I"], "r1", "/d/r1.hea", comments)
        with pytest.raises(readers.Unusable, match="split unknown"):
            readers.stated_side(recording)


def test_a_table_of_something_else_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Failure, match="columns `record` and `patient`"):
        readers.read_patients(tmp_path / "table.csv")
    with pytest.raises(Failure, match="cannot be read"):
        readers.read_patients(tmp_path / "gone.csv")


def test_splits_are_by_hash_and_about_80_10_10():
    sides = Counter(readers.split_of(f"patient{i}") for i in range(5000))
    assert 3900 < sides["train"] < 4100 and 430 < sides["val"] < 570 and 430 < sides["test"] < 570
    assert readers.split_of("P1") == readers.split_of("P1")


def test_every_reader_has_a_row_in_the_table():
    readers_with_read = {
        path.stem
        for path in Path(readers.__file__).parent.glob("*.py")
        if re.search(r"^def read\(", path.read_text(), re.MULTILINE)
    }
    assert {form.read.__module__.rpartition(".")[2] for form in FORMATS} == readers_with_read
    extensions = [extension for form in FORMATS for extension in form.extensions]
    assert len(set(extensions)) == len(extensions) == len(EXTENSIONS)
    for form in FORMATS:  # an extension that does not decide needs a look at the content
        assert form.extensions or form.shared_extensions
        assert bool(form.shared_extensions) == bool(form.recognises)


def test_a_format_is_a_reader_and_a_row(tmp_path, monkeypatch):
    def read(path, fs, lead_names, units):
        return Recording(np.ones((1, 10), np.float32), fs, ["I"], "toy", path)

    monkeypatch.setitem(EXTENSIONS, ".toy", Format(read, (".toy",)))
    (tmp_path / "x.TOY").touch()
    found, skipped = readers.find(tmp_path)
    assert found == [str(tmp_path / "x.TOY")] and skipped == []
    assert readers.read_recording(found[0], 250).fs == 250
