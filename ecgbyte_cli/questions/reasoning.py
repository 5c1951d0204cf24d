"""Answers behind a reasoning: `<think>reasoning</think>answer`, written and taken apart."""

from collections.abc import Sequence
from typing import NamedTuple

TAGS = ("<think>", "</think>")  # around the reasoning; a model's settings say its own


class ReasonedAnswer(NamedTuple):
    """A text taken apart."""

    reasoning: str
    answer: str
    kept: bool  # whether it has the form: the two tags, in their order and once each, and an answer


def join_reasoning(reasoning: str, answer: str, tags: Sequence[str] = TAGS) -> str:
    """A reasoning and an answer in one text; tags within them are taken out."""
    for tag in tags:
        reasoning, answer = reasoning.replace(tag, ""), answer.replace(tag, "")
    return f"{tags[0]}{reasoning.strip()}{tags[1]}{answer.strip()}"


def split_reasoning(text: str, tags: Sequence[str] = TAGS) -> ReasonedAnswer:
    """Take a text apart. The answer of one without the form is what stands behind the last tag, or all of it."""
    begin, end = tags
    reasoning, found, answer = text.partition(end)
    kept = (
        bool(found and answer.strip())
        and text.startswith(begin)
        and (text.count(begin), text.count(end)) == (1, 1)
    )
    if kept:
        return ReasonedAnswer(reasoning[len(begin) :].strip(), answer.strip(), True)
    return ReasonedAnswer("", text.rpartition(end)[2].rpartition(begin)[2].strip(), False)
