"""Derive the labels of statements and findings from the facts of a source.

A finding is present if one of its statements is. It is absent only if the source denies all of its statements, or the
finding by a word that covers them all. Anything else is unknown, including findings that a source both states and
denies.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from ecgbyte_cli.questions.findings import ALL_FINDINGS, GENERIC, OTHER_RHYTHMS, STATEMENTS
from ecgbyte_cli.questions.sources.base import RecordFacts

NO, YES, UNCERTAIN, UNSAID = range(4)


class Labels(NamedTuple):
    """Labels of all recordings: int8 arrays of NO, YES, UNCERTAIN and UNSAID, shape (recordings,).

    Attributes
    ----------
    statements : dict of str to numpy.ndarray
        By the names in `findings.STATEMENTS`, or the source's own.
    findings : dict of str to numpy.ndarray
        By the names in `findings.ALL_FINDINGS`; findings that the source does not cover are missing.
    contradictions : Counter
        (words stated, words denied) to the number of recordings with both.
    """

    statements: dict[str, np.ndarray]
    findings: dict[str, np.ndarray]
    contradictions: Counter[tuple[str, str]]


def derive_labels(facts: list[RecordFacts]) -> Labels:
    """Return the labels of recordings.

    Further facts may make a label uncertain, but never turn a yes into a no or a no into a yes.
    """
    stated = _stated_columns(facts)
    nowhere = np.zeros(len(facts), bool)

    def says(name: str, value: int) -> np.ndarray:
        return stated[name] == value if name in stated else nowhere

    denied_whole = {name: says(name, NO) for name in ALL_FINDINGS}
    for name in GENERIC:
        denied_whole[name] = denied_whole[name] | says(name.upper(), NO)
    other = np.any([says(rhythm, YES) for rhythm in OTHER_RHYTHMS], axis=0)
    denied_whole["sr"] = denied_whole["sr"] | (says("SR", NO) & other)

    denied = {name: says(name, NO) for name in [*stated, *STATEMENTS]}
    for name in GENERIC:
        for member in ALL_FINDINGS[name].statements:
            denied[member] = denied[member] | denied_whole[name]
    statements = {
        name: _resolve(says(name, YES), denied[name], says(name, UNCERTAIN))
        for name in denied
        if (name in stated or denied[name].any()) and (name in STATEMENTS or name not in ALL_FINDINGS)
    }
    findings, contradictions = {}, Counter[tuple[str, str]]()
    for name, (words, members) in ALL_FINDINGS.items():
        if name not in stated and not any(member in statements for member in members):
            continue
        each = np.array([statements[member] for member in members if member in statements])
        present = says(name, YES) | (each == YES).any(axis=0)
        absent = denied_whole[name] | np.all([denied[member] for member in members], axis=0)
        findings[name] = _resolve(present, absent, (each == UNCERTAIN).any(axis=0))
        # two rhythms after each other are no contradiction
        for member in members if name != "sr" else ():
            if both := int((says(member, YES) & denied_whole[name]).sum()):
                contradictions[STATEMENTS[member].words, words] += both
        none = np.all([says(member, NO) for member in members], axis=0)
        if both := int((says(name, YES) & none).sum()):
            contradictions[words, "kind of it"] += both
    return Labels(statements, findings, contradictions)


def _resolve(present: np.ndarray, absent: np.ndarray, doubt: np.ndarray) -> np.ndarray:
    """Return yes where nothing is denied, no where nothing is stated or doubted, else uncertain or unsaid."""
    return np.select(
        [present & ~absent, absent & ~present & ~doubt, present | absent | doubt],
        [YES, NO, UNCERTAIN],
        UNSAID,
    ).astype(np.int8)


def _stated_columns(facts: list[RecordFacts]) -> dict[str, np.ndarray]:
    """Return the source's own labels by name."""
    value = {False: NO, True: YES, None: UNCERTAIN}
    names = dict.fromkeys(name for each in facts for name in each.known)
    stated = {name: np.full(len(facts), UNSAID, np.int8) for name in names}
    for i, each in enumerate(facts):
        for name, known in each.known.items():
            stated[name][i] = value[known]
    return stated
