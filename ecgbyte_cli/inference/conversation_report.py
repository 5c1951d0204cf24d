"""What chat and the page make of a conversation: what its last answer drew on, and the whole of it as Markdown."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference.conversation import ECG, Conversation, Turn
from ecgbyte_cli.runtime.memory import reporting_out_of_memory

if TYPE_CHECKING:
    from ecgbyte_cli.inference.attribution import Explainer

NO_ROOM, CLEAR = "for what the answer drew on", "/clear the conversation, and ask again"


class AnswerAttribution(NamedTuple):
    """What an answer drew on.

    Attributes
    ----------
    turn : Turn
    ecg : ECG
        Of those that the answer is about the one opened last.
    density : numpy.ndarray
        float64 (leads, samples) at the model's rate, not negative, sum 1.
    words : list of str
        The text of the prompt, token by token; none where the method does not ask about the text.
    values : numpy.ndarray
        The part of the whole prompt's attribution on each of them.
    """

    turn: Turn
    ecg: ECG
    density: np.ndarray
    words: list[str]
    values: np.ndarray


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
        If there is no answer yet, the method cannot be asked about it, or memory does not suffice.
    """
    from ecgbyte_cli.inference import attribution

    turns = [
        t
        for t in conversation.log
        if isinstance(t, Turn) and t.answer and (t.prompt is not None or t.findings)
    ]
    turn = turns[-1] if turns else None
    if turn is None:
        raise Failure("there is no answer yet: ask something first")
    if turn.findings:
        raise Failure("a list is put together from many answers: ask about one of the findings first")
    ecg, reader = turn.ecgs[-1], conversation.reader
    explainer: Explainer = attribution.Explainer(
        conversation.lm,
        conversation.prompt,
        reader.tokenizer,
        reader.segmenter,
        longest=conversation.about.get("prompt_tokens"),
    )
    if method == "occlusion":  # which asks the signal alone
        if len(turn.ecgs) > 1 or turn.earlier:
            raise Failure("occlusion asks about one ECG and one question: /clear, and ask again")
        letters = reader.tokenizer.letters(ecg.segments[ecg.number][1])
        with reporting_out_of_memory(NO_ROOM, CLEAR):
            density = explainer.density(letters, turn.asked_as or turn.question, turn.answer, method)
        return AnswerAttribution(turn, ecg, density, [], np.zeros(0))
    asked = turn.asked_as or turn.question
    case = explainer.case_of([e.tokens for e in turn.ecgs], [*turn.earlier, (asked, turn.answer)])
    with reporting_out_of_memory(NO_ROOM, CLEAR):
        scores = explainer.scores(case, method)
    return AnswerAttribution(turn, ecg, explainer.spread(case, scores), *explainer.on_words(case, scores))


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
        What is told of an ECG: name to text.
    """
    names = [printable(ecg.recording.name) for ecg in conversation.ecgs]
    lines = [f"# {', '.join(names)}", "", printable(conversation.about["notice"]), ""]
    for ecg, name, picture in zip(conversation.ecgs, names, pictures, strict=True):
        lines += [f"![{name}]({picture.replace(' ', '%20')})", ""]
        lines += [printable(f"- {name}: {text}") for name, text in facts(ecg).items()]
        lines.append("")
    lines += [printable(f"- model: {conversation.about['folder']}, from {conversation.about['base']}"), ""]
    for entry in conversation.log:
        if isinstance(entry, str):
            lines += [f"*{printable(entry)}*", ""]
        elif not entry.error:
            stopped = " (stopped)" if entry.stopped else ""
            question, answer = (printable(text, "\n\t") for text in (entry.question, entry.answer))
            sure = f" ({printable(entry.certainty())})" if entry.certainty() else ""
            lines += [f"**{question}**", "", f"{answer}{stopped or sure}", ""]
            for conflict in entry.conflicts:
                lines += [printable(conflict.text), ""]
    return "\n".join(lines)
