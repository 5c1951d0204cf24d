"""The eighteen findings of examples/findings.csv as questions of one letter, A to R, on PTB-XL or a part of it.

    python examples/letters.py ptb-xl/ letters.jsonl

Every finding of every recording that the table is certain of, yes or no. A question costs three ids instead of ten, so
that a training learns what the findings look like in half of the time; words come after it.
"""

import json
import sys
from pathlib import Path

from ecgbyte_cli.questions import findings, ptbxl

LETTERS = "ABCDEFGHIJKLMNOPQR"


def write(data, path):
    """Write the question file, if it is not there."""
    if path.exists():
        return path
    lines = []
    for facts in ptbxl.read(data / "ptbxl_database.csv").facts:
        for letter, (name, finding) in zip(LETTERS, findings.FINDINGS.items(), strict=True):
            known = [facts.known[code] for code in finding.statements if code in facts.known]
            if None in known and True not in known:
                continue
            answer = "yes" if True in known else "no"
            more = {"record": facts.record, "split": facts.split, "type": name}
            lines.append(json.dumps({**more, "question": letter, "answer": answer}) + "\n")
    path.write_text("".join(lines))
    return path


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
