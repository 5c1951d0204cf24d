"""Questions about one recording."""

import json
import shutil

import numpy as np
import pytest
import wfdb

from ecgbyte_cli.stages import chat
from ecgbyte_cli.workdir import WorkDir


@pytest.fixture
def record(small):
    return sorted((small / "data").rglob("*.hea"))[0]


def test_one_question(small, record, ecgbyte):
    args = ["chat", record.with_suffix(""), "-q", "What is the rhythm?", "--max-new", 5]
    plain = ecgbyte(*args, work=small / "ecgbyte-work")
    assert plain.exit_code == 0, plain.stderr
    result = json.loads(ecgbyte(*args, "--json", work=small / "ecgbyte-work").stdout)
    assert plain.stdout == result["turns"][0]["answer"] + "\n"
    assert result["ecg_tokens"] > 0 and result["turns"][0]["question"] == "What is the rhythm?"


def test_questions_from_standard_input(small, record, ecgbyte):
    questions = "What is the rhythm?\n\nIs there left bundle branch block?\n"
    result = ecgbyte("chat", record, "--json", "--max-new", 5, work=small / "ecgbyte-work", input=questions)
    assert [turn["question"] for turn in json.loads(result.stdout)["turns"]] == questions.split("\n\n")[
        0:1
    ] + ["Is there left bundle branch block?"]


def test_an_answer_equals_that_of_generate(small, ecgbyte):
    answers = (small / "ecgbyte-work" / "answers" / "answers.jsonl").read_text().splitlines()
    for line in map(json.loads, answers[:3]):
        (path,) = (small / "data").rglob(f"{line['record']}.hea")
        result = ecgbyte("chat", path, "-q", line["question"], "--max-new", 8, work=small / "ecgbyte-work")
        assert result.stdout.strip() == line["answer"]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(small, record, monkeypatch):
    conversation = chat.open_chat(WorkDir(small / "ecgbyte-work"), record, max_new=5)
    whole = "".join(conversation.ask("What is the rhythm?"))
    stream = conversation.lm.stream

    def interrupted(*args):
        pieces = stream(*args)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(conversation.lm, "stream", interrupted)
    assert whole.startswith("".join(conversation.ask("What is the rhythm?")))
    monkeypatch.undo()
    assert "".join(conversation.ask("What is the rhythm?")) == whole


def test_the_banner_says_what_is_read_and_how_to_leave(small, record):
    banner = chat.open_chat(WorkDir(small / "ecgbyte-work"), record).banner()
    assert record.stem in banner and "II, V1 at 100 Hz" in banner
    assert "no medical device" in banner and "Ctrl-D leaves" in banner


def test_what_cannot_be_read_is_one_line(small, record, tmp_path, ecgbyte):
    work = small / "ecgbyte-work"
    missing = ecgbyte("chat", tmp_path / "none.hea", "-q", "x", work=work)
    no_model = ecgbyte("chat", record, "-q", "x", work=tmp_path / "empty")
    two_leads = tmp_path / "two"
    wfdb.wrsamp("two", 250, ["mV"] * 2, ["I", "V6"], np.zeros((2500, 2)), fmt=["16"] * 2, write_dir=str(tmp_path),
                adc_gain=[1000.0] * 2, baseline=[0] * 2)  # fmt: skip
    lacking = ecgbyte("chat", two_leads, "-q", "x", work=work)
    shutil.copytree(work, tmp_path / "other")
    tokenizer = tmp_path / "other" / "model" / "ecg_tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    changed["merges"] = changed["merges"][:-1]
    tokenizer.write_text(json.dumps(changed))
    mismatch = ecgbyte("chat", record, "-q", "x", work=tmp_path / "other")
    for result, said in [
        (missing, "none.hea"),
        (no_model, "make quickstart"),
        (lacking, "II"),
        (mismatch, "not the tokenizer"),
    ]:
        assert result.exit_code == 1 and result.stdout == ""
        assert said in result.stderr and len(result.stderr.splitlines()) == 1
