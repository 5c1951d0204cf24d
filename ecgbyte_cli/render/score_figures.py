"""Figures of scores: ROC curves and reliability, one panel per finding."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ecgbyte_cli.render.figures import COLOURS, INK, LITERAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5  # panels side by side
BINS = 10  # bins of the reliability diagram


class ScoredFinding(Protocol):
    """A finding with its probabilities and true labels."""

    @property
    def name(self) -> str: ...

    @property
    def probability(self) -> np.ndarray: ...

    @property
    def truth(self) -> np.ndarray: ...


def plot_roc(findings: Sequence[ScoredFinding], aurocs: Sequence[float | None]) -> "Figure":
    """Draw the ROC curve of each finding, with its AUROC.

    Parameters
    ----------
    findings : list
        Findings without a yes or without a no get an empty panel.
    aurocs : list of float or None
    """
    areas = {one.name: area for one, area in zip(findings, aurocs, strict=True)}

    def draw(axes: "Axes", one: ScoredFinding) -> None:
        area = areas[one.name]
        axes.set_title(one.name if area is None else f"{one.name}  {area:.3f}", fontsize=8, **LITERAL)
        if area is not None:
            axes.plot(*roc_points(one.probability, one.truth), color=COLOURS[0], linewidth=1.2)

    return _panels(findings, draw, "1 - specificity", "sensitivity")


def roc_points(probability: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - specificity and sensitivity at every threshold, starting with the strictest."""
    order = np.argsort(-probability, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probability[order])), len(order) - 1)
    hits = np.cumsum(truth[order])[ends] / truth.sum()
    false = np.cumsum(~truth[order])[ends] / (~truth).sum()
    return np.append(0.0, false), np.append(0.0, hits)


def plot_reliability(findings: Sequence[ScoredFinding]) -> "Figure":
    """Plot the share of present findings against the probability, in ten bins with equal numbers of recordings."""

    def draw(axes: "Axes", one: ScoredFinding) -> None:
        axes.set_title(f"{one.name}  {int(one.truth.sum())}/{len(one.truth)}", fontsize=8, **LITERAL)
        bins = np.array_split(np.argsort(one.probability, kind="stable"), min(BINS, len(one.truth)))
        predicted = [one.probability[some].mean() for some in bins]
        present = [one.truth[some].mean() for some in bins]
        axes.plot(predicted, present, "o-", color=COLOURS[1], linewidth=1, markersize=3)

    return _panels(findings, draw, "probability", "share present")


def _panels(
    findings: Sequence[ScoredFinding], draw: Callable[["Axes", ScoredFinding], None], x: str, y: str
) -> "Figure":
    """Draw a square panel from 0 to 1 for each finding, with its diagonal."""
    from matplotlib.figure import Figure

    rows = -(-len(findings) // COLUMNS)
    columns = min(COLUMNS, len(findings))
    figure = Figure(figsize=(1.9 * columns + 0.6, 2.1 * rows + 0.6), layout="constrained")
    for number, one in enumerate(findings):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.5, linestyle=":")
        draw(axes, one)
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal"
        )
        axes.tick_params(labelsize=6)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return figure
