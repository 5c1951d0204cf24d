"""Questions and answers from facts, drawn by seed so that no answer is right by being frequent."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from ecgbyte_cli.questions import phrasings
from ecgbyte_cli.questions.findings import ALL_FINDINGS, CLASSES, FINDINGS, GENERIC, STATEMENTS
from ecgbyte_cli.questions.labels import NO, UNCERTAIN, YES, Labels, derive_labels
from ecgbyte_cli.questions.sources.base import RANGES, RecordFacts, Source
from ecgbyte_cli.readers.patients import SIDES

DISEASES = tuple(CLASSES)  # topics whose statements are diagnoses
SEEN = ("rhythm", *DISEASES, "form", "beats")  # what a list of findings is made of
OF_TOPIC = {
    topic: [name for name, statement in STATEMENTS.items() if statement.topic == topic]
    for topic in (*SEEN, "axis", "noise")
}
MEASURED = {"rate": "rate", "pr": "PR interval", "qrs": "QRS complex"}  # topics with a range, and their names
MANY = ("findings", "form", "leads", "describe")  # topics with more answers than there are to choose from
# statements that are asked about as one of the findings
WITHIN = {finding.statements[0] for finding in FINDINGS.values() if len(finding.statements) == 1}
WITHIN |= {name for name in STATEMENTS if name.lower() in ALL_FINDINGS} | {"PRC", "TAB"}


def build_questions(
    source: Source,
    seed: int = 1,
    cap: int = 500,
    every_finding: bool = False,
    cannot: float = 0.02,
    think: bool = False,
) -> list[dict]:
    """Make questions with their answers.

    Parameters
    ----------
    source : Source
    seed : int
    cap : int
        A thing is asked about with the same answer so often at most, on each side of the split.
    every_finding : bool
        Ask about the eighteen findings of every record, whatever the balance.
    cannot : float
        The share of questions that no ECG answers.
    think : bool
        Give each question that an ECG answers the reasoning that leads there, where there is something to reason from.

    Returns
    -------
    list of dict
        As lines of a question file, ordered by record.
    """
    labels = derive_labels(source.facts)
    sides = {
        side: np.array([i for i, f in enumerate(source.facts) if f.split == side], int) for side in SIDES
    }
    # each kind has random numbers of its own, so that an option of one does not change the others
    verify, choose, query, decline = (np.random.default_rng([seed, kind]) for kind in range(4))
    asked = _verify(verify, labels, sides, source.words, cap, every_finding)
    asked += _choose(choose, labels, sides, cap)
    asked += _query(query, source.facts, sides, cap)
    asked += _unanswerable_lines(decline, sides, asked, source.facts, cannot)
    asked.sort(key=lambda line: line[0])  # stable: the kinds stay in order
    lines = [_line(source.facts[i], *rest) for i, *rest in asked]
    if think:
        for (i, *_), line in zip(asked, lines, strict=True):
            if line["type"] not in ("cannot-query", "age-query", "sex-query") and (
                reasoning := _reasoning(source.facts[i])
            ):
                line["reasoning"] = reasoning
    return lines


def _reasoning(facts):
    """What is measured and seen in a recording, in short sentences that an answer can be taken from."""
    measured = [f"{name} {facts.said[topic][0]}" for topic, name in MEASURED.items() if facts.said.get(topic)]
    seen = {topic: _labels_of_topic(facts, topic) or [] for topic in (*SEEN, "axis")}
    leads = [
        f"{topic.removeprefix('leads of ')}{_lead_phrase(found)}"
        for topic, found in facts.said.items()
        if topic.startswith("leads of ") and found
    ]
    other = [label for topic in (*DISEASES[1:], "form", "beats") for label in seen[topic]]
    parts = [
        phrasings.join_words(measured),
        phrasings.join_words(seen["rhythm"]),
        phrasings.join_words(seen["axis"]),
    ]
    parts += [phrasings.join_words(leads), phrasings.join_words(other)]
    return " ".join(phrasings.as_sentence(part) for part in parts if part)


def _line(facts, question, answer, kind, more):
    return {
        "record": facts.record,
        "patient": facts.patient,
        "question": question,
        "answer": answer,
        "type": kind,
        "split": facts.split,
        **more,
    }


def _draw_sample(rng, places, most):
    return rng.permutation(places)[:most].tolist()


def verifiable(labels: Labels, words: dict[str, str]) -> list[tuple[str, str, str, np.ndarray]]:
    """Return everything that can be asked with yes and no: its name, words, type of question and labels."""
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


def _verify(rng, labels, sides, words, cap, every_finding):
    """Yes or no, as often the one as the other."""
    asked = []
    for name, what, kind, column in verifiable(labels, words):
        for side in sides.values():
            yes, no = side[column[side] == YES], side[column[side] == NO]
            most = len(side) if every_finding and name in FINDINGS else min(len(yes), len(no), cap)
            for answer, places in (("yes", yes), ("no", no)):
                asked += [
                    (
                        i,
                        phrasings.verify_question(rng, name, what),
                        answer,
                        kind,
                        {"finding": name, "closed": True},
                    )
                    for i in _draw_sample(rng, places, most)
                ]
    return asked


def alternatives(labels: Labels) -> dict[str, np.ndarray]:
    """Return the statements that one can choose between, with their labels."""
    columns = {name: column for name, column in labels.statements.items() if name in STATEMENTS}
    for name, column in columns.items():
        if name.lower() in ALL_FINDINGS:
            # "left ventricular hypertrophy" also covers its voltage criteria, and is not denied where they are met
            whole = labels.findings[name.lower()]
            columns[name] = np.where((column == NO) & (whole != NO), UNCERTAIN, column)
    return columns


def _choose(rng, labels, sides, cap):
    """One of two, both or none; of each two as often the one as the other, and not more often both or none."""
    columns = alternatives(labels)
    groups = {}
    for name in STATEMENTS:
        if name in columns and (columns[name] == YES).any():
            topic = STATEMENTS[name].topic
            groups.setdefault("finding" if topic in DISEASES else topic, []).append(name)
    asked = []
    for group, names in groups.items():
        pairs = [pair for pair in combinations(names, 2) if not _covers(*pair) and not _covers(*pair[::-1])]
        for a, b in pairs:
            for side in sides.values():
                in_a, in_b = columns[a][side], columns[b][side]
                only_a, only_b, both, none = (
                    side[(in_a == x) & (in_b == y)] for x, y in ((YES, NO), (NO, YES), (YES, YES), (NO, NO))
                )
                # pairs are many, as their number grows with the square: they share the cap
                n = min(len(only_a), len(only_b), max(1, cap // len(pairs)))
                words = STATEMENTS[a].words, STATEMENTS[b].words
                pair = {"topic": " or ".join(words)}
                for answer, places in zip(
                    (*words, "both", "none"), (only_a, only_b, both, none), strict=True
                ):
                    for i in _draw_sample(rng, places, n):
                        first, second = words if rng.random() < 0.5 else words[::-1]
                        question = phrasings.choose_question(rng, first, second)
                        asked.append((i, question, answer, f"{group}-choose", {**pair, "closed": True}))
    return asked


def _covers(a, b):
    """Whether the words of a statement cover those of another: myocardial infarction, and an inferior one."""
    return a.lower() in GENERIC and b in ALL_FINDINGS[a.lower()].statements


def _query(rng, facts, sides, cap):
    """Open questions; those with the same answer `cap` times at most on a side."""
    found = {}
    for i, each in enumerate(facts):
        for topic, what, answer in _answers(each):
            # labels, or one text
            key = tuple(answer) if isinstance(answer, list) else answer
            found.setdefault((topic, what, key, each.split), []).append(i)
    asked = []
    for (topic, what, key, _), places in found.items():
        answer = key if isinstance(key, str) else list(key) if len(key) > 1 else key[0]
        more = {"topic": f"{topic} {what}".strip()} | ({} if topic in MANY else {"closed": True})
        for i in _draw_sample(rng, np.array(places), cap):
            asked.append((i, phrasings.open_question(rng, topic, what), answer, f"{topic}-query", more))
    return asked


def _answers(facts: RecordFacts) -> Iterable[tuple[str, str, list[str] | str]]:
    """Yield (topic, what it is about, labels or text) of all open questions that a recording answers."""
    seen = {topic: _labels_of_topic(facts, topic) for topic in (*SEEN, "axis", "noise")}
    # every ECG has a rhythm and one axis: where there is no label, or more than one axis, the source says nothing
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
        yield "findings", "", [label for topic in SEEN for label in seen[topic]]
        yield "describe", "", _description(facts, seen)
    for topic, labels in facts.said.items():
        if topic in ("age", "sex", "stage", *RANGES):
            yield topic, "", labels
        elif topic.startswith("leads of "):
            yield "leads", topic.removeprefix("leads of "), labels


def _labels_of_topic(facts, topic):
    """The labels of a topic, in the table's order; None where it is not said, or not certain, what there is."""
    known = [(name, facts.known[name]) for name in OF_TOPIC[topic] if name in facts.known]
    if (not facts.complete and topic != "axis") or any(there is None for _, there in known):
        return None
    return [STATEMENTS[name].words for name, there in known if there]


def _description(facts, seen):
    """A report of a few sentences: rhythm and axis, diagnoses and form, premature beats, noise."""
    rhythm = phrasings.join_words(seen["rhythm"])
    axis = phrasings.join_words(seen["axis"] or [])
    abnormal = [label for topic in (*DISEASES[1:], "form") for label in seen[topic]]
    # "normal ECG" beside findings of form is what PTB-XL has, and is said as such
    normal = ["otherwise normal ECG" if abnormal else "normal ECG"] if seen["NORM"] else []
    noise = [label + _lead_phrase(facts.said.get(f"leads of {label}", [])) for label in seen["noise"] or []]
    parts = [" with ".join(filter(None, [rhythm, axis]))]
    parts += [phrasings.join_words(words) for words in (abnormal, normal, seen["beats"], noise)]
    return " ".join(phrasings.as_sentence(part) for part in parts if part)


def _lead_phrase(leads):
    if len(leads) in (0, 12):
        return " in all leads" if leads else ""
    return f" in lead{'s' if len(leads) > 1 else ''} {phrasings.join_words(leads)}"


def _unanswerable_lines(rng, sides, asked, facts, share):
    """Questions that no ECG answers: so many that they are their share of each side's."""
    topics = list(phrasings.UNANSWERABLE)
    others = dict.fromkeys(SIDES, 0)
    for i, *_ in asked:
        others[facts[i].split] += 1
    made = {}
    for side, places in sides.items():
        for _ in range(round(share / (1 - share) * others[side])):
            i, topic = int(rng.choice(places)), topics[int(rng.integers(len(topics)))]
            # a record is asked the same once: where chance would have it twice, once less
            made[i, topic] = phrasings.unanswerable_question(rng, topic)
    return [
        (i, text, phrasings.CANNOT, "cannot-query", {"topic": topic, "closed": True})
        for (i, topic), text in made.items()
    ]
