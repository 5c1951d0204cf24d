"""Recognise questions that a measurement answers, by a table of wordings.

A question is recognised only if all of its words are known, so "Why is the QT long?" is not.
"""

import re
from typing import NamedTuple

from ecgbyte_cli.inference.certainty import EMPTY, normalize_question
from ecgbyte_cli.signal.preprocess import LEADS

# value: its wordings, without FILLERS
WORDINGS = {
    "rate_bpm": (
        "heart rate", "rate", "hr", "ventricular rate", "pulse", "pulse rate", "bpm", "beats per minute",
        "beats minute", "heart frequency", "heartbeat rate", "mean heart rate", "average heart rate",
        "mean rate", "average rate", "rate heart", "speed heart", "speed heart beat", "speed heart beating",
        "speed heartbeat", "speed pulse", "speed heart rate", "speed rate", "speed rhythm",
    ),
    "rr_ms": (
        "rr", "rr interval", "rr intervals", "mean rr interval", "average rr interval", "mean rr",
        "average rr", "rr duration",
    ),
    "p_ms": (
        "p duration", "p wave duration", "p width", "p wave width", "p wave length", "duration p wave",
        "width p wave", "length p wave", "extent p wave", "extent p",
    ),
    "pr_ms": (
        "pr", "pr interval", "pr intervals", "pr time", "pr duration", "pq", "pq interval", "pq time",
        "duration pr interval", "length pr interval", "av conduction time", "pr interval duration",
        "pr interval measure", "atrioventricular conduction time",
    ),
    "qrs_ms": (
        "qrs", "qrs duration", "qrs width", "qrs complex", "qrs complexes", "qrs interval", "qrs time",
        "duration qrs", "width qrs", "duration qrs complex", "width qrs complex", "ventricular complexes",
        "qrs complex duration", "qrs complex width", "length qrs complex", "duration qrs complexes",
        "width qrs complexes",
    ),
    "qt_ms": ("qt", "qt interval", "qt intervals", "qt time", "qt duration", "duration qt interval",
    "length qt interval"),
    "qtc": (
        "qtc", "qtc interval", "corrected qt", "corrected qt interval", "qt corrected", "rate corrected qt",
        "qt corrected rate", "rate corrected qt interval", "qtc duration", "qtc time", "qtc value",
        "qt interval corrected heart rate", "qt corrected heart rate", "frequency corrected qt",
    ),
    "qtcb_ms": ("qtcb", "qtc bazett", "bazett", "qtc bazett formula", "bazett qtc", "qtc according bazett"),
    "qtcf_ms": ("qtcf", "qtc fridericia", "fridericia", "fridericia qtc", "qtc fridericia formula"),
    "axis_p": ("p axis", "p wave axis", "axis p wave", "axis p"),
    "axis_qrs": (
        "axis", "heart axis", "electrical axis", "cardiac axis", "qrs axis", "frontal axis", "axis heart",
        "electrical axis heart", "mean electrical axis", "axis qrs", "electrical heart axis",
        "frontal qrs axis",
        "axis lie", "heart axis lie", "direction axis point", "direction heart axis point", "direction axis",
        "axis qrs complex",
    ),
    "axis_t": ("t axis", "t wave axis", "axis t wave", "axis t"),
    "sokolow_mv": (
        "sokolow", "sokolow lyon", "sokolow index", "sokolow lyon index", "sokolow lyon voltage",
        "sokolow lyon criterion", "sokolow lyon criteria", "sokolow criterion", "sokolow voltage",
    ),
    "cornell_mv": (
        "cornell", "cornell voltage", "cornell index", "cornell criterion", "cornell criteria",
        "cornell voltage criterion", "cornell voltage criteria",
    ),
    "voltage": (
        "voltage criteria", "voltage criterion", "lvh voltage criteria", "voltage criteria lvh",
        "voltage criteria left ventricular hypertrophy", "hypertrophy voltage criteria",
    ),
    "intervals": ("intervals", "ecg intervals", "intervals durations"),
    "st_level": ("st level", "st levels", "st segment level", "st deviation", "st deviations",
    "level st segment"),
    "st_in_leads": ("st", "st segment", "extent st", "extent st segment"),
    "st_elevation": ("st elevation", "st segment elevation", "st elevations", "elevation st segment"),
    "st_depression": ("st depression", "st segment depression", "st depressions", "depression st segment"),
}  # fmt: skip
COMBINED = {
    "qtc": ("qtcb_ms", "qtcf_ms"),
    "voltage": ("sokolow_mv", "cornell_mv"),
    "intervals": ("pr_ms", "qrs_ms", "qt_ms", "qtcb_ms", "qtcf_ms"),
}
# judgement: words that express it
JUDGEMENTS = {
    "high": (
        "long prolonged lengthened wide widened broad broadened high fast increased elevated raised "
        "rapid quick positive met fulfilled"
    ),
    "low": "short shortened narrow low slow decreased depressed reduced",
    "normal": "normal ok isoelectric unremarkable",
    "abnormal": "abnormal pathological",
}
# whole questions without FILLERS: the value, and the judgement
WHOLE = {
    **{f"heart {beats}{fast}".replace("  ", " "): ("rate_bpm", judgement)
       for beats in ("", "beating ", "beat ") for fast, judgement in (
           ("fast", "high"), ("quickly", "high"), ("rapidly", "high"), ("racing", "high"), ("slow", "low"),
           ("slowly", "low"))},
    **{f"{side} axis deviation": ("axis_qrs", side) for side in ("left", "right")},
    **{f"{side} axis": ("axis_qrs", side) for side in ("left", "right")},
    **{f"{axis} {moved}{side}": ("axis_qrs", side)
       for axis in ("axis", "heart axis", "electrical axis", "qrs axis")
       for moved in ("", "deviated ", "turned ", "deviation ") for side in ("left", "right")},
    "axis deviation": ("axis_qrs", "abnormal"),
    "axis deviated": ("axis_qrs", "abnormal"),
    "heart axis deviated": ("axis_qrs", "abnormal"),
    "deviated axis": ("axis_qrs", "abnormal"),
}  # fmt: skip
REGULAR = {
    "", "rhythm", "heart rhythm", "rr", "rr interval", "rr intervals", "heart rate", "rate", "heart",
    "heartbeat",
    "heart beat", "heart beats", "heart beating", "beat", "beats", "pulse", "ventricular rhythm",
    "rhythm heart",
    "cardiac rhythm",
}  # fmt: skip
SIZES = {*"duration width interval time length".split()}
FILLERS = EMPTY | frozenset(
    "what which where how much many i we he she on at for with to by using value exactly now current currently "
    "here patient patients record measured measure measurement give get his her their my was were look "
    "looks like please compute calculate ms milliseconds degrees mv happens too very within limits any lead leads "
    "according formula there s".split()
)
OPEN = frozenset("what which how where why when give tell compute calculate".split())  # not yes/no questions
SPEED = re.compile(r"\bhow (?:fast|quick|quickly|rapid|rapidly|slow|slowly|often)\b")
EXTENT = re.compile(r"\bhow (?:long|wide|broad|high|big|large|tall)\b(?: (?:is|are|does|do))?")
PAIRS = re.compile(r"\b(?:p r|p q|q t|r r|s t|q r s)\b")  # Q-T, S-T


class MeasuredQuestion(NamedTuple):
    """A question that a measurement can answer."""

    names: tuple[str, ...]  # names in `Measurement`; `regular`; or `st` for the ST levels of `leads`
    judgement: str | None  # high, low, normal, abnormal, left, right, irregular, elevation, depression
    leads: tuple[str, ...] = ()  # empty means all leads
    closed: bool = False  # whether the answer is yes or no


def match_measured(question: str) -> MeasuredQuestion | None:
    """Recognise a question that a measurement can answer; return None for any other."""
    text = normalize_question(question)
    text = PAIRS.sub(lambda pair: pair[0].replace(" ", ""), text)
    text = re.sub(r"\bqt c\b", "qtc", text)
    text = text.replace("p waves", "p wave").replace("within normal limits", "normal")
    is_open = bool(OPEN & {*text.split()})
    text = EXTENT.sub("extent ", SPEED.sub("speed ", text))
    leads = tuple(lead for lead in LEADS if lead.lower() in text.split() and not _is_pronoun(lead, text))
    names = {lead.lower() for lead in leads}
    words = [word for word in text.split() if word not in FILLERS and word not in names]
    if len(leads) > 1:
        words = [word for word in words if word not in ("and", "or")]
    matched = _regularity(words, is_open, leads) or _whole(words, is_open, leads)
    return matched or _judged(
        words, is_open, leads, re.search(r"\bleads\b|\bwhere\b|\b(?:any|which) lead\b", text)
    )


def _is_pronoun(lead: str, text: str) -> bool:
    """Return whether "I" is the pronoun, not lead I."""
    return lead == "I" and not re.search(r"\bleads? (?:\S+ )*i\b|\bin i\b", text)


def _regularity(words: list[str], is_open: bool, leads: tuple[str, ...]) -> MeasuredQuestion | None:
    about = {
        word for word in words if word in ("regular", "irregular", "regularity", "regularly", "irregularly")
    }
    rest = " ".join(word for word in words if word not in about and word != "or")
    if not about or leads or rest.removeprefix("extent ").strip() not in REGULAR:
        return None
    judgement = "irregular" if about <= {"irregular", "irregularly"} else "regular"
    closed = not is_open and len(about) == 1 and about != {"regularity"}
    return MeasuredQuestion(("regular",), judgement, closed=closed)


def _whole(words: list[str], is_open: bool, leads: tuple[str, ...]) -> MeasuredQuestion | None:
    name, judgement = WHOLE.get(" ".join(words), (None, None))
    if name is None or is_open or leads:
        return None
    return MeasuredQuestion((name,), judgement, closed=True)


def _judged(
    words: list[str], is_open: bool, leads: tuple[str, ...], all_leads: object
) -> MeasuredQuestion | None:
    """Match one value with a judgement, or values without a judgement."""
    judgements = {word: judgement for judgement, some in JUDGEMENTS.items() for word in some.split()}
    given = {judgements[word] for word in words if word in judgements}
    rest = [word for word in words if word not in judgements]
    kinds = _segment(rest)
    if not kinds or len(given) > 1 or (given and (is_open or len(kinds) > 1)):
        return None
    judgement = next(iter(given), None)
    if kinds[0].startswith("st_"):
        return _st(kinds, judgement, is_open, leads, bool(all_leads)) if len(kinds) == 1 else None
    if kinds == ["qrs_ms"] and judgement in ("normal", "abnormal") and not SIZES & {*rest}:
        return None  # asks about the shape too
    if leads:  # the other values belong to no single lead
        return None
    names = tuple(name for kind in kinds for name in COMBINED.get(kind, (kind,)))
    closed = judgement is not None or (kinds == ["voltage"] and not is_open)
    return MeasuredQuestion(names, judgement or ("high" if closed else None), closed=closed)


def _segment(words: list[str]) -> list[str]:
    """Return the values named one after another, matching the longest wordings first; empty if a word remains."""
    kinds: list[str] = []
    rest = [word for word in words if word != "and"]
    if rest[:1] == ["extent"] and " ".join(rest) not in _KIND:
        rest = rest[1:]
    while rest:
        for length in range(min(len(rest), 6), 0, -1):
            if kind := _KIND.get(" ".join(rest[:length])):
                kinds.append(kind)
                rest = rest[length:]
                break
        else:
            if kinds and rest[0] in ("interval", "intervals", "durations"):
                rest = rest[1:]
                continue
            return []
    return kinds


def _st(
    kinds: list[str], judgement: str | None, is_open: bool, leads: tuple[str, ...], all_leads: bool
) -> MeasuredQuestion | None:
    """Match a question about ST levels. Elevation without a lead is a finding, which the model answers."""
    kind = kinds[0].removeprefix("st_")
    if not leads and not all_leads and kind != "level":
        return None
    change = {"high": "elevation", "low": "depression"}.get(judgement or "", judgement)
    if kind in ("elevation", "depression"):
        if judgement:
            return None
        change = kind
    return MeasuredQuestion(("st",), change, leads, closed=change is not None and not is_open)


_KIND = {wording: kind for kind, wordings in WORDINGS.items() for wording in wordings}
