"""The card of the included model: its scores, and the text that names them."""

from pathlib import Path
from typing import Any

from ptbxl_benchmark import PUBLISHED

from ecgbyte_cli.model import model_folder
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.storage.files import read_json

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
AT_POINT = ("recordings", "positives", "sensitivity", "specificity")
AT_POINT += ("positive_predictive_value", "negative_predictive_value")
OFTEN = 10  # recordings of a rhythm whose recall counts
Scores = dict[str, Any]


def kept_scores(
    fold_10: Scores, benchmark: Scores, leads: Scores, rates: Scores, elsewhere: Scores
) -> Scores:
    """Return what metrics.json keeps of the files that `ecgbyte generate` and the scripts here wrote."""
    found = fold_10["result"]
    kept = {key: found[key] for key in KEPT}
    kept["control"] = {name: control["exact_match"] for name, control in found["control"].items()}
    kept["balanced"] = {"rhythm": found["balanced"]["rhythm"]}
    kept["at_point"] = {name: {key: found["findings"][name][key] for key in AT_POINT} for name in FINDINGS}
    tasks = {
        name: {"auroc": task["auroc"], "labels": len(task["labels"]), "recordings": task["recordings"]}
        for name, task in benchmark["tasks"].items()
    }
    sets = {
        name: {"auroc": one["mean_auroc"], "rhythm": one["rhythm"]} for name, one in leads["sets"].items()
    }
    fast, slow = (rates[rate]["mean_auroc"] for rate in ("500", "100"))
    return {
        "fold_10": kept,
        "benchmark": tasks,
        "leads": sets,
        "rates": {"letters_equal": rates["letters_equal"], "500": fast, "100": slow},
        "elsewhere": elsewhere,
    }


def card_text(folder: Path) -> str:
    """Return the card of a model folder, from its metrics.json, ecgbyte.json and ecg_tokenizer.json."""
    scores, trained = read_json(folder / "metrics.json"), read_json(folder / "ecgbyte.json")["result"]
    signal = read_json(folder / "ecg_tokenizer.json")["signal"]
    lines = [
        "# ptbxl: the ECG language model that comes with ecgbyte",
        "",
        f"**{model_folder.NOTICE}**",
        "",
        f"A decoder of {trained['trainable_parameters'] / 1e6:.2f} million parameters, trained from scratch on real "
        "recordings. It answers 95 questions: all statements of PTB-XL, their classes and the eighteen findings below "
        "(yes or no), the rhythm, the heart axis and the stage of an infarction. It reads any of the leads "
        f"{', '.join(signal['leads'])}, {signal['segment_seconds']:g} s at {signal['fs']:g} Hz; III, aVR, aVL and aVF "
        "follow from I and II.",
        "",
        "## Data and attribution",
        "",
        "Trained on folds 1 to 8 of PTB-XL 1.0.3 (17,418 of its 21,799 recordings, Schiller devices, one centre in "
        "Germany, 1989 to 1996): P. Wagner, N. Strodthoff, R.-D. Bousseljot, W. Samek, T. Schaeffer, PTB-XL, a large "
        "publicly available electrocardiography dataset, PhysioNet 2022, licensed under CC BY 4.0. The weights are "
        "derived from it and are under CC BY 4.0 too; `examples/train_ptbxl.sh` made them. Splits are by patient, as "
        "its authors advise. Fold 9 was for choices and calibration. Fold 10 and the other hospitals below were scored "
        "three times. The first model found no left ventricular hypertrophy in LUDB, and was trained further twice: "
        "with less variation of the voltage, then with electrodes that lie elsewhere. Each was chosen on fold 9.",
        "",
        *_fold_10(scores["fold_10"]),
        *_benchmark(scores["benchmark"]),
        *_leads(scores["leads"], scores["rates"]),
        *_elsewhere(scores["elsewhere"]),
        "## What it is for, and what not",
        "",
        "To try ecgbyte on a recording of your own without training anything, to teach, and to start a training from. "
        "Not for any decision about a patient.",
        "",
        "- Probabilities are calibrated on PTB-XL, fold 9. At another hospital they are off until `ecgbyte findings "
        "--calibrate` has seen labels from there.",
        f"- {_at_ludb(scores['elsewhere']['ludb'])}",
        "- Rare findings had few examples; their intervals above are wide.",
        "- It answers these questions, in several wordings each, and says of others that it was not trained on them.",
        "- A list of the findings is put together from its answers about each.",
        "- Children, pacemakers of today and devices with other filters were rare or absent. A recording "
        "unlike the training data is flagged; one that is not flagged may still be read wrongly.",
    ]
    return "\n".join(lines) + "\n"


def _fold_10(found: Scores) -> list[str]:
    areas = [found["auroc"][name] for name in FINDINGS]
    rhythm, surest = found["balanced"]["rhythm"], dict(found["coverage"])
    counts = {answer: sum(row.values()) for answer, row in rhythm["confusion"].items()}
    often = sum(count >= OFTEN for count in counts.values())
    controls = ", ".join(f"{name} {score:.1f}" for name, score in found["control"].items())
    return [
        "## Fold 10",
        "",
        f"{found['questions']:,} questions about recordings of {found['patients']:,} patients: the eighteen findings "
        f"and the rhythm. Exact match {found['exact_match']:.1f} % ({interval(found['interval'])}), {controls}; better "
        f"than the best control ({found['best_control']}) by {found['difference']:.1f} points "
        f"({interval(found['difference_interval'])}).",
        "",
        f"Mean area under the ROC curve of P(yes) over the {len(areas)} findings: {sum(areas) / len(areas):.3f}. "
        "Sensitivity, specificity and predictive values (PPV, NPV) are those of the answers yes and no. The "
        "answer is yes at or above the threshold with the largest F1 on fold 9. Answers near it are `unsure` and left "
        "out.",
        "",
        "| finding | yes of | AUROC | 95 % interval | sensitivity | specificity | PPV | NPV |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_finding_row(found, name) for name in FINDINGS),
        "",
        f"Rhythm, balanced accuracy over the {often} with ten or more recordings: {rhythm['accuracy']:.1f} % "
        f"({interval(rhythm['interval'])}).",
        "",
        "| rhythm | questions | right, % |",
        "| --- | ---: | ---: |",
        *(
            f"| {answer} | {count} | {100 * rhythm['confusion'][answer].get(answer, 0) / count:.0f} |"
            for answer, count in counts.items()
        ),
        "",
        f"Calibration error of yes and no: {found['calibration_error']:.3f}. Of all answers {surest[100]:.1f} % are "
        f"right, of the surest 70 % {surest[70]:.1f} %, of the surest 50 % {surest[50]:.1f} %. It says to be sure of "
        f"{found['sure']['share']:.0f} %, of which {found['sure']['right']:.1f} % are right.",
        "",
    ]


def _finding_row(found: Scores, name: str) -> str:
    point = found["at_point"][name]
    rates = ["" if point[key] is None else f"{point[key]:.2f}" for key in AT_POINT[2:]]
    area = f"{found['auroc'][name]:.3f} | {interval(found['auroc_intervals'][name], 3)}"
    yes = f"{point['positives']:,} of {point['recordings']:,}"
    return f"| {FINDINGS[name].words} | {yes} | {area} | {' | '.join(rates)} |"


def _benchmark(tasks: Scores) -> list[str]:
    return [
        "### Beside published results",
        "",
        "The six tasks of Strodthoff et al., Deep Learning for ECG Analysis: Benchmarks and Insights from PTB-XL, "
        "2021, with their labels and recordings of fold 10 (`examples/experiments/ptbxl_benchmark.py`); macro "
        "AUROC, beside the best of their networks, which are trained for each task and read 12 leads.",
        "",
        "| task | labels | recordings | this model | best published there |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {one['labels']} | {one['recordings']:,} | {one['auroc']:.3f} | {PUBLISHED[name]:.3f} |"
            for name, one in tasks.items()
        ),
        "",
    ]


def _leads(sets: Scores, rates: Scores) -> list[str]:
    return [
        "### By leads, and by sampling rate",
        "",
        "| leads | mean AUROC, 18 findings | rhythm, balanced accuracy, % |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {one['auroc']:.3f} | {100 * one['rhythm']:.0f} |" for name, one in sets.items()),
        "",
        f"The same recordings of fold 9 at 500 Hz and at 100 Hz: {100 * rates['letters_equal']:.1f} % of the letters "
        f"are equal, and the mean AUROC is {rates['500']:.3f} and {rates['100']:.3f}.",
        "",
    ]


def _elsewhere(hospitals: Scores) -> list[str]:
    ludb, others = hospitals["ludb"], hospitals["cinc2021"]
    rows = [
        ("recordings", lambda one: str(one["recordings"])),
        ("findings with five positives or more", lambda one: str(len(one["findings"]))),
        ("mean AUROC over these", lambda one: f"{one['mean_auroc']:.3f}"),
        ("their mean balanced accuracy, %", lambda one: f"{100 * one['balanced_accuracy']:.1f}"),
        ("exact match, %", lambda one: f"{one['exact_match']:.1f} ({interval(one['interval'])})"),
        (
            "majority answers of the training, %",
            lambda one: f"{one['majority']:.1f} ({interval(one['majority_interval'])})",
        ),
        ("gain over these, points", lambda one: f"{one['gain']:+.1f} ({interval(one['gain_interval'])})"),
        ("rhythm right, %", lambda one: f"{100 * one['rhythm']['accuracy']:.0f}"),
        ("rhythm, balanced accuracy, %", lambda one: f"{100 * one['rhythm']['balanced_accuracy']:.0f}"),
        ("always sinus rhythm, %", lambda one: f"{100 * one['rhythm']['always_sinus']:.0f}"),
        ("said to be unlike the training data", lambda one: str(one["unlike"])),
    ]  # fmt: skip
    return [
        "## Other hospitals",
        "",
        "Recordings that nothing was trained or tuned on (`examples/experiments/ptbxl_elsewhere.py`): a part of LUDB "
        "(Nizhny Novgorod; the cardiologists' diagnoses), and recordings of three other sources of the PhysioNet/CinC "
        "Challenge 2021 (codes in their headers). The thresholds are those of fold 9; an unsure answer counts by its "
        "nearer side.",
        "",
        "| | LUDB | CinC 2021 |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {show(ludb)} | {show(others)} |" for name, show in rows),
        "",
    ]


def _at_ludb(found: Scores) -> str:
    """What its answers are worth at another hospital, in a sentence."""
    low, high = found["gain_interval"]
    worth = "better than" if low > 0 else "worse than" if high < 0 else "not shown to be better than"
    hypertrophy = found["findings"]["lvh"]["sensitivity"]
    return (
        f"On LUDB its yes and no are {worth} always giving the majority answer, and it finds {100 * hypertrophy:.0f} % "
        "of the left ventricular hypertrophies."
    )


def interval(bounds: list[float], digits: int = 1) -> str:
    """The bounds of an interval in words."""
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"
