"""Write the scores of findings as a table and pictures, and show them on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.evaluation.promises import fewest_answers
from ecgbyte_cli.storage.row_table import Row, row_writer

COLUMNS: dict[str, type] = {
    **{
        "finding": str,
        "words": str,
        "recordings": int,
        "patients": int,
        "positives": int,
        "prevalence": float,
    },
    **{"auroc": float, "auroc_low": float, "auroc_high": float, "answered": float},
    **dict.fromkeys(("true_positives", "false_positives", "true_negatives", "false_negatives"), int),
    **dict.fromkeys(("sensitivity", "specificity"), float),
    **dict.fromkeys(("positive_predictive_value", "negative_predictive_value"), float),
    **dict.fromkeys(("calibration_error", "brier", "log_loss"), float),
}
FEW = 5  # labels yes, or no, below which an AUROC gets a warning
SITE_HEADER = ("finding", "patients", "yes", "yes from", "wrong", "no up to", "wrong ", "answered")
HEADER = ("finding", "yes/all", "AUROC", "95 %", "sens", "spec", "PPV", "NPV", "unsure", "ECE")


def score_files(out: Path) -> dict[str, Path]:
    """Return the paths of the scores next to a table: `scores`, `roc` and `reliability`."""
    endings = {"scores": "scores.csv", "roc": "roc.png", "reliability": "reliability.png"}
    return {name: out.with_name(f"{out.name}.{ending}") for name, ending in endings.items()}


def write_scores(out: Path, labelled: Sequence[LabelledFinding], scores: Mapping[str, Any]) -> None:
    """Write the scores of `score_findings` next to a table, with pictures of ROC curves and reliability."""
    from ecgbyte_cli.render.figures import save_figure
    from ecgbyte_cli.render.score_figures import plot_reliability, plot_roc

    files = score_files(out)
    with row_writer(files["scores"], COLUMNS) as write:
        for name, one in scores["findings"].items():
            low, high = one["auroc_interval"] or (None, None)
            row: Row = {"finding": name, "auroc_low": low, "auroc_high": high}
            write([row | {key: value for key, value in one.items() if key in COLUMNS}])
    save_figure(plot_roc(labelled, [scores["findings"][one.name]["auroc"] for one in labelled]), files["roc"])
    save_figure(plot_reliability(labelled), files["reliability"])


def score_lines(scores: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of a table on the terminal, under `HEADER`."""

    def text(value: float | None, form: str = ".2f") -> str:
        return "–" if value is None else f"{value:{form}}"

    lines = []
    for name, one in scores["findings"].items():
        low, high = one["auroc_interval"] or (None, None)
        between = "–" if low is None or high is None else f"{low:.2f}-{high:.2f}"
        shares = ("sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value")
        lines.append(
            (
                *(name, f"{one['positives']}/{one['recordings']}", text(one["auroc"], ".3f"), between),
                *(text(one[key]) for key in shares),
                *(f"{100 * (1 - one['answered']):.0f} %", text(one["calibration_error"])),
            )
        )
    return lines


def mean_line(scores: Mapping[str, Any]) -> str:
    """Return the mean AUROC in a line."""
    if scores["mean_auroc"] is None:
        return "no finding has both a yes and a no: there is no AUROC"
    low, high = scores["mean_auroc_interval"]
    return f"mean AUROC of {scores['mean_of']} findings: {scores['mean_auroc']:.3f} ({low:.3f} to {high:.3f})"


def few_line(scores: Mapping[str, Any]) -> str:
    """Return a warning about AUROCs from few recordings; empty if there are none."""
    few = [
        name
        for name, one in scores["findings"].items()
        if one["auroc"] is not None and min(one["positives"], one["recordings"] - one["positives"]) < FEW
    ]
    return f"AUROC from fewer than {FEW} yes or {FEW} no, so unreliable: {', '.join(few)}" if few else ""


def site_lines(details: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of the table of a calibration, under `SITE_HEADER`."""

    def side(promise: Mapping[str, Any] | None) -> tuple[str, str]:
        if promise is None:
            return "–", "no promise"
        return f"{promise['threshold']:.2g}", f"{promise['errors']} of {promise['answered']}"

    return [
        (
            *(name, str(one["patients"]), str(one["positives"])),
            *(*side(one["yes"]), *side(one["no"]), f"{100 * one['answered']:.0f} %"),
        )
        for name, one in details.items()
    ]


def promise_lines(settings: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe the guarantees of a calibration in sentences."""
    limit, confidence = settings["max_error"], settings["confidence"]
    share, sure = f"{100 * limit:g} %", f"{100 * confidence:g} %"
    lines = [
        f"If a threshold is shown, at most {share} of the answers are wrong, with {sure} confidence for each "
        "finding and answer separately. Everything else is unsure."
    ]
    without = [name for name, one in details.items() if one["yes"] is None and one["no"] is None]
    if without:
        lines.append(
            f"No promise, so always unsure: {', '.join(without)}. At {share}, a promise needs "
            f"{fewest_answers(limit, confidence)} patients answered without an error, or more with some."
        )
    return lines


def score_keys(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores for `--json`: `auroc`, `sensitivity` and others by finding."""
    return {
        **{
            key: {name: one[key] for name, one in scores["findings"].items()}
            for key in ("auroc", "auroc_interval", "sensitivity", "specificity")
        },
        **{key: scores[key] for key in ("mean_auroc", "mean_auroc_interval")},
        "scores": scores["findings"],
    }
