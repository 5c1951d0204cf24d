"""The forms of items in question files: a row each in `FORMS`.

Each format is read like its project's own loader. Fields that the loader ignores are ignored here, too, such
as the prompt of ECG-QA-CoT, which quotes the right answer.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ecgbyte_cli.evaluation.metrics import split_labels as labels_in

BETWEEN = "; "  # separates the labels of an answer; a label of ECG-QA contains commas
ECG_PLACE = re.compile(r"\s*<(?:ecg|image|signal)>\s*")  # the place of the ECG in a text
# files of ELM's preprocessing, with the folders in their names; the last number is the segment
ELM_FILE = re.compile(r"(?:records\d+_\d{5}_(\d{5}_[hl]r)|files_p\d+_p\d+_s\d+_(\d+)|(.+?))_\d+\.npy")
SPEAKERS = {"human": "asks", "user": "asks", "gpt": "answers", "assistant": "answers", "bot": "answers"}
THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*?)<answer>(.*?)</answer>\s*", re.DOTALL)
LETTERED = re.compile(r"\s*Answer:\s*(.*?)\s*$", re.DOTALL)

Turns = list[tuple[str, str]]


class EmptyError(ValueError):
    """A question or an answer without any word: nothing to learn or to score."""


class ParsedItem(NamedTuple):
    """A question of an item, perhaps after earlier turns."""

    records: list[str]
    turns: Turns  # questions and answers
    type: str
    labels: tuple[str, ...] = ()  # labels of the last answer, if it is a list
    reasoning: str = ""  # text before the last answer
    split: str | None = None  # if the form implies one


def parse_item(item: object) -> list[ParsedItem]:
    """Return the questions of an item.

    Raises
    ------
    EmptyError
        If a question or an answer is empty.
    KeyError, TypeError or ValueError
        If the item is malformed.
    """
    if not isinstance(item, dict):
        raise TypeError("is not a JSON object")
    return next((form for form in FORMS if form.keys <= item.keys()), FORMS[-1]).parse(item)


def _parse_ecgbyte(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse record, question, answer, and optionally type and reasoning."""
    records = as_list(item["record"])
    answer, labels = _answer(item["answer"])
    reasoning = text(item.get("reasoning") or "")
    return [ParsedItem(records, [(words(item["question"]), answer)], "question", labels, reasoning)]


def _parse_ecg_qa(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse ECG-QA (Oh et al., NeurIPS 2023), over PTB-XL or MIMIC-IV-ECG."""
    answer, labels = _answer(item["answer"])
    kind = item.get("question_type") or "question"
    return [ParsedItem(_record_names(item["ecg_id"]), [(words(item["question"]), answer)], kind, labels)]


def _parse_ecg_qa_cot(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse ECG-QA-CoT (OpenTSLM): one PTB-XL number as "[12662]", and a rationale that ends in "Answer: no"."""
    question = [part for part in (item.get("clinical_context"), words(item["question"])) if part]
    reasoning = LETTERED.sub("", text(item["rationale"])).strip()
    turns = [("\n".join(map(text, question)), words(item["answer"]).strip())]
    return [
        ParsedItem(
            _record_names(item["ecg_id"]), turns, item.get("question_type") or "question", (), reasoning
        )
    ]


def _parse_conversations(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse LLaVA, ECG-Chat, PULSE and its ECGBench: turns of human and gpt, or pairs of question and answer."""
    records, (turns, labels) = _named_records(item), _turns(item["conversations"])
    return [ParsedItem(records, turns, "conversation", labels)]


def _parse_messages(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse messages with roles (ECG-R1, OpenAI), without a leading system turn: the prompt has its own."""
    records, messages = _named_records(item), item["messages"]
    if (
        isinstance(messages, list)
        and messages
        and isinstance(messages[0], dict)
        and messages[0].get("role") == "system"
    ):
        messages = messages[1:]
    turns, labels = _turns(messages)
    question, answer = turns[-1]
    thought = THOUGHT.fullmatch(answer)
    if not thought:
        return [ParsedItem(records, turns, "conversation", labels)]
    parts = [label.strip() for label in thought[3].split(";") if label.strip()]
    answer, labels = _answer(parts) if len(parts) > 1 else (words(thought[3]).strip(), ())
    reasoning = f"{thought[1].strip()}\n\n{thought[2].strip()}".strip()
    return [ParsedItem(records, [*turns[:-1], (question, answer)], "conversation", labels, reasoning)]


def _parse_elm(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse ELM-Research's sets: `text` is JSON, of turns or of [type, question, answer]."""
    match = ELM_FILE.fullmatch(PurePosixPath(text(item["ecg_path"])).name)
    record = next(filter(None, match.groups())) if match else text(item["ecg_path"])
    content = item["text"]
    content = json.loads(content) if isinstance(content, str) else content
    if isinstance(content, list) and len(content) == 3 and all(isinstance(part, str) for part in content[:2]):
        answer, labels = _answer(content[2])
        return [ParsedItem([record], [(words(content[1]), answer)], item.get("name") or content[0], labels)]
    turns, labels = _turns(content)
    return [ParsedItem([record], turns, item.get("name") or "conversation", labels)]


def _parse_reasoning_benchmark(item: dict[str, Any]) -> list[ParsedItem]:
    """Parse ECG-Reasoning-Benchmark: a diagnosis in steps, each asked after the true answers to the earlier ones.

    All items are for testing. Options follow the question, as in its own prompts.
    """
    about, data = item["metadata"], item["data"]
    number = text(str(about["ecg_id"]))
    record = _record_names(number)[0] if about["data_source"] == "ptbxl" else number
    steps = [data["initial_diagnostic_question"]]
    for stage in data["reasoning"]:
        for value in stage.values():
            steps += value if isinstance(value, list) else [value]
    turns: Turns = []
    items = []
    for step in steps:
        answer, labels = _answer(step["answer"])
        many = "select all possible" in text(step["question"]).lower()
        which = "may have multiple correct answers among" if many else "has one of"
        options = "\n".join(f"- {text(option)}" for option in step["options"])
        question = f"{words(step['question'])}\n\nThis question {which} the following options:\n{options}"
        turns = [*turns, (question, answer)]
        items.append(
            ParsedItem([record], turns, step.get("question_type") or "question", labels, split="test")
        )
    return items


class Form(NamedTuple):
    """A form of items of question files.

    Attributes
    ----------
    name : str
        For messages.
    keys : set of str
        An item with all of these has this form, if no form above it matches.
    parse : callable
        Takes an item; returns its questions.
    """

    name: str
    keys: set[str]
    parse: Callable[[dict[str, Any]], list[ParsedItem]]


# the last is ecgbyte's own, which is also taken for items of no form, so that the message names the missing key
FORMS = (
    Form("an item of ECG-Reasoning-Benchmark", {"metadata", "data"}, _parse_reasoning_benchmark),
    Form("messages with roles", {"messages"}, _parse_messages),
    Form("conversations with ecg or image", {"conversations"}, _parse_conversations),
    Form("ELM's ecg_path and text", {"ecg_path", "text"}, _parse_elm),
    Form("an item of ECG-QA-CoT", {"ecg_id", "rationale"}, _parse_ecg_qa_cot),
    Form("an item of ECG-QA", {"ecg_id"}, _parse_ecg_qa),
    Form("record, question and answer as text", {"question", "answer"}, _parse_ecgbyte),
)
KNOWN = f"needs {FORMS[-1].name}, or is {', '.join(form.name for form in FORMS[:-1])}"


def _answer(answer: object) -> tuple[str, tuple[str, ...]]:
    """Return an answer as text, and its labels.

    ECG-QA lists all right answers in any order. An empty list is the answer "none" in its own scoring.
    """
    if not isinstance(answer, list):
        return words(answer), ()
    labels = tuple(sorted({text(label).strip() for label in answer if not _empty(text(label))}))
    if answer and not labels:
        raise EmptyError("the answer is empty")
    labels = labels or ("none",)
    return BETWEEN.join(labels), labels


def _record_names(ids: object) -> list[str]:
    """Return the records of ECG-QA's ids: study numbers of MIMIC-IV-ECG (8 digits), or numbers of PTB-XL."""
    numbers = [int(str(i).strip().strip("[]")) for i in as_list(ids)]
    return [f"{i:05d}_hr" if i < 100_000 else str(i) for i in numbers]


def _named_records(item: dict[str, Any]) -> list[str]:
    """Return the records of a conversation's ecg or image: `…/40689238-0.png` is a picture of 40689238."""
    objects = item.get("objects")
    paths = objects.get("ecg") if isinstance(objects, dict) else None
    keys = ("ecg", "image", "image_path", "images", "record")
    paths = paths or next((item[key] for key in keys if item.get(key)), None)
    if paths is None:
        raise KeyError("ecg")
    return [
        re.sub(r"\.(png|jpe?g|hea|dat|mat|npy)$|-\d+\.(png|jpe?g)$", "", PurePosixPath(text(path)).name)
        for path in as_list(paths)
    ]


def _turns(turns: object) -> tuple[Turns, tuple[str, ...]]:
    """Return pairs of question and answer, without the marks of the ECG, and the labels of the last answer."""
    if not isinstance(turns, list):
        raise TypeError(f"{str(turns)[:80]!r} is not a list of turns")
    spoken: list[tuple[str | None, Any]] = []
    labels: tuple[str, ...] = ()
    for turn in turns:
        if "question" in turn and "answer" in turn:  # question and answer in one turn
            spoken += [("asks", turn["question"]), ("answers", turn["answer"])]
        else:
            speaker = turn["from"] if "from" in turn else turn["role"]
            spoken.append((SPEAKERS.get(speaker), turn["value"] if "value" in turn else turn["content"]))
    speakers = [speaker for speaker, _ in spoken]
    if not spoken or speakers != ["asks", "answers"] * (len(spoken) // 2):
        raise ValueError("the conversation does not alternate between who asks and who answers")
    texts = [words(ECG_PLACE.sub(" ", _joined(value))).strip() for _, value in spoken]
    last = spoken[-1][1]
    # PULSE's benchmark has lists of letters and of labels
    if (
        isinstance(last, list)
        and all(isinstance(part, str) for part in last)
        and any(len(part) > 1 for part in last)
    ):
        texts[-1], labels = _answer(last)
    return list(zip(texts[::2], texts[1::2], strict=True)), labels


def _joined(value: object) -> str:
    """Return the text of a turn: plain text, a list of texts, or OpenAI's parts."""
    if not isinstance(value, list):
        return words(value)
    return "".join(
        text(part["text"]) if isinstance(part, dict) else text(part) for part in value if not _picture(part)
    )


def _picture(part: object) -> bool:
    """Return whether one of OpenAI's parts is not a text."""
    return isinstance(part, dict) and part.get("type") not in (None, "text")


def as_list(value: object) -> list:
    """Return a list as it is, any other value in a list."""
    if isinstance(value, list) and not value:
        raise ValueError("an empty list")
    return value if isinstance(value, list) else [value]


def words(value: object) -> str:
    """Return a text; raise if it is null or empty apart from spaces and punctuation."""
    if value is None or _empty(text(value)):
        raise EmptyError("a question or an answer is empty")
    return text(value)


def _empty(value: str) -> bool:
    """Return whether scoring ignores all of a text: spaces, invisible characters, commas and full stops."""
    if any(map(str.isalnum, value)):
        return False
    visible = (sign for sign in value if unicodedata.category(sign)[0] not in "CZ")
    return not labels_in("".join(visible))


def text(value: object) -> str:
    """Return a value if it is a text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("half a surrogate pair")
    return value
