"""`ecgbyte symbolize A B`: several data sets in one work folder."""

import json
import shutil

import pytest
from click.testing import CliRunner
from test_readers import wave, write_wfdb
from test_symbolize import results, same

from ecgbyte_cli import readers
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import question_segments
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir

SHORT = ("--profile", "resample", "--fs", 100, "--leads", "II,V1", "--jobs", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders A and B of 16 synthetic records, with names and patients alike."""
    root = tmp_path_factory.mktemp("several data sets")
    for name, seed in (("A", 1), ("B", 2)):
        args = ["synth", root / name, "--records", 16, "--seed", seed, "--fs", 250]
        assert CliRunner().invoke(main, list(map(str, args))).exit_code == 0
    return root


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    """A work folder with both."""
    work = tmp_path_factory.mktemp("work")
    args = ["--work", work, "symbolize", data / "A", data / "B", *SHORT]
    result = CliRunner().invoke(main, list(map(str, args)))
    assert result.exit_code == 0 and "data sets: A (16 recordings), B (16 recordings)" in result.stderr
    return work


def run(ecgbyte, *args, **options):
    result = ecgbyte("symbolize", *args, *SHORT, **options)
    assert result.exit_code == 0, result.stderr
    return result


def refusal(ecgbyte, *args, **options):
    """What a run says that is refused in one line."""
    result = ecgbyte("symbolize", *args, *SHORT, **options)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def whose(work):
    """Folder and name of each record, and its patient and side."""
    rows = read_table(WorkDir(work).symbol_segments)
    places = ["/".join(path.removesuffix(".hea").split("/")[-2:]) for path in rows["path"]]
    return dict(zip(places, zip(rows["patient"], rows["split"], strict=True), strict=True))


def test_patients_are_told_apart_and_keep_their_sides(ecgbyte, data, both, tmp_path):
    together = whose(both)
    assert len(together) == 32
    for name in "AB":
        run(ecgbyte, data / name, work=tmp_path / name)
        alone = whose(tmp_path / name)
        assert all(patient.startswith("P0") for patient, _ in alone.values())
        assert {key: (f"{name}/{p}", side) for key, (p, side) in alone.items()} == {
            key: told for key, told in together.items() if key.startswith(name)
        }
    assert read_json(WorkDir(both).symbol_settings)["result"]["records"] == 32


def test_a_single_data_set_is_as_it_was(ecgbyte, data, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("record,patient,split\nsynth00001,K,val\n")
    run(ecgbyte, data / "A", "--patients", table)
    asked = read_json(WorkDir(tmp_path / "work").symbol_settings)["settings"]
    assert asked["input"] == readers.fingerprint(readers.find(data / "A")[0])
    assert list(asked)[:2] == ["input", "patients"] and len(asked["patients"]) == 64
    told = whose(tmp_path / "work")
    assert told["A/synth00001"] == ("K", "val") and told["A/synth00002"][0].startswith("P0")
    names = sorted((data / "A").glob("*.hea"))
    assert "already" in run(ecgbyte, *names, "--patients", table).stderr  # as a shell writes A/*.hea out


def test_the_same_again_and_others(ecgbyte, data, both, tmp_path):
    shutil.copytree(both, tmp_path / "work")
    before = results(tmp_path / "work")
    a, b = data / "A", data / "B"
    assert "already" in run(ecgbyte, a, b, "--patients", "none").stderr
    (tmp_path / "table.csv").write_text("record,patient\nsynth00001,K\n")
    for args in ((b, a), (a,), (a / "*.hea", b / "synth00001")):
        assert "made with other settings (input)" in refusal(ecgbyte, *args)
    for tables in (("table.csv",), ("table.csv", "none"), ("none", "table.csv"), ("table.csv", "table.csv")):
        options = [word for t in tables for word in ("--patients", t if t == "none" else tmp_path / t)]
        result = ecgbyte("symbolize", a, b, *options, *SHORT)
        assert result.exit_code == 1 and "made with other settings (patients)" in result.stderr
    assert same(before, results(tmp_path / "work"))
    run(ecgbyte, b, a, "--overwrite")
    assert whose(tmp_path / "work") == whose(both)


def test_a_table_for_each_or_one_for_all(ecgbyte, data, tmp_path):
    a, b = data / "A", data / "B"
    own, other, all_ = (tmp_path / f"{name}.csv" for name in ("own", "other", "all"))
    own.write_text("record,patient,split\nsynth00001,17,val\n")
    other.write_text("record,patient,split\nsynth00001,17,test\n")
    all_.write_text("record,patient\nA/synth00001,17\nB/synth00001,17\nB/synth00002,unknown\n")

    run(ecgbyte, a, b, "--patients", own, "--patients", other, work=tmp_path / "1")
    told = whose(tmp_path / "1")
    assert told["A/synth00001"] == ("A/17", "val") and told["B/synth00001"] == ("B/17", "test")
    plain = whose(tmp_path / "1")["B/synth00002"]
    assert plain[0].startswith("B/P0")

    run(ecgbyte, a, b, "--patients", "none", "--patients", other, work=tmp_path / "2")
    told = whose(tmp_path / "2")
    assert told["A/synth00001"][0].startswith("A/P0") and told["B/synth00001"] == ("B/17", "test")

    result = run(ecgbyte, a, b, "--patients", all_, work=tmp_path / "3")
    told = whose(tmp_path / "3")
    assert told["A/synth00001"][0] == told["B/synth00001"][0] == "17"
    assert told["B/synth00002"] == plain and "not in the table of patients: 29 recordings," in result.stderr

    for tables in ([own] * 3, ["none"] * 3):
        options = [word for table in tables for word in ("--patients", table)]
        assert "3 times --patients for 2 data sets" in refusal(ecgbyte, a, b, *options, work=tmp_path / "4")
    said = refusal(ecgbyte, a, "--patients", own, "--patients", other, work=tmp_path / "4")
    assert "2 times --patients for 1 data sets" in said
    assert "cannot be read" in refusal(ecgbyte, a, b, "--patients", tmp_path / "x.csv", work=tmp_path / "4")


def test_recordings_are_not_read_twice(ecgbyte, data, tmp_path, monkeypatch):
    root = tmp_path / "data"
    shutil.copytree(data / "A", root / "sub")
    write_wfdb(root, "r1", wave(2, 2600, 1), ["II", "V1"], fs=250)
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "links").mkdir()
    for ending in (".hea", ".dat"):
        (tmp_path / "links" / f"x{ending}").symlink_to(root / "sub" / f"synth00003{ending}")
    monkeypatch.chdir(tmp_path)
    for one, other in [
        ("data", "data"),
        ("data", "./data/"),
        ("data", "data/sub"),
        ("data/sub", "data"),
        ("data", "data/r1"),
        ("data", "data/sub/synth00001"),
        ("data", "link"),
        ("data/sub", "links"),
        ("data/sub", "data/*/*.hea"),
    ]:
        said = refusal(ecgbyte, one, other)
        assert "name each" in said and one in said, said
    assert "no such folder or recording" in refusal(ecgbyte, "data", "other")
    result = ecgbyte("symbolize", "data", "lern", *SHORT)
    assert result.exit_code == 2 and result.stderr.endswith("Did you mean 'learn'?\n"), result.stderr
    (tmp_path / "empty").mkdir()
    assert "empty contains no recordings" in refusal(ecgbyte, "data", "empty")
    write_wfdb(tmp_path / "empty", "r1", wave(2, 2600, 1), ["II", "V1"], fs=250)
    run(ecgbyte, "data/*.hea", "data/sub", "empty")
    assert whose("work")["empty/r1"][0] == "empty/r1" and whose("work")["data/r1"][0] == "data/r1"


def test_a_table_alone_is_no_data_set(ecgbyte, data, tmp_path):
    (tmp_path / "table").mkdir()
    table = tmp_path / "table" / "table.csv"
    table.write_text("record,patient\nsynth00001,K\n")
    said = refusal(ecgbyte, data / "A", tmp_path / "table", "--patients", table)
    assert "contains no recordings next to the table of patients" in said


def test_folders_of_one_name_are_told_apart_by_those_above(ecgbyte, data, tmp_path):
    for place, source in (("x/records", "A"), ("y/records", "B")):
        shutil.copytree(data / source, tmp_path / place)
    run(ecgbyte, tmp_path / "x" / "records", tmp_path / "y" / "records")
    patients = read_table(WorkDir(tmp_path / "work").symbol_segments)["patient"]
    assert {patient.rpartition("/")[0] for patient in patients} == {"x/records", "y/records"}


def test_what_all_recordings_of_one_data_set_name_is_no_patient_there(ecgbyte, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for i in range(6):
            patient = "4711" if name == "one" else f"P{i % 3}"
            write_wfdb(
                tmp_path / name,
                f"r{i}",
                wave(2, 2600, i),
                ["II", "V1"],
                fs=250,
                comments=[f"Patient: {patient}"],
            )
    result = run(ecgbyte, tmp_path / "one", tmp_path / "other")
    assert "all 6 recordings of one name the patient 4711" in result.stderr
    patients = {patient for patient, _ in whose(tmp_path / "work").values()}
    assert patients == {*(f"one/r{i}" for i in range(6)), *(f"other/P{i}" for i in range(3))}


def test_questions_find_a_record_by_the_end_of_its_path(both):
    segments = read_table(WorkDir(both).symbol_segments)
    asked = [Question(name, "?", "", "", None) for name in ("synth00001", "A/synth00001", "B/synth00001")]
    joined, [unmatched] = question_segments.join_segments(asked, segments)
    assert [patient[:2] for _, _, patient, _ in joined] == ["A/", "B/"]
    assert ["/A/" in segments["path"][first] for _, first, *_ in joined] == [True, False]
    assert unmatched.record == "synth00001" and "several recordings are called" in unmatched.problem
    pair = Question("A/synth00001", "?", "", "", "train", ("B/synth00001",))
    [(question, *_)], [] = question_segments.join_segments([pair], segments)
    assert len(set(question.segments)) == 2


def test_an_interrupted_run_goes_on(ecgbyte, data, both, tmp_path, monkeypatch):
    def stop(*_):
        raise Failure("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("ecgbyte_cli.stages.symbolize._join", stop)
        result = ecgbyte("symbolize", data / "A", data / "B", *SHORT)
    assert "stopped" in result.stderr
    parts = sorted(WorkDir(tmp_path / "work").symbol_parts.glob("*.part"))
    assert len(parts) == 2  # none is of two data sets
    parts[0].unlink()
    result = ecgbyte("symbolize", data / "B", data / "A", *SHORT)
    assert result.exit_code == 1 and "interrupted run with other settings" in result.stderr
    assert "resuming: 16 of 32 recordings done before" in run(ecgbyte, data / "A", data / "B").stderr
    assert same(results(tmp_path / "work"), results(both))


def test_as_a_model_reads_them(ecgbyte, data, both, tmp_path):
    shutil.copytree(both, tmp_path / "model")
    assert ecgbyte("learn", "--vocab", 60, work=tmp_path / "model").exit_code == 0
    merges = WorkDir(tmp_path / "model").ecg_tokenizer
    result = ecgbyte("symbolize", data / "A", data / "B", "--like", merges, "--jobs", 1, "encode", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["encode"]["segments"] == 32, result.stderr
    assert whose(tmp_path / "work") == whose(both)


def test_the_list_ends_at_the_next_command(ecgbyte, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = list(map(str, SHORT))
    for k, (args, records) in enumerate(
        [
            ([data / "A", "learn", "--vocab", 60, "encode"], 16),
            ([data / "A", data / "B", "learn", "--vocab", 60, "encode"], 32),
            ([data / "A", "--keep-identity", data / "B", "learn-merges", "--vocab", 60, "encode"], 32),
        ]
    ):
        result = ecgbyte("symbolize", *options, *args, "--json", work=tmp_path / str(k))
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert told["symbolize"]["records"] == told["encode"]["segments"] == records and len(told) == 3
    shutil.copytree(data / "A", tmp_path / "learn")
    result = ecgbyte("symbolize", data / "B", "./learn", *options, "learn", "--vocab", 60, "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["symbolize"]["records"] == 32, result.stderr
    result = ecgbyte("symbolize", "learn", *options, "--json", work=tmp_path / "first")
    assert json.loads(result.stdout)["records"] == 16
    assert ecgbyte("symbolize", "learn", "--vocab", 60).exit_code == 2
    assert ecgbyte("symbolize").exit_code == 2
