"""Tables and lines of text from the results of `metrics` and `reliability`."""

from collections.abc import Sequence
from typing import Any

Row = list[str]


def score_columns(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of a result by name: the signal, then each control."""
    return {"signal": result, **result["control"]}


def score_rows(result: dict[str, Any]) -> tuple[Row, list[Row]]:
    """Return the header of a result's table, and a row for each question type, for all, and for the interval.

    The last column is the signal's score minus the row's best control. With type names of up to 15 letters the
    table fits the 80 columns of a pipe.
    """
    scores = score_columns(result)
    header = ["questions", *scores]
    lines = [[kind, *(f"{s['by_type'][kind]:.1f}" for s in scores.values())] for kind in result["by_type"]]
    lines.append(["all", *(f"{s['exact_match']:.1f}" for s in scores.values())])
    lines.append(["95 % interval", *("{:.0f}-{:.0f}".format(*s["interval"]) for s in scores.values())])
    if result["control"]:
        header.append("gain")
        for line, kind in zip(lines, result["by_type"], strict=False):
            line.append(f"{result['difference_by_type'][kind]:+.1f}")
        lines[-2].append(f"{result['difference']:+.1f}")
        lines[-1].append("{:.0f} to {:.0f}".format(*result["difference_interval"]))
    return header, lines


def headline(result: dict[str, Any]) -> str:
    """Return a line with the gain of the signal over the best control."""
    if not result["control"]:
        return f"exact match {result['exact_match']:.1f} %, without controls: it may not need the signal"
    low, high = result["difference_interval"]
    return (
        f"signal minus best control ({result['best_control']}): {result['difference']:.1f} points, "
        f"95 % interval {low:.1f} to {high:.1f} ({result['patients']} patients)"
    )


def text_score_line(result: dict[str, Any]) -> str:
    """Return a line with the scores that compare texts, and the F1 of label sets."""
    names = {
        "bleu": "BLEU-4 (sacrebleu)",
        "bleu_nltk": "BLEU-4 (nltk)",
        "rouge_l": "ROUGE-L",
        "meteor": "METEOR",
        "bertscore": "BERTScore F1",
    }
    known = [f"{names[k]} {result[k]:.1f}" for k in names if result.get(k) is not None]
    if "meteor_missing" in result:
        known.append(f"no METEOR ({result['meteor_missing']})")
    macro = [f"macro F1 of {kind} {scores['macro_f1']:.1f}" for kind, scores in result["labels"].items()]
    return ", ".join([f"F1 of answer sets {result['set_f1']:.1f}", *macro, *known])


def metrics_markdown(result: dict[str, Any], title: str) -> str:
    """Return the table, the headline and the other scores as Markdown."""
    header, lines = score_rows(result)
    attributes = [f"{name} {value:.1f}" for name, value in result["by_attribute"].items()]
    return "\n".join(
        [f"# {title}", "", markdown_table(header, lines), ""]
        + [headline(result), "", text_score_line(result), ""]
        + ([f"Exact match by attribute: {', '.join(attributes)}", ""] if attributes else [])
    )


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown, its numbers on the right."""
    grid = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in grid)


def seed_table(summary: dict[str, Any]) -> tuple[list[Row], tuple[str, ...]]:
    """Return the rows and the header of a table of `metrics.summarize_seeds`."""
    named = {**summary["by_type"], "all": summary["exact_match"]}
    if "difference" in summary:
        named["gain"] = summary["difference"]
    lines = [
        [
            name,
            f"{of['mean']:.1f}",
            "{:.1f} to {:.1f}".format(*of["interval"]),
            ", ".join(f"{v:.1f}" for v in of["values"]),
        ]
        for name, of in named.items()
    ]
    return lines, ("questions", "mean", "95 %", "each")


def reliability_lines(result: dict[str, Any]) -> list[str]:
    """Return the scores of `reliability` in a result, a line each."""
    lines = []
    if "auroc" in result:
        low, high = result["mean_auroc_interval"]
        lines.append(
            f"AUROC of P(yes), mean of {result['mean_of']}: {result['mean_auroc']:.3f} ({low:.3f} to {high:.3f})"
        )
    if "calibration_error" in result:
        lines.append(f"calibration error of yes/no answers: {result['calibration_error']:.3f}")
    if "coverage" in result:
        shares = ", ".join(
            f"{right:.1f} % of the surest {step} %"
            for step, right in result["coverage"]
            if step in (100, 70, 50)
        )
        sure = result["sure"]
        of_sure = f", {sure['right']:.1f} % of these right" if sure["right"] is not None else ""
        lines.append(f"right: {shares}; marked as sure: {sure['share']:.0f} %{of_sure}")
    for kind, of in result["balanced"].items():
        low, high = of["interval"]
        lines.append(
            f"balanced accuracy of {kind}: {of['accuracy']:.1f} % ({low:.1f} to {high:.1f}; "
            f"{len(of['recall'])} answers)"
        )
    return lines


def confusion_tables(result: dict[str, Any]) -> str:
    """Return the confusion matrix of each question type with few labels, as Markdown."""
    tables = []
    for kind, of in result["balanced"].items():
        answers = list(
            dict.fromkeys([*of["confusion"], *(a for row in of["confusion"].values() for a in row)])
        )
        head = [f"| {kind}: truth | {' | '.join(answers)} |", "| --- |" + " ---: |" * len(answers)]
        rows = [
            f"| {truth} | {' | '.join(str(row.get(answer, 0)) for answer in answers)} |"
            for truth, row in of["confusion"].items()
        ]
        tables.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(tables)
