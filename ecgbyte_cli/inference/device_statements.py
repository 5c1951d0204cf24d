"""Compare the answers of a model with the statements that the recorder wrote into the file.

Recorders state findings in fixed phrases; this module knows the English ones. It ignores statements with a word of
doubt, denial or comparison ("probable", "no longer", "previous"). A finding that the recorder does not state may still
be present, but sinus rhythm and atrial fibrillation exclude each other.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ecgbyte_cli.inference.conflicts import AnswerConflict
from ecgbyte_cli.readers import Recording

KEY = "statement"  # prefix of such a comment in a recording
# words of doubt, denial or comparison, anywhere in a statement
DOUBT = re.compile(
    r"\?|\b(borderline|cannot|compared|consider|consistent|could|exclude|excluded|former|likely|may|might|minimal|no|"
    r"non|not|or|pattern|possible|possibly|previous|previously|probable|probably|questionable|replaced|replaces|rule|"
    r"ruled|since|suggest|suggests|suggestive|suspect|suspected|unlikely|versus|vs|without)\b"
)
# recorder phrases and the finding each one means; longer phrases first, because a match removes its words
PHRASES = tuple(
    (re.compile(rf"\b{phrase}"), words)
    for phrase, words in (
        (r"incomplete right bundle branch block", "incomplete right bundle branch block"),
        (r"incomplete left bundle branch block", "incomplete left bundle branch block"),
        (r"right bundle branch block", "complete right bundle branch block"),
        (r"left bundle branch block", "complete left bundle branch block"),
        (r"left anterior (fascicular block|hemiblock)", "left anterior fascicular block"),
        (r"(first|1st) degree a ?v block", "first degree AV block"),
        (r"left ventricular hypertrophy", "left ventricular hypertrophy"),
        (r"left atrial (enlargement|abnormality)", "left atrial enlargement"),
        (r"inferior (myocardial )?infarct", "inferior myocardial infarction"),
        (r"anterior (myocardial )?infarct", "anterior myocardial infarction"),
        (r"(premature ventricular|ventricular premature) (beat|co)", "ventricular premature complexes"),
        (r"left axis deviation", "left axis deviation"),
        (r"right axis deviation", "right axis deviation"),
        (r"atrial fibrillation", "atrial fibrillation"),
        (r"atrial flutter", "atrial flutter"),
        (r"sinus bradycardia", "sinus bradycardia"),
        (r"sinus tachycardia", "sinus tachycardia"),
        (r"sinus arrhythmia", "sinus arrhythmia"),
        (r"sinus rhythm", "sinus rhythm"),
        (r"(pacemaker rhythm|paced rhythm|ventricular paced|atrial paced|dual paced)", "pacemaker rhythm"),
    )
)  # fmt: skip
SINUS = {"sinus rhythm", "sinus bradycardia", "sinus tachycardia", "sinus arrhythmia"}
ATRIAL = {"atrial fibrillation", "atrial flutter"}
RATES = {"sinus bradycardia", "sinus tachycardia"}


@dataclass(frozen=True)
class DeviceConflict(AnswerConflict):
    """An answer that contradicts a statement of the recorder.

    Attributes
    ----------
    statement : str
        The statement as the recorder wrote it.
    """

    statement: str

    @property
    def reason(self) -> str:
        """The reason in a clause."""
        return f"the recorder states “{self.statement}”"


def device_statements(recording: Recording) -> list[str]:
    """Return the statements that the recorder stored in the file."""
    return recording.all_comments(KEY)


def stated_findings(statements: Iterable[str]) -> dict[str, str]:
    """Map each finding that is stated without doubt to its statement."""
    found: dict[str, str] = {}
    for statement in statements:
        plain = re.sub(r"[\s\-]+", " ", statement.lower())
        if DOUBT.search(plain):
            continue
        for phrase, words in PHRASES:
            plain, count = phrase.subn(" ", plain)
            if count:
                found.setdefault(words, statement)
    return found


def device_conflicts(answers: Mapping[str, str], statements: Iterable[str]) -> list[DeviceConflict]:
    """Find the answers that the recorder's statements contradict.

    Parameters
    ----------
    answers : mapping of str to str
        Words of a finding mapped to `yes` or `no`; `rhythm` mapped to the words of a rhythm.
    statements : iterable of str

    Returns
    -------
    list of DeviceConflict
    """
    stated = stated_findings(statements)
    said = {words: answer.strip().lower() for words, answer in answers.items() if words != "rhythm"}
    if rhythm := answers.get("rhythm", "").strip().rstrip(".").lower():
        said[rhythm] = "yes"
    conflicts = []
    for words, answer in said.items():
        if answer == "no" and words in stated:
            conflicts.append(DeviceConflict(words, answer, stated[words]))
        elif answer == "yes" and words not in stated:
            others = [one for one in stated if _exclude_each_other(one, words)]
            conflicts += [DeviceConflict(words, answer, stated[one]) for one in others[:1]]
    return conflicts


def _exclude_each_other(one: str, other: str) -> bool:
    """Return whether one rhythm is sinus and the other atrial, or one slow and the other fast."""
    pair = {one, other}
    return pair == RATES or bool(pair & SINUS and pair & ATRIAL)
