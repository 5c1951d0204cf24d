"""Question files and their join with segments."""

import json

import pytest

from ecgbyte_cli import questions
from ecgbyte_cli.console import Failure

SEGMENTS = {"record": ["a", "a", "b"], "patient": ["p1", "p1", "p2"], "split": ["train", "train", "test"]}


def write(path, *items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no questions"),
        ('{"record": "a", "question": "q"}', "line 1"),
        ('{"record": "a", "question": "q", "answer": "x"}\n[1]', "line 2"),
        ("not json", "line 1"),
        ('{"record": "a", "question": "q", "answer": 3}', "line 1"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, said):
    path = tmp_path / "qa.jsonl"
    path.write_text(text)
    with pytest.raises(Failure, match=said) as error:
        questions.read(path)
    assert str(path) in error.value.message and "\n" not in error.value.message


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(Failure, match="cannot be read"):
        questions.read(tmp_path / "none.jsonl")
