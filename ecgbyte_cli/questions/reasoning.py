"""Join and split reasoning and answer: `<think>reasoning</think>answer`."""

from collections.abc import Sequence
from typing import NamedTuple

TAGS = ("<think>", "</think>")  # around the reasoning; a model's settings may have others


class ReasonedAnswer(NamedTuple):
    """The parts of a text."""

    reasoning: str
    answer: str
    kept: bool  # whether the text has the form: each tag once, in order, and an answer


def join_reasoning(reasoning: str, answer: str, tags: Sequence[str] = TAGS) -> str:
    """Return reasoning and answer in one text; tags within them are removed."""
    for tag in tags:
        reasoning, answer = reasoning.replace(tag, ""), answer.replace(tag, "")
    return f"{tags[0]}{reasoning.strip()}{tags[1]}{answer.strip()}"


def split_reasoning(text: str, tags: Sequence[str] = TAGS) -> ReasonedAnswer:
    """Split a text. Without the form, the answer is the text after the last tag."""
    begin, end = tags
    reasoning, _, answer = text.partition(end)
    complete = (
        bool(answer.strip()) and text.startswith(begin) and (text.count(begin), text.count(end)) == (1, 1)
    )
    if complete:
        return ReasonedAnswer(reasoning[len(begin) :].strip(), answer.strip(), True)
    return ReasonedAnswer("", text.rpartition(end)[2].rpartition(begin)[2].strip(), False)
