"""Question files, and the segments that the questions are about."""

import json
from dataclasses import dataclass
from pathlib import Path

from ecgbyte_cli.console import Failure


@dataclass(frozen=True)
class Question:
    """A question about a record, with its true answer."""

    record: str
    question: str
    answer: str
    type: str
    split: str | None


def read(path):
    """Read questions from a JSONL file: a line each with record, question, answer, and perhaps type and split.

    Returns
    -------
    list of Question

    Raises
    ------
    Failure
        If the file is missing, or a line is no such object.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise Failure(f"question file {path} cannot be read: {error.strerror}; --qa names it") from error
    except UnicodeDecodeError as error:
        raise Failure(f"question file {path} is not UTF-8 text") from error
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            record, question, answer = item["record"], item["question"], item["answer"]
            if not all(isinstance(value, str) for value in (record, question, answer)):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise Failure(
                f"{path}, line {number}: needs a JSON object with record, question and answer as text"
            ) from error
        questions.append(
            Question(record, question, answer, str(item.get("type") or "question"), item.get("split") or None)
        )
    if not questions:
        raise Failure(f"question file {path} holds no questions")
    return questions


def join(questions, segments):
    """Find the segment of each question: the first of its record.

    Parameters
    ----------
    questions : list of Question
    segments : dict
        The columns of symbols/segments.parquet.

    Returns
    -------
    (list of (Question, int, str, str), list of Question)
        Each question with its segment's number, its patient and its split (its own, else the record's);
        and the questions whose record is not there.
    """
    first = {}
    for i, record in enumerate(segments["record"]):
        first.setdefault(record, i)
    joined, unmatched = [], []
    for question in questions:
        i = first.get(question.record)
        if i is None:
            unmatched.append(question)
        else:
            joined.append((question, i, segments["patient"][i], question.split or segments["split"][i]))
    return joined, unmatched
