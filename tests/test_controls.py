"""ecgbyte controls: twins, their files, the manifest and the questions about them."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_cli.evaluation import twins
from ecgbyte_cli.questions.question_file import read_questions
from ecgbyte_cli.readers import read_recording
from ecgbyte_cli.signal.preprocess import LEADS
from ecgbyte_cli.stages import controls as stage


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def signals_of(folder, control, form="wfdb", name="synth00001"):
    if form == "npy":
        return np.load(folder / "npy" / control / f"{name}_0.npy", allow_pickle=False)
    return read_recording(folder / form / control / f"{name}.hea").signal


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve recordings and the questions about them."""
    from click.testing import CliRunner

    from ecgbyte_cli.__main__ import main

    folder = tmp_path_factory.mktemp("recordings") / "data"
    assert CliRunner().invoke(main, ["synth", str(folder), "--records", "12", "--fs", "250"]).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """The twins of all, without pictures."""
    out = tmp_path_factory.mktemp("twins") / "out"
    options = stage.ControlsOptions(out, data / "qa.jsonl", "all", ("wfdb", "npy"), jobs=1)
    return out, stage.controls([str(data)], options)


def test_each_twin_is_what_its_name_says():
    random = np.random.default_rng(0)
    signal = random.normal(size=(12, 2000)).astype(np.float32)
    seed = twins.recording_seed(3, "a")
    made = {name: twins.make_twin(name, signal, seed) for name in twins.CONTROLS if name != twins.OTHER}
    assert made["signal"][0] is signal
    assert not made["flat-line"][0].any() and made["flat-line"][0].shape == signal.shape
    power, own = (np.abs(np.fft.rfft(of, axis=1)) for of in (made["noise"][0], signal))
    np.testing.assert_allclose(power, own, atol=1e-2)
    assert np.abs(np.corrcoef(made["noise"][0][0], signal[0])[0, 1]) < 0.2
    shuffled, how = made["leads-shuffled"]
    order = [LEADS.index(lead) for lead in how.rpartition("order ")[2].split()]
    np.testing.assert_array_equal(shuffled, signal[order])
    assert sorted(order) == list(range(12)) and all(i != lead for i, lead in enumerate(order))
    flat, how = made["stretch-flat"]
    start, stop = map(int, how.partition("sample ")[2].split(" to "))
    assert stop - start == 500 and (flat[:, start:stop] == np.median(signal, axis=1)[:, None]).all()
    np.testing.assert_array_equal(
        np.delete(flat, np.s_[start:stop], 1), np.delete(signal, np.s_[start:stop], 1)
    )


def test_a_twin_depends_on_its_name_and_the_seed_alone():
    signal = np.random.default_rng(0).normal(size=(12, 500)).astype(np.float32)
    one, same, other, again = (
        twins.make_twin("noise", signal, twins.recording_seed(*of))[0]
        for of in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
    )
    assert (one == same).all() and (one != other).any() and (one != again).any()


def test_files_are_as_the_manifest_says(data, made):
    out, result = made
    assert (result["records"], result["skipped"], result["files"]) == (12, 0, str(out))
    rows = lines_of(out / "manifest.jsonl")
    assert len(rows) == 12 * 6 * 3  # header, signal and array
    for row in rows:
        assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    there = {
        str(p.relative_to(out)) for form in ("wfdb", "npy") for p in (out / form).rglob("*") if p.is_file()
    }
    assert there == {row["file"] for row in rows}
    own = read_recording(data / "synth00001.hea")
    kept = read_recording(out / "wfdb" / "signal" / "synth00001.hea")
    np.testing.assert_allclose(kept.signal, own.signal, atol=6e-4)
    assert kept.leads == LEADS and kept.fs == 250
    assert own.comments and not kept.comments  # they hold the condition
    assert "not a recording" in read_recording(out / "wfdb" / "noise" / "synth00001.hea").comments[0]
    npy = signals_of(out, "noise", "npy")
    assert npy.shape == (12, 2500) and npy.dtype == np.float32
    np.testing.assert_allclose(npy, signals_of(out, "noise"), atol=6e-4)


def test_another_patients_ecg_is_another_patients(data, made):
    out, _ = made
    patient = {row["name"]: row["patient"] for row in lines_of(out / "manifest.jsonl")}
    source = {name: signals_of(out, "signal", name=name) for name in patient}
    for name, own in patient.items():
        other = signals_of(out, "other-patient", name=name)
        [whose] = {patient[n] for n, signal in source.items() if np.array_equal(signal, other)}
        assert whose != own
    assert len(set(patient.values())) > 1 and all(
        p.startswith("P0") and len(p) == 6 for p in patient.values()
    )


def test_questions_of_each_form_ask_the_same(data, made):
    out, result = made
    asked = read_questions(data / "qa.jsonl")
    assert result["questions"] == len(asked)
    wfdb, npy = (read_questions(out / f"questions-{form}.jsonl") for form in ("wfdb", "npy"))
    for some in (wfdb, npy):
        assert len(some) == 6 * len(asked) and len({q.id for q in some}) == len(some)
        for control in twins.CONTROLS:
            mine = [q for q in some if q.control == control]
            assert [(q.question, q.answer, q.type, q.split) for q in mine] == [
                (q.question, q.answer, q.type, q.split) for q in asked
            ]
            assert [q.original for q in mine] == [q.records for q in asked]
    assert wfdb[-1].record == f"stretch-flat/{asked[-1].record}"
    for item in lines_of(out / "questions-npy.jsonl"):
        assert (out / item["ecg_path"]).exists()


def test_the_twins_do_not_depend_on_the_number_of_jobs(data, made, tmp_path):
    options = stage.ControlsOptions(tmp_path / "two", data / "qa.jsonl", "all", ("wfdb", "npy"), jobs=2)
    stage.controls([str(data)], options)
    for name in ("manifest.jsonl", "questions-wfdb.jsonl", "questions-npy.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (made[0] / name).read_bytes()


def test_a_finished_run_is_kept_and_other_settings_need_overwrite(data, made, ecgbyte):
    out, _ = made
    words = ("controls", data, "--qa", data / "qa.jsonl", "--split", "all", "--out", out, "--jobs", 1)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    same = ecgbyte(*words, "--forms", "wfdb,npy", "--json")
    assert same.exit_code == 0 and json.loads(same.stdout)["questions"] > 12, same.stderr
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    other = ecgbyte(*words, "--forms", "wfdb")
    assert other.exit_code == 1 and "forms" in other.stderr and "--overwrite" in other.stderr
    copy = out.with_name("copy")
    shutil.copytree(out, copy)
    replaced = ecgbyte(*words[:-4], "--out", copy, "--jobs", 1, "--forms", "wfdb", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert not (copy / "npy").exists() and (copy / "wfdb" / "noise" / "synth00001.dat").exists()


def test_an_interrupted_run_resumes(data, made, tmp_path, monkeypatch):
    """A part that was done is not done again, and nothing of the first run is left over."""
    from ecgbyte_cli.evaluation import twin_files
    from ecgbyte_cli.runtime import row_parts

    monkeypatch.setattr(row_parts, "PART", 4)
    whole, done = twin_files._rows_of, []

    def failing(path, *rest):
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(path)
        return whole(path, *rest)

    monkeypatch.setattr(twin_files, "_rows_of", failing)
    out = tmp_path / "out"
    options = stage.ControlsOptions(out, data / "qa.jsonl", "all", ("wfdb", "npy"), jobs=1)
    with pytest.raises(KeyboardInterrupt):
        stage.controls([str(data)], options)
    assert not (out / "manifest.jsonl").exists()
    monkeypatch.setattr(twin_files, "_rows_of", lambda path, *rest: done.append(path) or whole(path, *rest))
    assert stage.controls([str(data)], options)["records"] == 12
    assert len(done) == 6 + 8  # the first part of four was kept
    assert (out / "manifest.jsonl").read_bytes() == (made[0] / "manifest.jsonl").read_bytes()
    (tmp_path / "early").mkdir()
    shutil.copy(out / "manifest.jsonl", tmp_path / "early" / ".plan.json")  # ended before the first part
    stage.controls([str(data)], replace(options, out=tmp_path / "early"))
    left = {p.name for p in out.rglob(".*")} | {p.name for p in tmp_path.glob(".*")}
    assert left == set()


def test_only_recordings_with_a_question_of_the_split_get_twins(data, tmp_path, ecgbyte):
    result = ecgbyte(
        "controls", data, "--qa", data / "qa.jsonl", "--out", tmp_path / "o", "--forms", "npy", "--json"
    )
    told = json.loads(result.stdout)
    tested = [q for q in read_questions(data / "qa.jsonl") if q.split == "test"]
    assert (told["records"], told["questions"]) == (len({q.record for q in tested}), len(tested))
    nobody = tmp_path / "none.jsonl"
    nobody.write_text('{"record": "x", "question": "Q?", "answer": "yes", "split": "test"}\n')
    failed = ecgbyte("controls", data, "--qa", nobody, "--out", tmp_path / "p")
    assert failed.exit_code == 1 and "no question of split test" in failed.stderr


def test_folders_are_kept_so_that_a_twin_folder_can_take_the_datas_place(data, tmp_path, ecgbyte):
    nested = tmp_path / "data" / "records500" / "00000"
    nested.mkdir(parents=True)
    for number, name in enumerate(("00001_hr", "00002_hr"), 1):
        for ending in (".hea", ".dat"):
            content = (data / f"synth0000{number}{ending}").read_bytes()
            (nested / f"{name}{ending}").write_bytes(
                content.replace(f"synth0000{number}".encode(), name.encode())
            )
    result = ecgbyte("controls", tmp_path / "data", "--out", tmp_path / "o", "--forms", "wfdb")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "o" / "wfdb" / "noise" / "records500" / "00000" / "00002_hr.hea").exists()


def test_what_cannot_be_used_is_skipped_with_its_reason(data, tmp_path, ecgbyte):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "synth00001.dat").write_bytes(b"")
    np.save(folder / "two.npy", np.zeros((2, 5000), np.float32))
    (folder / "a").mkdir()
    shutil.copy(folder / "synth00002.hea", folder / "a" / "x.hea")
    short = tmp_path / "short.csv"
    short.write_text("I,II\n0,0\n")
    result = ecgbyte("controls", folder, "--out", tmp_path / "o", "--forms", "wfdb", "--json")
    told = json.loads(result.stdout)
    assert told["records"] == 11 and told["skipped"] == 3, result.stderr
    assert (tmp_path / "o" / "manifest.jsonl.skipped.csv").read_text().count("\n") == 4
    none = ecgbyte("controls", short, "--out", tmp_path / "p")
    assert (
        none.exit_code == 1
        and "short.csv" in none.stderr
        and not (tmp_path / "p" / "manifest.jsonl").exists()
    )


def test_one_patient_alone_has_no_twin_of_another(data, tmp_path, ecgbyte):
    result = ecgbyte("controls", data / "synth00001", "--out", tmp_path / "o", "--forms", "npy")
    assert result.exit_code == 0 and "no other-patient twins" in result.stderr, result.stderr
    assert "1 recording with twins" in result.stdout
    assert not (tmp_path / "o" / "npy" / "other-patient").exists()


def test_a_folder_of_other_things_is_not_written_to(data, tmp_path, ecgbyte):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine.txt").write_text("mine")
    result = ecgbyte("controls", data, "--out", tmp_path / "o")
    assert result.exit_code == 1 and "files other than" in result.stderr
    assert ecgbyte("controls", data, "--out", tmp_path / "q", "--forms", "jpg").exit_code == 2


def test_pictures_show_no_title_and_the_questions_point_at_them(data, tmp_path, ecgbyte, monkeypatch):
    from ecgbyte_cli.render import figures

    titles = []
    plain = figures.plot_sheet
    monkeypatch.setattr(figures, "plot_sheet", lambda *given: titles.append(given[3]) or plain(*given))
    monkeypatch.setattr(figures, "png_bytes", lambda figure: b"png")  # which takes longest
    whose = {q.record: q.patient for q in read_questions(data / "qa.jsonl")}
    one = "synth00001"
    two = next(record for record, patient in whose.items() if patient != whose[one])
    qa = tmp_path / "qa.jsonl"
    qa.write_text(
        json.dumps({"record": [one, two], "question": "Same?", "answer": ["no"], "split": "test"}) + "\n"
    )
    words = ("--qa", qa, "--out", tmp_path / "o", "--forms", "png,npy", "--jobs", 1)
    result = ecgbyte("controls", data / one, data / two, *words)
    assert (
        result.exit_code == 0
        and "not in the npy format, because ELM takes one ECG: 1 question about several recordings"
        in result.stderr
    ), result.stderr
    assert set(titles) == {""} and len(titles) == 12
    items = json.loads((tmp_path / "o" / "questions-png.json").read_text())
    assert len(items) == 6 and all(
        (tmp_path / "o" / image).exists() for item in items for image in item["image"]
    )
    assert items[0]["conversations"][0]["value"].startswith("<image>\n<image>\nSame?")
    assert (tmp_path / "o" / "questions-npy.jsonl").read_text() == ""  # ELM takes one ECG
