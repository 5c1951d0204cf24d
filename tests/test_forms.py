"""Question files of other projects, each from a small file made by hand, as its own loader reads it."""

import csv
import json

import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import item_formats, question_file, question_segments

PLACES = {
    "record": ["12662_hr", "05742_hr", "44111511", "43593674", "1109348"],
    "patient": ["a", "b", "c", "d", "e"],
    "split": ["train"] * 5,
}


def read(path, *items):
    path.write_text(
        json.dumps(items) if path.suffix == ".json" else "".join(json.dumps(i) + "\n" for i in items)
    )
    return question_file.read_questions(path)


def joined(questions):
    """The segments that questions are about; all are found."""
    found, unmatched = question_segments.join_segments(questions, PLACES)
    assert not unmatched
    return [first for _, first, *_ in found]


def test_ecg_qa_cot(tmp_path):
    path = tmp_path / "ecg_qa_cot_val.csv"
    row = {
        "ecg_id": "[12662]",
        "question": "Does this ECG show atrial flutter?",
        "answer": "no",
        "rationale": "P waves precede\neach QRS complex. Answer: no",
        "template_id": "1",
        "question_type": "single-verify",
        "clinical_context": "76-year-old male patient. 12-lead ECG.",
        "prompt": 'The right answer is here. You must conclude with: "Answer: no"',
    }
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, row, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows([row, row | {"ecg_id": "12662", "clinical_context": ""}])
    question, plain = question_file.read_questions(path)
    assert question.question == "76-year-old male patient. 12-lead ECG.\nDoes this ECG show atrial flutter?"
    assert (question.answer, question.type, question.split) == ("no", "single-verify", "val")
    assert "right answer" not in repr(question)  # its prompt quotes it, and is read by nobody
    assert plain.question == row["question"] and joined([question, plain]) == [0, 0]


def test_messages_with_roles(tmp_path):
    said = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "<ecg><image>\nInterpret the ECG."},
        {"role": "assistant", "content": "Sinus rhythm."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "The axis?"}],
        },
        {"role": "assistant", "content": "Left."},
    ]
    item = {
        "messages": said,
        "images": ["gen/44111511-0.png"],
        "objects": {"ecg": ["files/p1/s44111511/44111511"]},
    }
    (question,) = read(tmp_path / "a.jsonl", item)
    assert question.turns == (("Interpret the ECG.", "Sinus rhythm."), ("The axis?", "Left."))
    assert joined([question]) == [2]
    # without the waveform's path, the picture's name
    (other,) = read(tmp_path / "b.jsonl", {"messages": said[1:3], "images": ["gen/44111511-0.png"]})
    assert other.question == "Interpret the ECG." and joined([other]) == [2]


def test_messages_that_think_before_they_answer(tmp_path):
    answer = "<think>\n**Step 1: Rate**\n72.\n</think>\n\nSo.\n\n<answer>Left axis deviation; Sinus rhythm</answer>"
    said = [{"role": "user", "content": "Interpret it."}, {"role": "assistant", "content": answer}]
    (question,) = read(tmp_path / "a.jsonl", {"messages": said, "objects": {"ecg": ["x/05742_hr"]}})
    assert question.answer == "Left axis deviation; Sinus rhythm"
    assert question.labels == ("Left axis deviation", "Sinus rhythm") and joined([question]) == [1]
    said[1]["content"] = "<think>a</think><answer>yes</answer>"
    (question,) = read(tmp_path / "a.jsonl", {"messages": said, "objects": {"ecg": ["x/05742_hr"]}})
    assert (question.answer, question.labels) == ("yes", ())


def test_elm(tmp_path):
    mimic = "../data/mimic_iv/preprocessed_2500/files_p1271_p12715853_s43593674_43593674_0.npy"
    ptb = "../data/ptb_xl/preprocessed_2500/records500_05000_05742_hr_0.npy"
    pairs = [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "yes"}]
    roles = [{"role": "user", "content": "<ecg>\nQ?"}, {"role": "assistant", "content": "yes"}]
    asked = read(
        tmp_path / "elm.json",
        {"ecg_path": mimic, "text": json.dumps(pairs), "name": "single-verify"},
        {"ecg_path": ptb, "text": json.dumps(roles), "name": "ECG-QA"},
        {"ecg_path": ptb, "text": json.dumps(["single-query", "Q?", ["b", "a"]]), "name": ""},
        {"ecg_path": "code15/preprocessed_2500/1109348_1.npy", "text": pairs, "name": "code15-test"},
    )
    assert [q.turns for q in asked] == [(("Q?", "yes"),)] * 2 + [(("Q?", "a; b"),), (("Q?", "yes"),)]
    assert [q.type for q in asked] == ["single-verify", "ECG-QA", "single-query", "code15-test"]
    assert asked[2].labels == ("a", "b") and joined(asked) == [3, 1, 1, 4]
    noise = read(tmp_path / "noise.json", {"ecg_path": "noise", "text": pairs, "name": ""})
    assert question_segments.join_segments(noise, PLACES)[0] == []  # no recording is behind it


def test_ecg_reasoning_benchmark(tmp_path):
    yes = {"options": ["Yes", "No"], "answer": "Yes", "question_type": "initial_diagnostic_question"}
    leads = {
        "question": "Which leads? Select all possible leads.",
        "options": ["Lead V2", "Lead V3", "Lead I"],
        "answer": ["Lead V3", "Lead V2"],
        "question_type": "lead_grounding",
    }
    stage = {
        "criterion_selection": {
            **yes,
            "question": "By what?",
            "answer": "No",
            "question_type": "criterion_selection",
        },
        "ecg_grounding": [leads],
        "diagnostic_decision": {**yes, "question": "So?", "question_type": "diagnostic_decision"},
    }
    item = {
        "metadata": {"id": 0, "data_source": "ptbxl", "ecg_id": "5742", "target_dx": "x", "dx_label": True},
        "data": {
            "initial_diagnostic_question": {**yes, "question": "Is it?"},
            "reasoning": [stage, {"ecg_grounding": []}],
        },
    }
    asked = read(tmp_path / "ptbxl.jsonl", item)
    assert [len(question.earlier) for question in asked] == [0, 1, 2, 3]
    assert [question.type for question in asked] == [
        *("initial_diagnostic_question", "criterion_selection", "lead_grounding", "diagnostic_decision")
    ]
    assert asked[0].question == "Is it?\n\nThis question has one of the following options:\n- Yes\n- No"
    assert "may have multiple" in asked[2].question
    # the true answers stand before each step
    assert [answer for _, answer in asked[3].earlier] == ["Yes", "No", "Lead V2; Lead V3"]
    assert asked[2].labels == ("Lead V2", "Lead V3") and {question.split for question in asked} == {"test"}
    assert joined(asked) == [1] * 4
    item["metadata"] |= {"data_source": "mimic_iv_ecg", "ecg_id": "44111511"}
    assert joined(read(tmp_path / "mimic.jsonl", item)) == [2] * 4


def test_ecgbench(tmp_path):
    def said(question, answer):
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    asked = read(
        tmp_path / "ecgbench.json",
        {
            "id": "code15-1109348",
            "image": "code15/1109348-0.png",
            "conversations": said("NORM or ABNORMAL?", "NORM"),
        },
        {
            "id": "1",
            "image_path": "ptb-xl/05742_hr-0.png",
            "conversations": said(["Which?"], ["rr interval", "pr interval"]),
        },
        {
            "id": "2",
            "image": "ptb-xl/05742_hr-0.png",
            "conversations": said(list("Which?"), list("qt interval")),
        },
        {
            "id": "arena-1",
            "image": "05742_hr-0.png",
            "conversations": [{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d"}],
        },
    )
    assert [(q.question, q.answer) for q in asked] == [
        *(
            ("NORM or ABNORMAL?", "NORM"),
            ("Which?", "pr interval; rr interval"),
            ("Which?", "qt interval"),
            ("c?", "d"),
        )
    ]
    assert asked[1].labels == ("pr interval", "rr interval") and asked[3].earlier == (("a?", "b"),)
    assert joined(asked) == [4, 1, 1, 1]


@pytest.mark.parametrize(
    "item",
    [
        {"what": "ever"},
        {"messages": [{"role": "tool", "content": "x"}], "ecg": "a"},
        {"messages": "x", "ecg": "a"},
        {
            "messages": [{"role": "user", "content": {"a": 1}}, {"role": "assistant", "content": "b"}],
            "ecg": "a",
        },
        {"metadata": {}, "data": []},
        {
            "metadata": {"ecg_id": "1", "data_source": "ptbxl"},
            "data": {"initial_diagnostic_question": {}, "reasoning": [3]},
        },
        {"ecg_path": "a.npy", "text": "no JSON"},
        {"ecg_path": "a.npy", "text": "[" * 100_000},
        {"ecg_id": "[x]", "rationale": "r", "question": "q", "answer": "a"},
        {"conversations": ["x", "y"], "ecg": "a"},
    ],
)
def test_an_unknown_form_is_one_line_that_names_those_known(tmp_path, item):
    with pytest.raises(Failure) as error:
        read(tmp_path / "a.jsonl", item)
    assert "line 1" in error.value.message and "\n" not in error.value.message
    assert all(form.name in error.value.message for form in item_formats.FORMS)


def test_every_form_is_asked_and_answered(ecgbyte, small, tmp_path):
    """From the file to the answer: by a small model, on records called as in each of the projects."""
    from test_finetune import untrained

    work = untrained(small, tmp_path / "work")
    name = "synth00001"
    pairs = [{"from": "human", "value": "Rhythm?"}, {"from": "gpt", "value": "sinus"}]
    roles = [{"role": "user", "content": "<ecg>Rhythm?"}, {"role": "assistant", "content": "sinus"}]
    step = {"question": "Is it?", "options": ["Yes", "No"], "answer": "Yes", "question_type": "decision"}
    items = [
        {"messages": roles, "objects": {"ecg": [f"a/{name}"]}},
        {"conversations": pairs, "image": f"{name}-0.png"},
        {"ecg_path": f"{name}_0.npy", "text": json.dumps(pairs), "name": "single-query"},
        {
            "metadata": {"ecg_id": name, "data_source": "other"},
            "data": {"initial_diagnostic_question": step, "reasoning": [{"a": step, "b": [step]}]},
        },
    ]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(item | {"split": "train"}) + "\n" for item in items))
    args = [
        "finetune",
        "--qa",
        path,
        "--model",
        "tiny",
        "--steps",
        2,
        "generate",
        "--split",
        "train",
        "--max-new",
        3,
    ]
    result = ecgbyte(*args, "--no-controls", "--json", work=work)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["generate"]["questions"] == 3
    result = ecgbyte(
        "generate", "--qa", path, "--split", "test", "--no-controls", "--overwrite", "--json", work=work
    )
    # a model trained from scratch declines questions that it has not learned
    assert result.exit_code == 1 and "was not trained on 3 of 3 questions" in result.stderr


def test_a_form_is_a_parser_and_a_row(tmp_path, monkeypatch):
    def parse(item):
        return [item_formats.ParsedItem([item["toy"]], [(item["ask"], "yes")], "toy")]

    toy = item_formats.Form("a toy", {"toy", "ask"}, parse)
    monkeypatch.setattr(item_formats, "FORMS", (toy, *item_formats.FORMS))
    own = {"record": "r", "question": "q?", "answer": "a"}
    first, second = read(tmp_path / "t.jsonl", {"toy": "r", "ask": "Is it?"}, own)
    assert (first.record, first.question, first.answer, first.type) == ("r", "Is it?", "yes", "toy")
    assert (second.question, second.answer) == ("q?", "a")


def test_the_message_about_an_unknown_form_names_all_forms():
    assert all(form.name in item_formats.KNOWN for form in item_formats.FORMS)
    assert item_formats.FORMS[-1].keys == {"question", "answer"}  # ecgbyte's own, and the last
