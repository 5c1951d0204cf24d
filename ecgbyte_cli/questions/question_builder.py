"""Generate questions and answers from facts, balanced so that no answer is right by frequency."""

from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.questions import phrasings
from ecgbyte_cli.questions.findings import ALL_FINDINGS, CLASSES, FINDINGS, GENERIC, STATEMENTS
from ecgbyte_cli.questions.labels import NO, UNCERTAIN, YES, Labels, derive_labels
from ecgbyte_cli.questions.sources.base import RANGES, RecordFacts, Source
from ecgbyte_cli.readers.patients import SIDES

DISEASES = tuple(CLASSES)  # topics whose statements are diagnoses
SEEN = ("rhythm", *DISEASES, "form", "beats")  # the topics of a list of findings
OF_TOPIC = {
    topic: [name for name, statement in STATEMENTS.items() if statement.topic == topic]
    for topic in (*SEEN, "axis", "noise")
}
MEASURED = {"rate": "rate", "pr": "PR interval", "qrs": "QRS complex"}  # topics with a range, and their names
MANY = ("findings", "form", "leads", "describe")  # topics with too many answers to choose from
# statements that a question about a finding covers
WITHIN = {finding.statements[0] for finding in FINDINGS.values() if len(finding.statements) == 1}
WITHIN |= {name for name in STATEMENTS if name.lower() in ALL_FINDINGS} | {"PRC", "TAB"}

Sides = dict[str, np.ndarray]  # the places of the recordings on each side of the split


class Draft(NamedTuple):
    """A question about a recording."""

    place: int  # of the recording in the facts
    question: str
    answer: str | list[str]
    type: str
    more: dict[str, Any]  # further keys of the line


def build_questions(
    source: Source,
    seed: int = 1,
    cap: int = 500,
    every_finding: bool = False,
    cannot: float = 0.02,
    think: bool = False,
) -> list[dict]:
    """Generate questions with their answers.

    Parameters
    ----------
    source : Source
    seed : int
    cap : int
        The largest number of questions about a finding with the same answer, on each side of the split.
    every_finding : bool
        Ask about the eighteen findings of every record, even if unbalanced.
    cannot : float
        The share of questions that no ECG answers.
    think : bool
        Add the reasoning from measurements and findings to each question that an ECG answers.

    Returns
    -------
    list of dict
        The lines of a question file, ordered by record.
    """
    labels = derive_labels(source.facts)
    sides = {
        side: np.array([i for i, f in enumerate(source.facts) if f.split == side], int) for side in SIDES
    }
    # a generator per kind, so that the options of one kind do not change the others
    verify, choose, query, decline = (np.random.default_rng([seed, kind]) for kind in range(4))
    drafts = _verify(verify, labels, sides, source.words, cap, every_finding)
    drafts += _choose(choose, labels, sides, cap)
    drafts += _query(query, source.facts, cap)
    drafts += _unanswerable(decline, sides, drafts, source.facts, cannot)
    drafts.sort(key=lambda draft: draft.place)  # stable: the kinds stay in order
    return [_line(source.facts[draft.place], draft, think) for draft in drafts]


def _reasoning(facts: RecordFacts) -> str:
    """Describe the measurements and findings of a recording in short sentences that lead to an answer."""
    measured = [
        f"{name} {facts.answers[topic][0]}" for topic, name in MEASURED.items() if facts.answers.get(topic)
    ]
    seen = {topic: _labels_of_topic(facts, topic) or [] for topic in (*SEEN, "axis")}
    leads = [
        f"{topic.removeprefix('leads of ')}{_lead_phrase(names)}"
        for topic, names in facts.answers.items()
        if topic.startswith("leads of ") and names
    ]
    other = [label for topic in (*DISEASES[1:], "form", "beats") for label in seen[topic]]
    parts = [
        phrasings.join_words(measured),
        phrasings.join_words(seen["rhythm"]),
        phrasings.join_words(seen["axis"]),
    ]
    parts += [phrasings.join_words(leads), phrasings.join_words(other)]
    return " ".join(phrasings.as_sentence(part) for part in parts if part)


def _line(facts: RecordFacts, draft: Draft, think: bool) -> dict[str, Any]:
    """Return the line of a question file."""
    line = {
        "record": facts.record,
        "patient": facts.patient,
        "question": draft.question,
        "answer": draft.answer,
        "type": draft.type,
        "split": facts.split,
        **draft.more,
    }
    if think and draft.type not in ("cannot-query", "age-query", "sex-query"):
        if reasoning := _reasoning(facts):
            line["reasoning"] = reasoning
    return line


def _draw_sample(rng: np.random.Generator, places: np.ndarray, most: int) -> list[int]:
    """Return at most `most` places in random order."""
    return rng.permutation(places)[:most].tolist()


def verifiable(labels: Labels, words: dict[str, str]) -> list[tuple[str, str, str, np.ndarray]]:
    """Return name, words, type of question and labels of each finding that yes or no answers."""
    items = [
        (name, finding.words, "finding-verify", labels.findings[name])
        for name, finding in ALL_FINDINGS.items()
        if name in labels.findings
    ]
    for name, column in labels.statements.items():
        if name in STATEMENTS and name not in WITHIN:
            kind = "noise-verify" if name in OF_TOPIC["noise"] else "finding-verify"
            items.append((name.lower(), STATEMENTS[name].words, kind, column))
        elif name in words:
            kind = "leads-verify" if name.partition("-")[0] in OF_TOPIC["noise"] else "finding-verify"
            items.append((name.lower(), words[name], kind, column))
    return items


def _verify(
    rng: np.random.Generator,
    labels: Labels,
    sides: Sides,
    words: dict[str, str],
    cap: int,
    every_finding: bool,
) -> list[Draft]:
    """Generate questions with the answers yes and no, in equal numbers."""
    drafts: list[Draft] = []
    for name, what, kind, column in verifiable(labels, words):
        for side in sides.values():
            yes, no = side[column[side] == YES], side[column[side] == NO]
            most = len(side) if every_finding and name in FINDINGS else min(len(yes), len(no), cap)
            for answer, places in (("yes", yes), ("no", no)):
                for i in _draw_sample(rng, places, most):
                    question = phrasings.verify_question(rng, name, what)
                    drafts.append(Draft(i, question, answer, kind, {"finding": name, "closed": True}))
    return drafts


def alternatives(labels: Labels) -> dict[str, np.ndarray]:
    """Return the statements to choose between, with their labels."""
    columns = {name: column for name, column in labels.statements.items() if name in STATEMENTS}
    for name, column in columns.items():
        if name.lower() in ALL_FINDINGS:
            # the words of the statement also cover the finding: LVH is not absent if its voltage criteria are met
            whole = labels.findings[name.lower()]
            columns[name] = np.where((column == NO) & (whole != NO), UNCERTAIN, column)
    return columns


def _choose(rng: np.random.Generator, labels: Labels, sides: Sides, cap: int) -> list[Draft]:
    """Generate choices between two statements: each is right equally often, both or none at most as often."""
    columns = alternatives(labels)
    groups: dict[str, list[str]] = {}
    for name in STATEMENTS:
        if name in columns and (columns[name] == YES).any():
            topic = STATEMENTS[name].topic
            groups.setdefault("finding" if topic in DISEASES else topic, []).append(name)
    drafts: list[Draft] = []
    for group, names in groups.items():
        pairs = [pair for pair in combinations(names, 2) if not _covers(*pair) and not _covers(*pair[::-1])]
        for a, b in pairs:
            for side in sides.values():
                in_a, in_b = columns[a][side], columns[b][side]
                only_a, only_b, both, none = (
                    side[(in_a == x) & (in_b == y)] for x, y in ((YES, NO), (NO, YES), (YES, YES), (NO, NO))
                )
                # there are many pairs, so they share the cap
                n = min(len(only_a), len(only_b), max(1, cap // len(pairs)))
                words = STATEMENTS[a].words, STATEMENTS[b].words
                more = {"topic": " or ".join(words), "closed": True}
                for answer, places in zip(
                    (*words, "both", "none"), (only_a, only_b, both, none), strict=True
                ):
                    for i in _draw_sample(rng, places, n):
                        first, second = words if rng.random() < 0.5 else words[::-1]
                        question = phrasings.choose_question(rng, first, second)
                        drafts.append(Draft(i, question, answer, f"{group}-choose", more))
    return drafts


def _covers(a: str, b: str) -> bool:
    """Return whether a statement covers another: myocardial infarction covers the inferior one."""
    return a.lower() in GENERIC and b in ALL_FINDINGS[a.lower()].statements


def _query(rng: np.random.Generator, facts: list[RecordFacts], cap: int) -> list[Draft]:
    """Generate open questions, at most `cap` with the same answer on a side."""
    places_of: dict[tuple, list[int]] = {}
    for i, each in enumerate(facts):
        for topic, what, answer in _answers(each):
            key = tuple(answer) if isinstance(answer, list) else answer
            places_of.setdefault((topic, what, key, each.split), []).append(i)
    drafts: list[Draft] = []
    for (topic, what, key, _), places in places_of.items():
        answer = key if isinstance(key, str) else list(key) if len(key) > 1 else key[0]
        more = {"topic": f"{topic} {what}".strip()} | ({} if topic in MANY else {"closed": True})
        for i in _draw_sample(rng, np.array(places), cap):
            question = phrasings.open_question(rng, topic, what)
            drafts.append(Draft(i, question, answer, f"{topic}-query", more))
    return drafts


def _answers(facts: RecordFacts) -> Iterable[tuple[str, str, list[str] | str]]:
    """Yield (topic, subject, labels or text) of all open questions that a recording answers."""
    seen = {topic: _labels_of_topic(facts, topic) for topic in (*SEEN, "axis", "noise")}
    # every ECG has a rhythm and one axis: without a label, or with two axes, the answer is unknown
    if seen["rhythm"]:
        yield "rhythm", "", seen["rhythm"]
    if seen["axis"] and len(seen["axis"]) == 1:
        yield "axis", "", seen["axis"]
    for topic in ("form", "beats"):
        if topic in facts.whole and seen[topic] is not None:
            yield topic, "", seen[topic] or ["none"]
    if seen["noise"] is not None and all(name in facts.known for name in OF_TOPIC["noise"]):
        yield "noise", "", seen["noise"] or ["none"]
    if all(topic in facts.whole and seen[topic] is not None for topic in DISEASES):
        yield "class", "", [CLASSES[topic] for topic in DISEASES if seen[topic]] or ["none"]
    if seen["rhythm"] and all(seen[topic] is not None for topic in SEEN):
        yield "findings", "", [label for topic in SEEN for label in seen[topic] or []]
        yield "describe", "", _description(facts, seen)
    for topic, labels in facts.answers.items():
        if topic in ("age", "sex", "stage", *RANGES):
            yield topic, "", labels
        elif topic.startswith("leads of "):
            yield "leads", topic.removeprefix("leads of "), labels


def _labels_of_topic(facts: RecordFacts, topic: str) -> list[str] | None:
    """Return the labels of a topic in the order of the table; None if they are incomplete or uncertain."""
    known = [(name, facts.known[name]) for name in OF_TOPIC[topic] if name in facts.known]
    if (not facts.complete and topic != "axis") or any(present is None for _, present in known):
        return None
    return [STATEMENTS[name].words for name, present in known if present]


def _description(facts: RecordFacts, seen: dict[str, list[str] | None]) -> str:
    """Return a report of a few sentences: rhythm and axis, diagnoses and form, premature beats, noise."""
    rhythm = phrasings.join_words(seen["rhythm"] or [])
    axis = phrasings.join_words(seen["axis"] or [])
    abnormal = [label for topic in (*DISEASES[1:], "form") for label in seen[topic] or []]
    # PTB-XL has "normal ECG" beside findings of form
    normal = ["otherwise normal ECG" if abnormal else "normal ECG"] if seen["NORM"] else []
    noise = [
        label + _lead_phrase(facts.answers.get(f"leads of {label}", [])) for label in seen["noise"] or []
    ]
    parts = [" with ".join(filter(None, [rhythm, axis]))]
    parts += [phrasings.join_words(words) for words in (abnormal, normal, seen["beats"] or [], noise)]
    return " ".join(phrasings.as_sentence(part) for part in parts if part)


def _lead_phrase(leads: list[str]) -> str:
    """Return the leads as the end of a phrase."""
    if len(leads) in (0, 12):
        return " in all leads" if leads else ""
    return f" in lead{'s' if len(leads) > 1 else ''} {phrasings.join_words(leads)}"


def _unanswerable(
    rng: np.random.Generator, sides: Sides, drafts: list[Draft], facts: list[RecordFacts], share: float
) -> list[Draft]:
    """Generate questions that no ECG answers, up to their share of each side."""
    topics = list(phrasings.UNANSWERABLE)
    others = dict.fromkeys(SIDES, 0)
    for draft in drafts:
        others[facts[draft.place].split] += 1
    texts: dict[tuple[int, str], str] = {}
    for side, places in sides.items():
        for _ in range(round(share / (1 - share) * others[side])):
            i, topic = int(rng.choice(places)), topics[int(rng.integers(len(topics)))]
            # a topic that is drawn twice for a record counts once
            texts[i, topic] = phrasings.unanswerable_question(rng, topic)
    return [
        Draft(i, text, phrasings.CANNOT, "cannot-query", {"topic": topic, "closed": True})
        for (i, topic), text in texts.items()
    ]
