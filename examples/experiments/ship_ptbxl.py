"""Write the folder of the included model, and its card from its scores.

    python examples/experiments/ship_ptbxl.py model WORK MODEL OUT
    python examples/experiments/ship_ptbxl.py card OUT METRICS.json BENCHMARK.json LEADS.json RATES.json ELSEWHERE.json

`model` takes a model that was trained in a work folder on the short names of ptbxl_questions.py. It calibrates the
model on all validation questions (fold 9), stores its weights in bfloat16, gives each question the wordings of
`phrasings`, and leaves nothing of the training machine in the folder. `card` keeps the scores in OUT/metrics.json and
writes OUT/README.md from that file; a test compares the two.
"""

import shutil
import sys
from pathlib import Path

from ptbxl_card import card_text, kept_scores

from ecgbyte_cli.cli.output import note, progress
from ecgbyte_cli.inference import certainty
from ecgbyte_cli.model import folder_checks, model_folder
from ecgbyte_cli.questions.findings import ALL_FINDINGS, FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import ALSO, QUERY, VERIFY, VERIFY_OWN, there_question
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.calibration import calibrate_model
from ecgbyte_cli.training.plans import plan_training
from ecgbyte_cli.training.setup import load_for_training

CALIBRATED_ON = "PTB-XL, fold 9"
TOGETHER = 48  # a quarter of the prompts in a batch: all questions about two ECGs
TRAINED = ("steps", "val_loss", "trainable_parameters", "ecg_perplexity", "bits_per_second")
NOT_SHIPPED = ("base", "tokens")  # settings that name folders


def model(work: Path, trained: Path, out: Path) -> None:
    """Copy a trained model: calibrated, in bfloat16, and with its questions in words."""
    with atomic_folder(out) as made:
        shutil.copytree(trained, made, dirs_exist_ok=True)
        halve_weights(made)
        calibrate(WorkDir(work), made)
        write_wordings(made)
        forget_machine(made)
    _, _, tokenizer, _ = model_folder.load_model(out, "cpu")  # as whoever asks it would
    certainty.read_certainty(out, tokenizer.vocab_size)


def halve_weights(folder: Path) -> None:
    """Store the weights of a model folder in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in (folder / "ecg_rows.safetensors", folder / "base" / "model.safetensors"):
        halved = {name: value.to(torch.bfloat16) for name, value in load_file(path).items()}
        save_file(halved, path, {"format": "pt"})
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Describe the files of a model folder as they are now."""
    about = read_json(folder / "ecgbyte.json")
    write_json(folder / "ecgbyte.json", about | {"files": folder_checks.file_checksums(folder)}, indent=1)


def calibrate(work: WorkDir, folder: Path) -> None:
    """Calibrate a model folder on all validation questions of its work folder."""
    settings = folder_checks.read_about(folder)["settings"] | {"base": str(folder)}
    qa = folder_checks.read_about(folder)["qa"]
    lm, _, samples, _ = load_for_training(work, settings, "cpu")
    plans = plan_training(work, qa, lm, samples, settings, note)
    training = [question for plan in plans.training for question in plan.questions]
    with progress("certainty", len(plans.validation), "questions") as bar:
        known = calibrate_model(lm, samples, training, plans.validation, TOGETHER, bar, note)
    known.calibrated_on = CALIBRATED_ON
    known.write(folder)


def write_wordings(folder: Path) -> None:
    """Add the wordings of each short name, and a list of findings that is put together from the answers about each."""
    known = read_json(folder / certainty.FILE)
    for group in known["groups"]:
        [group["asked"]] = group["texts"]
        group["texts"] = wordings(group["asked"])
    parts = {name: finding.words for name, finding in FINDINGS.items()}
    known["groups"].append({"texts": QUERY["findings"], "answers": None, "parts": parts})
    write_json(folder / certainty.FILE, known, indent=1)


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


def forget_machine(folder: Path) -> None:
    """Remove the paths of the training machine from ecgbyte.json."""
    about = read_json(folder / "ecgbyte.json")
    about["qa"] = Path(about["qa"]).name
    about["settings"] = {key: value for key, value in about["settings"].items() if key not in NOT_SHIPPED}
    about["result"] = {key: about["result"][key] for key in TRAINED}
    write_json(folder / "ecgbyte.json", about, indent=1)
    write_checksums(folder)


def card(folder: Path, *scores: Path) -> None:
    """Keep the scores in metrics.json, and write the card."""
    write_json(folder / "metrics.json", kept_scores(*map(read_json, scores)), indent=1)
    (folder / "README.md").write_text(card_text(folder), encoding="utf-8")


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"model": model, "card": card}[what](*map(Path, paths))
