"""Compare the answers of a model with the statements that the recorder wrote into the file.

Recorders state findings in fixed phrases, in English here. A statement with a word of doubt or denial ("probable",
"no longer") is not compared. What a recorder leaves out is no denial: only its rhythm excludes other rhythms.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ecgbyte_cli.questions.findings import STATEMENTS
from ecgbyte_cli.readers import Recording

KEY = "statement"  # of the comments of a recording
DOUBT = re.compile(
    r"\b(borderline|cannot|consider|consistent with|could|likely|may|might|minimal|no|no longer|non|not|possible|"
    r"possibly|probable|probably|questionable|rule out|suggests?|suspect|versus|vs|without)\b"
)
# phrases of recorders and the words of a finding; the longer ones first, as each takes its words away
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
RHYTHMS = {one.words for one in STATEMENTS.values() if one.topic == "rhythm"}
SINUS = {"sinus rhythm", "sinus bradycardia", "sinus tachycardia", "sinus arrhythmia"}


@dataclass(frozen=True)
class DeviceConflict:
    """An answer that contradicts a statement of the recorder.

    Attributes
    ----------
    finding : str
        What was asked about, such as `sinus bradycardia`.
    answer : str
        `yes` or `no`.
    statement : str
        The recorder's own words.
    """

    finding: str
    answer: str
    statement: str

    @property
    def reason(self) -> str:
        """What speaks against the answer."""
        return f"the recorder states “{self.statement}”"

    @property
    def text(self) -> str:
        """All of it in one sentence."""
        return f"conflict: the model answers {self.answer} to {self.finding}, but {self.reason}"

    def as_json(self) -> dict[str, str]:
        """Return the conflict as JSON takes it."""
        return {**asdict(self), "text": self.text}


def device_statements(recording: Recording) -> list[str]:
    """Return the statements that the recorder wrote into the file."""
    return recording.all_comments(KEY)


def stated_findings(statements: Iterable[str]) -> dict[str, str]:
    """Return the words of each finding that is stated without doubt, and the statement."""
    found: dict[str, str] = {}
    for statement in statements:
        plain = re.sub(r"[\s\-]+", " ", statement.lower())
        for part in re.split(r"[,;.]| with ", plain):
            if DOUBT.search(part):
                continue
            for phrase, words in PHRASES:
                part, count = phrase.subn(" ", part)
                if count:
                    found.setdefault(words, statement)
    return found


def device_conflicts(answers: Mapping[str, str], statements: Iterable[str]) -> list[DeviceConflict]:
    """Find the answers that the recorder's statements contradict.

    Parameters
    ----------
    answers : mapping of str to str
        Words of a finding to `yes` or `no`; `rhythm` to the words of a rhythm.
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
        elif answer == "yes" and words in RHYTHMS and words not in stated:
            others = [one for one in stated if one in RHYTHMS and not {one, words} <= SINUS]
            # two kinds of sinus rhythm exclude each other where both are about the rate
            others += [one for one in stated if {one, words} == {"sinus bradycardia", "sinus tachycardia"}]
            conflicts += [DeviceConflict(words, answer, stated[one]) for one in others[:1]]
    return conflicts
