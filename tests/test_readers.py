import multiprocessing
import os
import re
import time
from collections import Counter
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import Unusable
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
        readers.read(path, **options)
    return error.value.message


# WFDB


@pytest.mark.parametrize("fmt, gain", [("16", 1000), ("212", 200), ("24", 10000), ("32", 10000), ("80", 40)])
def test_wfdb_storage_formats(tmp_path, fmt, gain):
    signal = write_wfdb(tmp_path, fmt=fmt, gain=gain, comments=["Patient: P7", "Split: val"])
    read = readers.read(tmp_path / "rec")
    assert read.signal.dtype == np.float32 and read.signal.shape == (12, 1500)
    assert np.abs(read.signal - signal).max() <= 0.51 / gain
    assert (read.fs, read.leads, read.name) == (250, LEADS, "rec")
    assert read.comment("patient") == "P7" and read.comment("split") == "val" and read.comment("age") is None


@pytest.mark.parametrize("units, scale", [("uV", 1000), ("mV", 1), ("V", 0.001), ("mv", 1)])
def test_wfdb_units(tmp_path, units, scale):
    signal = wave()
    write_wfdb(tmp_path, signal=signal * scale, units=units, gain=1000 / scale)
    assert np.allclose(readers.read(tmp_path / "rec").signal, signal, atol=6e-4)


def test_the_short_way_reads_what_wfdb_reads(real_data):
    for path in readers.find(real_data)[0]:
        ours, theirs = readers.read(path), wfdb.rdrecord(path[: -len(".hea")])
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
    read, theirs = readers.read(tmp_path / "d"), wfdb.rdrecord(str(tmp_path / "d"))
    assert np.allclose(read.signal[0], [0, np.nan, 0.1], equal_nan=True)
    assert np.allclose(read.signal[1], [0.002, -0.002, -0.004])
    assert np.allclose(read.signal, theirs.p_signal.T * [[1], [1e-3]], equal_nan=True)
    assert read.start == theirs.base_datetime == datetime(1999, 12, 24, 8, 5, 1)


def test_a_lead_without_volts_is_left_out(real_data):
    assert readers.read(real_data / "wfdb" / "a103l").leads == ["II", "V"]


def test_several_signal_files(real_data):
    read = readers.read(real_data / "wfdb" / "s0010_re")
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
    read = readers.read(found[0])
    assert read.leads == ["I", "II"] and np.abs(read.signal - signal).max() < 6e-4


def test_a_gap_between_segments_is_missing_samples(tmp_path):
    signal = write_segmented(tmp_path)
    (tmp_path / "part2.hea").write_text((tmp_path / "part2.hea").read_text().replace("0 II", "0 V"))
    (tmp_path / "v.hea").write_text("v/4 3 250 1500\nv_layout 0\npart1 700\n~ 300\npart2 500\n")
    line = "~ 0 1000/mV 16 0 0 0 0 "
    (tmp_path / "v_layout.hea").write_text(f"v_layout 3 250 0\n{line}I\n{line}II\n{line}V\n")
    read = readers.read(tmp_path / "v")
    assert read.leads == ["I", "II", "V"] and read.signal.shape == (3, 1500)
    nothing = np.full((2, 300), np.nan)
    assert np.allclose(
        read.signal[0], np.concatenate([signal[0, :700], nothing[0], signal[0, 700:]]), 0, 6e-4, True
    )
    assert np.isnan(read.signal[1, 700:]).all() and np.isnan(read.signal[2, :1000]).all()
    assert np.allclose(read.signal[2, 1000:], signal[1, 700:], 0, 6e-4)


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
        ("r/1 2 250 1000\nr 1000\n", "not what it promises"),
        ("r/9 2 250 2000000000\nr 1000\n", "too large"),
        ("r/1000000000 2 250 1000\nr 1000\n", "not as many"),
        ("r/1 2 250 900\nr 900\n", "not what it promises"),
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
    read = readers.read(tmp_path / "e")
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
    read = readers.read(path)
    assert read.leads == ["II", "I"] and np.allclose(read.signal, row, atol=2e-4)
    path.write_bytes(path.read_bytes()[:-100])
    assert "Incomplete" in reason(path)


def test_dicom():
    from pydicom.data import get_testdata_file

    path = get_testdata_file("waveform_ecg.dcm", download=False)
    read = readers.read(path)
    assert read.signal.shape == (12, 10000) and read.fs == 1000
    assert [readers.lead_name(name) for name in read.leads] == LEADS
    # 1.25 uV a step, and Einthoven holds to a step
    steps = read.signal / 0.00125
    assert np.allclose(steps, np.round(steps), atol=1e-2)
    assert np.abs(read.signal[1] - read.signal[0] - read.signal[2]).max() <= 0.0026
    assert 0.5 < np.abs(read.signal).max() < 5 and readers.patient_of(read) == "642341"


@pytest.mark.parametrize("mark, kind", [(",", ".csv"), ("\t", ".tsv")])
def test_csv(tmp_path, mark, kind):
    signal = wave(3, 40).round(4)
    lines = [mark.join(["time", "ii", "I", "note", "V1"])]
    for i, (a, b, c) in enumerate(signal.T):
        lines.append(mark.join([str(i / 500), "" if i == 7 else f"{a:.4f}", f"{b:.4f}", "x", f"{c:.4f}"]))
    (tmp_path / f"t{kind}").write_text("\n".join(lines) + "\n")
    read = readers.read(tmp_path / "t", fs=500)
    assert read.fs == 500 and read.leads == ["time", "ii", "I", "V1"]
    signal[0, 7] = np.nan
    assert np.allclose(read.signal[1:], signal, atol=1e-6, equal_nan=True)
    assert "--input-fs" in reason(tmp_path / "t")


def test_numpy(tmp_path):
    signal = wave()
    np.save(tmp_path / "a.npy", signal)
    np.save(tmp_path / "b.npy", signal.T.astype(np.float32))
    np.savez_compressed(tmp_path / "c.npz", signal=signal[:2], fs=500, leads=["II", "V1"])
    for name in ("a.npy", "b.npy"):
        read = readers.read(tmp_path / name, fs=250)
        assert np.allclose(read.signal, signal, atol=1e-6) and read.leads == LEADS and read.fs == 250
    read = readers.read(tmp_path / "c.npz")
    assert np.allclose(read.signal, signal[:2], atol=1e-6) and read.leads == ["II", "V1"] and read.fs == 500
    np.save(tmp_path / "d.npy", signal[:3])
    assert readers.read(tmp_path / "d.npy", 250, ["a", "b", "c"]).leads == ["a", "b", "c"]
    assert "--lead-names" in reason(tmp_path / "d.npy", fs=250)
    np.save(tmp_path / "e.npy", np.array([{}], object), allow_pickle=True)
    assert "cannot be read" in reason(tmp_path / "e.npy", fs=250)


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
    read = readers.read(found[0])
    assert read.fs == 400 and read.name == "1169160" and read.path == found[0]
    assert np.array_equal(read.signal, signal)
    assert readers.read(found[1]).signal.shape == (12, 4000)
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
    assert "no array" in reason(tmp_path / "b.h5")


@pytest.mark.parametrize("name", ["x.hea", "x.edf", "x.bdf", "x.dcm", "x.csv", "x.npy", "x.npz", "x.h5"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).touch()
    assert reason(tmp_path / name, fs=250)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.dcm").touch()
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert reason(tmp_path / "x.dcm") == "package missing: pydicom; pip install ecgbyte[formats]"


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


def test_find(tree, monkeypatch):
    assert names(readers.find(tree)) == ["r1", "r2", "r3"]
    assert names(readers.find(tree / "a" / "r1")) == ["r1"]
    assert names(readers.find(tree / "a" / "r1.hea")) == ["r1"]
    assert names(readers.find(tree / "a" / "r1.dat")) == ["r1"]
    assert names(readers.find(f"{tree}/a/*")) == ["r1", "r2"]  # headers and signal files, none twice
    assert names(readers.find(f"{tree}/**/*.hea")) == ["r1", "r2", "r3"]
    os.symlink(tree / "a" / "r1.hea", tree / "a" / "r9.hea")
    assert names(readers.find(tree)) == ["r1", "r2", "r3"]
    assert names(readers.find(tree, without=tree / "b")) == ["r1", "r2"]
    (tree / "RECORDS").write_text("b/\na/r2\na/r2.dat\ngone\n")
    assert names(readers.find(tree / "RECORDS")) == ["r3", "r2", "gone"]
    assert reason(readers.find(tree / "RECORDS")[0][2]) == "file missing: gone.hea"
    monkeypatch.chdir(tree / "a")
    assert names(readers.find("r1")) == ["r1"] and os.path.isabs(readers.find("r1")[0][0])


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
    assert patient("/d/p12/s1.hea") == "s1"


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


# Hostile files


def seeds(folder):
    """A valid input of each format: {name: the files to mutate, the first being the one to read}."""
    import h5py
    from pydicom.data import get_testdata_file

    signal = wave()
    write_wfdb(folder, "plain", signal)
    write_wfdb(folder, "packed", signal[:, :800], fmt="212", gain=200)
    write_segmented(folder)
    write_edf(folder / "e.edf", signal)
    write_edf(folder / "b.bdf", signal)
    with open(get_testdata_file("waveform_ecg.dcm", download=False), "rb") as file:
        (folder / "d.dcm").write_bytes(file.read())
    rows = "\n".join(",".join(f"{v:.3f}" for v in row) for row in signal.T)
    (folder / "c.csv").write_text(",".join(LEADS) + "\n" + rows + "\n")
    np.save(folder / "n.npy", signal)
    np.savez_compressed(folder / "z.npz", signal=signal, fs=250, leads=LEADS)
    with h5py.File(folder / "h.h5", "w") as file:
        data = np.zeros((2, 4096, 12), "f4")
        data[0, 100:1600] = signal.T
        file.create_dataset("tracings", data=data, chunks=(1, 4096, 12), compression="gzip")
        file["exam_id"] = [1, 2]
    groups = [["plain.hea", "plain.dat"], ["packed.hea", "packed.dat"]]
    groups += [["multi.hea", "part1.hea", "part1.dat", "part2.hea", "part2.dat"]]
    groups += [[name] for name in ("e.edf", "b.bdf", "d.dcm", "c.csv", "n.npy", "z.npz", "h.h5")]
    return [{name: (folder / name).read_bytes() for name in group} for group in groups]


def mutate(data, rng):
    """Change a file in one to three ways: bytes, numbers, length, or order."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = max(len(data), 1)
        # the first kilobyte is where headers are
        at = int(rng.integers(min(size, 1024)) if rng.random() < 0.7 else rng.integers(size))
        kind = rng.choice([0, 0, 0, 0, 1, 1, 2, 3, 4, 5])
        if kind == 0:
            data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            numbers = list(re.finditer(rb"\d+", bytes(data[:4096])))
            wild = [
                b"0",
                b"-1",
                b"1000000000",
                b"99999999999999999999",
                b"1e308",
                b"nan",
                b"",
                b"3",
                b"65536",
            ]
            if numbers:
                number = numbers[rng.integers(len(numbers))]
                data[number.start() : number.end()] = wild[rng.integers(len(wild))]
        elif kind == 2:
            del data[int(rng.integers(size)) :]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
        else:
            data[at : at + 4] = [b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"][
                rng.integers(4)
            ]
    return bytes(data)


def fuzz(folder, count, queue):
    """Read mutated inputs, and report what became of them, the longest time and the most memory."""
    (folder / "seeds").mkdir()
    originals = seeds(folder / "seeds")
    settings = {"fs": 250.0, "leads": LEADS, "segment_seconds": 2.0, "samples": 500, "fill_nan": None}
    rng = np.random.default_rng(20)
    outcomes, longest = Counter(), 0.0
    for i in range(count):
        group = originals[i % len(originals)]
        place = folder / "mutated"
        place.mkdir(exist_ok=True)
        for name, data in group.items():
            (place / name).write_bytes(mutate(data, rng) if rng.random() < 1 / len(group) + 0.2 else data)
        started = time.perf_counter()
        first = next(iter(group))
        for path in readers.find(place / first)[0]:
            try:
                read = readers.read(path, 250)
                assert read.signal.dtype == np.float32 and read.signal.ndim == 2
                for profile in ("paper", "resample"):
                    preprocess.segments(read, settings | {"profile": profile})
                outcomes["read"] += 1
            except Failure as error:
                assert error.message and "\n" not in error.message, path
                outcomes[error.message.partition(":")[0]] += 1
        longest = max(longest, time.perf_counter() - started)
    # not getrusage: its peak is, after a fork, that of the parent if that is higher
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    queue.put((outcomes, longest, int(status["VmHWM"].split()[0]) / 1024))


def test_mutated_inputs_are_read_or_skipped(tmp_path):
    """No traceback, no crash, no input over 5 s, no more than 1 GB; ECGBYTE_FUZZ says how many (400)."""
    for package in ("edfio", "h5py", "pydicom"):
        pytest.importorskip(package)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    count = int(os.environ.get("ECGBYTE_FUZZ", 400))
    process = context.Process(target=fuzz, args=(tmp_path, count, queue))
    process.start()
    process.join()
    assert process.exitcode == 0
    outcomes, longest, megabytes = queue.get()
    print(outcomes, f"{longest:.2f} s at most, {megabytes:.0f} MB")
    assert outcomes.total() >= count and longest < 5 and megabytes < 1000
    assert outcomes["read"] > count / 10 and len(outcomes) > 8
