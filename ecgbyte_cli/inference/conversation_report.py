"""Attribute an answer to the signal, and write a conversation as Markdown."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference.conversation import ECG, Conversation, origin
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.runtime.memory import reporting_out_of_memory

if TYPE_CHECKING:
    from ecgbyte_cli.inference.session import Session


class AnswerAttribution(NamedTuple):
    """The attribution of an answer to samples and words.

    Attributes
    ----------
    turn : Turn
    ecg : ECG
        The one of the turn's ECGs that was opened last.
    density : numpy.ndarray
        float64 (leads, samples) at the model's rate, not negative, sum 1.
    words : list of str
        The text of the prompt, token by token; empty for `occlusion`.
    values : numpy.ndarray
        float64 (words,): the share of the whole prompt's attribution on each word.
    gap : float or None
        For `integrated`, the completeness gap in percent (see `attribution.Case`).
    """

    turn: Turn
    ecg: ECG
    density: np.ndarray
    words: list[str]
    values: np.ndarray
    gap: float | None = None


def attribute_turn(session: "Session", turn: Turn, method: str = "integrated") -> AnswerAttribution:
    """Attribute the answer of a turn.

    Parameters
    ----------
    session : Session
    turn : Turn
    method : str
        One of `attribution.METHODS`.

    Raises
    ------
    Failure
        If the model has no answer, or the method cannot attribute it.
    """
    if turn.findings:
        raise Failure("a list is put together from many answers: ask about one of the findings first")
    if not turn.attributable:
        why = "it was measured" if turn.measured else "the model has not written it"
        raise Failure(
            f"there is nothing to attribute for “{turn.question}”: {turn.answer if turn.declined else why}"
        )
    ecg, explainer = turn.ecgs[-1], session.explainer(before=session.text_before(turn.ecgs))
    question, answer = turn.asked or (turn.question, turn.answer)
    if method == "occlusion":  # it changes the signal of one ECG, for one question
        if len(turn.ecgs) > 1 or turn.earlier:
            raise Failure("occlusion asks about one ECG and one question: /clear, and ask again")
        letters = session.tokenizer.letters(ecg.segments[ecg.number][1])
        density = explainer.density(letters, question, answer, method)
        return AnswerAttribution(turn, ecg, density, [], np.zeros(0))
    case = explainer.case_of([e.tokens for e in turn.ecgs], [*turn.earlier, (question, answer)])
    scores = explainer.scores(case, method)
    words, values = explainer.on_words(case, scores)
    return AnswerAttribution(turn, ecg, explainer.spread(case, scores), words, values, case.gap)


def attribute_answer(conversation: Conversation, method: str = "integrated") -> AnswerAttribution:
    """Attribute the last answer of a conversation.

    Parameters
    ----------
    conversation : Conversation
    method : str
        One of `attribution.METHODS`.

    Raises
    ------
    Failure
        If there is no answer yet, the method cannot attribute it, or memory does not suffice.
    """
    turns = [entry for entry in conversation.log if isinstance(entry, Turn) and not entry.error]
    if not turns:
        raise Failure("there is no answer yet: ask something first")
    last = turns[-1].separate[-1] if turns[-1].separate else turns[-1]
    with reporting_out_of_memory("for what the answer drew on", "/clear the conversation, and ask again"):
        return attribute_turn(conversation.session, last, method)


def conversation_markdown(
    conversation: Conversation, pictures: list[str], facts: Callable[[ECG], dict[str, str]]
) -> str:
    """Write a conversation as Markdown.

    Parameters
    ----------
    conversation : Conversation
    pictures : list of str
        The name of a picture of each open ECG.
    facts : callable
        Returns the facts to list about an ECG: name to text.
    """
    names = [printable(ecg.recording.name) for ecg in conversation.ecgs]
    lines = [f"# {', '.join(names)}", "", printable(conversation.session.about["notice"]), ""]
    for ecg, name, picture in zip(conversation.ecgs, names, pictures, strict=True):
        lines += [f"![{name}]({picture.replace(' ', '%20')})", ""]
        lines += [printable(f"- {name}: {text}") for name, text in facts(ecg).items()]
        lines.append("")
    lines += [
        printable(f"- model: {origin(conversation.session.about)}"),
        "",
    ]
    for entry in conversation.log:
        if isinstance(entry, str):
            lines += [f"*{printable(entry)}*", ""]
        elif not entry.error:
            stopped = " (stopped)" if entry.stopped else ""
            question, answer = (printable(text, "\n\t") for text in (entry.question, entry.answer))
            sure = f" ({printable(entry.certainty())})" if entry.certainty() else ""
            lines += [f"**{question}**", "", f"{answer}{stopped or sure}", ""]
            for note in entry.notes():
                lines += [printable(note), ""]
    return "\n".join(lines)
