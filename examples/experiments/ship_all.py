"""Write the folder of a model that was trained on the short names of ptbxl_questions.py, with the wordings of each.

    python examples/experiments/ship_all.py WORK/model OUT

The weights become bfloat16. Each question gets the wordings of `phrasings`, a list of the eighteen findings is put
together from the answers about each, and nothing of the training machine stays in the folder.
"""

import shutil
import sys
from pathlib import Path

from ship_ptbxl import forget_machine, halve_weights

from ecgbyte_cli.inference import certainty
from ecgbyte_cli.model import model_folder
from ecgbyte_cli.questions.findings import ALL_FINDINGS, FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import ALSO, QUERY, VERIFY, VERIFY_OWN, there_question
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json

CALIBRATED_ON = "PTB-XL, fold 9"


def wordings(name: str) -> list[str]:
    """The questions that a short name stands for; its own name is one of them."""
    if name in QUERY:
        return [name, *QUERY[name]]
    if name in VERIFY_OWN:
        return [name, *VERIFY_OWN[name]]
    if name in ALL_FINDINGS:
        words = ALL_FINDINGS[name].words
    elif name.upper() in STATEMENTS:
        words = STATEMENTS[name.upper()].words
    else:  # about a statement alone, of which no wording speaks
        return [name]
    texts = []
    for what in (words, *ALSO.get(name, ())):
        forms = [form for form in VERIFY if "any" not in form or not what.startswith(("a ", "an "))]
        texts += [form.format(is_there=there_question(what), what=what) for form in forms]
    return [name, *dict.fromkeys(texts)]


def main(folder: Path, out: Path) -> None:
    with atomic_folder(out) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        halve_weights(made)
        known = read_json(made / certainty.FILE)
        for group in known["groups"]:
            [group["asked"]] = group["texts"]
            group["texts"] = wordings(group["asked"])
        parts = {name: finding.words for name, finding in FINDINGS.items()}
        known["groups"].append({"texts": QUERY["findings"], "answers": None, "parts": parts})
        known["calibrated_on"] = CALIBRATED_ON
        write_json(made / certainty.FILE, known, indent=1)
        forget_machine(made)
    _, _, tokenizer, _ = model_folder.load_model(out, "cpu")  # as whoever asks it would
    certainty.read_certainty(out, tokenizer.vocab_size)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
