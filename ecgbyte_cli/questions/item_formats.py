"""The forms that items of question files have: from one to what it asks.

Each is read as the loader of the project that it comes from reads it; where a file says more than that loader takes,
such as the prompt of ECG-QA-CoT, which quotes the right answer, it is left out here too.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

from ecgbyte_cli.evaluation.metrics import split_labels as labels_in

BETWEEN = "; "  # the labels of an answer: ECG-QA has one with commas in it
ECG_PLACE = re.compile(r"\s*<(?:ecg|image|signal)>\s*")  # where the ECG goes into the text
# files that ELM's preprocessing cuts recordings into, folders and all: the last number is the segment
ELM_FILE = re.compile(r"(?:records\d+_\d{5}_(\d{5}_[hl]r)|files_p\d+_p\d+_s\d+_(\d+)|(.+?))_\d+\.npy")
SPEAKERS = {"human": "asks", "user": "asks", "gpt": "answers", "assistant": "answers", "bot": "answers"}
THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*?)<answer>(.*?)</answer>\s*", re.DOTALL)
LETTERED = re.compile(r"\s*Answer:\s*(.*?)\s*$", re.DOTALL)

Turns = list[tuple[str, str]]


class EmptyError(ValueError):
    """A question or an answer without any word: there is nothing to learn or to score."""


class ParsedItem(NamedTuple):
    """What an item asks: a question, perhaps behind others."""

    records: list[str]
    turns: Turns  # of question and answer
    type: str
    labels: tuple[str, ...] = ()  # of the last answer, where it is a list
    reasoning: str = ""  # that leads to the last answer
    split: str | None = None  # what the form itself says of it


def parse_item(item: object) -> list[ParsedItem]:
    """What an item asks.

    Raises
    ------
    EmptyError
        If a question or an answer of it is empty.
    KeyError, TypeError or ValueError
        That say what is wrong with it.
    """
    if not isinstance(item, dict):
        raise TypeError("is no JSON object")
    for form in FORMS.values():
        if form.keys <= item.keys():
            return form.read(item)
    return _parse_ecgbyte(item)


def _parse_ecgbyte(item):
    """record, question, answer, and perhaps type and reasoning."""
    records = as_list(item["record"])
    answer, labels = _answer(item["answer"])
    reasoning = text(item.get("reasoning") or "")
    return [ParsedItem(records, [(words(item["question"]), answer)], "question", labels, reasoning)]


def _parse_ecg_qa(item):
    """ECG-QA (Oh et al., NeurIPS 2023), over PTB-XL or MIMIC-IV-ECG."""
    answer, labels = _answer(item["answer"])
    kind = item.get("question_type") or "question"
    return [ParsedItem(_record_names(item["ecg_id"]), [(words(item["question"]), answer)], kind, labels)]


def _parse_ecg_qa_cot(item):
    """ECG-QA-CoT (OpenTSLM): one PTB-XL number as "[12662]", and a rationale that ends in "Answer: no"."""
    asked = [part for part in (item.get("clinical_context"), words(item["question"])) if part]
    reasoning = LETTERED.sub("", text(item["rationale"])).strip()
    turns = [("\n".join(map(text, asked)), words(item["answer"]).strip())]
    return [
        ParsedItem(
            _record_names(item["ecg_id"]), turns, item.get("question_type") or "question", (), reasoning
        )
    ]


def _parse_conversations(item):
    """LLaVA, ECG-Chat, PULSE and its ECGBench: turns of human and gpt, or pairs of question and answer."""
    records, (turns, labels) = _named_records(item), _turns(item["conversations"])
    return [ParsedItem(records, turns, "conversation", labels)]


def _parse_messages(item):
    """Messages with roles (ECG-R1, OpenAI): a leading system turn is left out, for the prompt has its own."""
    records, said = _named_records(item), item["messages"]
    if isinstance(said, list) and said and isinstance(said[0], dict) and said[0].get("role") == "system":
        said = said[1:]
    turns, labels = _turns(said)
    question, answer = turns[-1]
    thought = THOUGHT.fullmatch(answer)
    if not thought:
        return [ParsedItem(records, turns, "conversation", labels)]
    found = [label.strip() for label in thought[3].split(";") if label.strip()]
    answer, labels = _answer(found) if len(found) > 1 else (words(thought[3]).strip(), ())
    reasoning = f"{thought[1].strip()}\n\n{thought[2].strip()}".strip()
    return [ParsedItem(records, [*turns[:-1], (question, answer)], "conversation", labels, reasoning)]


def _parse_elm(item):
    """ELM-Research's sets: `text` is JSON, of turns or of [type, question, answer]."""
    match = ELM_FILE.fullmatch(PurePosixPath(text(item["ecg_path"])).name)
    record = next(filter(None, match.groups())) if match else text(item["ecg_path"])
    said = item["text"]
    said = json.loads(said) if isinstance(said, str) else said
    kind = item.get("name") or "conversation"
    if isinstance(said, list) and len(said) == 3 and all(isinstance(part, str) for part in said[:2]):
        answer, labels = _answer(said[2])
        return [ParsedItem([record], [(words(said[1]), answer)], item.get("name") or said[0], labels)]
    turns, labels = _turns(said)
    return [ParsedItem([record], turns, kind, labels)]


def _parse_reasoning_benchmark(item):
    """ECG-Reasoning-Benchmark: a diagnosis asked step by step, each step behind the true answers before it.

    All its items are for testing. Options stand behind their question, as in its own prompts.
    """
    about, said = item["metadata"], item["data"]
    number = text(str(about["ecg_id"]))
    record = _record_names(number)[0] if about["data_source"] == "ptbxl" else number
    steps = [said["initial_diagnostic_question"]]
    for stage in said["reasoning"]:
        for value in stage.values():
            steps += value if isinstance(value, list) else [value]
    turns: Turns = []
    made = []
    for step in steps:
        answer, labels = _answer(step["answer"])
        many = "select all possible" in text(step["question"]).lower()
        which = "may have multiple correct answers among" if many else "has one of"
        options = "\n".join(f"- {text(option)}" for option in step["options"])
        question = f"{words(step['question'])}\n\nThis question {which} the following options:\n{options}"
        turns = [*turns, (question, answer)]
        made.append(
            ParsedItem([record], turns, step.get("question_type") or "question", labels, split="test")
        )
    return made


class Form(NamedTuple):
    keys: set[str]  # that tell it from others
    read: Callable[[dict], list[ParsedItem]]


# by what they are called in messages; the first whose keys an item has is its own
FORMS = {
    "an item of ECG-Reasoning-Benchmark": Form({"metadata", "data"}, _parse_reasoning_benchmark),
    "messages with roles": Form({"messages"}, _parse_messages),
    "conversations with ecg or image": Form({"conversations"}, _parse_conversations),
    "ELM's ecg_path and text": Form({"ecg_path", "text"}, _parse_elm),
    "an item of ECG-QA-CoT": Form({"ecg_id", "rationale"}, _parse_ecg_qa_cot),
    "an item of ECG-QA": Form({"ecg_id"}, _parse_ecg_qa),
}
KNOWN = "needs record, question and answer as text, or is " + ", ".join(FORMS)


def _answer(given):
    """An answer as text, and its labels: ECG-QA gives all right answers of a question as a list, in any order, and no
    answer at all where its own scoring has "none"."""
    if not isinstance(given, list):
        return words(given), ()
    labels = tuple(sorted({text(label).strip() for label in given if not _empty(text(label))}))
    if given and not labels:
        raise EmptyError("the answer is empty")
    labels = labels or ("none",)
    return BETWEEN.join(labels), labels


def _record_names(ids):
    """The records of ECG-QA's ids: study numbers of MIMIC-IV-ECG (8 digits) are record names, PTB-XL's are not."""
    numbers = [int(str(i).strip().strip("[]")) for i in as_list(ids)]
    return [f"{i:05d}_hr" if i < 100_000 else str(i) for i in numbers]


def _named_records(item):
    """The records that a conversation's ecg or image names: `…/40689238-0.png` is a picture of 40689238."""
    objects = item.get("objects")
    given = objects.get("ecg") if isinstance(objects, dict) else None
    keys = ("ecg", "image", "image_path", "images", "record")
    given = given or next((item[key] for key in keys if item.get(key)), None)
    if given is None:
        raise KeyError("ecg")
    return [
        re.sub(r"\.(png|jpe?g|hea|dat|mat|npy)$|-\d+\.(png|jpe?g)$", "", PurePosixPath(text(path)).name)
        for path in as_list(given)
    ]


def _turns(said):
    """Pairs of what was asked and answered, without the marks for the ECG; and the labels of the last answer."""
    if not isinstance(said, list):
        raise TypeError(f"{str(said)[:80]!r} is no list of turns")
    spoken, labels = [], ()
    for turn in said:
        if "question" in turn and "answer" in turn:  # a pair in itself
            spoken += [("asks", turn["question"]), ("answers", turn["answer"])]
        else:
            speaker = turn["from"] if "from" in turn else turn["role"]
            spoken.append((SPEAKERS.get(speaker), turn["value"] if "value" in turn else turn["content"]))
    speakers = [speaker for speaker, _ in spoken]
    if not spoken or speakers != ["asks", "answers"] * (len(spoken) // 2):
        raise ValueError("the conversation does not alternate between who asks and who answers")
    texts = [words(ECG_PLACE.sub(" ", _joined(value))).strip() for _, value in spoken]
    last = spoken[-1][1]
    # PULSE's benchmark has lists of letters, and of labels
    if (
        isinstance(last, list)
        and all(isinstance(part, str) for part in last)
        and any(len(part) > 1 for part in last)
    ):
        texts[-1], labels = _answer(last)
    return list(zip(texts[::2], texts[1::2], strict=True)), labels


def _joined(value):
    """The text of a turn: as it is, in pieces, or in OpenAI's parts."""
    if not isinstance(value, list):
        return words(value)
    return "".join(
        text(part["text"]) if isinstance(part, dict) else text(part) for part in value if not _picture(part)
    )


def _picture(part):
    return isinstance(part, dict) and part.get("type") not in (None, "text")


def as_list(value: object) -> list:
    """A list as it is, and anything else as the one in it."""
    if isinstance(value, list) and not value:
        raise ValueError("an empty list")
    return value if isinstance(value, list) else [value]


def words(value: object) -> str:
    """A text that says something: not null, and not empty once spaces and a full stop are taken off."""
    if value is None or _empty(text(value)):
        raise EmptyError("a question or an answer is empty")
    return text(value)


def _empty(value):
    """Whether scoring would compare nothing: neither spaces, invisible signs, commas nor full stops count."""
    if any(map(str.isalnum, value)):
        return False
    visible = (sign for sign in value if unicodedata.category(sign)[0] not in "CZ")
    return not labels_in("".join(visible))


def text(value: object) -> str:
    """A text, if it is one that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("half a surrogate pair")
    return value
