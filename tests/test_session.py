"""One question through every entry point: Python, chat, plot attention, generate and the page."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ecgbyte_cli
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.batch_answering import answer_on_worker
from ecgbyte_cli.inference.session import Session, reading_options
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.stages import explain
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir

QUESTION = "what is the RHYTHM, please?"  # not in the words of the training
ASKED = "What is the rhythm?"


@pytest.fixture(scope="module")
def work(small):
    return WorkDir(small / "ecgbyte-work")


@pytest.fixture(scope="module")
def session(work):
    return Session.open(work=work)


@pytest.fixture(scope="module")
def answers(work):
    """The lines of answers.jsonl that ask for the rhythm."""
    lines = map(json.loads, work.answers.read_text().splitlines())
    return [line for line in lines if line["question"] == ASKED]


@pytest.fixture(scope="module")
def record(small, answers):
    """The path of a record of the test split that generate was asked about."""
    (path,) = (small / "data").rglob(f"{answers[0]['record']}.hea")
    return path


@pytest.fixture(scope="module")
def turn(session, record):
    return session.ask(session.read(record), QUESTION)


def test_python(session, record, turn):
    assert turn.asked_as == ASKED and turn.other and not turn.declined
    matched = session.match(QUESTION)
    weights = session.weigh(session.read(record), QUESTION, matched.answers)
    assert weights.sum() == pytest.approx(1) and len(weights) == len(matched.answers)
    assert matched.answers[weights.argmax()] == turn.answer
    assert weights.max() == pytest.approx(turn.probability, rel=1e-5)


def test_chat(work, record, turn, ecgbyte):
    result = ecgbyte("chat", record, "-q", QUESTION, "--json", work=work.root)
    (told,) = json.loads(result.stdout)["turns"]
    assert told["probability"] == pytest.approx(turn.probability, rel=1e-5)
    assert (told["answer"], told["asked_as"], told["sure"]) == (turn.answer, ASKED, turn.sure)


def test_plot_attention(session, work, record, turn, ecgbyte, tmp_path, monkeypatch):
    from ecgbyte_cli.render import figures

    drawn, whole = [], figures.plot_attribution
    monkeypatch.setattr(figures, "plot_attribution", lambda *args: drawn.append(args) or whole(*args))
    options = ["-q", QUESTION, "--method", "gradient", "--out", tmp_path / "x.png", "--json"]
    result = ecgbyte("plot", "attention", record, *options, work=work.root)
    told = json.loads(result.stdout)
    assert (told["answer"], told["question"], told["completeness_gap"]) == (turn.answer, QUESTION, None)
    drew = session.attribute(session.read(record), QUESTION, "gradient")
    assert drew.turn.answer == turn.answer and "".join(drew.words).endswith(ASKED + "\\n")
    density, values = drawn[0][3], drawn[0][5]
    np.testing.assert_allclose(density, drew.density, rtol=1e-3, atol=1e-9)
    assert (
        told["on_text"]
        == pytest.approx(100 * values.sum())
        == pytest.approx(100 * drew.values.sum(), rel=1e-3)
    )


def test_generate(session, small, answers):
    assert answers
    for line in answers:
        (path,) = (small / "data").rglob(f"{line['record']}.hea")
        turn = session.ask(session.read(path), QUESTION)
        assert (line["answer"], line["sure"]) == (turn.answer, turn.sure)
        assert line["probability"] == pytest.approx(turn.probability, abs=2e-6)
        runner_up = {"answer": turn.other[0], "probability": pytest.approx(turn.other[1], abs=2e-6)}
        assert line["runner_up"] == runner_up


def test_a_worker_of_generate(session, record, turn):
    key, ids = ("signal", 0, 0), session.prompt_ids([session.read(record)], [(ASKED, None)])[0]
    model = session.folder, None, "cpu", folder_checks.model_sha256(session.folder)
    matched = session.match(ASKED)
    closed = [(matched.text, matched.answers)]
    _, (answer,) = answer_on_worker(7, model, [ids], [key], closed, 64, None)
    assert answer.answer == turn.answer
    assert answer.probability == pytest.approx(turn.probability, rel=1e-5)
    with pytest.raises(Failure, match="was replaced"):
        answer_on_worker(8, (*model[:3], "another"), [ids], [key], None, 64, None)


def test_the_page(session, record, turn):
    pytest.importorskip("starlette", reason="starlette is not installed: pip install ecgbyte[web]")
    pytest.importorskip("httpx", reason="httpx is not installed")
    from serving import service
    from starlette.testclient import TestClient

    from ecgbyte_cli.web import app

    with TestClient(app.build_app(service(record, session)), base_url="http://127.0.0.1:8765") as client:
        (one,) = client.get("/api/records").json()["records"]
        told = client.post("/api/ask", json={"record": one["id"], "question": QUESTION}).json()
    assert told["probability"] == pytest.approx(turn.probability, rel=1e-5)
    assert (told["answer"], told["asked_as"], told["certainty"]) == (turn.answer, ASKED, turn.certainty())


def test_explain_asks_about_the_same_tokens(session, work, record, turn):
    segments = read_table(work.symbol_segments)
    i = segments["record"].index(record.stem)
    leads = len(session.tokenizer.signal["leads"])
    letters = read_array(work.symbols)[segments["offset"][i] :][: leads * session.tokenizer.signal["samples"]]
    ecg = explain.ecg_of(session, segments, i, np.array(letters).reshape(leads, -1))
    assert np.array_equal(ecg.tokens, session.read(record).tokens)
    assert np.array_equal(session.tokenizer.letters(ecg.segments[0][1]).ravel(), letters)
    assert session.ask(ecg, QUESTION).answer == turn.answer


def test_a_declined_question_cannot_be_attributed(session, work, record, ecgbyte):
    question = "How old is the dog?"
    ecg = session.read(record)
    assert session.ask(ecg, question).declined
    with pytest.raises(Failure, match="I was not trained on this question"):
        session.attribute(ecg, question)
    result = ecgbyte("plot", "attention", record, "-q", question, work=work.root)
    assert result.exit_code == 1 and "I was not trained on this question" in result.stderr


def test_a_model_without_certainty_writes_and_weighs(session, record):
    older = replace(session, loaded=session.load()._replace(certainty=None))
    ecg = older.read(record)
    assert older.match(QUESTION) is None and older.ask(ecg, ASKED).other is None
    assert older.weigh(ecg, ASKED, ["yes", "no"]).sum() == pytest.approx(1)


def test_opening_reads_no_weights():
    """A process of its own: ecgbyte.json and the tokenizer are read without PyTorch."""
    program = (
        "import sys, ecgbyte_cli; s = ecgbyte_cli.Session.open(); "
        "print(s.tokenizer.vocab_size, s.about['folder'], 'torch' in sys.modules, s.loaded)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    vocab = Session.open("ptbxl").tokenizer.vocab_size
    assert run.stdout.split("\n")[0] == f"{vocab} ptbxl, which comes with ecgbyte False None"
    assert ecgbyte_cli.Session is Session


def test_no_model_is_one_line(tmp_path):
    with pytest.raises(Failure, match="has no model"):
        Session.open(tmp_path)


def test_reading_options(work):
    assert reading_options(None) == {}
    assert reading_options(work)["fs"] is None and "keep_identity" in reading_options(work)
    wanted = {"fs": 100.0, "lead_names": ["I", "II"], "units": "uV", "keep_identity": True}
    assert reading_options(work, 100.0, "I, II", "uV", True) == wanted
    assert reading_options(None, lead_names=["V1"]) == {"lead_names": ["V1"]}


def test_a_moved_base_is_reported_before_a_recording_is_read(session):
    about = session.about | {"method": "qlora", "base": "/no/such/folder"}
    moved = replace(session, folder=Path("model"), about=about, loaded=None)
    with pytest.raises(Failure, match="--base FOLDER"):
        moved.check_base()
