"""Question files, and the segments that the questions are about.

A file is a JSON array, JSON Lines or CSV, and each of its items one of

- record, question, answer, and perhaps type and split: ecgbyte's own form;
- ecg_id, question, answer, question_type: ECG-QA (Oh et al., NeurIPS 2023), over PTB-XL or MIMIC-IV-ECG;
- ecg or image, conversations: turns of human and gpt, as in LLaVA, ECG-Chat and PULSE.

A folder is all such files in it, as ECG-QA is laid out: train/000000.json, valid/…, test/….
"""

import csv
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.workdir import sha256_of

FILES = (".json", ".jsonl", ".csv")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ECG_PLACE = re.compile(r"\s*<(?:ecg|image|signal)>\s*")  # where LLaVA's form puts the ECG into the text


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
    segments: tuple[int, ...] = ()  # of the records, in their order: `join` fills them in

    @property
    def records(self) -> tuple[str, ...]:
        """All records that the question is about, in the order that it counts them."""
        return (self.record, *self.other_records)

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """All turns of question and answer."""
        return (*self.earlier, (self.question, self.answer))


def read(path: str | os.PathLike) -> list[Question]:
    """Read a question file, or all question files in a folder.

    Returns
    -------
    list of Question
        The split is the item's own. Else it is the one that the file or its folder is called after (train,
        val, valid, validation, test), if a whole folder is read or the item is ECG-QA's.

    Raises
    ------
    Failure
        If a file is missing or no text, or an item is none of the forms.
    """
    path = Path(path)
    questions = [question for file in _files(path) for question in _read_file(file, path.is_dir())]
    if not questions:
        raise Failure(f"question file {path} holds no questions")
    return questions


def sha256(path):
    """The SHA-256 of a question file, or of the names and contents of those in a folder, in hex."""
    path = Path(path)
    try:
        if not path.is_dir():
            return sha256_of(path)
        lines = [f"{sha256_of(file)} {file.relative_to(path)}\n" for file in _files(path)]
    except OSError as error:
        raise Failure(f"question file {path} cannot be read: {error.strerror}; --qa names it") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(path):
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix in FILES and p.is_file())
    if not files:
        raise Failure(f"folder {path} holds no question files ({', '.join(FILES)})")
    return files


def _read_file(path, in_folder):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Failure(f"question file {path} cannot be read: {error.strerror}; --qa names it") from error
    except UnicodeDecodeError as error:
        raise Failure(f"question file {path} is not UTF-8 text") from error
    split = SPLITS.get(path.stem) or SPLITS.get(path.parent.name)
    questions = []
    for where, item in _items(path, text):
        try:
            questions.append(_question(item, split if in_folder or "ecg_id" in item else None))
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(
                f"{path}, {where}: needs record, question and answer as text, or an item of ECG-QA, or "
                f"conversations with ecg or image ({_problem(error)})"
            ) from error
    return questions


def _items(path, text):
    """Yield the items of a file, each with words that say where it stands."""
    if path.suffix == ".csv":
        rows = csv.DictReader(text.splitlines(keepends=True))
        for row in rows:
            yield f"line {rows.line_num}", {key: value for key, value in row.items() if value}
    elif text.lstrip().startswith("[") and path.suffix == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise Failure(f"{path} is not valid JSON: {error}") from error
        for number, item in enumerate(items, 1):
            yield f"item {number}", item
    else:
        # not splitlines: a JSON text may hold the other line ends that it knows
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except ValueError as error:
                raise Failure(f"{path}, line {number}: is not valid JSON: {error}") from error
            yield f"line {number}", item


def _question(item, split):
    """An item of any form as a Question; KeyError, TypeError or ValueError say what is wrong with it."""
    if not isinstance(item, dict):
        raise TypeError("is no JSON object")
    if "split" in item:
        split = SPLITS.get(item["split"])
        if split is None and item["split"]:
            raise ValueError(f"split {item['split']!r} is none of train, val, test")
    if "conversations" in item:
        records, kind = _paths(item), "conversation"
        turns = _turns(item["conversations"])
    else:
        if "ecg_id" in item:
            records, kind = _ecg_qa_records(item["ecg_id"]), item.get("question_type") or "question"
        else:
            records, kind = _list(item["record"]), "question"
        # ECG-QA gives all right answers of a question as a list
        turns = [(_text(item["question"]), ", ".join(map(_text, _list(item["answer"]))))]
    *earlier, (question, answer) = turns
    record, *others = map(_text, records)
    kind = str(item.get("type") or kind)
    return Question(record, question, answer, kind, split, tuple(others), tuple(earlier))


def _ecg_qa_records(ids):
    """The records of ECG-QA's ids: study numbers of MIMIC-IV-ECG (8 digits) are record names, PTB-XL's are not."""
    numbers = [int(i) for i in _list(ids)]
    return [f"{i:05d}_hr" if i < 100_000 else str(i) for i in numbers]


def _paths(item):
    """The records that a conversation's ecg or image names: `…/40689238-0.png` is a picture of 40689238."""
    given = next((item[key] for key in ("ecg", "image", "image_path", "record") if item.get(key)), None)
    if given is None:
        raise KeyError("ecg")
    return [
        re.sub(r"\.(png|jpe?g|hea|dat|mat|npy)$|-\d+\.(png|jpe?g)$", "", PurePosixPath(_text(path)).name)
        for path in _list(given)
    ]


def _turns(conversation):
    """Pairs of what the human and the model said, without the marks for the ECG."""
    words = [(turn["from"], ECG_PLACE.sub(" ", _joined(turn["value"])).strip()) for turn in conversation]
    speakers = [speaker for speaker, _ in words]
    if not words or speakers != ["human", "gpt"] * (len(words) // 2):
        raise ValueError("the conversation does not alternate between human and gpt")
    return [(words[i][1], words[i + 1][1]) for i in range(0, len(words), 2)]


def _joined(value):
    return value if isinstance(value, str) else "".join(value)  # PULSE's benchmark has lists of letters


def _list(value):
    if isinstance(value, list) and not value:
        raise ValueError("an empty list")
    return value if isinstance(value, list) else [value]


def _text(value):
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _problem(error):
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)


def join(questions, segments):
    """Find the segment of each question's records: the first of each.

    A record is found by its name; one of PTB-XL also under the names that it has elsewhere (06002_hr, 06002_lr,
    and HR06002 in the PhysioNet Challenge).

    Parameters
    ----------
    questions : list of Question
    segments : dict
        The columns of symbols/segments.parquet.

    Returns
    -------
    (list of (Question, int, str, str), list of Question)
        Each question (with its `segments`), its first segment's number, its patient and its split (its own,
        else the record's); and the questions that cannot be asked: a record of theirs is not there, or their
        records are on different sides of the split.
    """
    first, ptb_xl = {}, {}
    for i, record in enumerate(segments["record"]):
        first.setdefault(record, i)
        ptb_xl.setdefault(_ptb_xl_number(record), i)
    ptb_xl.pop(None, None)
    joined, unmatched = [], []
    for question in questions:
        found = tuple(first.get(r, ptb_xl.get(_ptb_xl_number(r))) for r in question.records)
        splits = {question.split or segments["split"][i] for i in found if i is not None}
        if None in found or len(splits) > 1:
            unmatched.append(question)
            continue
        question = replace(question, segments=found)
        joined.append((question, found[0], segments["patient"][found[0]], splits.pop()))
    return joined, unmatched


def _ptb_xl_number(record):
    match = re.fullmatch(r"HR(\d{5})|(\d{5})_[hl]r", record)
    return int(match[1] or match[2]) if match else None


def describe(unmatched, total):
    """One line about questions that could not be joined: how many, and some of their records."""
    some = sorted({record for question in unmatched for record in question.records})
    more = ", …" if len(some) > 3 else ""
    return (
        f"{len(unmatched)} of {total} questions are about records that were not encoded, or that are on "
        f"different sides of the split ({', '.join(some[:3])}{more}): left out"
    )
