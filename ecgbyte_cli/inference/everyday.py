"""Recognise questions in everyday words, in five languages, and suggest questions that a model can answer.

The wordings are in `questions.everyday_words`. A question is recognised only if all of its words are known, so "Is
there no atrial fibrillation?" is not.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple

from ecgbyte_cli.inference.certainty import Certainty, MatchedQuestion
from ecgbyte_cli.questions.everyday_words import (
    DESCRIBE,
    EVERYDAY,
    EVERYDAY_QUESTIONS,
    GROUPS,
    QUESTION_WORDS,
    RELATED,
    SAFETY,
    SURE,
    WHY,
)
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import ALSO, CANNOT, QUERY, UNANSWERABLE, VERIFY_OWN, there_question

RHYTHM, FINDINGS = "What is the rhythm?", "What are the findings?"
GENERAL = (FINDINGS, RHYTHM, "Is this ECG normal?")  # suggested if no known question is similar
MOST_SUGGESTED = 3


class Everyday(NamedTuple):
    """The meaning of a question in everyday words.

    Attributes
    ----------
    kind : str
        `finding`, `question`, `describe`, `safety`, `sure` or `why`.
    name : str
        The short name of a finding or of a group of findings, or a question in standard words; empty for other kinds.
    """

    kind: str
    name: str = ""


def recognise(question: str) -> Everyday | None:
    """Return the meaning of a question in everyday words; None if one of its words is not known."""
    words = _words(question)
    found = _wordings().get(" ".join(words)) or _wordings().get(_key(words))
    if found:
        return found
    return Everyday("safety") if _alarming() & {*map(_singular, words)} else None


def known_findings(certainty: Certainty) -> dict[str, MatchedQuestion]:
    """Return the findings about which a model answers yes or no: short name mapped to its question."""
    known = {}
    for name, words in _finding_words().items():
        texts = VERIFY_OWN.get(name, [f"{there_question(words)} {words}?"])
        matched = next(filter(None, map(certainty.match, texts)), None)
        if matched and {*(matched.answers or ())} == {"yes", "no"}:
            known[name] = matched
    return known


def list_parts(certainty: Certainty, known: Mapping[str, MatchedQuestion]) -> dict[str, str]:
    """Return the parts of a list of all findings: question as worded in prompts, mapped to its finding."""
    listed = certainty.match(FINDINGS)
    if listed and listed.parts:
        return listed.parts
    return {matched.text: _finding_words()[name] for name, matched in known.items()}


def match_finding(
    name: str, certainty: Certainty, known: Mapping[str, MatchedQuestion]
) -> MatchedQuestion | None:
    """Return the question of a model that answers whether a finding is present.

    Parameters
    ----------
    name : str
        The short name of a finding or of a group.
    certainty : Certainty
    known : mapping
        From `known_findings`.

    Returns
    -------
    MatchedQuestion or None
        The question about the finding; else the one about the rhythm, if the finding is one of its answers; else
        a list question about the members that the model knows.
    """
    if name in known:
        return known[name]
    members = _members(name)
    rhythm = certainty.match(RHYTHM) if _is_rhythm(members[0] if members else name) else None
    words = {_finding_words()[member] for member in (name, *members) if member in _finding_words()}
    among = tuple(answer for answer in (rhythm.answers or [] if rhythm else []) if answer in words)
    if rhythm and among:
        return rhythm._replace(members=among)
    parts = {known[member].text: _finding_words()[member] for member in members if member in known}
    return MatchedQuestion("", None, _finding_words().get(name, name), parts) if parts else None


def ask_about(name: str) -> str:
    """Return the standard question about a finding, from its short name."""
    return question_about(_finding_words()[name])


def question_about(words: str) -> str:
    """Return the standard question about a finding, from its words."""
    name = next(
        (name for name, known in _finding_words().items() if known == words and name in VERIFY_OWN), None
    )
    return VERIFY_OWN[name][0] if name else f"{there_question(words)} {words}?"


def suggest(question: str, certainty: Certainty, known: Mapping[str, MatchedQuestion]) -> list[str]:
    """Return questions that a model can answer and whose topic is closest to another question."""
    words = {_singular(word) for word in _words(question)}
    found = recognise(question)
    names = [*_members(found.name), *_topic(found.name)] if found and found.kind == "finding" else []
    scores = {
        names_of: len(words & {*map(_singular, map(_plain, about.split()))})
        for names_of, about in RELATED.items()
    }
    for related in sorted((one for one in scores if scores[one]), key=lambda one: -scores[one]):
        names += related.split()
    texts = [known[name].wording for name in dict.fromkeys(names) if name in known]
    texts = [spoken for text in texts if (spoken := _usual_text(text))] or _alike(question, certainty)
    general = [text for text in GENERAL if certainty.match(text)]
    return list(dict.fromkeys([*texts, *general]))[:MOST_SUGGESTED]


def _alike(question: str, certainty: Certainty) -> list[str]:
    """Return the questions with most words in common, except those that an ECG cannot answer."""
    unanswerable = {text for texts in UNANSWERABLE.values() for text in texts}
    answerable = [
        {**group, "texts": texts}
        for group in certainty.groups
        if CANNOT not in (group["answers"] or ())
        and (texts := [text for text in group["texts"] if text not in unanswerable])
    ]
    words, scored = {*_words(question)} - QUESTION_WORDS, []
    for number, group in enumerate(answerable):
        best, text = max((len(words & {*_words(text)}), text) for text in group["texts"])
        if best:
            scored.append((-best, number, text))
    if not scored and not any(certainty.match(text) for text in GENERAL):
        return [group["texts"][0] for group in answerable]
    return [text for *_, text in sorted(scored)]


def _usual_text(text: str) -> str:
    """Return the standard wording of a question about a finding, if it is about one."""
    found = recognise(text)
    if found is None or found.kind != "finding" or found.name not in _finding_words():
        return text
    return ask_about(found.name)


def _members(name: str) -> tuple[str, ...]:
    """Return the findings that a broad finding consists of, as short names."""
    if name in GROUPS:
        return GROUPS[name]
    return tuple(one.lower() for one in ALL_FINDINGS[name].statements) if name in ALL_FINDINGS else ()


def _topic(name: str) -> tuple[str, ...]:
    """Return the findings in the same diagnostic class."""
    topics = {STATEMENTS[one.upper()].topic for one in (name, *_members(name)) if one.upper() in STATEMENTS}
    return tuple(one.lower() for topic in topics if topic != "form" for one in [topic, *_of_topic(topic)])


def _of_topic(topic: str) -> Iterable[str]:
    return (name for name, statement in STATEMENTS.items() if statement.topic == topic)


def _is_rhythm(name: str) -> bool:
    return name.upper() in STATEMENTS and STATEMENTS[name.upper()].topic == "rhythm"


@cache
def _finding_words() -> dict[str, str]:
    """Return the words of each finding, keyed by short name."""
    statements = {name.lower(): one.words for name, one in STATEMENTS.items()}
    return statements | {name: one.words for name, one in ALL_FINDINGS.items()}


@cache
def _wordings() -> dict[str, Everyday]:
    """Return the meaning of each wording, keyed by its words in order and by its key."""
    compared_first = {name: _finding_words()[name] for name in ALL_FINDINGS} | _finding_words()
    listed: list[tuple[Everyday, Iterable[str]]] = [
        (Everyday("finding", name), wordings) for name, wordings in EVERYDAY.items()
    ]
    listed += [
        (Everyday("finding", name), [name, words, *ALSO.get(name, ())])
        for name, words in compared_first.items()
    ]
    listed += [(Everyday("question", text), [text, *some]) for text, some in EVERYDAY_QUESTIONS.items()]
    listed += [(Everyday("describe"), [*QUERY["describe"], *DESCRIBE])]
    listed += [(Everyday(kind), some) for kind, some in (("safety", SAFETY), ("sure", SURE), ("why", WHY))]
    found: dict[str, Everyday] = {}
    for meant, wordings in listed:
        for wording in wordings:
            words = _words(wording)
            found.setdefault(" ".join(words), meant)
            if _key(words):
                found.setdefault(_key(words), meant)
    return found


@cache
def _alarming() -> frozenset[str]:
    """Return the single words that ask about danger or for advice, anywhere in a question."""
    return frozenset(_singular(_plain(word)) for word in SAFETY if " " not in word) - QUESTION_WORDS


def _key(words: Iterable[str]) -> str:
    """Return the words that carry a question's topic, in alphabetical order."""
    return " ".join(sorted({_singular(word) for word in words if word not in QUESTION_WORDS}))


def _words(text: str) -> list[str]:
    """Return the words of a question, without case, accents and punctuation."""
    text = re.sub(r"\ba-t-(?=on|il|elle)", "a ", _plain(text))
    return re.findall(r"[^\W_]+", re.sub(r"'s\b", " is", text))


def _plain(text: str) -> str:
    """Return a text without case and accents."""
    text = unicodedata.normalize("NFKD", text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return "".join(letter for letter in text if not unicodedata.combining(letter))


def _singular(word: str) -> str:
    """Return an English word without its plural s."""
    plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "is", "us"))
    return word[:-1] if plural else word
