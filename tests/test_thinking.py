"""Reasoning before the answer: written from what is known, trained, taken apart again, and shown."""

import json

import pytest

from ecgbyte_cli.model import model_folder
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.questions.reasoning import TAGS, ReasonedAnswer, join_reasoning, split_reasoning


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>rate 70</think>yes", ReasonedAnswer("rate 70", "yes", True)),
        ("<think>rate 70\n</think>\n yes \n", ReasonedAnswer("rate 70", "yes", True)),
        ("<think></think>yes", ReasonedAnswer("", "yes", True)),
        ("yes", ReasonedAnswer("", "yes", False)),
        ("<think>rate 70", ReasonedAnswer("", "rate 70", False)),
        ("rate 70</think>yes", ReasonedAnswer("", "yes", False)),
        ("<think>rate 70</think>", ReasonedAnswer("", "", False)),
        ("<think>a</think>b</think>c", ReasonedAnswer("", "c", False)),
        ("<think>a<think>b</think>c", ReasonedAnswer("", "c", False)),
    ],
)
def test_a_text_is_taken_apart(text, thought):
    assert split_reasoning(text) == thought


def test_what_is_joined_is_parted_whatever_is_in_it():
    assert join_reasoning(" a<think>b ", " c</think> ") == "<think>ab</think>c"
    assert split_reasoning(join_reasoning("a </think> b", "yes")) == ReasonedAnswer("a  b", "yes", True)
    assert split_reasoning(join_reasoning("a", "b", ("[", "]")), ("[", "]")) == ReasonedAnswer("a", "b", True)


def test_reasonings_are_true(ecgbyte, small, tmp_path):
    """What they say of rate and PR interval is what the headers say, to the range; and of the condition."""
    out = tmp_path / "qa.jsonl"
    assert ecgbyte("questions", small / "data", "--think", "--out", out).exit_code == 0
    plain = tmp_path / "plain.jsonl"
    assert ecgbyte("questions", small / "data", "--out", plain).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    # the questions are the same, and of the reasoning nothing else depends
    assert [{k: v for k, v in line.items() if k != "reasoning"} for line in lines] == [
        json.loads(line) for line in plain.read_text().splitlines()
    ]
    seen = 0
    for line in lines:
        if line["type"] in ("cannot-query", "age-query", "sex-query"):
            assert "reasoning" not in line
            continue
        header = (small / "data" / f"{line['record']}.hea").read_text()
        truth = dict(row[2:].split(": ", 1) for row in header.splitlines() if row.startswith("# "))
        low = int(float(truth["Heart rate"]) // 10 * 10)
        assert f"Rate {low} to {low + 9} beats per minute" in line["reasoning"]
        if truth["PR interval"] != "none":
            over = float(truth["PR interval"]) > 0.2005
            assert ("PR interval over 200 ms" in line["reasoning"]) == over
        if truth["Condition"].startswith(("sinus", "atrial")):
            assert truth["Condition"] in line["reasoning"].lower()
        seen += 1
    assert seen > 100


@pytest.fixture(scope="module")
def thinking(small, tmp_path_factory):
    """A work folder whose model was trained to reason about the rhythm first, and its question file."""
    from click.testing import CliRunner
    from test_finetune import untrained

    from ecgbyte_cli.__main__ import main

    folder = tmp_path_factory.mktemp("thinking")
    work, qa = untrained(small, folder / "work"), folder / "qa.jsonl"
    lines = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    lines = [line | {"reasoning": "Look."} for line in lines if line["type"] == "lbbb"]
    qa.write_text("".join(json.dumps(line) + "\n" for line in lines))
    args = [
        "finetune",
        "--qa",
        qa,
        "--model",
        "tiny",
        "--think",
        "--ecg-loss",
        0,
        "--steps",
        100,
        "--lr",
        "5e-3",
        "--max-length",
        128,  # the form does not need the whole ECG
    ]
    result = CliRunner().invoke(main, ["--work", str(work), *map(str, args), "--debug"])
    assert result.exit_code == 0, result.stderr
    return work, qa


def test_a_model_learns_the_form_and_is_scored_by_the_answer(ecgbyte, thinking):
    work, _ = thinking
    result = ecgbyte("generate", "--split", "train", "--limit", 12, "--json", work=work)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["form_kept"] == 1 and told["exact_match"] >= 25
    lines = [json.loads(line) for line in (work / "answers" / "answers.jsonl").read_text().splitlines()]
    assert {line["answer"] for line in lines} <= {"yes", "no"} and {line["reasoning"] for line in lines} == {
        "Look."
    }
    assert {a for line in lines for name, a in line["control"].items()} <= {"yes", "no"}
    assert (
        "100.0 % of the answers have this form"
        in ecgbyte("generate", "--split", "train", "--limit", 13, "--overwrite", work=work).stdout
    )


def test_chat_shows_the_reasoning_apart_from_the_answer(ecgbyte, thinking, small):
    work, qa = thinking
    question = json.loads(qa.read_text().splitlines()[0])["question"]
    result = ecgbyte("chat", small / "data" / "synth00001", "-q", question, work=work, color=True)
    assert result.stdout.strip() in ("yes", "no") and "\x1b[2mLook.\x1b[0m" in result.stderr
    result = ecgbyte("chat", small / "data" / "synth00001", "-q", question, "--json", work=work)
    (turn,) = json.loads(result.stdout)["turns"]
    assert turn["reasoning"] == "Look." and turn["answer"] in ("yes", "no")
    cut = ecgbyte("chat", small / "data" / "synth00001", "-q", question, "--max-new", 2, work=work)
    assert cut.exit_code == 0 and TAGS[0] not in cut.stdout


def test_without_think_a_reasoning_is_not_trained(ecgbyte, thinking, small, tmp_path):
    from test_finetune import untrained

    _, qa = thinking
    args = ["finetune", "--qa", qa, "--model", "tiny", "--show", 1]
    assert "loss on: no" in ecgbyte(*args, work=untrained(small, tmp_path / "a")).stdout.replace("yes", "no")
    assert (
        "loss on: <think>Look.</think>"
        in ecgbyte(*args, "--think", work=untrained(small, tmp_path / "b")).stdout
    )
    result = ecgbyte(
        "finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--think", work=tmp_path / "a"
    )
    assert result.exit_code == 1 and "no question of" in result.stderr and "--think" in result.stderr


def test_the_rationale_of_a_file_is_its_reasoning(tmp_path):
    path = tmp_path / "a.jsonl"
    item = {"ecg_id": "[1]", "question": "q", "answer": "no", "rationale": "P waves.\nRegular. Answer: no"}
    path.write_text(json.dumps(item))
    assert question_file.read_questions(path)[0].reasoning == "P waves.\nRegular."
    said = "<think>Step 1.</think>So.<answer>yes</answer>"
    item = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": said}],
        "ecg": "a",
    }
    path.write_text(json.dumps(item))
    assert (
        question_file.read_questions(path)[0].reasoning,
        question_file.read_questions(path)[0].answer,
    ) == ("Step 1.\n\nSo.", "yes")


def test_a_model_folder_says_its_tags(thinking):
    *_, about = model_folder.load_model(thinking[0] / "model", "cpu")
    assert about["think"] == [*TAGS]
