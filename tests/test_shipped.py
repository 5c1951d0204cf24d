"""The model that comes with the package: what it is said to be, and that a recording is all that it needs."""

import functools
import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.model_names import choose_model_folder
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.workdir import WorkDir

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cards(monkeypatch):
    """The module that writes its card."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "experiments")
    return importlib.import_module("ptbxl_card")


@pytest.fixture(scope="module")
def record():
    """A twelve-lead ECG in DICOM that comes with pydicom."""
    data = pytest.importorskip("pydicom.data")
    return data.get_testdata_file("waveform_ecg.dcm")


@functools.cache
def known():
    """Its questions and calibration."""
    return Session.open("ptbxl", device="cpu").certainty


def test_it_is_small_whole_and_says_nothing_of_where_it_was_trained():
    files = [path for path in folder_checks.SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    said = folder_checks.read_about(folder_checks.SHIPPED)
    folder_checks.check_files(folder_checks.SHIPPED, said)
    text = (folder_checks.SHIPPED / "ecgbyte.json").read_text()
    assert not re.search(r'"(/|[A-Za-z]:\\\\)', text) and "/tmp" not in text
    assert known().sure.keys() == known().temperature.keys() == {"two", "more"}
    assert known().calibrated_on == "PTB-XL, fold 9"


def test_the_card_says_what_the_scores_say(cards):
    card = (folder_checks.SHIPPED / "README.md").read_text(encoding="utf-8")
    assert card == cards.card_text(folder_checks.SHIPPED)
    scores = read_json(folder_checks.SHIPPED / "metrics.json")["fold_10"]
    mean = sum(scores["auroc"][name] for name in FINDINGS) / len(FINDINGS)
    assert f"over the {len(FINDINGS)} findings: {mean:.3f}" in card
    for name, finding in FINDINGS.items():
        low, high = scores["auroc_intervals"][name]
        point = scores["at_point"][name]
        yes = f"{point['positives']:,} of {point['recordings']:,}"
        assert f"| {finding.words} | {yes} | {scores['auroc'][name]:.3f} | {low:.3f} to {high:.3f} |" in card
    for name, score in scores["control"].items():
        assert f"{name} {score:.1f}" in card
    for words in ("PTB-XL", "CC BY 4.0", "Wagner", "Research use only", "fold 9", "Other hospitals"):
        assert words in card


def test_it_is_asked_where_there_is_no_other(tmp_path, capsys, monkeypatch):
    work = WorkDir(tmp_path / "work")
    assert choose_model_folder(work, None) == folder_checks.SHIPPED
    [line] = capsys.readouterr().err.splitlines()
    assert "using the included model ptbxl" in line and str(work.root) in line and "train one" not in line
    assert choose_model_folder(work, tmp_path / "other") == tmp_path / "other"
    assert choose_model_folder(work, "ptbxl") == folder_checks.SHIPPED
    work.model.mkdir(parents=True)
    assert choose_model_folder(work, None) == work.model
    monkeypatch.chdir(tmp_path)
    Path("ptbxl").mkdir()
    assert choose_model_folder(work, "ptbxl") == Path("ptbxl")
    assert capsys.readouterr().err == ""


def test_info_prints_the_card(ecgbyte, small):
    result = ecgbyte("info", "--model", "ptbxl")
    assert (
        result.exit_code == 0
        and result.stdout.strip() == (folder_checks.SHIPPED / "README.md").read_text().strip()
    )
    result = ecgbyte("info", "--model", small / "ecgbyte-work" / "model", "--json")
    assert "Research use only" in json.loads(result.stdout)["card"]
    assert "has no model" in ecgbyte("info", "--model", small / "data").stderr


def test_a_recording_alone_is_answered(ecgbyte, record, tmp_path, coarse_integral):
    asked = ["-q", "What is the rhythm?", "-q", "How old is the patient's dog?", "--json"]
    result = ecgbyte("chat", record, *asked)
    assert result.exit_code == 0, result.stderr
    rhythm, dog = json.loads(result.stdout)["turns"]
    assert 0 < rhythm["probability"] <= 1 and rhythm["answer"] in known().match("rhythm").answers
    assert dog["declined"]
    assert "using the included model ptbxl" in result.stderr
    picture = tmp_path / "attention.png"
    result = ecgbyte("plot", "attention", record, "--out", picture)
    assert result.exit_code == 0 and picture.stat().st_size > 10_000, result.stderr


def test_other_recordings_are_read_as_it_reads_them_and_scored(ecgbyte, small):
    """On synthetic records: symbolize as it does, encode, and ask questions of its own."""
    lines = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    qa = small / "asked.jsonl"
    qa.write_text(
        "".join(json.dumps(line) + "\n" for line in lines if line["question"] == "What is the rhythm?")
    )
    chain = [
        "symbolize",
        small / "data",
        "--like",
        "ptbxl",
        "encode",
        "generate",
        "--qa",
        qa,
        "--no-controls",
    ]
    result = ecgbyte(*chain, "--json")
    assert result.exit_code == 0, result.stderr
    assert (
        json.loads(result.stdout)["generate"]["questions"] > 3
        and "using the included model ptbxl" in result.stderr
    )


def test_the_rhythm_of_a_recording_of_another_hospital(real_data, tmp_path):
    """In a process of its own, as whoever tries it first would."""
    path = real_data / "cinc2021" / "HR06002.hea"
    command = [
        sys.executable,
        "-m",
        "ecgbyte_cli",
        "--work",
        str(tmp_path / "none"),
        "chat",
        str(path),
        "--json",
    ]
    asked = ["-q", "What is the rhythm?", "-q", "How old is the patient's dog?"]
    start = time.perf_counter()
    run = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=600)
    rhythm, dog = json.loads(run.stdout)["turns"]
    assert rhythm["answer"] == "sinus bradycardia" and rhythm["probability"] > 0.5, run.stderr
    assert dog["declined"] and time.perf_counter() - start < 600


def test_a_list_of_findings_is_put_together_from_answers_yes_and_no(ecgbyte, record, tmp_path):
    single = [f"Is there {finding.words}?" for name, finding in FINDINGS.items() if name in ("afib", "pvc")]
    asked = ["What are the findings?", *single]
    result = ecgbyte("chat", record, *(word for text in asked for word in ("-q", text)), "--json")
    listed, *each = json.loads(result.stdout)["turns"]
    assert [*listed["findings"]] == [finding.words for finding in FINDINGS.values()]
    points = {FINDINGS[name].words: point[2] for name, point in known().points.items() if name in FINDINGS}
    likely = [words for words, chance in listed["findings"].items() if chance >= points.get(words, 0.5)]
    assert listed["answer"] == ("; ".join(likely) or "none of those that I know") and not listed["declined"]
    for turn, name in zip(each, ("pvc", "afib"), strict=True):
        yes = turn["probability"] if turn["answer"] == "yes" else 1 - turn["probability"]
        (words,) = [f.words for n, f in FINDINGS.items() if n == name]
        assert listed["findings"][words] == pytest.approx(yes, abs=1e-3)
    # what it drew on cannot be asked: there is no one question behind it
    lines = f"What are the findings?\n/attention {tmp_path / 'a.png'}\n"
    result = ecgbyte("chat", record, input=lines)
    assert "put together from many answers" in result.stderr and not (tmp_path / "a.png").exists()
