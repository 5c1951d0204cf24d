"""Read question files.

A file is a JSON array, JSON Lines, CSV or TSV. Its items have one of the forms in `item_formats`.

A folder stands for all such files in it, as in ECG-QA: train/000000.json, valid/…, test/…. Tables without columns for
question and answer are skipped (ECG-QA's answers_for_each_template.csv).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import item_formats
from ecgbyte_cli.questions.item_formats import BETWEEN as BETWEEN
from ecgbyte_cli.readers.patients import SPLITS, side_of
from ecgbyte_cli.readers.text_table import names_of, read_rows
from ecgbyte_cli.storage.files import sha256_of

TABLES = (".csv", ".tsv")
FILES = (".json", ".jsonl", *TABLES)
# a table of questions has all columns of one of these
COLUMNS = [form.keys for form in item_formats.FORMS]
REQUIRED = {"question", "answer"}  # columns whose cells must not be empty


QuestionPath = str | os.PathLike | list


@dataclass(frozen=True)
class Question:
    """A question about one or several records, with its true answer, perhaps after earlier turns."""

    record: str
    question: str
    answer: str
    type: str
    split: str | None
    other_records: tuple[str, ...] = ()
    earlier: tuple[tuple[str, str], ...] = ()  # turns of question and answer before this one
    labels: tuple[str, ...] = ()  # of the answer, if it is a list
    reasoning: str = ""  # for the answer, if the file has one
    template_id: int | None = None  # of ECG-QA
    attribute_type: str | None = None
    topic: str | None = None  # the same for all wordings of a question; written by `ecgbyte questions`
    closed: bool = False  # whether there are few possible answers, all of which are in training
    segments: tuple[int, ...] = ()  # of the records, in their order; set by `join_segments`
    problem: str = ""  # the reason why the question cannot be asked; set by `join_segments`
    weight: float = 1.0  # how often its loss counts in training
    id: str = field(default="", compare=False)  # of the item in its file
    patient: str = ""  # if the item names one
    control: str = ""  # of a question about a twin, from `ecgbyte controls`
    original: tuple[str, ...] = ()  # the records that the twins were made from

    @property
    def records(self) -> tuple[str, ...]:
        """All records of the question, in its own order."""
        return (self.record, *self.other_records)

    @property
    def truth(self) -> str | tuple[str, ...]:
        """The right answer: the labels, or the text."""
        return self.labels or self.answer

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """All turns of question and answer."""
        return (*self.earlier, (self.question, self.answer))


def read_questions(path: QuestionPath) -> list[Question]:
    """Read a question file, all question files in a folder, or several of these.

    Items with an empty question or answer are skipped, with a note.

    Returns
    -------
    list of Question
        The split is the item's own. Else the name of the file or its folder decides (see `readers.patients.SPLITS`),
        if a whole folder is read or the item is of ECG-QA.

    Raises
    ------
    Failure
        If a file is missing or is not text, or an item has no known form.
    """
    if isinstance(path, list):
        return [question for one in path for question in read_questions(one)]
    path = Path(path)
    questions = [question for file in _files(path) for question in _read_file(file, path.is_dir())]
    if not questions:
        raise Failure(f"question file {path} holds no questions with an answer")
    return questions


def filter_types(questions: list[Question], types: Sequence[str]) -> list[Question]:
    """Return the questions of some types; all questions if `types` is empty.

    Raises
    ------
    Failure
        If a type has no question.
    """
    known = {question.type for question in questions}
    for kind in types:
        if kind not in known:
            raise Failure(
                f"--types: no question is of type {kind}; there are {', '.join(sorted(known))[:500]}"
            )
    return [question for question in questions if question.type in types] if types else questions


def paths_of(weighted: Sequence[tuple[str | Path, float]]) -> Any:
    """Return the path of a question file, a list of several paths, or None, from paths with weights."""
    paths = [path for path, _ in weighted]
    return paths if len(paths) > 1 else paths[0] if paths else None


def weights_of(weighted: Sequence[tuple[str | Path, float]]) -> list[float] | None:
    """Return the weights of several question files; None if all are 1."""
    weights = [weight for _, weight in weighted]
    return weights if len(weights) > 1 and {*weights} != {1} else None


def absolute_paths(path: QuestionPath) -> str | list:
    """Return the absolute path of a question file, or a list for several."""
    return [absolute_paths(one) for one in path] if isinstance(path, list) else str(Path(path).resolve())


def questions_sha256(path: QuestionPath) -> str | list:
    """Return the SHA-256 in hex of a question file, or of the names and contents of a folder's; a list for several."""
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


def _files(path: Path) -> list[Path]:
    """List the question files of a folder, or the file itself."""
    if not path.is_dir():
        return [path]
    files = sorted(
        p for p in path.rglob("*") if p.suffix.lower() in FILES and p.is_file() and _has_questions(p)
    )
    if not files:
        raise Failure(f"folder {path} holds no question files ({', '.join(FILES)})")
    return files


def _regular(path: Path) -> Path:
    """Return a path, unless something other than a regular file is there."""
    if path.exists() and not path.is_file():
        raise Failure(f"question file {path} is not a regular file")
    return path


def _has_questions(path: Path) -> bool:
    """Return whether a file may hold questions: a table needs columns for question and answer."""
    if path.suffix.lower() not in TABLES:
        return True
    try:
        return set(names_of(path, COLUMNS)) >= REQUIRED
    except Failure:
        return False


def _read_file(path: Path, in_folder: bool) -> list[Question]:
    """Read the questions of one file."""
    # the split is the name of the folder in ECG-QA, and part of the file's name in ECG-QA-CoT
    names = (path.stem, path.parent.name, path.stem.rpartition("_")[2])
    split = next((SPLITS[name.lower()] for name in names if name.lower() in SPLITS), None)
    questions: list[Question] = []
    empty: list[str] = []
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


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the items of a file, each with its place for messages."""
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
        # not splitlines, which also splits at characters that a JSON text may contain
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
    for line, row in read_rows(path, COLUMNS):
        if not names:
            names = row
        else:
            cells = zip(names, row, strict=False)
            yield (
                f"line {line}",
                {name: value for name, value in cells if name and (value or name in REQUIRED)},
            )


def _questions(item: dict, split: str | None) -> list[Question]:
    """Return the questions of an item; raise KeyError, TypeError or ValueError if it is malformed."""
    parsed = item_formats.parse_item(item)
    if "split" in item:
        split = side_of(item_formats.text(item["split"] or ""))
    questions = []
    for one in parsed:
        *earlier, (question, answer) = one.turns
        record, *others = map(item_formats.text, one.records)
        questions.append(
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
                id=_short(item.get("id", item.get("No"))),
                patient=_short(item.get("patient")),
                control=_short(item.get("control")),
                original=tuple(filter(None, map(_short, item_formats.as_list(item.get("original", ""))))),
            )
        )
    return questions


def _short(value: Any) -> str:
    """Return a name or a number as text; empty where there is none, or something else."""
    return str(value) if type(value) in (str, int) else ""


def _problem(error: Exception) -> str:
    """Return what is wrong with an item."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
