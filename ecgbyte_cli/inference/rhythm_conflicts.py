"""Compare a model's answer about the rhythm with its yes/no answers about the same rhythms.

The rhythm is chosen with probabilities adjusted for how often each rhythm occurs (`Certainty.adjustments`), but a
yes/no answer is chosen by its own threshold, so the two can differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ecgbyte_cli.inference.conflicts import AnswerConflict
from ecgbyte_cli.inference.device_statements import RATES, SINUS
from ecgbyte_cli.questions.findings import OTHER_RHYTHMS, STATEMENTS

NOT_SINUS = {STATEMENTS[name].words for name in (*OTHER_RHYTHMS, "PACE")}


@dataclass(frozen=True)
class RhythmConflict(AnswerConflict):
    """A yes/no answer that contradicts the model's answer about the rhythm.

    Attributes
    ----------
    rhythm : str
        The model's answer about the rhythm.
    """

    rhythm: str

    @property
    def reason(self) -> str:
        """The reason in a clause."""
        return f"answers {self.rhythm} to the question about the rhythm"

    @property
    def brief(self) -> str:
        """The reason in a few words, for a table cell."""
        return f"rhythm {self.rhythm}"


def rhythm_conflicts(
    answers: Mapping[str, str], own: Mapping[str, str] | None = None
) -> list[RhythmConflict]:
    """Find yes/no answers that contradict the answer about the rhythm: no to that rhythm, or yes to an excluded one.

    Sinus rhythms exclude atrial fibrillation and flutter, supraventricular tachycardias and a pacemaker rhythm; a slow
    sinus rhythm excludes a fast one. Rhythms that occur together, such as atrial fibrillation and a pacemaker rhythm,
    do not contradict each other.

    Parameters
    ----------
    answers : mapping of str to str
        Words of a finding mapped to `yes` or `no`; `rhythm` mapped to the words of a rhythm.
    own : mapping of str to str, optional
        A new answer, which replaces an earlier one. Only its conflicts are returned.
    """
    both = {**answers, **(own or {})}
    rhythm = both.get("rhythm", "").strip().rstrip(".").lower()
    return [
        RhythmConflict(words, answer, rhythm)
        for words, answer in both.items()
        if own is None or "rhythm" in own or words in own
        if (answer == "no" and words == rhythm) or (answer == "yes" and _exclude_each_other(words, rhythm))
    ]


def _exclude_each_other(one: str, other: str) -> bool:
    """Return whether one rhythm is sinus and the other not, or one slow and the other fast."""
    pair = {one, other}
    return pair == RATES or bool(pair & SINUS and pair & NOT_SINUS)
