"""The keys `conflicts` and `measured` of answers.jsonl."""

import json
import shutil
from dataclasses import replace

import pytest

from ecgbyte_cli.inference import measured_remarks as remarks
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.storage.files import read_table, write_table
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.fixture(scope="module")
def work(small):
    return WorkDir(small / "ecgbyte-work")


@pytest.fixture(scope="module")
def fast(work, small):
    """A question for the rhythm of a recording with a sinus tachycardia."""
    questions = question_file.read_questions(small / "data" / "qa.jsonl")
    joined = question_segments.join_segments(questions, read_table(work.symbol_segments))[0]
    return next(q for q, *_ in joined if q.answer == "sinus tachycardia")


def test_an_answer_that_a_measurement_contradicts(work, fast):
    wrong, right = remarks.measured_remarks(
        work, [fast, fast], ["sinus bradycardia", fast.answer], [True, True]
    )
    (conflict,) = wrong["conflicts"]
    assert (conflict["finding"], conflict["answer"]) == ("sinus bradycardia", "yes")
    assert {"finding", "answer", "measured", "rule", "source", "text"} == {*conflict}
    assert right == {}


def test_a_question_that_a_measurement_answers(work, fast):
    asked = replace(fast, question="What is the heart rate?")
    (told,) = remarks.measured_remarks(work, [asked], ["whatever"], [True])
    (value,) = told["measured"]
    assert value["name"] == "rate_bpm" and value["value"] > 100 and "conflicts" not in told


def test_other_answers_about_the_same_recording_count(work, fast):
    words = ("complete right bundle branch block", "complete left bundle branch block")
    asked = [replace(fast, question=f"Is there {finding}?") for finding in words]
    asked.append(replace(fast, question="Is there non-specific intraventricular conduction disturbance?"))
    seen = []
    real = remarks.own_conflicts

    def own_conflicts(own, answers, *segment):
        seen.append((own, dict(answers)))
        return real(own, answers, *segment)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remarks, "own_conflicts", own_conflicts)
        remarks.measured_remarks(work, asked, ["no"] * 3, [True] * 3)
    assert all(len(own) == 1 and len(answers) == 3 for own, answers in seen) and len(seen) == 3


def test_what_is_not_compared_is_not_read(work, fast, monkeypatch):
    monkeypatch.setattr(remarks, "in_parallel", lambda *_: pytest.fail("read"))
    several = replace(fast, segments=(*fast.segments, *fast.segments))
    open_question = replace(fast, question="Describe the ECG.")
    answers = ["sinus bradycardia", "sinus bradycardia", "an ECG"]
    assert remarks.measured_remarks(work, [several, fast, open_question], answers, [True, False, True]) == [
        {},
        {},
        {},
    ]


def test_recordings_that_are_gone_are_a_note(work, fast, tmp_path, capsys):
    shutil.copytree(work.root, tmp_path / "work", ignore=shutil.ignore_patterns("model", "training"))
    copy = WorkDir(tmp_path / "work")
    columns = read_table(copy.symbol_segments)
    columns["path"][fast.segments[0]] = str(tmp_path / "gone.hea")
    write_table(copy.symbol_segments, columns)
    assert remarks.measured_remarks(copy, [fast], ["sinus bradycardia"], [True]) == [{}]
    assert "1 recordings can no longer be read" in capsys.readouterr().err


def test_generate_writes_them(work, monkeypatch, tmp_path, ecgbyte):
    shutil.copytree(work.root, tmp_path / "work", ignore=shutil.ignore_patterns("answers"))
    from ecgbyte_cli.stages import generate

    monkeypatch.setattr(
        generate, "measured_remarks", lambda work, asked, *_: [{"conflicts": ["x"]}] + [{}] * (len(asked) - 1)
    )
    assert ecgbyte("generate", "--limit", 3, "--max-new", 4, "--no-controls").exit_code == 0
    lines = (tmp_path / "work" / "answers" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line).get("conflicts") for line in lines] == [["x"], None, None]
