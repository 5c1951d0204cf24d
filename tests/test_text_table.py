"""Tables of words: patients, labels and questions read the same in every dialect, or name the line."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli import questions, readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.sources import base
from ecgbyte_cli.readers import text_table

NAMES = ["record", "question", "answer"]
DIALECTS = [
    (separator, end, encoding)
    for separator in ",;\t|"
    for end, encoding in (("\n", "utf-8"), ("\r\n", "utf-8-sig"), ("\r\n", "utf-16"))
]
CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["1,5", "a;b", "c\td", 'say "ah"', "two\nlines", "|", "sep=;", "# no comment", "", "00016"]
)


def written(rows, separator, end="\n"):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end).writerows(rows)
    return out.getvalue()


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=4))
def test_a_table_is_the_same_in_all_dialects(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "t.csv"
    rows = [["r", *row] for row in rows]
    for separator, end, encoding in DIALECTS:
        path.write_bytes(written([NAMES, *rows], separator, end).encode(encoding))
        assert text_table.names_of(path, [{"record"}]) == NAMES
        assert [row for _, row in text_table.read_rows(path, [{"record"}])] == [NAMES, *rows]


@pytest.mark.parametrize(
    "above", ["sep=;\n", "# exported\n\n", "Export;2024\nWard;3\n\n", "#TYPE Object\n", "\n\n"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
def test_patients_labels_and_questions(tmp_path, above, encoding):
    path = tmp_path / "t.csv"

    def write(*rows):
        path.write_bytes((above + "".join(row + "\r\n" for row in rows)).encode(encoding))
        return path

    write("record;patient;split;", "00016; Jürgen, K. ;test;", ";;;", "", "a/b.hea;12,0;val")
    assert readers.read_patients(path) == {"00016": ("Jürgen, K.", "test"), "b": ("12.0", "val")}
    write("record;patient", "a;15709,0", "b;13243,0")
    assert readers.read_patients(path) == {"a": ("15709", None), "b": ("13243", None)}
    write("record;afib;age;heart_rate;note", "r1;1,0;63,5;1,234;ä", "r2;0,0")
    assert base.column_names(path, [{"record"}]) == ["record", "afib", "age", "heart_rate", "note"]
    line = above.count("\n") + 2
    assert list(base.table_rows(path, [{"record"}])) == [
        (line, {"record": "r1", "afib": "1.0", "age": "63.5", "heart_rate": "1,234", "note": "ä"}),
        (line + 1, {"record": "r2", "afib": "0.0", "age": "", "heart_rate": "", "note": ""}),
    ]
    write("record;question;answer", 'r1;"Größe; ""normal""?";12,5')
    (question,) = questions.read_questions(path)
    assert (question.question, question.answer) == ('Größe; "normal"?', "12,5")


def test_questions_in_files_of_other_endings(tmp_path):
    for name, separator in (("q.tsv", "\t"), ("Q.CSV", ";")):
        (tmp_path / name).write_text(written([NAMES, ["r", "q?", "a"]], separator))
        assert [q.answer for q in questions.read_questions(tmp_path / name)] == ["a"]
    (tmp_path / "other.csv").write_bytes(b"a,b\n\xe8,\0\n")  # none of ours, whatever is in it
    assert len(questions.read_questions(tmp_path)) == 2


@pytest.mark.parametrize(
    "data, message",
    [
        (
            b"record;patient\na;b\nc;d;e\n",
            "line 3: has more cells than the 2 names: quote cells that contain semicolons",
        ),
        (b'record,patient\na,b\nc,"d\ne,f\n', "line 3: not valid CSV"),
        (b"record,patient,patient\na,b,c\n", "line 1: two columns are called patient"),
        (b"sep=;\nrecord;patient;patient\n", "line 2: two columns are called patient"),
        (
            "record,patient\na,b\nc,Hélène\n".encode("latin-1"),
            "line 3: not UTF-8 text: save the table as UTF-8",
        ),
        (b"record,patient\n" + b"a,b\n" * 30000 + b"c,\xff\n", "line 30002: not UTF-8 text"),
        ("record,patient\na,жизнь\n".encode("cp1251"), "line 2: not UTF-8 text"),
        (b"record,patient\na,\0\n", "NUL"),
        (b"PK\3\4", "export it as CSV"),
        (b"rec;pat\na;b\n", "its columns are rec, pat"),
        (b"", "its columns are none"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, data, message):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(Failure) as error:
        readers.read_patients(path)
    assert message in error.value.message and str(path) in error.value.message


def test_the_line_of_names_may_be_the_only_one(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("record,patient\n")
    assert readers.read_patients(path) == {} and list(base.table_rows(path, [{"record"}])) == []
