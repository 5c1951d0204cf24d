"""Question files about twins: the same questions for each control, in each model's format."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ecgbyte_cli.questions import question_segments
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.storage.files import atomic_write

Item = dict[str, Any]
Asked = tuple[Question, tuple[str, ...], str, str]  # question, the names of its recordings, patient, split
NOT_HERE = "are about recordings that are missing"


def join_names(
    questions: Sequence[Question], columns: Mapping[str, list[str]], split: str
) -> tuple[list[Asked], str]:
    """Find the recordings of questions.

    Parameters
    ----------
    questions : list of Question
    columns : mapping
        `record`, `path`, `name`, `patient` and `split` of each recording.
    split : str
        train, val, test or all.

    Returns
    -------
    (list of Asked, str)
        The questions of the split, and a message about questions without a recording; empty if there are none.
    """
    wanted = [q for q in questions if split == "all" or q.split in (split, None)]
    joined, unmatched = question_segments.join_segments(wanted, dict(columns))
    asked = [
        (q, tuple(columns["name"][i] for i in q.segments), patient, side)
        for q, _, patient, side in joined
        if split in (side, "all")
    ]
    line = ""
    if unmatched:
        unmatched = [
            replace(q, problem=q.problem.replace(question_segments.NOT_ENCODED, NOT_HERE)) for q in unmatched
        ]
        line = question_segments.describe_unmatched(unmatched, len(wanted))
    return asked, line


def items(asked: Sequence[Asked], form: str, controls: Sequence[str]) -> list[Item]:
    """Return the items of a question file in one format: all questions about the recordings, then about each control.

    `id` is unique in the file, and the same in each format. `control` and `original` identify a twin.
    """
    made = []
    for control in controls:
        for number, (question, names, patient, split) in enumerate(asked):
            if form == "npy" and len(names) > 1:
                continue  # ELM takes one ECG
            original = list(names) if len(names) > 1 else names[0]
            about: Item = {"control": control, "original": original, "patient": patient, "split": split}
            about |= {
                "type": question.type,
                "topic": question.topic,
                "attribute_type": question.attribute_type,
            }
            item = {"id": f"{control}-{number}", **FORMS[form](question, names, control)}
            made.append(item | {key: value for key, value in about.items() if value is not None})
    return made


def _wfdb_item(question: Question, names: Sequence[str], control: str) -> Item:
    """Return an item in ecgbyte's own form; of a conversation, in ECG-Chat's."""
    records = [f"{control}/{name}" for name in names]
    if question.earlier:
        return {"ecg": records, "conversations": _turns(question)}
    answer = list(question.labels) or question.answer
    return {
        "record": records if len(records) > 1 else records[0],
        "question": question.question,
        "answer": answer,
    }


def _npy_item(question: Question, names: Sequence[str], control: str) -> Item:
    """Return an item of ELM's data sets."""
    text = json.dumps(_turns(question), ensure_ascii=False)
    return {"ecg_path": f"npy/{control}/{names[0]}_0.npy", "text": text, "name": question.type}


def _png_item(question: Question, names: Sequence[str], control: str) -> Item:
    """Return an item in the form of PULSE and LLaVA."""
    images = [f"png/{control}/{name}.png" for name in names]
    turns = _turns(question)
    turns[0]["value"] = "<image>\n" * len(images) + turns[0]["value"]
    return {"image": images if len(images) > 1 else images[0], "conversations": turns}


def _turns(question: Question) -> list[dict[str, str]]:
    """Return the turns of a question."""
    return [
        {"from": speaker, "value": text}
        for turn in question.turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]


FORMS: dict[str, Callable[[Question, Sequence[str], str], Item]] = {
    "wfdb": _wfdb_item,
    "npy": _npy_item,
    "png": _png_item,
}
# PULSE reads a JSON array, as LLaVA's question files are
FILES = {"wfdb": "questions-wfdb.jsonl", "npy": "questions-npy.jsonl", "png": "questions-png.json"}


def write_questions(
    folder: Path, asked: Sequence[Asked], forms: Sequence[str], controls: Sequence[str]
) -> list[str]:
    """Write the question file of each form, and return their names."""
    for form in forms:
        made = items(asked, form, controls)
        with atomic_write(folder / FILES[form]) as beside:
            if FILES[form].endswith(".json"):
                text = json.dumps(made, ensure_ascii=False, indent=0)
            else:
                text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made)
            beside.write_text(text, encoding="utf-8")
    return [FILES[form] for form in forms]
