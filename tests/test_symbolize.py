import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_readers import wave, write_edf, write_wfdb

import naive
from ecgbyte_cli import readers
from ecgbyte_cli.signal import preprocess, quantizers
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir

LEADS = preprocess.LEADS


def results(work):
    """Everything a run leaves, but for the seconds it took."""
    work = WorkDir(work)
    about = read_json(work.symbol_settings)
    about["result"].pop("seconds")
    del about["sha256"]
    for file in about["files"].values():
        del file["mtime_ns"]
    return (
        np.array(read_array(work.symbols)),
        {k: list(v) for k, v in read_table(work.symbol_segments).items()},
        read_table(work.skipped),
        about,
    )


def same(a, b):
    return np.array_equal(a[0], b[0]) and a[1:] == b[1:]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """150 short records: three parts."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(150):
        # 20 short ones, spread over the parts
        write_wfdb(folder, f"r{i:03}", wave(2, 240 if i % 8 == 3 else 520, i), ["II", "V1"], fs=125)
    return folder


SHORT = ("--segment", 2, "--leads", "II,V1", "--fs", 100, "--profile", "resample")


def test_real_recordings(ecgbyte, real_data, tmp_path):
    result = ecgbyte("symbolize", real_data / "cinc2021", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert set(told) == {"records", "segments", "skipped", "leads", "fs", "symbols", "seconds"}
    assert [told[k] for k in ("records", "segments", "skipped", "leads", "fs")] == [25, 25, 0, 12, 250]
    symbols, segments, skipped, about = results(tmp_path / "work")
    assert symbols.dtype == np.uint8 and symbols.size == told["symbols"] == 25 * 12 * 2500
    assert symbols.max() == 25 and symbols.min() == 0
    assert segments["offset"] == list(range(0, symbols.size, 30000)) and skipped == {"path": [], "reason": []}
    # the range is the corpus' percentiles, as numpy has them
    read = [
        preprocess.segments(readers.read_recording(path), about["signal"])[0][1] for path in segments["path"]
    ]
    p1, p99 = np.percentile(np.stack(read).astype(float), [1, 99])
    quantizer = about["signal"]["quantizer"]
    assert abs(quantizer["lo"] - p1 + 0.5) < 1e-9 and abs(quantizer["hi"] - p99 - 0.5) < 1e-9
    # the settings are all it takes
    for path, offset in zip(segments["path"], segments["offset"], strict=True):
        [(_, cut)] = preprocess.segments(readers.read_recording(path), about["signal"])
        assert np.array_equal(
            quantizers.quantize(cut, quantizer)[0].ravel(), symbols[offset : offset + 30000]
        )


def test_a_given_range(ecgbyte, real_data, golden, tmp_path):
    told = json.loads((golden / "tokenizer.json").read_text())
    lo, hi = told["percentile_1"] - 0.5, told["percentile_99"] + 0.5
    assert ecgbyte("symbolize", real_data / "cinc2021", "--range", lo, hi).exit_code == 0
    symbols, segments, _, about = results(tmp_path / "work")
    assert about["signal"]["quantizer"] == {"name": "paper", "levels": 26, "lo": lo, "hi": hi}
    reference = np.load(golden / "symbols.npz")
    theirs = np.concatenate([reference[name].ravel() for name in segments["record"]])
    assert (symbols == theirs).mean() >= 0.995 and np.abs(symbols.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("quantizer", ["minmax", "mulaw", "lloyd", "trellis"])
def test_other_quantizers(ecgbyte, many, tmp_path, quantizer):
    assert ecgbyte("symbolize", many, *SHORT, "--quantizer", quantizer, "--levels", 64).exit_code == 0
    symbols, segments, _, about = results(tmp_path / "work")
    wide = np.array(segments["hi"]) - segments["lo"]
    for k in (0, 57, len(segments["path"]) - 1):
        read = dict(preprocess.segments(readers.read_recording(segments["path"][k]), about["signal"]))
        cut, told = read[segments["start"][k]], about["signal"]["quantizer"]
        letters = symbols[segments["offset"][k] :][:400].reshape(2, 200)
        assert np.array_equal(quantizers.quantize(cut, told)[0], letters)
        back = quantizers.dequantize(letters, told, segments["lo"][k], segments["hi"][k])
        most = {"minmax": wide[k] / 127, "mulaw": 0.5, "lloyd": 0.3, "trellis": wide[k] / 30}
        assert np.abs(back - cut).max() < most[quantizer]
    assert (len(set(wide)) > 1) == (quantizer in ("minmax", "trellis"))


def test_profile_elm_takes_each_segments_own_range(ecgbyte, many, tmp_path):
    assert ecgbyte("symbolize", many, *SHORT, "--profile", "elm").exit_code == 0
    symbols, segments, _, about = results(tmp_path / "work")
    quantizer = {"name": "minmax", "levels": 26, "lo": None, "hi": None, "margin": 1e-6}
    assert about["signal"]["quantizer"] == quantizer and about["signal"]["profile"] == "elm"
    cut = dict(preprocess.segments(readers.read_recording(segments["path"][0]), about["signal"]))[
        segments["start"][0]
    ]
    assert np.array_equal(naive.letters_by_own_range(cut, 26, 1e-6).ravel(), symbols[:400])
    assert (segments["lo"][0], segments["hi"][0]) == (cut.min(), cut.max())
    # another quantizer may follow the same profile, and the quantizer with another profile is as it always was
    for options, quantizer in (("elm", "mulaw"), ("resample", "minmax")):
        args = ("symbolize", many, *SHORT, "--profile", options, "--quantizer", quantizer, "--overwrite")
        assert ecgbyte(*args).exit_code == 0
        assert "margin" not in results(tmp_path / "work")[3]["signal"]["quantizer"]


def test_every_input_ends_somewhere(ecgbyte, real_data, tmp_path):
    import h5py
    from pydicom.data import get_testdata_file

    data = tmp_path / "mixed data"
    shutil.copytree(real_data / "cinc2021", data / "cinc")
    shutil.copytree(real_data / "wfdb", data / "wfdb")
    shutil.copy(get_testdata_file("waveform_ecg.dcm", download=False), data)
    one = readers.read_recording(data / "cinc" / "HR06002")
    write_edf(data / "edf.edf", one.signal, 500)
    text = [",".join(one.leads), *(",".join(f"{v:.4f}" for v in row) for row in one.signal.T)]
    (data / "csv.csv").write_text("\n".join(text))
    np.save(data / "npy.npy", one.signal)
    with h5py.File(data / "hdf5.hdf5", "w") as file:
        tracings = np.zeros((2, 5200, 12), np.float32)
        tracings[0, 100:5100] = one.signal.T
        file["tracings"], file["exam_id"] = tracings, np.array([4711, 0])
    # a folder of broken ones
    bad = data / "bad"
    bad.mkdir()
    header = "r 2 500 5000\nr.dat 16 1000/mV 16 0 0 0 0 I\nr.dat 16 1000/mV 16 0 0 0 0 II\n"
    (bad / "r.dat").write_bytes(bytes(20000))
    for name, text in {
        "missing": header.replace("r.dat", "no.dat"),
        "truncated": header.replace("500 5000", "500 5001"),
        "outside": header.replace("r.dat", "../r.dat"),
        "long": header.replace("5000", "1000000000"),
        "wide": header.replace("r 2", "r 1000000000"),
        "empty": "",
        "garbage": "\x00\xff\x10",
        "nan": header,
    }.items():
        (bad / f"{name}.hea").write_text(text.replace("r.dat", "nan.dat") if name == "nan" else text)
    np.full(10000, -32768, "<i2").tofile(bad / "nan.dat")
    (bad / "x.edf").touch()
    (bad / "x.dcm").write_bytes(bytes(200))

    result = ecgbyte("symbolize", data, "--input-fs", 500, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    _, segments, skipped, about = results(tmp_path / "work")
    reasons = {os.path.relpath(p, data): r for p, r in zip(skipped["path"], skipped["reason"], strict=True)}
    for name, part in {
        "wfdb/100.hea": "leads missing: I, II",
        "wfdb/a103l.hea": "leads missing: I,",
        "hdf5.hdf5#1": "no samples",
        "bad/missing.hea": "signal file missing: no.dat",
        "bad/truncated.hea": "signal file truncated",
        "bad/outside.hea": "outside its folder",
        "bad/long.hea": "too large",
        "bad/wide.hea": "header refused: it promises 1000000000 leads",
        "bad/empty.hea": "header empty",
        "bad/garbage.hea": "cannot be read",
        "bad/nan.hea": "leads missing",
        "bad/x.edf": "header refused",
        "bad/x.dcm": "not a known format",
    }.items():
        assert part in reasons.pop(name)
    assert not reasons and told["skipped"] == 13
    used = {os.path.relpath(path, data) for path in segments["path"]}
    assert len(used) == told["records"] == 25 + 6 and told["segments"] == 25 + 8
    assert segments["record"].count("s0010_re") == 3 and segments["start"][-3:] == [0, 10, 20]
    # the same ECG in five formats: the letters of an edge apart at most
    symbols = read_array(WorkDir(tmp_path / "work").symbols)
    letters = {
        name: symbols[offset : offset + 30000].astype(int)
        for name, offset in zip(segments["record"], segments["offset"], strict=True)
    }
    for name in ("edf", "csv", "npy", "4711"):
        assert np.abs(letters[name] - letters["HR06002"]).max() <= 1
        assert (letters[name] != letters["HR06002"]).mean() < 2e-3
    assert np.array_equal(letters["npy"], letters["HR06002"])
    assert about["signal"]["leads"] == LEADS
    # two leads that are no standard pair
    result = ecgbyte(
        "symbolize", data / "wfdb" / "100", "--leads", "MLII,V5", "--json", work=tmp_path / "two"
    )
    assert json.loads(result.stdout)["segments"] == 180


def test_reasons_are_shown(ecgbyte, many, tmp_path):
    result = ecgbyte("symbolize", many, *SHORT, "--segment", 3)
    assert result.exit_code == 0
    first, head, row, where = result.stdout.strip().splitlines()
    assert first.startswith("131 records, 131 segments of 2 leads at 100 Hz, 78600 letters")
    assert row.split() == ["shorter", "than", "a", "segment", "19"] and "skipped.parquet" in where


def test_filters_left_out_are_said(ecgbyte, many):
    result = ecgbyte("symbolize", many, *SHORT[:-2])
    assert result.exit_code == 0 and "131 recordings at 125 Hz: without low-pass 100 Hz" in result.stderr


def test_processes_make_no_difference(ecgbyte, many, tmp_path):
    for jobs in (1, 2, 3):
        assert ecgbyte("symbolize", many, *SHORT, "--jobs", jobs, work=tmp_path / f"{jobs}").exit_code == 0
    assert same(results(tmp_path / "1"), results(tmp_path / "2"))
    assert same(results(tmp_path / "1"), results(tmp_path / "3"))


def test_patients_and_splits(ecgbyte, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    comments = [
        ["Patient: A", "Split: Test"],
        ["Patient: B"],
        ["Split: nonsense"],
        [],
        ["Patient: A", "split: dev"],
    ]
    for i, lines in enumerate(comments):
        write_wfdb(data, f"r{i}", wave(2, 520, i), ["II", "V1"], fs=125, comments=lines)
    result = ecgbyte("symbolize", data, *SHORT)
    assert result.exit_code == 0 and "1 patients are on more than one side of the split" in result.stderr
    segments = results(tmp_path / "work")[1]
    rows = zip(segments["record"], segments["patient"], segments["split"], strict=True)
    assert {record: whose for record, *whose in rows} == {
        "r0": ["A", "test"],
        "r1": ["B", readers.split_of("B")],
        "r3": ["r3", readers.split_of("r3")],
        "r4": ["A", "val"],
    }
    (reason,) = read_table(tmp_path / "work" / "symbols" / "skipped.parquet")["reason"]
    assert reason == "split unknown: comment `Split:`, split 'nonsense' is not one of train, val, test"
    (data / "table.csv").write_text("record,patient,split\nr0,K,\nr1,L,val\nr4,M,TEST\n")
    result = ecgbyte("symbolize", data, *SHORT, "--patients", data / "table.csv", "--overwrite")
    assert result.exit_code == 0 and "not in the table of patients: 1 recording," in result.stderr
    assert "if the files name another split: in 1 recording" in result.stderr
    segments = results(tmp_path / "work")[1]
    rows = zip(segments["record"], segments["patient"], segments["split"], strict=True)
    assert {record: whose for record, *whose in rows} == {
        "r0": ["K", "test"],
        "r1": ["L", "val"],
        "r3": ["r3", readers.split_of("r3")],
        "r4": ["M", "test"],
    }


def test_run_twice(ecgbyte, many, tmp_path):
    assert ecgbyte("symbolize", many, *SHORT).exit_code == 0
    before = results(tmp_path / "work")
    result = ecgbyte("symbolize", many, *SHORT, "--json")
    assert (
        result.exit_code == 0 and "already" in result.stderr and json.loads(result.stdout)["records"] == 131
    )
    result = ecgbyte("symbolize", many, *SHORT, "--levels", 20)
    assert result.exit_code == 1 and "quantizer" in result.stderr and "--overwrite" in result.stderr
    assert same(before, results(tmp_path / "work"))
    assert ecgbyte("symbolize", many, *SHORT, "--levels", 20, "--overwrite").exit_code == 0
    assert results(tmp_path / "work")[0].max() == 19
    assert sorted(os.listdir(tmp_path / "work" / "symbols")) == [
        "segments.parquet",
        "settings.json",
        "skipped.parquet",
        "symbols.npy",
    ]


@pytest.mark.parametrize("source", ["nothing", "empty", "unusable"])
def test_nothing_to_do_leaves_nothing(ecgbyte, tmp_path, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unusable").mkdir()
    (tmp_path / "unusable" / "a.hea").write_text("x")
    result = ecgbyte("symbolize", tmp_path / source)
    assert result.exit_code == 1 and result.stderr.startswith("ecgbyte: ")
    assert result.stderr.strip().count("\n") == 0 and result.stdout == ""
    assert not (tmp_path / "work" / "symbols").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--leads", "II,II"),
        ("--leads", ""),
        ("--fs", 0),
        ("--segment", "nan"),
        ("--range", 1, -1),
        ("--range", -1, 1, "--quantizer", "minmax"),
        ("--levels", 1),
        ("--profile", "other"),
    ],
)
def test_a_wrong_command_line(ecgbyte, many, options):
    assert ecgbyte("symbolize", many, *options).exit_code == 2


def run(*args, command=("-m", "ecgbyte_cli"), **options):
    return subprocess.Popen(
        [sys.executable, *command, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


# the third part waits for a Ctrl-C
WAITING = """import time
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.stages import symbolize
def wait(parts, number, *more, make=symbolize.make_part):
    if number == 2:
        print("two parts are there", flush=True)
        time.sleep(600)
    return make(parts, number, *more)
symbolize.make_part = wait
main()"""


def test_interrupted_and_run_again(many, tmp_path, ecgbyte):
    """Stopped by Ctrl-C once two of three parts are there; the rest is done by the next run."""
    work = tmp_path / "work"
    process = run("--work", work, "symbolize", many, *SHORT, "--jobs", 1, command=("-c", WAITING))
    assert process.stdout.readline() == "two parts are there\n"
    os.killpg(process.pid, signal.SIGINT)
    assert "stopped" in process.communicate()[1] and process.returncode == 1
    assert ecgbyte("symbolize", many, *SHORT, "--jobs", 1, work=tmp_path / "whole").exit_code == 0
    other = ecgbyte("symbolize", many, *SHORT, "--levels", 20)
    assert other.exit_code == 1 and "interrupted run with other settings" in other.stderr
    resumed = ecgbyte("symbolize", many, *SHORT, "--jobs", 1)
    assert resumed.exit_code == 0 and "resuming:" in resumed.stderr
    assert same(results(work), results(tmp_path / "whole"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(many, tmp_path, how):
    process = run("--work", tmp_path / "work", "symbolize", many, *SHORT, "--profile", "paper", "--jobs", 2)
    while process.poll() is None and len(session(process.pid)) < 4:  # itself, tracker, fork server, a worker
        time.sleep(0.02)
    process.send_signal(how)  # it alone
    process.wait()  # its pipes may be held by workers that are still to go
    said = "" if how == signal.SIGKILL else process.stderr.read()
    assert said.count("\n") <= 1 and "Traceback" not in said
    until = time.monotonic() + 120
    while session(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not session(process.pid)


def test_python_files_in_the_current_folder_do_not_run(many, tmp_path):
    """Such as in a data set that was downloaded: Python's helpers look there for what they import."""
    names = ("multiprocessing", "pywt", "scipy", "numpy", "pickle", "ecgbyte_cli", "ecgbyte_kernels")
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open('ran-{name}', 'w')")
    # as the installed script does, which does not look there itself
    code = "import sys; del sys.path[0]; from ecgbyte_cli.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "symbolize", many, *map(str, SHORT), "--jobs", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.glob("ran-*"))


def session(leader):
    """The processes of a session that are alive."""
    lines = subprocess.run(
        ["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True
    ).stdout.splitlines()
    return [pid for pid, sid, state in map(str.split, lines) if int(sid) == leader and state[0] != "Z"]


@pytest.mark.parametrize("quantizer", ["paper", "lloyd", "minmax"])
def test_how_much_is_held_makes_no_difference(ecgbyte, many, tmp_path, monkeypatch, quantizer):
    options = (*SHORT, "--segment", 0.5, "--jobs", 1, "--quantizer", quantizer)
    assert ecgbyte("symbolize", many, *options, work=tmp_path / "a").exit_code == 0
    monkeypatch.setattr("ecgbyte_cli.signal.symbolize.FLUSH", 500)  # a few segments
    assert ecgbyte("symbolize", many, *options, work=tmp_path / "b").exit_code == 0
    assert same(results(tmp_path / "a"), results(tmp_path / "b"))


def test_memory_follows_samples_not_records(tmp_path):
    """20 recordings of 20 minutes: all of them at once would be 330 MB more than one."""
    peaks = {}
    for name, many_of in (("one", 1), ("all", 20)):
        (tmp_path / name).mkdir()
        for i in range(many_of):
            header = f"r{i} 12 250 300000\n" + "".join(f"r{i}.dat 16 1000/mV 16 0 0 0 0 {k}\n" for k in LEADS)
            (tmp_path / name / f"r{i}.hea").write_text(header)
            with open(tmp_path / name / f"r{i}.dat", "wb") as file:
                file.truncate(300000 * 24)
        code = (
            "import sys, resource; from ecgbyte_cli.storage.workdir import WorkDir\n"
            "from ecgbyte_cli.stages.symbolize import SymbolizeOptions, symbolize\n"
            "symbolize(WorkDir(sys.argv[2]), sys.argv[1], SymbolizeOptions(profile='resample', jobs=1))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
        )
        args = [sys.executable, "-c", code, tmp_path / name, tmp_path / f"work {name}"]
        peaks[name] = float(subprocess.run(args, capture_output=True, text=True, check=True).stdout)
    assert peaks["all"] < peaks["one"] + 100, peaks


def test_two_runs_at_once_do_not_mix(ecgbyte, many, tmp_path):
    work = WorkDir(tmp_path / "work")
    with work.making("symbols"):
        result = ecgbyte("symbolize", many, *SHORT)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    assert "another run of ecgbyte is using" in result.stderr and not work.symbols.exists()
    assert ecgbyte("symbolize", many, *SHORT).exit_code == 0
    with work.checked("symbols"):  # read by another run: not to be replaced, and found to be done
        assert "using" in ecgbyte("symbolize", many, *SHORT, "--levels", 20, "--overwrite").stderr
        assert ecgbyte("symbolize", many, *SHORT).exit_code == 0


def test_damaged_letters_are_not_taken_for_done(ecgbyte, many, tmp_path):
    assert ecgbyte("symbolize", many, *SHORT).exit_code == 0
    with open(WorkDir(tmp_path / "work").symbols, "r+b") as file:
        file.seek(5000)
        file.write(b"\0" * 50)
    result = ecgbyte("symbolize", many, *SHORT)
    assert result.exit_code == 1 and "symbols.npy is damaged" in result.stderr
    assert ecgbyte("--verify", "none", "symbolize", many, *SHORT).exit_code == 0
    assert ecgbyte("symbolize", many, *SHORT, "--overwrite").exit_code == 0


def test_a_signal_file_that_changed_is_seen(ecgbyte, many, tmp_path):
    shutil.copytree(many, tmp_path / "data")
    assert ecgbyte("symbolize", tmp_path / "data", *SHORT).exit_code == 0
    write_wfdb(tmp_path, "r000", wave(2, 520, 999), ["II", "V1"], fs=125)
    (tmp_path / "r000.dat").rename(tmp_path / "data" / "r000.dat")
    result = ecgbyte("symbolize", tmp_path / "data", *SHORT)
    assert result.exit_code == 1 and "other settings (input)" in result.stderr


# What is said about the corpus


def said(ecgbyte, data, *options, work):
    result = ecgbyte("symbolize", data, *options, "--jobs", 1, work=work)
    assert result.exit_code == 0, result.stderr
    return result.stderr, results(work)[1]


@pytest.mark.parametrize(
    ("patients", "own", "word"),
    [
        (["ANONYMOUS"] * 6, 6, "the patient is a placeholder in 6 recordings"),
        (["unknown", "0", "P1", "P2", "P3", "P3"], 5, "the patient is a placeholder in 2 recordings"),
        (["4711"] * 6, 6, "all 6 recordings name the patient 4711"),
        (["4711"] * 4, 1, ""),
        (["A", "B"] * 3, 2, ""),
    ],
)
def test_patients_that_are_none_are_not_believed(ecgbyte, tmp_path, patients, own, word):
    (tmp_path / "data").mkdir()
    for i, patient in enumerate(patients):
        write_wfdb(
            tmp_path / "data",
            f"r{i}",
            wave(2, 520, i),
            ["II", "V1"],
            fs=125,
            comments=[f"Patient: {patient}"],
        )
    err, segments = said(ecgbyte, tmp_path / "data", *SHORT, work=tmp_path / "work")
    assert len(set(segments["patient"])) == own
    assert word in err and ("patient" in err) == bool(word)


def test_a_table_of_patients_is_believed(ecgbyte, tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(6):
        write_wfdb(tmp_path / "data", f"r{i}", wave(2, 520, i), ["II", "V1"], fs=125)
    rows = "".join(f"r{i},007\n" for i in range(6))
    (tmp_path / "data" / "table.csv").write_text("record,patient\n" + rows)
    options = (*SHORT, "--patients", tmp_path / "data" / "table.csv")
    err, segments = said(ecgbyte, tmp_path / "data", *options, work=tmp_path / "work")
    assert set(segments["patient"]) == {"007"} and "patient" not in err


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """8 recordings that swing by 1 mV; V1 of r3 by 0.03 mV, and of r4 not at all."""
    folder = tmp_path_factory.mktemp("clear")
    swing = np.sin(np.arange(520) / 20)
    for i in range(8):
        signal = wave(2, 520, i) + swing
        if i == 3:
            signal[1] = 0.05 + 0.0155 * swing
        if i == 4:
            signal[1] = 0.3
        write_wfdb(folder, f"r{i}", signal, ["II", "V1"], fs=125)
    return folder


def test_letters_that_say_little_are_named(ecgbyte, clear, tmp_path):
    assert "letters" not in said(ecgbyte, clear, *SHORT, "--levels", 200, work=tmp_path / "good")[0]
    err = said(ecgbyte, clear, *SHORT, "--range", -300, 300, work=tmp_path / "wide")[0]
    assert "of all letters are the same two" in err and "range is -300 to 300 mV" in err


@pytest.mark.parametrize(
    "options", [("--levels", 8), ("--range", -2.1, 2), ("--quantizer", "mulaw", "--levels", 5)]
)
def test_a_lead_that_is_lost_is_named(ecgbyte, clear, tmp_path, options):
    err, _ = said(ecgbyte, clear, *SHORT, *options, work=tmp_path / "work")
    assert (
        "1 recordings have leads that became one letter throughout, though they are not flat (r3: V1)" in err
    )


def test_units_are_kept_and_believed(ecgbyte, tmp_path):
    for name, scale in (("mv", 1), ("uv", 1000)):
        (tmp_path / name).mkdir()
        for i in range(3):
            rows = scale * np.round(wave(2, 520, i), 3).T
            np.savetxt(tmp_path / name / f"r{i}.csv", rows, "%.3f", ",", header="II,V1", comments="")
    options = (*SHORT, "--input-fs", 125)
    assert ecgbyte("symbolize", tmp_path / "mv", *options, work=tmp_path / "a").exit_code == 0
    assert (
        ecgbyte("symbolize", tmp_path / "uv", *options, "--units", "uV", work=tmp_path / "b").exit_code == 0
    )
    a, b = results(tmp_path / "a"), results(tmp_path / "b")
    assert (np.abs(a[0].astype(int) - b[0]) <= 1).all() and (a[0] != b[0]).mean() < 1e-3
    told = {"fs": 125.0, "lead_names": None, "units": "uV", "keep_identity": False}
    assert WorkDir(tmp_path / "b").reading() == told
    other = ecgbyte("symbolize", tmp_path / "uv", *options, "--units", "mV", work=tmp_path / "b")
    assert other.exit_code == 1 and "units" in other.stderr


# The scripts for public data sets, each on a small folder laid out as its archive


def script(name, *args):
    examples = Path(__file__).resolve().parent.parent / "examples"
    binaries = str(Path(sys.executable).parent)
    return subprocess.run(
        ["sh", examples / name, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": binaries + os.pathsep + os.environ["PATH"]},
    )


def lay_out(name, data):
    """Write a small copy of a data set; return its three records' patients and splits."""
    signals = [wave(12, 5000, seed) for seed in range(3)]
    if name == "ptbxl.sh":
        (data / "records500" / "00000").mkdir(parents=True)
        lines = ["ecg_id,patient_id,strat_fold,filename_lr,filename_hr"]
        for i, signal in enumerate(signals):
            write_wfdb(data / "records500" / "00000", f"0000{i}_hr", signal, fs=500)
            lines.append(f"{i},{10 + i}.0,{8 + i},records100/00000/0000{i}_lr,records500/00000/0000{i}_hr")
        (data / "ptbxl_database.csv").write_text("\n".join(lines))
        return {"10": "train", "11": "val", "12": "test"}
    if name == "mimic_iv_ecg.sh":
        lines = ["subject_id,study_id,file_name,ecg_time,path"]
        for i, signal in enumerate(signals):
            place = f"files/p1{i}00/p1{i}000032/s4{i}"
            (data / place).mkdir(parents=True)
            write_wfdb(data / place, f"4{i}", signal, fs=500)
            lines.append(f"1{i}000032,4{i},4{i},2180-07-23 08:44:00,{place}/4{i}")
        (data / "record_list.csv").write_text("\n".join(lines))
    else:
        import h5py

        with h5py.File(data / "exams_part0.hdf5", "w") as file:
            file["tracings"] = np.pad(
                np.stack(signals)[:, :, :4000].transpose(0, 2, 1), [(0, 1), (48, 48), (0, 0)]
            )
            file["exam_id"] = [40, 41, 42, 0]
        (data / "exams.csv").write_text("exam_id,patient_id\n40,10000032\n41,11000032\n42,12000032\n")
    return {p: readers.split_of(p) for p in ("10000032", "11000032", "12000032")}


@pytest.mark.parametrize("name", ["ptbxl.sh", "mimic_iv_ecg.sh", "code15.sh"])
def test_scripts_for_public_data(tmp_path, name):
    data = tmp_path / "a data set"
    data.mkdir()
    told = script(name, data, tmp_path / "work")
    assert told.returncode == 1 and told.stderr.startswith(f"{name}: ") and "is missing" in told.stderr
    expected = lay_out(name, data)
    told = script(name, data, tmp_path / "work")
    assert told.returncode == 0, told.stderr
    segments = read_table(WorkDir(tmp_path / "work").symbol_segments)
    assert dict(zip(segments["patient"], segments["split"], strict=True)) == expected
    assert WorkDir(tmp_path / "work").token_settings.exists()


@pytest.mark.parametrize("quantizer", ["paper", "minmax", "mulaw", "lloyd", "trellis"])
def test_recordings_of_another_hospital_are_read_as_a_model_reads_them(many, tmp_path, ecgbyte, quantizer):
    here, there = tmp_path / "here", tmp_path / "there"
    others = tmp_path / "others"
    others.mkdir()
    for i in range(5):
        write_wfdb(others, f"s{i}", 1.5 * wave(3, 1100, 500 + i), ["V1", "I", "II"], fs=250)
    for args in (["symbolize", many, *SHORT, "--quantizer", quantizer], ["learn", "--vocab", 60], ["encode"]):
        assert ecgbyte(*args, work=here).exit_code == 0
    merges = WorkDir(here).ecg_tokenizer
    result = ecgbyte("symbolize", others, "--like", merges, "encode", work=there)
    assert result.exit_code == 0, result.stderr
    assert WorkDir(there).ecg_tokenizer.read_bytes() == merges.read_bytes()
    tokenizer = ECGTokenizer.from_file(merges)
    tokens, places = read_array(WorkDir(there).tokens), read_table(WorkDir(there).token_segments)
    table = read_table(WorkDir(there).symbol_segments)
    for i, path in enumerate(table["path"]):
        start, signal = preprocess.segments(readers.read_recording(path), tokenizer.signal)[i % 2]
        assert start == table["start"][i]
        wanted = tokenizer.encode(signal)
        assert np.array_equal(tokens[places["offset"][i] :][: places["length"][i]], wanted)
    again = ecgbyte("symbolize", others, "--like", merges, work=there)
    assert again.exit_code == 0 and "already" in again.stderr


def test_what_like_cannot_be(many, tmp_path, ecgbyte):
    here, there = tmp_path / "here", tmp_path / "there"
    for args in (["symbolize", many, *SHORT], ["learn", "--vocab", 60]):
        assert ecgbyte(*args, work=here).exit_code == 0
        assert ecgbyte(*args[:2], *args[2:], work=there).exit_code == 0
    assert ecgbyte("learn", "--vocab", 40, "--overwrite", work=there).exit_code == 0
    merges = WorkDir(here).ecg_tokenizer
    result = ecgbyte("symbolize", many, "--like", tmp_path, work=tmp_path / "new")
    assert result.exit_code == 1 and "is not a tokenizer" in result.stderr
    result = ecgbyte("symbolize", many, "--like", merges, "--fs", 100, work=tmp_path / "new")
    assert result.exit_code == 2 and "--like sets the signal settings" in result.stderr
    result = ecgbyte("symbolize", many, "--like", merges, work=there)
    assert result.exit_code == 1 and "another tokenizer" in result.stderr
