"""Save answers during a run, so that an interrupted run resumes."""

import json
from pathlib import Path
from typing import Any

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.inference.batch_answering import Answer
from ecgbyte_cli.storage.files import atomic_write


class PartialAnswers:
    """The answers of a run so far, saved in a file so that an interrupted run resumes.

    The first line holds the settings, each further line one answer. An incomplete last line is dropped.

    Parameters
    ----------
    path : Path
    settings : dict

    Attributes
    ----------
    answers : dict
        (name, question number, segment) mapped to Answer.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.answers: dict[Any, Answer] = {}
        first = json.dumps({"settings": settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines and lines[0] == first:
            for line in lines[1:-1]:
                item = json.loads(line)
                key = item["name"], item["i"], item["segment"]
                self.answers[key] = Answer(*map(item.get, Answer._fields))
            note(f"resuming: {len(self.answers)} answers are done")
            whole_lines = "\n".join(lines[:-1]) + "\n"
        else:
            whole_lines = first + "\n"
        with atomic_write(path) as beside:
            beside.write_text(whole_lines, encoding="utf-8")

    def __enter__(self) -> "PartialAnswers":
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, key: Any, given: Answer) -> None:
        """Append an answer."""
        self.answers[key] = given
        line = dict(zip(("name", "i", "segment"), key, strict=True)) | given._asdict()
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
