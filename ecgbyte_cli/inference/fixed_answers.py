"""Fixed answers: about danger and treatment, and about how sure the model is and why."""

from collections.abc import Sequence

from ecgbyte_cli.inference.turn import Turn

SAFETY = (
    "I cannot tell whether this is dangerous or what to do: I am a research tool, not a medical device. Ask a "
    "physician, and in an emergency call the emergency number."
)
ABOUT_REPORT = (
    "The report names the probability of each model answer, calibrated on held-out recordings of the "
    "training data."
)
ASK_ONE = (
    "Ask about one of the findings, and attribution shows the parts of the ECG that the answer depends on."
)
NO_ANSWER_YET = "I have not answered with a probability yet: ask about a finding or the rhythm first."


def answer_fixed(kind: str, log: Sequence[Turn | str]) -> str:
    """Return a fixed answer to a question about danger (`safety`) or about the last answer (`sure`, `why`).

    Parameters
    ----------
    kind : str
    log : sequence of Turn or str
        The conversation so far.
    """
    if kind == "safety":
        return SAFETY
    turns = [part for turn in log if isinstance(turn, Turn) for part in turn.separate or [turn]]
    answered = [turn for turn in turns if turn.attributable or turn.findings or turn.composed == "report"]
    if not answered:
        return NO_ANSWER_YET
    turn = answered[-1]
    if turn.composed:
        why = "I cannot give reasons in words for the report."
        return f"{ABOUT_REPORT if kind == 'sure' else why} {ASK_ONE}"
    about = f"“{turn.answer}” to “{turn.question}”"
    if kind == "sure":
        sure = turn.certainty() or "this is a free-text answer without a calibrated probability"
        return f"My answer {about}: {sure}. Probabilities are calibrated on held-out recordings of the training data."
    where = (
        "It depends on the ECG"
        if turn.witness is None or turn.witness.depends
        else "It may not depend on the ECG"
    )
    witness = f" {where} ({turn.witness.text})." if turn.witness else ""
    shown = (
        "Attribution shows the parts of the ECG that it depends on: Show on the page, /attention in the terminal."
        if turn.attributable
        else ASK_ONE
    )
    return f"I cannot give reasons in words for {about}.{witness} {shown}"
