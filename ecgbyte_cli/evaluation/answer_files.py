"""Read answer files written by other programs. Each form is recognised by its content.

Own form (JSON Lines, JSON, CSV, TSV)
    `record`, `question` and `answer`, or `id` and `answer`; optionally `control`, `probability` (of the answer) and
    `p_yes`. answers.jsonl of `ecgbyte generate` holds the answers to its controls in `control`.
PULSE and LLaVA
    JSON Lines of `question_id` and `text` (`model_ecg_resume.py`), or of `id` and `response`.
ELM
    A JSON array of `prompt`, `predicted`, `ground_truth` (`…_examples.json` of ELM-Research/ELM), or an object with
    `predictions`, a list of `prompt`, `hypothesis`, `reference` (`fold_F_seed_S.json` of ECG-Language-Models). These
    do not name recordings: their order must be that of the question file, and the true answers must match.
ECG-QA
    A folder of `0.txt`, `1.txt`, … (`llm_modeling.py`).
ECG-Reasoning-Benchmark
    Samples with `model_response` in each step: a file, or a folder of `DIAGNOSIS/ID.json`. See `reasoning_benchmark`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.text_table import read_rows
from ecgbyte_cli.storage.files import read_text

TABLES = (".csv", ".tsv")
MOST_TEXT = 2**20  # bytes of one answer of ECG-QA
MOST_FILES = 100_000  # most files in a folder
# controls of `ecgbyte generate` mapped to their names in `ecgbyte controls`
RENAMED = {"flat line": "flat-line", "shuffled": "other-patient"}
QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")  # a Python string literal


class Given(NamedTuple):
    """An answer read from a file.

    Attributes
    ----------
    answer : str
    where : str
        File and position, for messages.
    id : str
        Id of the question in the question file; empty if the form has none.
    records : tuple of str
    question : str
    control : str
        Empty if the file does not state it.
    probability, yes : float or None
        Probability of the answer, and of yes.
    truth : str or None
        The true answer, in forms without recordings, whose order identifies the question.
    """

    answer: str
    where: str
    id: str = ""
    records: tuple[str, ...] = ()
    question: str = ""
    control: str = ""
    probability: float | None = None
    yes: float | None = None
    truth: str | None = None


class AnswerFile(NamedTuple):
    """The contents of a file or folder: answers, or samples of ECG-Reasoning-Benchmark."""

    form: str
    answers: list[Given]
    samples: list[dict[str, Any]]


def read_answers(path: Path) -> AnswerFile:
    """Read a file of answers, or a folder of answer files.

    Raises
    ------
    Failure
        If it cannot be read, or a part of it has an unknown form.
    """
    answers: list[Given] = []
    samples: list[dict[str, Any]] = []
    forms: set[str] = set()
    for where, item in _items(path):
        form = _form_of(item)
        if form is None:
            raise Failure(f"{where} is no answer in a known form: {KNOWN}")
        forms.add(form.name)
        if form.parse is None:
            samples.append(item)
            continue
        try:
            answers += form.parse(item, where)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            SyntaxError,
            RecursionError,
            MemoryError,
        ) as error:
            missing = f"{error} is missing" if isinstance(error, KeyError) else error
            raise Failure(f"{where} is no answer of {form.name}: {missing}") from error
    if len(forms) != 1:
        raise Failure(
            f"{path} holds "
            + (f"answers of several forms: {', '.join(sorted(forms))}" if forms else "no answers")
        )
    return AnswerFile(forms.pop(), answers, samples)


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the items of a file or folder, each with its position for messages."""
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.suffix in (".json", ".txt") and p.is_file()][
            : MOST_FILES + 1
        ]
        if len(files) > MOST_FILES:
            raise Failure(f"{path} holds more than {MOST_FILES} files")
        for file in files:
            text = read_text(file, MOST_TEXT)
            yield str(file), {"ecg_qa": text} if file.suffix == ".txt" else _loaded(text, str(file))
    elif path.suffix.lower() in TABLES:
        names: list[str] = []
        for line, row in read_rows(path, ({"record", "question", "answer"}, {"id", "answer"})):
            if names:
                yield f"{path}, line {line}", dict(zip(names, row, strict=False))
            names = names or row
    else:
        text = read_text(path).removeprefix("\ufeff")  # the byte order mark of Windows programs
        if path.suffix.lower() != ".jsonl":
            value = _loaded(text, str(path))
            value = value.get("predictions", [value]) if isinstance(value, dict) else value
            if not isinstance(value, list):
                raise Failure(f"{path} holds no list of answers")
            yield from ((f"{path}, item {number}", item) for number, item in enumerate(value, 1))
            return
        for number, line_text in enumerate(text.split("\n"), 1):
            if line_text.strip():
                yield f"{path}, line {number}", _loaded(line_text, f"{path}, line {number}")


def _loaded(text: str, where: str) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{where} is not valid JSON: {error}") from error


def _own(item: Mapping[str, Any], where: str) -> Iterator[Given]:
    """Parse ecgbyte's own form."""
    record, control = item.get("record") or (), item.get("control") or ""
    records = tuple(map(_text, record if isinstance(record, list | tuple) else [record]))
    one = Given("", where, _name(item.get("id")), records, _text(item.get("question") or ""))
    if isinstance(control, dict):
        for name, answer in control.items():
            yield one._replace(answer=_text(answer), control=RENAMED.get(str(name), str(name)))
        control = "signal"
    yield one._replace(
        answer=_text(item["answer"]),
        control=RENAMED.get(_text(control), _text(control)),
        probability=_chance(item.get("probability")),
        yes=_chance(item.get("p_yes")),
    )


def _pulse(item: Mapping[str, Any], where: str) -> Iterator[Given]:
    """Parse PULSE's and LLaVA's `question_id` and `text`, or `id` and `response`."""
    answer = item["text"] if "text" in item else item["response"]
    yield Given(_text(answer), where, id=str(item["question_id"] if "question_id" in item else item["id"]))


def _elm(item: Mapping[str, Any], where: str) -> Iterator[Given]:
    """Parse ELM's predictions."""
    answer, truth = (
        (item["predicted"], item["ground_truth"])
        if "predicted" in item
        else (item["hypothesis"], item["reference"])
    )
    yield Given(_text(answer), where, truth=_text(truth))


def _ecg_qa(item: Mapping[str, Any], where: str) -> Iterator[Given]:
    """Parse the text files that ECG-QA's `llm_modeling.py` writes: the answer is a set in Python's spelling."""
    lines = item["ecg_qa"].splitlines()
    found = {
        key: next((line.removeprefix(key) for line in lines if line.startswith(key)), None)
        for key in ("ECG IDs: ", "Question: ", "Answer: ")
    }
    ids, question, answer = found.values()
    if ids is None or question is None or answer is None:
        raise ValueError("no lines of ECG IDs, Question and Answer")
    if answer != "set()" and not (answer.startswith("{") and answer.endswith("}")):
        raise ValueError(f"{answer[:80]} is no set")
    named = sorted(one or other for one, other in QUOTED.findall(answer))
    numbers = list(dict.fromkeys(re.findall(r"\d{1,9}", ids)))
    records = tuple(f"{int(n):05d}_hr" if int(n) < 100_000 else n for n in numbers)
    yield Given("; ".join(named) or "none", where, records=records, question=question)


class Form(NamedTuple):
    """A form of answers. An item has the first form all of whose `keys` it contains."""

    name: str
    keys: Sequence[set[str]]
    parse: Callable[[Mapping[str, Any], str], Iterator[Given]] | None


BENCHMARK = "ECG-Reasoning-Benchmark"
FORMS = (
    Form(BENCHMARK, ({"metadata", "data"},), None),
    Form("ECG-QA", ({"ecg_qa"},), _ecg_qa),
    Form("ELM", ({"prompt", "predicted", "ground_truth"}, {"prompt", "hypothesis", "reference"}), _elm),
    Form("PULSE", ({"question_id", "text"}, {"question_id", "response"}, {"id", "response"}), _pulse),
    Form("ecgbyte's form", ({"record", "question", "answer"}, {"id", "answer"}), _own),
)
KNOWN = (
    "record, question and answer; id and answer; PULSE's question_id and text; ELM's prompt, predicted and "
    "ground_truth; a folder of ECG-QA's texts; samples of ECG-Reasoning-Benchmark"
)


def _form_of(item: Any) -> Form | None:
    """Return the form of an item; None if unknown."""
    keys = item.keys() if isinstance(item, dict) else set()
    return next((form for form in FORMS if any(some <= keys for some in form.keys)), None)


def _name(value: Any) -> str:
    """Return a name or a number as text."""
    return "" if value is None else str(value)


def _text(value: Any) -> str:
    """Return a text, or the texts of a list."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "; ".join(value)
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:80]} is not text")
    return value


def _chance(value: Any) -> float | None:
    """Return a probability; None for an empty cell."""
    if value is None or value == "":
        return None
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 <= number <= 1:
        raise ValueError(f"{value} is no probability from 0 to 1")
    return number
