"""Write one-letter questions on PTB-XL or a part of it, with their wordings.

    python examples/experiments/letters.py WORDS.jsonl LETTERS.jsonl RHYTHM.jsonl LONG.jsonl ASKED.jsonl

WORDS.jsonl comes from `ecgbyte questions ptb-xl/ --every-finding`. LETTERS.jsonl, for training, asks for the eighteen
findings of examples/findings.csv (A to R, yes or no), for the rhythm (S) and for a list of the findings (T). A
question then takes three ids instead of ten, and a model of half a million parameters need not learn that many
wordings mean the same. RHYTHM.jsonl has only recordings with a question about the rhythm, with S four times in
training. LONG.jsonl has all recordings, without T, and S three times. ASKED.jsonl, for scoring, has A to S in words;
`wordings` maps words to letters.
"""

import json
import string
import sys
from pathlib import Path

from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.storage.files import atomic_write

OF = dict(zip([*FINDINGS, "rhythm", "findings"], string.ascii_uppercase, strict=False))


def letter(line):
    """The letter of a question, or None."""
    if line["type"] == "finding-verify":
        return OF.get(line.get("finding"))
    return {"rhythm-query": OF["rhythm"], "findings-query": OF["findings"]}.get(line["type"])


def wordings(lines):
    """Of each letter the words that ask for it in training."""
    made = {each: {} for each in OF.values()}
    for line in lines:
        if letter(line) and line["split"] == "train":
            made[letter(line)][line["question"]] = None
    return {each: [*texts] for each, texts in made.items()}


def listed(found):
    """A list of the findings of a recording, in words: `mi` only where no wall of it is named."""
    names = [name for name, answer in found.items() if answer == "yes"]
    names = [name for name in names if name != "mi" or not {"imi", "ami"} & {*names}]
    return [FINDINGS[name].words for name in names] or ["none of them"]


def main(words, letters, rhythm, long, asked):
    lines = [json.loads(text) for text in words.read_text(encoding="utf-8").splitlines()]
    found, made, kept = {}, [], []
    for line in lines:
        if not letter(line):
            continue
        if line["type"] == "finding-verify":
            found.setdefault(line["record"], {})[line["finding"]] = line["answer"]
        if line["type"] != "findings-query":
            made.append({**line, "question": letter(line), "type": line.get("finding", "rhythm")})
            kept.append(line)
    about = {line["record"]: line for line in lines}
    for record, each in found.items():
        more = {key: about[record][key] for key in ("record", "patient", "split")}
        more |= {"answer": listed(each), "type": "findings"}
        made.append({**more, "question": OF["findings"]})
    single = {line["record"] for line in made if line["type"] == "rhythm" and isinstance(line["answer"], str)}
    often, thrice = [], []
    for line in made:
        is_rhythm = line["type"] == "rhythm"
        if line["type"] != "findings" and (not is_rhythm or isinstance(line["answer"], str)):
            thrice += [line] * (3 if is_rhythm and line["split"] == "train" else 1)
        if line["record"] in single and line["type"] != "findings":
            often += [line] * (4 if is_rhythm and line["split"] == "train" else 1)
    for path, some in ((letters, made), (rhythm, often), (long, thrice), (asked, kept)):
        some.sort(key=lambda line: line["record"])
        with atomic_write(path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in some), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
