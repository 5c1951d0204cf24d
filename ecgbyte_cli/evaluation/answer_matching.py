"""Match answers of any model to the questions of a question file."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ecgbyte_cli.evaluation.answer_files import Given
from ecgbyte_cli.evaluation.metrics import candidate_answers, split_labels
from ecgbyte_cli.evaluation.twins import CONTROLS, SIGNAL
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.question_segments import record_finder
from ecgbyte_cli.questions.reasoning import split_reasoning

YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
LETTER = re.compile(
    r"(?:.*(?:the correct option is|answer:))?\W*([A-H])(?:[\s.):,]|$)", re.DOTALL | re.IGNORECASE
)

Key = tuple[tuple[int, ...], str]


class Matched(NamedTuple):
    """Questions about the recordings themselves, and the answers to them by control.

    Attributes
    ----------
    questions : list of Question
    answers : dict of str to dict of int to Given
        `signal` and the controls, mapped to question number, mapped to the answer.
    unknown : list of str
        Positions of answers that match no question.
    """

    questions: list[Question]
    answers: dict[str, dict[int, Given]]
    unknown: list[str]


class QuestionIndex:
    """Find the question of an answer.

    Parameters
    ----------
    questions : list of Question
        In file order: about the recordings themselves, and possibly about their twins.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.base = [q for q in questions if q.control in ("", SIGNAL)]
        names = list(dict.fromkeys(name for q in self.base for name in _names(q)))
        self._number = {name: i for i, name in enumerate(names)}
        self._find: Callable[[str], list[int]] = record_finder({"record": names, "path": names})
        self._by_key: dict[Key, list[int]] = {}
        for i, question in enumerate(self.base):
            self._by_key.setdefault(self._key(_names(question), question.question), []).append(i)
        self.by_id: dict[str, tuple[str, int]] = {}
        self.turns: list[
            tuple[str, int, str] | None
        ] = []  # control, number and answer; None for an earlier turn
        self._place(questions)

    def _place(self, questions: Sequence[Question]) -> None:
        """Number the questions and their twins in file order."""
        seen: Counter[tuple[str, Key]] = Counter()
        for question in questions:
            control = question.control or SIGNAL
            key = self._key(_names(question), question.question)
            places = self._by_key.get(key, [])
            if (nth := seen[control, key]) >= len(places):
                raise Failure(
                    f"the question file asks about the twin {control} of {question.record}, but not about the recording"
                )
            seen[control, key] += 1
            if question.id:
                self.by_id[question.id] = control, places[nth]
            self.turns += [None] * len(question.earlier) + [(control, places[nth], question.answer)]

    def _key(self, names: Sequence[str], question: str) -> Key:
        numbers = tuple(self._number.get(name, -1) for name in names)
        return numbers, " ".join(question.split()).casefold()

    def numbers(self, given: Given) -> tuple[str, list[int]]:
        """Return the control, and the candidate questions for an answer with records."""
        control, names = given.control, []
        for record in given.records:
            parts = record.replace("\\", "/").split("/")
            at = max((i for i, part in enumerate(parts) if part in CONTROLS), default=-1)
            if at >= 0:
                control = control or parts[at]
            names.append(parts[at + 1 :])
        found = [self._named(parts) for parts in names]
        if None in found:
            return control, []
        numbers = tuple(number for number in found if number is not None)
        return control, self._by_key.get((numbers, " ".join(given.question.split()).casefold()), [])

    def _named(self, parts: Sequence[str]) -> int | None:
        """Return the number of a record from its path or the end of its path; None if no or several records match."""
        for start in range(len(parts)):
            places = self._find("/".join(parts[start:]))
            if places:
                return places[0] if len(places) == 1 else None
        return None


def _names(question: Question) -> tuple[str, ...]:
    return question.original or question.records


def match_answers(questions: Sequence[Question], files: Sequence[tuple[str, Sequence[Given]]]) -> Matched:
    """Match answers to questions.

    Parameters
    ----------
    questions : list of Question
    The answers in each file, and the control that the command line names for it; empty if it names none.
        The answers of each file, and the control that the command line names for it; empty if it names none.

    Raises
    ------
    Failure
        If a question is answered twice, or answers without records do not match the question file.
    """
    index = QuestionIndex(questions)
    answers: dict[str, dict[int, Given]] = {}
    unknown: list[str] = []
    for told, given in files:
        if given and given[0].truth is not None:
            placed = _in_order(index, given)
        else:
            placed = _by_name(index, given, told)
        for one, (control, number) in placed:
            if number < 0:
                unknown.append(one.where)
                continue
            control = told if told and control in ("", SIGNAL) else control or SIGNAL
            if number in (there := answers.setdefault(control, {})):
                raise Failure(
                    f"{one.where} is a second answer to the same question (control {control}); the first: "
                    f"{there[number].where}"
                )
            there[number] = one
    return Matched(index.base, answers, unknown)


Placed = list[tuple[Given, tuple[str, int]]]


def _by_name(index: QuestionIndex, given: Sequence[Given], told: str) -> Placed:
    """Assign answers by question id, else by record and question."""
    seen: Counter[tuple[str, int]] = Counter()
    placed: Placed = []
    for one in given:
        if one.id and one.id in index.by_id:
            control, number = index.by_id[one.id]
            placed.append((one, (one.control or control, number)))
            continue
        control, numbers = index.numbers(one)
        if not numbers:
            placed.append((one, (control, -1)))
            continue
        # the same question about the same recording occurs more than once: use the order of the file
        nth = seen[control, numbers[0]]
        seen[control, numbers[0]] += 1
        placed.append((one, (control, numbers[min(nth, len(numbers) - 1)])))
    return placed


def _in_order(index: QuestionIndex, given: Sequence[Given]) -> Placed:
    """Assign answers without recordings by their order."""
    turns = index.turns
    if len(turns) != len(given):
        raise Failure(
            f"{given[0].where.rpartition(',')[0]} has {len(given)} answers, and the question file {len(turns)} turns: "
            "its answers name no recording, so only their order identifies the questions"
        )
    placed: Placed = []
    for one, turn in zip(given, turns, strict=True):
        if turn is None:
            continue
        control, number, truth = turn
        if split_labels(plain(one.truth or "")) != split_labels(truth):
            raise Failure(
                f"{one.where} has the true answer {(one.truth or '')[:60]!r}, and the question file {truth[:60]!r} in "
                "its place: name the question file that was answered"
            )
        placed.append((one, ("" if control == SIGNAL else control, number)))
    return placed


def plain(answer: str) -> str:
    """Return an answer without its reasoning: the text in <answer>, or after </think>."""
    _, begin, rest = answer.partition("<answer>")
    if begin and "</answer>" in rest:
        return rest.partition("</answer>")[0].strip()
    return split_reasoning(answer).answer if "</think>" in answer else answer.strip()


def read_answer(answer: str, question: Question) -> str:
    """Return the choice that an answer makes.

    If the true answer is yes or no and the answer begins with yes or no, return that word ("Yes, there is …"). If the
    true answer is the letter of an option, return the letter that the answer names. Otherwise return the answer.
    """
    answer = plain(answer)
    if candidate_answers(question.type, question.truth) == "verify" and (match := YES_NO.match(answer)):
        return match[1].lower()
    if re.fullmatch("[A-H]", question.answer.strip()) and (match := LETTER.match(answer)):
        return match[1].upper()
    return answer
