"""Training a model further without losing its earlier answers."""

import json
import shutil

import numpy as np
import pytest

from ecgbyte_cli.inference.certainty import read_certainty, softmax
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import setup
from ecgbyte_cli.training.plans import plan_training
from ecgbyte_cli.training.rehearsal import earlier_questions, with_rehearsal

NEW = "Is this recording unusual?"
SETTINGS = {
    **dict.fromkeys(("think", "types", "weights", "draw", "patience", "ask", "system", "positions")),
    **{"method": "full", "seed": 0, "max_length": 4096, "long": "trim", "augment": 0, "together": None},
    **{"vary_leads": 0, "measured": False, "ecg_init": "signal"},
}


@pytest.fixture
def new_questions(small, tmp_path):
    """A question that the model has not been asked, about every record."""
    lines = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    records = {line["record"]: line for line in lines}
    path = tmp_path / "new.jsonl"
    with open(path, "w") as file:
        for number, line in enumerate(records.values()):
            more = {"question": NEW, "answer": ("yes", "no")[number % 2], "type": "new", "topic": "new"}
            line = {key: line[key] for key in ("record", "split", "patient") if key in line}
            file.write(json.dumps(line | more | {"closed": True}) + "\n")
    return path


def loaded(small, new_questions):
    """The trained model of the small folder, its samples, its certainty, and the plans of a further training."""
    work = WorkDir(small / "ecgbyte-work")
    settings = SETTINGS | {"base": str(work.model)}
    lm, _, samples, _ = setup.load_for_training(work, settings, "cpu")
    known = setup.earlier_certainty(settings, samples.tokenizer)
    return lm, samples, known, plan_training(work, new_questions, lm, samples, settings, print, known)


def test_earlier_questions_are_asked_with_the_models_own_probabilities(small, new_questions):
    lm, samples, known, plans = loaded(small, new_questions)
    earlier = earlier_questions(known, plans.training)
    assert earlier and NEW not in earlier
    told = []
    rehearsed = with_rehearsal(lm, samples, earlier, plans.training, 2, 0, 4, told.append)
    assert told == [f"rehearsing {len(earlier)} earlier questions, {min(2, len(earlier))} with each ECG"]
    session = Session.open(small / "ecgbyte-work" / "model")
    for before, plan in zip(plans.training[:3], rehearsed, strict=False):
        added = plan.questions[len(before.questions) :]
        assert plan.questions[: len(before.questions)] == before.questions and added
        assert plan.length > before.length
        for text in {question.question for question in added}:
            weights = {q.answer: q.weight for q in added if q.question == text}
            prompt = samples.prompt.build([samples.own(plan.segments[0])], [(text, None)])[0]
            ids = [samples.prompt.written(answer) for answer in earlier[text]]
            chances = softmax(session.lm.weigh([prompt], [ids])[0])
            for answer, chance in zip(earlier[text], chances, strict=True):
                assert weights.get(answer, 0) == pytest.approx(chance if chance >= 0.01 else 0, abs=1e-4)
    assert with_rehearsal(lm, samples, earlier, plans.training, 2, 0, 4, print) == rehearsed


def test_only_readings_that_the_steps_reach_are_rehearsed(small, new_questions):
    lm, samples, known, plans = loaded(small, new_questions)
    settings = SETTINGS | {"qa": "new.jsonl", "rehearse": 1, "batch": 2, "accumulate": 1, "steps": 2}
    few = setup.add_rehearsal(lm, samples, plans, known, settings, print).training
    assert len(few) == 4 and all(len(plan.questions) > 1 for plan in few)
    assert {plan.segments for plan in few} < {plan.segments for plan in plans.training}
    every = setup.add_rehearsal(lm, samples, plans, known, settings | {"steps": None}, print).training
    assert len(every) == len(plans.training) > 4


def test_questions_are_asked_in_the_words_of_the_model(small, new_questions, tmp_path):
    work = WorkDir(small / "ecgbyte-work")
    known = read_certainty(work.model, 200)
    group = next(group for group in known.groups if group["answers"] == ["yes", "no"])
    group["asked"] = "short"
    first = json.loads(new_questions.read_text().splitlines()[0])
    path = tmp_path / "worded.jsonl"
    path.write_text(json.dumps(first | {"question": group["texts"][0], "split": "train"}) + "\n")
    settings = SETTINGS | {"base": str(work.model)}
    lm, _, samples, _ = setup.load_for_training(work, settings, "cpu")
    known.__post_init__()
    plans = plan_training(work, path, lm, samples, settings, print, known)
    assert [question.question for question in plans.training[0].questions] == ["short"]


def test_a_model_keeps_its_questions_and_says_what_it_may_lose(small, new_questions, ecgbyte, tmp_path):
    shutil.copytree(small / "ecgbyte-work", tmp_path / "work")
    shutil.move(tmp_path / "work" / "model", tmp_path / "before")
    options = [
        "--qa",
        new_questions,
        "--model",
        tmp_path / "before",
        "--steps",
        4,
        "--batch",
        2,
        "--ecg-loss",
        0,
    ]
    result = ecgbyte("finetune", *options)
    assert result.exit_code == 0, result.stderr
    assert "rehearsing" in result.stderr
    before, after = (read_certainty(tmp_path / name, 200) for name in ("before", "work/model"))
    assert after.groups[: len(before.groups)] == before.groups
    assert after.match(NEW).answers and before.match(NEW) is None
    assert after.single.sum() > before.single.sum() and (np.diff(after.keys) > 0).all()
    session = Session.open(tmp_path / "work" / "model")
    ecg = session.read(sorted((small / "data").rglob("*.hea"))[0])
    assert not session.ask(ecg, "What is the rhythm?").declined and not session.ask(ecg, NEW).declined
    result = ecgbyte("finetune", *options, "--rehearse", 0, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert "--rehearse 0: the model may lose its answers to" in result.stderr


def test_the_included_model_keeps_its_answers_better_with_rehearsal(small, new_questions, ecgbyte, tmp_path):
    assert ecgbyte("symbolize", small / "data", "--like", "ptbxl", "encode").exit_code == 0
    paths, moved = sorted((small / "data").rglob("*.hea"))[:8], {}
    before = Session.open("ptbxl")
    asked = ["Is there atrial fibrillation?", "Is this ECG normal?", "Is there sinus bradycardia?"]

    def chances(session):
        return np.array(
            [[session.weigh(session.read(path), text, ["yes", "no"])[0] for text in asked] for path in paths]
        )

    for count in (8, 0):
        options = [
            "--steps",
            24,
            "--every",
            24,
            "--lr",
            2e-3,
            "--ecg-loss",
            0,
            "--rehearse",
            count,
            "--overwrite",
        ]
        result = ecgbyte("finetune", "--qa", new_questions, "--model", "ptbxl", *options)
        assert result.exit_code == 0, result.stderr
        after = Session.open(tmp_path / "work" / "model")
        moved[count] = np.abs(chances(after) - chances(before)).mean()
    assert moved[8] < 0.7 * moved[0]
