"""Question files in all their forms, and their join with segments."""

import csv
import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import question_file, question_segments

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
    joined, unmatched = question_segments.join_segments(question_file.read_questions(path), SEGMENTS)
    assert [(q.question, q.type, *rest) for q, *rest in joined] == [
        ("q1", "t", 2, "p2", "test"),
        ("q2", "question", 0, "p1", "val"),  # the first segment of its record, and its own split
    ]
    assert [q.record for q in unmatched] == ["c"]
    assert question_segments.describe_unmatched(unmatched, 3).startswith(
        "1 of 3 questions"
    ) and "(c)" in question_segments.describe_unmatched(unmatched, 3)


def test_ecg_qa_over_ptb_xl(real_data):
    """The published items; the last two are about PTB-XL's record 6002, in the Challenge called HR06002."""
    read = question_file.read_questions(real_data / "ecg-qa" / "template" / "train" / "000000.json")
    assert len(read) == 62 and {q.split for q in read} == {"train"}
    assert {q.type for q in read} == {"single-verify", "comparison_irrelevant-query"}
    for name in ("HR06002", "06002_hr", "06002_lr"):
        joined, unmatched = question_segments.join_segments(read, segments_of("JS20000", name))
        assert [(q.answer, i, split) for q, i, _, split in joined] == [("no", 1, "train")] * 2
        assert len(unmatched) == 60
    comparison = next(q for q in read if q.type.startswith("comparison"))
    assert len(comparison.records) == 2
    joined, _ = question_segments.join_segments([comparison], segments_of(*reversed(comparison.records)))
    assert joined[0][0].segments == (1, 0)


def test_ecg_qa_over_mimic_iv(tmp_path):
    item = {"question_type": "comparison_consecutive-query", "question": "Which?", "attribute": None}
    path = tmp_path / "valid" / "0.json"
    path.parent.mkdir()
    path.write_text(
        json.dumps([item | {"answer": ["pr interval", "rr interval"], "ecg_id": [43402541, 6002]}])
    )
    (question,) = question_file.read_questions(path)
    assert question.records == ("43402541", "06002_hr")
    assert (question.answer, question.split) == ("pr interval; rr interval", "val")
    assert (
        question_segments.join_segments([question], segments_of("43402541", "6002"))[0] == []
    )  # 6002 is no name of PTB-XL's


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
    (question,) = question_file.read_questions(path)
    assert question.records == (record,) and question.type == "conversation"
    assert question.turns == (("Rhythm?", "Sinus."), ("Rate?", "60."))
    assert (question.question, question.answer) == question.turns[-1]
    assert (
        question_file.read_questions(write(tmp_path / "i.jsonl", {**where, "conversations": said}))[0]
        == question
    )


def test_csv(tmp_path):
    path = tmp_path / "qa.csv"
    path.write_text(
        'record,question,answer,type,split\na,"Rhythm, please?","sinus\nrhythm",r,test\nb,q,x,,\n'
    )
    first, second = question_file.read_questions(path)
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
    assert [q.split for q in question_file.read_questions(tmp_path / "qa")] == ["val", "test", "train", "val"]
    assert [q.split for q in question_file.read_questions(lone)] == ["val", None]
    before = question_file.questions_sha256(tmp_path / "qa")
    lone.write_text(lone.read_text() + "\n")
    assert question_file.questions_sha256(tmp_path / "qa") != before


def test_two_records_on_different_sides_cannot_be_compared(tmp_path):
    path = write(tmp_path / "qa.jsonl", {"record": ["a", "b"], "question": "q", "answer": "x"})
    joined, unmatched = question_segments.join_segments(question_file.read_questions(path), SEGMENTS)
    assert not joined and unmatched[0].records == ("a", "b")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("qa.jsonl", "", "holds no questions"),
        ("qa.jsonl", '{"record": "a", "question": "q"}', "line 1: .*answer is missing"),
        ("qa.jsonl", '{"record": "a", "question": "q", "answer": "x"}\n[1]', "line 2"),
        ("qa.jsonl", "not json", "line 1"),
        ("qa.jsonl", '{"record": "a", "question": "q", "answer": 3}', "line 1: .*3 is not text"),
        (
            "qa.jsonl",
            '{"record": "a", "question": "q", "answer": "x", "split": "tset"}',
            "'tset' is not one of",
        ),
        ("qa.json", '[{"ecg_id": ["x"], "question": "q", "answer": ["a"]}]', "item 1"),
        ("qa.json", '[{"ecg_id": [], "question": "q", "answer": ["a"]}]', "item 1: .*an empty list"),
        ("qa.json", '[{"ecg": "a", "conversations": [{"from": "gpt", "value": "x"}]}]', "does not alternate"),
        ("qa.json", '[{"conversations": [{"from": "human", "value": "x"}]}]', "ecg is missing"),
        ("qa.json", "[1, 2", "not valid JSON"),
        ("qa.csv", "record,question\na,q\n", "line 2: .*answer is missing"),
        ("qa.csv", 'record,question,answer\na,q,x\nb,"open,y\nc,q,z\n', "line 3: not valid CSV"),
        ("qa.csv", 'record,question,answer\na,"q"?,x\n', "line 2: not valid CSV"),
        ("qa.csv", f"record,question,answer\na,{'q' * 200_000},x\n", "cell longer than 131072"),
        ("qa.csv", "record,question,answer\na,Rhythm, please?,sinus\n", "line 2: has more cells"),
        ("qa.json", "[" * 100_000, "not valid JSON"),
        ("qa.jsonl", "[" * 100_000, "line 1"),
        ("qa.jsonl", '{"record": "a", "question": "\\ud800", "answer": "x"}', "half a surrogate"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(Failure, match=said) as error:
        question_file.read_questions(path)
    assert str(path) in error.value.message and "\n" not in error.value.message


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(Failure, match="cannot be read"):
        question_file.read_questions(tmp_path / "none.jsonl")
    with pytest.raises(Failure, match="cannot be read"):
        question_file.questions_sha256(tmp_path / "none.jsonl")
    with pytest.raises(Failure, match="no question files"):
        question_file.read_questions(tmp_path)


ROW = st.tuples(
    *[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)] * 2
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=4))
def test_csv_gives_back_what_a_writer_wrote(tmp_path_factory, rows):
    """Whatever line ends Unicode knows, and whatever stands between quotes."""
    path = tmp_path_factory.mktemp("csv") / "qa.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["record", "question", "answer"])
        writer.writerows(["r", f"q{question}", f"a{answer}"] for question, answer in rows)
    assert [(q.question, q.answer) for q in question_file.read_questions(path)] == [
        (f"q{q}", f"a{a}") for q, a in rows
    ]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_line_ends_that_csv_does_not_know_part_no_rows(tmp_path, end):
    path = tmp_path / "qa.csv"
    text = f'record,question,answer\nr,Is it{end}sinus?,yes\r\ns,"a{end}\nb",{end}no'
    path.write_bytes(text.encode())
    assert [(q.question, q.answer) for q in question_file.read_questions(path)] == [
        (f"Is it{end}sinus?", "yes"),
        (f"a{end}\nb", f"{end}no"),
    ]


def test_a_fifo_is_no_question_file(tmp_path):
    os.mkfifo(tmp_path / "qa.jsonl")
    for ask in (question_file.read_questions, question_file.questions_sha256):
        with pytest.raises(Failure, match="not a regular file"):
            ask(tmp_path / "qa.jsonl")


# a row of the table for each segment: the first two recordings are called alike, the last is a row of a file
TABLE = {
    "record": ["rec_1", "rec_1", "rec_1", "rec_2", "12", "06002_hr", "x"],
    "path": [
        *(
            "/d/Person_01/rec_1.hea",
            "/d/Person_01/rec_1.hea",
            "/d/Person_02/rec_1.hea",
            "/d/Person_02/rec_2.hea",
        ),
        *("/d/exams.hdf5#0", "/d/records500/06000/06002_hr.hea", "/d/y.csv"),
    ],
    "patient": ["a", "a", "b", "b", "c", "d", "e"],
    "split": ["train", "train", "test", "test", "train", "train", "train"],
}


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("Person_01/rec_1", 0),
        ("Person_02/rec_1", 2),
        ("d/Person_02/rec_1", 2),
        ("/d/Person_02/rec_1.hea", 2),
        ("Person_02/rec_1.HEA", 2),
        ("erson_02/rec_1", None),  # a part of a folder's name is none
        ("Person_03/rec_1", None),
        ("other/Person_02/rec_1", None),
        ("rec_2", 3),
        ("Person_02/rec_2", 3),
        ("12", 4),
        ("exams.hdf5#0", 4),
        ("06002_lr", 5),
        ("HR06002", 5),
        ("x", 6),
        ("y", 6),
    ],
)
def test_a_record_is_found_by_its_name_or_the_end_of_its_path(name, segment):
    joined, unmatched = question_segments.join_segments(
        [question_file.Question(name, "q", "a", "t", None)], TABLE
    )
    assert [i for _, i, *_ in joined] == ([] if segment is None else [segment])
    assert len(unmatched) == (segment is None)


def test_a_name_of_several_recordings_is_refused_and_told_of():
    asked = [question_file.Question(name, "q", "a", "t", None) for name in ("rec_1", "rec_2", "none")]
    joined, unmatched = question_segments.join_segments(asked, TABLE)
    assert [q.record for q, *_ in joined] == ["rec_2"] and [q.record for q in unmatched] == ["rec_1", "none"]
    said = question_segments.describe_unmatched(unmatched, 3)
    assert "1 of 3 questions name a record that several recordings are called (rec_1)" in said
    assert "1 of 3 questions are about records that were not encoded (none)" in said
    assert "Person_02/rec_1" in said


def asked_about(record, split, question="q", answer="a"):
    return question_file.Question(record, question, answer, "t", split)


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("train", "val", "in training and in validation"),
        ("train", "test", "in training and in test"),
        ("val", "test", "in validation and in test"),
    ],
)
def test_patients_on_both_sides_of_any_pair_of_splits(one, other, said):
    table = {"record": ["a", "b", "c"], "patient": ["p", "p", "q"], "split": ["test", "test", "test"]}
    joined, _ = question_segments.join_segments(
        [asked_about("a", one), asked_about("b", other), asked_about("c", other)], table
    )
    assert question_segments.split_leaks(joined, set(), "F") == [f"1 patients are {said}, as F has it: p"]
    joined, _ = question_segments.join_segments([asked_about("a", one), asked_about("c", other)], table)
    assert question_segments.split_leaks(joined, set(), "F") == []


def test_test_questions_about_recordings_that_the_merges_were_learned_from():
    table = {"record": ["a", "b"], "patient": ["p", "q"], "split": ["train", "test"]}
    joined, _ = question_segments.join_segments([asked_about("a", "test"), asked_about("b", "test")], table)
    (line,) = question_segments.split_leaks(joined, {"p"}, "F")
    assert line == (
        "1 patients of the test questions are among those whose recordings the merges were learned from: p"
    )
    assert question_segments.split_leaks(joined, set(), "F") == []


def test_test_questions_that_stand_in_training_are_counted():
    table = {"record": ["a", "b"], "patient": ["p", "q"], "split": ["train", "train"]}
    asked = [asked_about("a", "train"), asked_about("a", "test"), asked_about("b", "test")]
    asked += [asked_about("a", "test", "another")]
    joined, _ = question_segments.join_segments(asked, table)
    assert question_segments.count_seen_in_training(joined) == 1
    assert (
        "1 of 3 test questions stand in training too" in question_segments.split_leaks(joined, set(), "F")[-1]
    )


def test_answers_of_ecg_qa_stay_lists_in_one_order(tmp_path):
    item = {"ecg_id": [1], "question": "q", "question_type": "single-query", "template_id": 4}
    item["attribute_type"] = "scp_code"
    comma = "bigeminal pattern (unknown origin, supraventricular, or ventricular)"
    lists = [["sinus", comma], [comma, "sinus"], ["yes"], []]
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([item | {"answer": answer} for answer in lists]))
    first, second, one, none = question_file.read_questions(path)
    assert first == second and first.answer == f"{comma}; sinus" and first.truth == (comma, "sinus")
    assert (one.answer, one.truth) == ("yes", ("yes",)) and (none.answer, none.truth) == ("none", ("none",))
    assert (first.template_id, first.attribute_type) == (4, "scp_code")


def test_ecg_qa_as_cloned(real_data, tmp_path):
    """Tables of answers and of ECGs lie beside the questions."""
    cloned = real_data / "ecg-qa" / "ptbxl"
    assert (cloned / "answers_for_each_template.csv").exists()
    read = question_file.read_questions(cloned)
    parts = [question_file.read_questions(cloned / name) for name in ("paraphrased", "template")]
    assert read == [*parts[0], *parts[1]] and {q.split for q in read} == {"train", "val", "test"}
    assert all(q.template_id and q.attribute_type for q in read)
    shutil.copytree(cloned / "template", tmp_path / "qa")
    before = question_file.questions_sha256(tmp_path / "qa")
    shutil.copy(cloned / "answers_for_each_template.csv", tmp_path / "qa")
    assert question_file.questions_sha256(tmp_path / "qa") == before
    with pytest.raises(Failure, match="needs record, question and answer"):
        question_file.read_questions(tmp_path / "qa" / "answers_for_each_template.csv")


def spoken(question, answer):
    """An item of each form with this question and answer."""
    ecg = {"ecg": "r"}
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    roles = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    first = [{"question": "q", "answer": "a"}, {"question": question, "answer": answer}]
    step = {"question": question, "answer": answer, "options": ["a"]}
    return {
        "own": {"record": "r", "question": question, "answer": answer},
        "list": {"record": "r", "question": question, "answer": [answer, " "]},
        "ecg-qa": {"ecg_id": [1], "question": question, "answer": [answer]},
        "cot": {
            "ecg_id": 1,
            "question": question,
            "answer": answer,
            "rationale": "x",
            "clinical_context": "c",
        },
        "conversations": ecg | {"conversations": turns},
        "pictures": ecg | {"conversations": [turns[0] | {"value": f"<ecg>\n{question}"}, turns[1]]},
        "pairs": ecg | {"conversations": first},
        "an earlier turn": ecg | {"conversations": first[::-1]},
        "messages": ecg | {"messages": roles},
        "thought": ecg | {"messages": [roles[0], thought_of(answer)]},
        "elm": {"ecg_path": "r_0.npy", "text": json.dumps(["t", question, answer])},
        "benchmark": {
            "metadata": {"ecg_id": "7", "data_source": "m"},
            "data": {"initial_diagnostic_question": step, "reasoning": []},
        },
    }


def thought_of(answer):
    return {"role": "assistant", "content": f"<think>t</think><answer>{answer}</answer>"}


FORMS = list(spoken("q", "a"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("question", "answer"), [("q", ""), ("q", " \t"), ("", "a"), ("\u200b", "a"), ("q", ".;")]
)
def test_empty_questions_and_answers_are_left_out(tmp_path, capsys, form, question, answer):
    path = write(tmp_path / "qa.jsonl", spoken("q", "a")[form], *[spoken(question, answer)[form]] * 2)
    assert [q.turns[-1][1] for q in question_file.read_questions(path)] == ["a"]
    assert capsys.readouterr().err == (
        f"{path}: 2 items have an empty question or answer: left out (the first: line 2)\n"
    )


def test_empty_answers_in_tables_and_arrays(tmp_path, capsys):
    path = tmp_path / "qa.csv"
    path.write_text("record,question,answer\na,q,x\nb,q,\nc,q,  \nd,,x\n")
    assert [q.record for q in question_file.read_questions(path)] == ["a"]
    assert "3 items" in (said := capsys.readouterr().err) and "line 3" in said
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([{"record": "a", "question": "q", "answer": x} for x in (None, "x", [])]))
    assert [q.answer for q in question_file.read_questions(path)] == [
        "x",
        "none",
    ]  # an empty list is ECG-QA's "none"
    assert "1 items" in (said := capsys.readouterr().err) and "item 1" in said
    path.write_text(json.dumps([{"record": "a", "question": "q", "answer": ""}]))
    with pytest.raises(Failure, match="no questions with an answer"):
        question_file.read_questions(path)


@pytest.mark.parametrize("name", ["Test", "TESTING", " test ", "dev", "Validation", "training"])
def test_splits_have_the_names_that_tables_have(tmp_path, name):
    item = {"record": "a", "question": "q", "answer": "x"}
    (question,) = question_file.read_questions(write(tmp_path / "qa.jsonl", item | {"split": name}))
    assert question.split == {"t": "test", "d": "val", "v": "val"}.get(name.strip().lower()[0]) or "train"
    (question,) = question_file.read_questions(
        write(tmp_path / "in" / name.strip() / "qa.jsonl", item).parent.parent
    )
    assert question.split in ("train", "val", "test")


def test_findings_that_the_test_side_lacks_are_named():
    table = {"record": list("abc"), "patient": list("abc"), "split": ["train", "test", "test"]}

    def lines(*asked):
        joined, _ = question_segments.join_segments(
            [question_file.Question(r, f"{t}?", a, "v", None, topic=t) for r, t, a in asked], table
        )
        return [line for line in question_segments.split_leaks(joined, set(), "F") if "positives" in line]

    assert lines(("a", "afib", "yes"), ("a", "lvh", "yes"), ("b", "lvh", "yes"), ("b", "afib", "no")) == [
        "1 findings have no positives on the test side of the split: afib"
    ]
    assert lines(("a", "afib", "yes"), ("b", "afib", "yes")) == lines(("a", "afib", "yes")) == []
