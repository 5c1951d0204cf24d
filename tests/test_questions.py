"""Question files in all their forms, and their join with segments."""

import json

import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import files as questions

SEGMENTS = {"record": ["a", "a", "b"], "patient": ["p1", "p1", "p2"], "split": ["train", "train", "test"]}


def write(path, *items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def segments_of(*records, split="train"):
    return {"record": list(records), "patient": list(records), "split": [split] * len(records)}


def test_read_and_join(tmp_path):
    path = write(
        tmp_path / "qa.jsonl",
        {"record": "b", "question": "q1", "answer": "x", "type": "t"},
        {"record": "a", "question": "q2", "answer": "y", "split": "val"},
        {"record": "c", "question": "q3", "answer": "z"},
    )
    joined, unmatched = questions.join(questions.read(path), SEGMENTS)
    assert [(q.question, q.type, *rest) for q, *rest in joined] == [
        ("q1", "t", 2, "p2", "test"),
        ("q2", "question", 0, "p1", "val"),  # the first segment of its record, and its own split
    ]
    assert [q.record for q in unmatched] == ["c"]
    assert questions.describe(unmatched, 3).startswith("1 of 3 questions") and "(c)" in questions.describe(
        unmatched, 3
    )


def test_ecg_qa_over_ptb_xl(real_data):
    """The published items; the last two are about PTB-XL's record 6002, in the Challenge called HR06002."""
    read = questions.read(real_data / "ecg-qa" / "template" / "train" / "000000.json")
    assert len(read) == 62 and {q.split for q in read} == {"train"}
    assert {q.type for q in read} == {"single-verify", "comparison_irrelevant-query"}
    for name in ("HR06002", "06002_hr", "06002_lr"):
        joined, unmatched = questions.join(read, segments_of("JS20000", name))
        assert [(q.answer, i, split) for q, i, _, split in joined] == [("no", 1, "train")] * 2
        assert len(unmatched) == 60
    comparison = next(q for q in read if q.type.startswith("comparison"))
    assert len(comparison.records) == 2
    joined, _ = questions.join([comparison], segments_of(*reversed(comparison.records)))
    assert joined[0][0].segments == (1, 0)


def test_ecg_qa_over_mimic_iv(tmp_path):
    item = {"question_type": "comparison_consecutive-query", "question": "Which?", "attribute": None}
    path = tmp_path / "valid" / "0.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps([item | {"answer": ["pr interval", "rr interval"], "ecg_id": [43402541, 6002]}])
    )
    (question,) = questions.read(path)
    assert question.records == ("43402541", "06002_hr")
    assert (question.answer, question.split) == ("pr interval; rr interval", "val")
    assert questions.join([question], segments_of("43402541", "6002"))[0] == []  # 6002 is no name of PTB-XL's


@pytest.mark.parametrize(
    ("where", "record"),
    [
        ({"ecg": "files/p1000/p10000032/s40689238/40689238"}, "40689238"),  # ECG-Chat
        ({"image": "mimic_v4/p1000/p10000032/s40689238/40689238-0.png"}, "40689238"),  # PULSE
        ({"image": "ptb-xl/records500/06000/06002_hr-0.png"}, "06002_hr"),
        ({"image": "000000215537.jpg"}, "000000215537"),  # LLaVA
    ],
)
def test_conversations(tmp_path, where, record):
    said = [
        {"from": "human", "value": "<ecg>\nRhythm?"},
        {"from": "gpt", "value": "Sinus."},
        {"from": "human", "value": "Rate?\n<image>"},
        {"from": "gpt", "value": list("60.")},
    ]
    path = tmp_path / "instruct.json"
    path.write_text(json.dumps([{"id": "1", **where, "conversations": said}]))
    (question,) = questions.read(path)
    assert question.records == (record,) and question.type == "conversation"
    assert question.turns == (("Rhythm?", "Sinus."), ("Rate?", "60."))
    assert (question.question, question.answer) == question.turns[-1]
    assert questions.read(write(tmp_path / "i.jsonl", {**where, "conversations": said}))[0] == question


def test_csv(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text(
        'record,question,answer,type,split\na,"Rhythm, please?","sinus\nrhythm",r,test\nb,q,x,,\n'
    )
    first, second = questions.read(path)
    assert (first.question, first.answer, first.type, first.split) == (
        "Rhythm, please?",
        "sinus\nrhythm",
        "r",
        "test",
    )
    assert (second.record, second.type, second.split) == ("b", "question", None)


def test_a_folder_gives_the_splits_of_its_parts_and_a_lone_file_does_not(tmp_path):
    item = {"record": "a", "question": "q", "answer": "x"}
    write(tmp_path / "qa" / "train" / "1.jsonl", item)
    write(tmp_path / "qa" / "valid.jsonl", item)
    lone = write(tmp_path / "qa" / "test" / "1.jsonl", item | {"split": "val"}, item)
    assert [q.split for q in questions.read(tmp_path / "qa")] == ["val", "test", "train", "val"]
    assert [q.split for q in questions.read(lone)] == ["val", None]
    before = questions.sha256(tmp_path / "qa")
    lone.write_text(lone.read_text() + "\n")
    assert questions.sha256(tmp_path / "qa") != before


def test_two_records_on_different_sides_cannot_be_compared(tmp_path):
    path = write(tmp_path / "qa.jsonl", {"record": ["a", "b"], "question": "q", "answer": "x"})
    joined, unmatched = questions.join(questions.read(path), SEGMENTS)
    assert not joined and unmatched[0].records == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("qa.jsonl", "", "holds no questions"),
        ("qa.jsonl", '{"record": "a", "question": "q"}', "line 1: .*answer is missing"),
        ("qa.jsonl", '{"record": "a", "question": "q", "answer": "x"}\n[1]', "line 2"),
        ("qa.jsonl", "not json", "line 1"),
        ("qa.jsonl", '{"record": "a", "question": "q", "answer": 3}', "line 1: .*3 is no text"),
        ("qa.jsonl", '{"record": "a", "question": "q", "answer": "x", "split": "tset"}', "'tset' is none of"),
        ("qa.json", '[{"ecg_id": ["x"], "question": "q", "answer": ["a"]}]', "item 1"),
        ("qa.json", '[{"ecg_id": [], "question": "q", "answer": ["a"]}]', "item 1: .*an empty list"),
        ("qa.json", '[{"ecg": "a", "conversations": [{"from": "gpt", "value": "x"}]}]', "does not alternate"),
        ("qa.json", '[{"conversations": [{"from": "human", "value": "x"}]}]', "ecg is missing"),
        ("qa.json", "[1, 2", "not valid JSON"),
        ("qa.csv", "record,question\na,q\n", "line 2: .*answer is missing"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Failure, match=said) as error:
        questions.read(path)
    assert str(path) in error.value.message and "\n" not in error.value.message


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(Failure, match="cannot be read"):
        questions.read(tmp_path / "none.jsonl")
    with pytest.raises(Failure, match="cannot be read"):
        questions.sha256(tmp_path / "none.jsonl")
    with pytest.raises(Failure, match="no question files"):
        questions.read(tmp_path)
