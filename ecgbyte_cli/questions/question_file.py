"""Question files, and the segments that the questions are about.

A file is a JSON array, JSON Lines, CSV or TSV, and each of its items has one of the forms of `forms`.

A folder is all such files in it, as ECG-QA is laid out: train/000000.json, valid/…, test/…; a table in it without
columns for question and answer is none of them (ECG-QA's answers_for_each_template.csv).
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import item_formats
from ecgbyte_cli.questions.item_formats import BETWEEN as BETWEEN
from ecgbyte_cli.readers.formats import FORMATS
from ecgbyte_cli.readers.patients import SPLITS, side_of
from ecgbyte_cli.readers.text_table import names_of, read_rows
from ecgbyte_cli.storage.files import sha256_of

TABLES = (".csv", ".tsv")
FILES = (".json", ".jsonl", *TABLES)
# the line of names of a table of questions holds all of one of these
NAMES = ({"question", "answer"}, *(form.keys for form in item_formats.FORMS.values()))
SPOKEN = ("question", "answer")  # columns of a table whose cells must not be empty
SIDES = {"train": "training", "val": "validation", "test": "test"}  # in words


@dataclass(frozen=True)
class Question:
    """A question about a record, with its true answer; perhaps about several records, or after other turns."""

    record: str
    question: str
    answer: str
    type: str
    split: str | None
    other_records: tuple[str, ...] = ()
    earlier: tuple[tuple[str, str], ...] = ()  # turns of question and answer before this one
    labels: tuple[str, ...] = ()  # of the answer, where it was given as a list
    reasoning: str = ""  # that leads to the answer, where the file has one
    template_id: int | None = None  # ECG-QA's
    attribute_type: str | None = None
    topic: str | None = None  # what is asked about, in whatever words: `ecgbyte questions` says it
    closed: bool = False  # whether there are few answers to choose from, and training has them all
    segments: tuple[int, ...] = ()  # of the records, in their order: `join` fills them in
    problem: str = ""  # why the question cannot be asked, from `join`

    @property
    def records(self) -> tuple[str, ...]:
        """All records that the question is about, in the order that it counts them."""
        return (self.record, *self.other_records)

    @property
    def truth(self) -> str | tuple[str, ...]:
        """What an answer is compared with: the labels, or the answer's text."""
        return self.labels or self.answer

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """All turns of question and answer."""
        return (*self.earlier, (self.question, self.answer))


def read_questions(path: str | os.PathLike | list) -> list[Question]:
    """Read a question file, all question files in a folder, or several of these.

    Items with an empty question or answer are left out, with a note.

    Returns
    -------
    list of Question
        The split is the item's own. Else it is the one that the file or its folder is called after (see
        `readers.patients.SPLITS`), if a whole folder is read or the item is ECG-QA's.

    Raises
    ------
    Failure
        If a file is missing or no text, or an item is none of the forms.
    """
    if isinstance(path, list):
        return [question for one in path for question in read_questions(one)]
    path = Path(path)
    questions = [question for file in _files(path) for question in _read_file(file, path.is_dir())]
    if not questions:
        raise Failure(f"question file {path} holds no questions with an answer")
    return questions


def filter_types(questions: list[Question], types: Sequence[str]) -> list[Question]:
    """The questions of some types; all where none is named.

    Raises
    ------
    Failure
        If there is no question of one of them.
    """
    there = {question.type for question in questions}
    for kind in types:
        if kind not in there:
            raise Failure(
                f"--types: no question is of type {kind}; there are {', '.join(sorted(there))[:500]}"
            )
    return [question for question in questions if question.type in types] if types else questions


def absolute_paths(path):
    """The absolute path of a question file, or a list of those of several."""
    return [absolute_paths(one) for one in path] if isinstance(path, list) else str(Path(path).resolve())


def questions_sha256(path):
    """The SHA-256 of a question file, or of the names and contents of those in a folder, in hex; of several a list."""
    if isinstance(path, list):
        return [questions_sha256(one) for one in path]
    path = Path(path)
    try:
        if not path.is_dir():
            return sha256_of(_regular(path))
        lines = [f"{sha256_of(file)} {file.relative_to(path)}\n" for file in _files(path)]
    except OSError as error:
        raise Failure(f"question file {path} cannot be read: {error.strerror}; --qa names it") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(path):
    if not path.is_dir():
        return [path]
    files = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in FILES and p.is_file() and _has_questions(p)
    )
    if not files:
        raise Failure(f"folder {path} holds no question files ({', '.join(FILES)})")
    return files


def _regular(path):
    if path.exists() and not path.is_file():
        raise Failure(f"question file {path} is no regular file")
    return path


def _has_questions(path: Path) -> bool:
    """False for a table whose line of names has no question and answer."""
    if path.suffix.lower() not in TABLES:
        return True
    try:
        return {"question", "answer"} <= set(names_of(path, NAMES))
    except Failure:
        return False


def _read_file(path, in_folder):
    # ECG-QA's files are in folders called after the split, those of ECG-QA-CoT are themselves
    names = (path.stem, path.parent.name, path.stem.rpartition("_")[2])
    split = next((SPLITS[name.lower()] for name in names if name.lower() in SPLITS), None)
    questions, empty = [], []
    for where, item in _items(_regular(path)):
        try:
            questions += _questions(item, split if in_folder or "ecg_id" in item else None)
        except item_formats.EmptyError:
            empty.append(where)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise Failure(f"{path}, {where}: {item_formats.KNOWN} ({_problem(error)})") from error
    if empty:
        note(f"{path}: {len(empty)} items have an empty question or answer: left out (the first: {empty[0]})")
    return questions


def _items(path: Path) -> Iterator[tuple[str, object]]:
    """Yield the items of a file, each with words that say where it stands."""
    if path.suffix.lower() in TABLES:
        yield from _rows(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Failure(f"question file {path} cannot be read: {error.strerror}; --qa names it") from error
    except UnicodeDecodeError as error:
        raise Failure(f"question file {path} is not UTF-8 text") from error
    if text.lstrip().startswith("[") and path.suffix.lower() == ".json":
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Failure(f"{path} is not valid JSON: {error}") from error
        for number, item in enumerate(items, 1):
            yield f"item {number}", item
    else:
        # not splitlines: a JSON text may hold the other line ends that it knows
        for number, line in enumerate(re.split("\r\n?|\n", text), 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Failure(f"{path}, line {number}: is not valid JSON: {error}") from error
            yield f"line {number}", item


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a table."""
    names: list[str] = []
    for line, row in read_rows(path, NAMES):
        if not names:
            names = row
        else:
            cells = zip(names, row, strict=False)
            yield f"line {line}", {name: value for name, value in cells if name and (value or name in SPOKEN)}


def _questions(item, split):
    """An item of any form as Questions; KeyError, TypeError or ValueError say what is wrong with it."""
    asked = item_formats.parse_item(item)
    if "split" in item:
        split = side_of(item_formats.text(item["split"] or ""))
    made = []
    for one in asked:
        *earlier, (question, answer) = one.turns
        record, *others = map(item_formats.text, one.records)
        made.append(
            Question(
                record,
                question,
                answer,
                str(item.get("type") or one.type),
                one.split or split,
                tuple(others),
                tuple(earlier),
                one.labels,
                one.reasoning,
                item.get("template_id"),
                item.get("attribute_type"),
                next(
                    (item[k] for k in ("topic", "finding") if item.get(k) and isinstance(item[k], str)), None
                ),
                item.get("closed") in (True, "true", "True"),
            )
        )
    return made


def _problem(error):
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def join_segments(questions, segments):
    """Find the segment of each question's records: the first of each.

    A record is found by its name, or by the end of its path ("Person_02/rec_1"); one of PTB-XL also under the
    names that it has elsewhere (06002_hr, 06002_lr, and HR06002 in the PhysioNet Challenge). A name that several
    recordings have finds none.

    Parameters
    ----------
    questions : list of Question
    segments : dict
        The columns of symbols/segments.parquet.

    Returns
    -------
    (list of (Question, int, str, str), list of Question)
        Each question (with its `segments`), its first segment's number, its patient and its split (its own,
        else the record's); and the questions that cannot be asked, with their `problem`.
    """
    find, joined, unmatched = _finder(segments), [], []
    for question in questions:
        found = [find(record) for record in question.records]
        splits = {question.split or segments["split"][places[0]] for places in found if places}
        if not all(found):
            unmatched.append(replace(question, problem="are about records that were not encoded"))
        elif any(len(places) > 1 for places in found):
            unmatched.append(replace(question, problem="name a record that several recordings are called"))
        elif len(splits) > 1:
            unmatched.append(replace(question, problem="are about records on different sides of the split"))
        else:
            first = found[0][0]
            question = replace(question, segments=tuple(places[0] for places in found))
            joined.append((question, first, segments["patient"][first], splits.pop()))
    return joined, unmatched


def _finder(segments):
    """A function from a record's name to the first segments of the recordings that it may mean."""
    firsts = {}  # of each recording
    for i, recording in enumerate(
        zip(segments.get("path", segments["record"]), segments["record"], strict=True)
    ):
        firsts.setdefault(recording, i)
    by_record, by_last, by_number = {}, {}, {}
    for (path, record), i in firsts.items():
        parts = _parts(path)
        by_record.setdefault(record, []).append(i)
        by_last.setdefault(parts[-1], []).append((parts, i))
        by_number.setdefault(_ptb_xl_number(record), []).append(i)
    by_number.pop(None, None)

    def find(name):
        wanted = _parts(name)
        by_path = [i for parts, i in by_last.get(wanted[-1], ()) if parts[-len(wanted) :] == wanted]
        return by_record.get(name) or by_path or by_number.get(_ptb_xl_number(name), [])

    return find


def _parts(path):
    """The folders of a recording's path, and its name without its format's extension."""
    *folders, name = path.split("/")
    stem, dot, extension = name.rpartition(".")
    return [*folders, stem if dot and f".{extension.lower()}" in FORMATS else name]


def _ptb_xl_number(record):
    match = re.fullmatch(r"HR(\d{5})|(\d{5})_[hl]r", record)
    return int(match[1] or match[2]) if match else None


def describe_unmatched(unmatched, total):
    """One line about questions that could not be joined: how many, why, and some of their records."""
    parts = []
    for problem, count in Counter(question.problem for question in unmatched).most_common():
        some = sorted({r for question in unmatched if question.problem == problem for r in question.records})
        more = ", …" if len(some) > 3 else ""
        parts.append(f"{count} of {total} questions {problem} ({', '.join(some[:3])}{more})")
    hint = ": name the folder too, as in Person_02/rec_1" if "called" in "".join(parts) else ""
    return f"{'; '.join(parts)}: left out{hint}"


def split_leaks(joined: Sequence[tuple], learned: set[str], name: str | os.PathLike) -> list[str]:
    """Lines about patients and questions on two sides of a split, and about findings that the test side lacks.

    Parameters
    ----------
    joined : list
        From `join`.
    learned : set of str
        The patients whose recordings the merges were learned from.
    name : path-like
        Of the question file.
    """
    lines, patients = [], {side: {p for *_, p, split in joined if split == side} for side in SIDES}
    for one, other in combinations(SIDES, 2):
        if both := patients[one] & patients[other]:
            lines.append(
                f"{len(both)} patients are in {SIDES[one]} and in {SIDES[other]}, as {name} has it: "
                f"{_shorten_list(both)}"
            )
    for side in ("val", "test"):
        if both := (patients[side] & learned) - patients["train"]:
            lines.append(
                f"{len(both)} patients of the {SIDES[side]} questions are among those whose recordings the merges "
                f"were learned from: {_shorten_list(both)}"
            )
    sides: dict[str, set[str]] = {}
    for question, *_, side in joined:
        if question.answer.strip().casefold() == "yes":
            sides.setdefault(question.topic or question.question, set()).add(side)
    if any(side == "test" for *_, side in joined):
        lines += without_positives(sides)
    if count := count_seen_in_training(joined):
        lines.append(
            f"{count} of {sum(side == 'test' for *_, side in joined)} test questions stand in training too, word "
            "for word and about the same records"
        )
    return lines


def without_positives(sides: dict[str, set[str]]) -> list[str]:
    """A line about what is present on some side of the split and never on the test side.

    Parameters
    ----------
    sides : dict of str to set of str
        The sides on which each finding is present, by the finding's words.
    """
    missing = [words for words, on in sides.items() if "test" not in on]
    if not missing:
        return []
    some = ", ".join(missing[:12]) + (", …" if len(missing) > 12 else "")
    return [f"{len(missing)} findings have no positives on the test side of the split: {some}"]


def count_seen_in_training(joined):
    """How many test questions stand word for word, about the same records, in the training split."""

    def key(question):
        return question.segments, question.question, question.earlier

    known = {key(question) for question, *_, side in joined if side == "train"}
    return sum(side == "test" and key(question) in known for question, *_, side in joined)


def _shorten_list(names):
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
