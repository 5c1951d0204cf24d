"""Write questions about all statements of PTB-XL, each asked by its short name.

    python examples/experiments/ptbxl_questions.py ptb-xl/ptbxl_database.csv ASKED.jsonl

A short name takes one token where words take ten, and a small model need not learn that many wordings mean the same:
`ship_ptbxl.py` gives the finished model the wordings of each name. Every finding, class and statement that the table
covers is asked about, yes or no, and the rhythm, the axis and the stage of an infarction where there is a single
answer. Codes of a likelihood below 50 are uncertain and are not asked about.
"""

import json
import sys
from pathlib import Path

from ecgbyte_cli.questions.findings import ALL_FINDINGS, OF_SCP, STATEMENTS
from ecgbyte_cli.questions.labels import NO, YES, derive_labels
from ecgbyte_cli.questions.sources.base import RecordFacts
from ecgbyte_cli.questions.sources.ptbxl import read_ptbxl
from ecgbyte_cli.storage.files import atomic_write

ANSWERS = {YES: "yes", NO: "no"}
OPEN = ("rhythm", "axis", "stage")


def short_name(statement: str) -> str:
    """The question about a statement alone; a finding of that name may cover more than the statement."""
    alone = [name for name, finding in ALL_FINDINGS.items() if finding.statements == (statement,)]
    name = statement.lower()
    return alone[0] if alone else f"{name} only" if name in ALL_FINDINGS else name


def open_answers(facts: RecordFacts) -> dict[str, str]:
    """The answers to open questions that have a single one."""
    stage = facts.answers.get("stage", [])
    answers = {"stage": stage[0]} if len(stage) == 1 else {}
    for topic in ("rhythm", "axis"):
        names = [name for name, statement in STATEMENTS.items() if statement.topic == topic]
        stated = [name for name in names if facts.known.get(name)]
        uncertain = any(facts.known.get(name, False) is None for name in names)
        if len(stated) == 1 and not uncertain:
            answers[topic] = STATEMENTS[stated[0]].words
    return answers


def main(table: Path, out: Path) -> None:
    facts = read_ptbxl(table).facts
    labels = derive_labels(facts)
    columns = dict(labels.findings)
    columns |= {short_name(name): labels.statements[name] for name in OF_SCP.values()}
    columns = {name: column for name, column in columns.items() if {YES, NO} <= {*column.tolist()}}
    with atomic_write(out) as beside, open(beside, "w", encoding="utf-8") as file:
        for place, each in enumerate(facts):
            answers = {name: ANSWERS.get(int(column[place])) for name, column in columns.items()}
            for name, answer in {**answers, **open_answers(each)}.items():
                if answer:
                    line = {"record": each.record, "patient": each.patient, "split": each.split}
                    line |= {"question": name, "answer": answer, "type": name, "topic": name, "closed": True}
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
