"""ecgbyte findings: the table of answers about a folder of recordings."""

import csv
import itertools
import json

import numpy as np
import pyarrow.parquet
import pytest
from test_measure import synthetic, written

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import finding_table, trained_questions
from ecgbyte_cli.inference.certainty import Certainty, read_certainty
from ecgbyte_cli.inference.operating_points import OperatingPoint, operating_point
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.folder_checks import SHIPPED
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.runtime import devices, row_parts
from ecgbyte_cli.signal.measure import measure
from ecgbyte_cli.signal.measurement import VALUES
from ecgbyte_cli.stages.findings import FindingsOptions, findings
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.fixture(scope="module")
def session():
    return Session.open(SHIPPED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three recordings, of which one has three segments, and one file that cannot be read."""
    made = tmp_path_factory.mktemp("recordings")
    written(made, "a")
    written(made, "b", 25)
    written(made, "c", condition="atrial fibrillation")
    (made / "bad.npz").write_bytes(b"no archive")
    return made


@pytest.fixture(scope="module")
def table(folder, tmp_path_factory):
    """The table of the folder, as JSON Lines, with embeddings beside it."""
    made = tmp_path_factory.mktemp("table")
    out = made / "f.jsonl"
    options = FindingsOptions(out, model=SHIPPED, jobs=1, embeddings=made / "e.npy")
    result = findings(WorkDir(made / "none"), [str(folder)], options)
    assert (result["records"], result["skipped"], result["out"]) == (3, 1, str(out))
    assert not (made / "none").exists()
    return out


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_column_is_there_in_order(table):
    rows = rows_of(table)
    names = ["record", "path", "patient", "recorded", "segment", "start"]
    names += itertools.chain(*((f"p_{name}", name) for name in FINDINGS))
    names += ["rhythm", "p_rhythm", *VALUES, "flags", "quality", "unlike", "conflicts"]
    assert [list(row) for row in rows] == [names] * 4
    assert [(row["record"], row["segment"], row["start"]) for row in rows] == [
        ("a", 0, 0.0), ("b", 0, 0.0), ("b", 1, 10.0), ("c", 0, 0.0),
    ]  # fmt: skip


def test_the_answers_are_those_of_a_conversation_and_the_values_are_measured(table, folder, session):
    row = next(row for row in rows_of(table) if row["record"] == "c")
    ecg = session.read(folder / "c.npz")
    for question, name in (("Is there atrial fibrillation?", "afib"), ("Is this ECG normal?", "normal")):
        turn = session.ask(ecg, question)
        said = {turn.answer: turn.probability, turn.other[0]: turn.other[1]}
        assert row[name] == (turn.answer if turn.sure else "unsure")
        assert row[f"p_{name}"] == pytest.approx(said["yes"], rel=1e-4)
    turn = session.ask(ecg, "What is the rhythm?")
    assert (row["rhythm"], row["p_rhythm"]) == (turn.answer, pytest.approx(turn.probability, rel=1e-4))
    values = measure(ecg.recording).values()
    assert {name: row[name] for name in VALUES} == {name: values[name] for name in VALUES}


def test_embeddings_are_the_states_behind_the_ecg(table, folder, session):
    states = np.load(table.with_name("e.npy"))
    rows = rows_of(table)
    assert states.dtype == np.float32 and states.shape == (len(rows), session.lm.ecg_rows.embedding_dim)
    # the state depends on the ECG and not on the question
    hidden = []
    for question in ("A", "B"):
        ids, _ = session.prompt_ids([session.read(folder / "a.npz")], [(question, None)])
        hidden.append(finding_table_states(session, ids))
    assert np.allclose(hidden[0], hidden[1], atol=1e-5)
    assert np.allclose(states[0], hidden[0], atol=1e-4)
    assert not np.allclose(states[0], states[-1], atol=1e-2)


def finding_table_states(session, ids):
    """The last layer's state at the end of the ECG, by a plain forward pass over the whole prompt."""
    import torch

    states = []
    head = session.lm.base.get_output_embeddings()
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, args: states.append(args[0])):
        session.lm.base(**session.lm.inputs(torch.from_numpy(ids)[None].to(session.lm.device)))
    return states[0][0, session.lm.layout.prefix(ids) - 1].float().cpu().numpy()


def test_csv_and_parquet_hold_the_same(table, folder, tmp_path, ecgbyte):
    for ending in ("csv", "parquet"):
        result = ecgbyte(
            "findings", folder, "--model", SHIPPED, "--out", tmp_path / f"f.{ending}", "--jobs", 1, "--json"
        )
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert (told["records"], told["skipped"]) == (3, 1) and "rows" not in told
    lines = rows_of(table)
    assert pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pylist() == lines
    rows = rows_of(tmp_path / "f.csv")
    assert [[row[name] for name in ("record", "afib", "rhythm")] for row in rows] == [
        [row[name] for name in ("record", "afib", "rhythm")] for row in lines
    ]
    assert [float(row["p_afib"]) for row in rows] == [row["p_afib"] for row in lines]
    [skipped] = rows_of(tmp_path / "f.csv.skipped.csv")
    assert skipped["path"].endswith("bad.npz") and skipped["reason"]


def test_several_processes_write_the_same(table, folder, tmp_path):
    options = FindingsOptions(tmp_path / "two.jsonl", model=SHIPPED, jobs=2)
    findings(WorkDir(tmp_path / "none"), [str(folder)], options)
    assert (tmp_path / "two.jsonl").read_bytes() == table.read_bytes()


def test_on_a_gpu_one_process_asks_the_model(table, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("ecgbyte_cli.stages.findings.devices.on_gpu", lambda wanted: True)
    jobs, real = [], row_parts.in_parallel

    def in_parallel(function, tasks, count, preload):
        jobs.append(count)
        return real(function, tasks, count, preload)

    monkeypatch.setattr(row_parts, "in_parallel", in_parallel)
    out = tmp_path / "gpu.jsonl"
    findings(WorkDir(tmp_path / "none"), [str(folder)], FindingsOptions(out, model=SHIPPED, jobs=3))
    assert jobs == [1] and out.read_bytes() == table.read_bytes()


def test_a_gpu_is_asked_for_or_found(monkeypatch):
    assert [devices.on_gpu(wanted) for wanted in ("cpu", "cuda", "cuda:1", "mps")] == [
        False,
        True,
        True,
        True,
    ]
    monkeypatch.setattr(devices, "DRIVERS", ())
    assert not devices.on_gpu(None) and not devices.on_gpu("auto")
    monkeypatch.setattr(devices, "DRIVERS", ("/",))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert devices.on_gpu(None) and devices.on_gpu("auto")


def test_a_table_that_is_there_is_not_measured_again(table, folder, ecgbyte):
    again = ecgbyte(
        "findings", folder, "--out", table, "--model", SHIPPED, "--embeddings", table.with_name("e.npy")
    )
    assert again.exit_code == 0 and f"3 recordings read in an earlier run: {table}" in again.stdout


def test_a_stopped_run_goes_on_and_writes_the_same(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ecgbyte_cli.runtime.row_parts.PART", 2)
    whole, out, work = tmp_path / "whole.jsonl", tmp_path / "f.jsonl", WorkDir(tmp_path / "none")
    findings(work, [str(folder)], FindingsOptions(whole, model=SHIPPED, jobs=1))
    real = finding_table._row

    def stopped(session, path, *more):
        if path.endswith("c.npz"):
            raise KeyboardInterrupt
        return real(session, path, *more)

    options = FindingsOptions(out, model=SHIPPED, jobs=1, embeddings=tmp_path / "e.npy")
    with monkeypatch.context() as patched:
        patched.setattr(finding_table, "_row", stopped)
        with pytest.raises(KeyboardInterrupt):
            findings(work, [str(folder)], options)
    assert not out.exists()
    with pytest.raises(Failure, match="other settings"):
        findings(work, [str(folder)], FindingsOptions(out, model=SHIPPED, jobs=1, questions=("afib",)))
    findings(work, [str(folder)], options)
    assert "resuming: 2 of 4" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert len(np.load(tmp_path / "e.npy")) == len(rows_of(out))


def test_a_table_on_the_terminal_and_chosen_questions(folder, ecgbyte):
    one = ecgbyte("findings", folder / "a.npz", "--model", SHIPPED)
    assert one.exit_code == 0, one.stderr
    assert "atrial fibrillation" in one.stdout and "not a medical device" in one.stdout
    several = ecgbyte(
        "findings", folder, "--model", SHIPPED, "--questions", "Is there a-fib?", "--questions", "rhythm"
    )
    assert several.exit_code == 0, several.stderr
    header = several.stdout.splitlines()[0].split()
    assert header[:4] == ["record", "start", "rhythm", "yes"]
    told = json.loads(
        ecgbyte("findings", folder / "c.npz", "--model", SHIPPED, "--questions", "afib", "--json").stdout
    )
    assert {"p_afib", "afib"} < set(told["rows"][0]) and "rhythm" not in told["rows"][0]


def test_wrong_uses_are_told_in_a_line(folder, tmp_path, ecgbyte):
    assert ecgbyte("findings", folder, "--out", tmp_path / "f.txt").exit_code == 2
    assert ecgbyte("findings", folder, "--embeddings", tmp_path / "e.npy").exit_code == 2
    asked = ecgbyte("findings", folder, "--model", SHIPPED, "--questions", "afibb")
    assert asked.exit_code == 1 and "did you mean 'afib'" in asked.stderr
    nothing = ecgbyte("findings", folder / "bad.npz", "--model", SHIPPED, "--out", tmp_path / "f.csv")
    assert nothing.exit_code == 1 and "bad.npz cannot be read: " in nothing.stderr


def test_a_file_without_names_of_leads_or_a_rate(tmp_path, ecgbyte):
    recording, _ = synthetic("sinus rhythm", fs=250)
    np.save(tmp_path / "a.npy", recording.signal)
    leads = ",".join(recording.leads)
    program = ("findings", tmp_path / "a.npy", "--model", SHIPPED, "--questions", "afib", "--json")
    assert "--input-fs" in ecgbyte(*program).stderr
    told = json.loads(ecgbyte(*program, "--input-fs", 250, "--lead-names", leads).stdout)
    assert told["records"] == 1 and told["rows"][0]["record"] == "a"


def test_hostile_names_are_harmless(tmp_path, ecgbyte):
    recording, _ = synthetic("sinus rhythm", fs=250)
    folder = tmp_path / "in"
    folder.mkdir()
    name = "=cmd|' C calc'!A0\n[red]x"
    np.savez(folder / f"{name}.npz", signal=recording.signal, fs=250, leads=recording.leads)
    result = ecgbyte("findings", folder, "--model", SHIPPED, "--out", tmp_path / "f.csv", "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    [row] = rows_of(tmp_path / "f.csv")
    assert row["record"].startswith("'=") and "\n" not in row["record"] + row["path"]
    shown = ecgbyte("findings", folder, "--model", SHIPPED)
    assert shown.exit_code == 0 and "[red]x" in shown.stdout.replace("\n", "")


OWN = {
    "texts": ["Do you see Q waves in V1?", "Are there Q waves in V1 in this ECG?"],
    "answers": ["no", "yes"],
}
PLACE = {"texts": ["P waves: where?"], "answers": ["here", "there"]}


def test_names_of_questions():
    certainty = read_certainty(SHIPPED, Session.open(SHIPPED).tokenizer.vocab_size)
    known = trained_questions.trained_questions(certainty)
    usual = trained_questions.choose_questions(certainty, (), "m")
    assert [one.name for one in usual] == [*FINDINGS, "rhythm"]
    assert len(known) > 90 and {one.name for one in known} > {*FINDINGS, "rhythm", "qwave", "axis"}
    assert trained_questions.choose_questions(certainty, ("afib", "all"), "m")[1:] == [
        one for one in known if one.name != "afib"
    ]
    certainty.groups.append({"texts": ["Is it = raining?"], "answers": ["yes", "no"]})
    certainty.groups.append({"texts": ["What is seen?"], "answers": None})
    own = trained_questions.trained_questions(
        Certainty([OWN, PLACE], {}, {}, None, None, *[np.zeros(0, int)] * 3)
    )
    assert [(one.name, one.words) for one in own] == [
        ("q_waves_in_v1", "Q waves in V1"),
        ("p_waves_where", "P waves: where?"),
    ]
    kinds = finding_table.columns_of(own)
    names = [name for name in kinds if "waves" in name]
    assert names == ["p_q_waves_in_v1", "q_waves_in_v1", "p_waves_where", "p_p_waves_where"]
    assert [kinds[name] for name in names] == [float, str, str, float]
    more = trained_questions.trained_questions(certainty)
    assert more[:-1] == known and more[-1].name == "is_it_raining" and not more[-1].known
    assert trained_questions.choose_questions(certainty, ("is it = raining?",), "m") == more[-1:]
    certainty.groups[:] = certainty.groups[-2:]
    with pytest.raises(Failure, match="knows no finding: .*raining"):
        trained_questions.choose_questions(certainty, (), "m")


def test_an_operating_point_answers_as_chat_does(session):
    certainty = read_certainty(SHIPPED, session.tokenizer.vocab_size)
    point = operating_point(certainty, "afib")
    for yes in np.linspace(0.003, 0.997, 100):
        chosen = certainty.choose(["no", "yes"], np.array([1 - yes, yes]), "afib")
        assert point.answer(yes) == (chosen.answer if chosen.sure else "unsure")
    certainty.points.clear()
    certainty.sure["two"] = 0.8
    point = operating_point(certainty, "afib")
    for yes in np.linspace(0.003, 0.997, 100):
        chosen = certainty.choose(["no", "yes"], np.array([1 - yes, yes]))
        assert point.answer(yes) == (chosen.answer if chosen.sure else "unsure")
    certainty.sure.clear()
    point = operating_point(certainty, "afib")
    assert [point.answer(p) for p in (0.49, 0.5, 0.51)] == ["no", "no", "yes"]
    assert OperatingPoint(None, None).answer(1.0) == "unsure"
    assert OperatingPoint(0.2, 0.7, 1.0, 0.0).recalibrated(0.3) == 0.3
    assert OperatingPoint(0.2, 0.7, 2.0, 1.0).recalibrated(0.5) == pytest.approx(1 / (1 + np.exp(-1)))
