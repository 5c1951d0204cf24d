"""Write the folder of the included model, and its card from its scores.

    python examples/experiments/ship_ptbxl.py model WORK/model OUT WORDS.jsonl
    python examples/experiments/ship_ptbxl.py card OUT WORK/answers/metrics.json [OTHER_WORK/answers/metrics.json]

`model` copies a model folder trained in full on one-letter questions, with weights in bfloat16 and without the paths
of the training machine, and adds the wordings of each letter (see letters.py). `card` keeps the scores on fold 10, and
on recordings of other hospitals, in OUT/metrics.json and writes OUT/README.md from that file; a test compares the two.
"""

import json
import shutil
import sys
from pathlib import Path

import letters

from ecgbyte_cli.inference import certainty
from ecgbyte_cli.model import folder_checks, model_folder
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json

KEPT = ("questions", "patients", "exact_match", "interval", "control", "best_control", "difference")
KEPT += (
    "difference_interval",
    "balanced",
    "auroc",
    "auroc_intervals",
    "calibration_error",
    "coverage",
    "sure",
)
TRAINED = ("steps", "val_loss", "trainable_parameters", "ecg_perplexity", "bits_per_second")


def model(folder, out, words):
    """Copy a model folder: weights in bfloat16, nothing of where it was trained, and its questions in words."""
    if out.exists():
        shutil.rmtree(out)
    with atomic_folder(out) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        halve_weights(made)
        lines = [json.loads(line) for line in words.read_text(encoding="utf-8").splitlines()]
        asked, known = letters.wordings(lines), read_json(made / certainty.FILE)
        for group in known["groups"]:
            [group["asked"]] = group["texts"]
            group["texts"] = asked[group["asked"]]
        # a list of findings is put together from the answers about each
        parts = {letters.OF[name]: finding.words for name, finding in FINDINGS.items()}
        known["groups"].append({"texts": asked[letters.OF["findings"]], "answers": None, "parts": parts})
        write_json(made / certainty.FILE, known, indent=1)
        forget_machine(made)
    _, _, tokenizer, _ = model_folder.load_model(out, "cpu")  # as whoever asks it would
    certainty.read_certainty(out, tokenizer.vocab_size)


def halve_weights(folder):
    """Store the weights of a model folder in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in (folder / "ecg_rows.safetensors", folder / "base" / "model.safetensors"):
        halved = {name: value.to(torch.bfloat16) for name, value in load_file(path).items()}
        save_file(halved, path, {"format": "pt"})


def forget_machine(folder):
    """Remove the paths of the training machine from ecgbyte.json, and describe the files as they are now."""
    about = read_json(folder / "ecgbyte.json")
    about["qa"] = Path(about["qa"]).name
    about["settings"] = {k: v for k, v in about["settings"].items() if k not in ("base", "tokens")}
    about["result"] = {key: about["result"][key] for key in TRAINED}
    about["files"] = folder_checks.file_checksums(folder)
    write_json(folder / "ecgbyte.json", about, indent=1)


def card(folder, scores, others=None):
    """Keep the scores in metrics.json, and write the card."""
    kept = {
        name: {key: found["result"].get(key) for key in KEPT}
        for name, found in (("fold_10", read_json(scores)), ("other_hospitals", others and read_json(others)))
        if found
    }
    if others:
        kept["other_hospitals"]["rhythm"] = rhythms(others.with_name("answers.jsonl"))
    for found in kept.values():  # of a control the card says the score alone
        found["control"] = {name: control["exact_match"] for name, control in found["control"].items()}
    write_json(folder / "metrics.json", kept, indent=1)
    (folder / "README.md").write_text(text(folder), encoding="utf-8")


def rhythms(answers):
    """How many rhythms are right, and of how many; where a recording has several codes, one of them is enough."""
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if line["type"] == "rhythm-query"]
    return sum(line["answer"] in line["truth"].split("; ") for line in asked), len(asked)


def text(folder):
    """The card of a model folder, from its metrics.json, ecgbyte.json and ecg_tokenizer.json."""
    scores, said = read_json(folder / "metrics.json"), read_json(folder / "ecgbyte.json")
    found, trained = scores["fold_10"], said["result"]
    signal = read_json(folder / "ecg_tokenizer.json")["signal"]
    areas = [found["auroc"][name] for name in FINDINGS]
    rhythm = found["balanced"]["rhythm-query"]
    counts = {answer: sum(row.values()) for answer, row in rhythm["confusion"].items()}
    often = [answer for answer, count in counts.items() if count >= 10]
    surest = dict(found["coverage"])
    lines = [
        "# ptbxl: the ECG language model that comes with ecgbyte",
        "",
        f"**{model_folder.NOTICE}**",
        "",
        f"A decoder of {trained['trainable_parameters'] / 1e6:.2f} million parameters, trained from scratch on "
        "questions about real recordings: eighteen findings, yes or no, and the rhythm. It reads "
        f"{len(signal['leads'])} leads ({', '.join(signal['leads'])}), "
        f"{signal['segment_seconds']:g} s at {signal['fs']:g} Hz.",
        "",
        "## Data, and what is owed to whom",
        "",
        "Trained on a part of PTB-XL 1.0.3 (2,980 of its 21,799 recordings, Schiller devices, one centre in Germany, "
        "1989 to 1996): P. Wagner, N. Strodthoff, R.-D. Bousseljot, W. Samek, T. Schaeffer, PTB-XL, a large publicly "
        "available electrocardiography dataset, PhysioNet 2022, licensed under CC BY 4.0. The weights are derived from "
        "it and are under CC BY 4.0 too; the changes are those of `examples/train_ptbxl.sh`, which made them. "
        "Questions and answers come from its table (`ecgbyte questions`). Splits are by patient, as its "
        "authors advise: folds 1 to 8 trained, fold 9 chose the step of each training and calibrated, fold 10 "
        "was scored for this model and, before it, for three given up: one trained on many words after letters "
        "(mean AUROC 0.761 there), one before the rhythm was trained for itself (0.904, and 43 % of rhythms), and one "
        "before all was trained once more from a high learning rate (0.907, and 61.7 %).",
        "",
        "## Fold 10",
        "",
        f"{found['questions']:,} questions about recordings of {found['patients']} patients. Exact match "
        f"{found['exact_match']:.1f} % ({interval(found['interval'])}), "
        + ", ".join(f"{name} {score:.1f}" for name, score in found["control"].items())
        + f"; better than the best control ({found['best_control']}) by {found['difference']:.1f} points "
        f"({interval(found['difference_interval'])}).",
        "",
        f"Mean area under the ROC curve of P(yes) over the {len(areas)} findings: {sum(areas) / len(areas):.3f}.",
        "",
        "| finding | AUROC | 95 % interval |",
        "| --- | ---: | ---: |",
        *(
            f"| {finding.words} | {found['auroc'][name]:.3f} | "
            + interval(found["auroc_intervals"][name], 3)
            + " |"
            for name, finding in FINDINGS.items()
        ),
        "",
        f"Rhythm, balanced accuracy over the {len(often)} with ten or more recordings: {rhythm['accuracy']:.1f} % "
        f"({interval(rhythm['interval'])}).",
        "",
        "| rhythm | questions | right, % |",
        "| --- | ---: | ---: |",
        *(
            f"| {answer} | {count} | {100 * rhythm['confusion'][answer].get(answer, 0) / count:.0f} |"
            for answer, count in counts.items()
        ),
        "",
        "## How sure it is",
        "",
        f"Calibration error of yes and no on fold 10: {found['calibration_error']:.3f}. Of all answers "
        f"{surest[100]:.1f} % are right, of the surest 70 % {surest[70]:.1f} %, of the surest 50 % {surest[50]:.1f} %. "
        f"It says to be sure of {found['sure']['share']:.0f} %, of which {found['sure']['right']:.1f} % are right.",
        "",
    ]
    if "other_hospitals" in scores:
        other = scores["other_hospitals"]
        lines += [
            "## Other hospitals",
            "",
            f"{other['patients']} recordings of three other sources of the PhysioNet/CinC Challenge 2021, against the "
            f"codes in their headers: rhythm right in {other['rhythm'][0]} of {other['rhythm'][1]}, all "
            f"{other['questions']} questions {other['exact_match']:.1f} % ({interval(other['interval'])}; best control "
            f"{other['best_control']}, {other['control'][other['best_control']]:.1f} %).",
            "",
        ]
    lines += [
        "## What it is for, and what not",
        "",
        "To try ecgbyte on a recording of one's own without training anything, to teach, and to start a training from. "
        "Not for any decision about a patient.",
        "",
        "- It sees three leads. What shows in others alone (posterior or high lateral infarction, the axis) it can "
        "only guess from these.",
        "- Letters cut off what is above or below the range that most recordings stay in, so that heights of large "
        "complexes are not seen whole.",
        "- Rare findings had a handful of examples; those with fewer than ten in a fold have wide intervals above.",
        "- It answers these questions, in several wordings each, and says of others that it was not trained on them.",
        "- A list of the findings is put together from its answers about each of the eighteen, not asked for as such.",
        "- Children, pacemakers of today and devices with other filters were rare or absent. A recording that is "
        "unlike those of the training is said to be; one that is not said to be may still be read wrongly.",
    ]
    return "\n".join(lines) + "\n"


def interval(bounds, digits=1):
    """The bounds of an interval in words."""
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"model": model, "card": card}[what](*map(Path, paths))
