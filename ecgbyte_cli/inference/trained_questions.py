"""The closed questions that a model was trained on, with a short name for each."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ecgbyte_cli.cli.spelling import nearest
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.certainty import Certainty
from ecgbyte_cli.inference.conflicts import answers_of
from ecgbyte_cli.inference.everyday import known_findings, suggest
from ecgbyte_cli.questions.findings import ALL_FINDINGS, FINDINGS, STATEMENTS

RHYTHM, ALL = "rhythm", "all"
LONGEST_NAME = 48
THERE = re.compile(r"(?:Is|Are) there (?!any )(.+?)(?: in this ECG)?\?")  # see `phrasings.VERIFY`
# words of findings mapped to short names: from examples/findings.csv, else the code in lower case
NAMES = {statement.words: code.lower() for code, statement in STATEMENTS.items()}
NAMES |= {finding.words: name for name, finding in reversed(ALL_FINDINGS.items())}


class TrainedQuestion(NamedTuple):
    """A training question with a list of possible answers.

    Attributes
    ----------
    name : str
        Short name: of the finding (`afib`), `rhythm`, or derived from the words.
    words : str
        The finding in words, or the question.
    text : str
        The question as worded in the prompt.
    answers : list of str
    """

    name: str
    words: str
    text: str
    answers: list[str]

    @property
    def verify(self) -> bool:
        """Whether it is a yes/no question."""
        return {answer.casefold() for answer in self.answers} == {"yes", "no"}

    @property
    def known(self) -> bool:
        """Whether it asks about a known finding, or the rhythm."""
        return self.name == RHYTHM or (self.verify and NAMES.get(self.words) == self.name)


def short_name(words: str) -> str:
    """Turn words into a column name: `Q waves in V1` becomes `q_waves_in_v1`."""
    return re.sub(r"\W+", "_", words.casefold()).strip("_")[:LONGEST_NAME] or "question"


def trained_questions(certainty: Certainty | None) -> list[TrainedQuestion]:
    """Return the questions that a model answers from a list: known findings in their usual order, the rhythm, others.

    No name occurs twice.
    """
    found: dict[str, TrainedQuestion] = {}
    for group in certainty.groups if certainty else ():
        if group["answers"]:
            one = _named(group)
            found.setdefault(one.name, one)
    order = {
        name: number for number, name in enumerate(dict.fromkeys((*ALL_FINDINGS, *NAMES.values(), RHYTHM)))
    }
    return sorted(found.values(), key=lambda one: order[one.name] if one.known else len(order))


def names_by_text(certainty: Certainty | None) -> dict[str, str]:
    """Return the short name of the question that belongs to each prompt text."""
    return {
        text: _named(group).name
        for group in (certainty.groups if certainty else ())
        if group["answers"]
        for text in (group.get("asked", group["texts"][0]), *group["texts"])
    }


def choose_questions(certainty: Certainty | None, wanted: Sequence[str], model: str) -> list[TrainedQuestion]:
    """Choose questions by short name, words or wording; by default the standard findings and the rhythm.

    The standard findings are `findings.FINDINGS`, or all known findings if the model does not know all of these.
    `all` stands for every question.

    Parameters
    ----------
    certainty : Certainty or None
    wanted : sequence of str
    model : str
        Name of the model, for error messages.

    Raises
    ------
    Failure
        If the model was not trained on one of the questions, or knows no finding.
    """
    trained = trained_questions(certainty)
    if not wanted:
        known = [one for one in trained if one.known]
        usual = [one for one in known if one.name in FINDINGS]
        if known:
            rhythm = [one for one in known if one.name == RHYTHM]
            return [*usual, *rhythm] if len(usual) == len(FINDINGS) else known
        some = "; ".join(f'"{one.words}"' for one in trained[:3])
        raise Failure(
            f"the model {model} knows no finding: "
            + (
                f"select questions with --questions, such as {some}"
                if some
                else "train one with yes/no questions"
            )
        )
    chosen = {
        one.name: one
        for text in wanted
        for one in (trained if text.strip().casefold() == ALL else [_find(certainty, trained, text, model)])
    }
    return list(chosen.values())


def _find(
    certainty: Certainty | None, trained: Sequence[TrainedQuestion], text: str, model: str
) -> TrainedQuestion:
    """Return the question that a text names."""
    for one in trained:
        if text.strip().casefold() == one.words.casefold() or short_name(text) == one.name:
            return one
    matched = certainty.match(text) if certainty else None
    for one in trained:
        if matched and matched.text == one.text:
            return one
    like = suggest(text, certainty, known_findings(certainty)) if certainty else []
    near = nearest(text, [one.name for one in trained]) or next(iter(like), "")
    raise Failure(
        f"the model {model} was not trained on {text!r}" + (f": did you mean {near!r}?" if near else "")
    )


def _named(group: dict) -> TrainedQuestion:
    """Return the question of one entry of `Certainty.groups`."""
    texts, answers = group["texts"], group["answers"]
    asked = group.get("asked", texts[0])
    verify = {answer.casefold() for answer in answers} == {"yes", "no"}
    for text in texts:
        said = answers_of(text, "yes" if verify else answers[0])
        if RHYTHM in said and not verify:
            return TrainedQuestion(RHYTHM, RHYTHM, asked, answers)
        if verify and said and RHYTHM not in said:
            (words,) = said
            return TrainedQuestion(NAMES[words], words, asked, answers)
    words = next((found[1] for text in texts if verify and (found := THERE.fullmatch(text))), texts[0])
    return TrainedQuestion(short_name(words), words, asked, answers)
