"""Picture of the median beat of each lead, with the measured boundaries of P, QRS and T."""

from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.render.figures import (
    COLOURS,
    INK,
    LITERAL,
    MM_PER_MV,
    MM_PER_S,
    SHEET,
    _extent,
    _paper,
    _stack,
    _text_outline,
)
from ecgbyte_cli.render.measured_facts import interval_facts
from ecgbyte_cli.signal.measurement import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 5.0  # mm between two beats
COLUMNS = 4
WAVES = (  # name, boundaries, colour; T has a peak and an end, but no onset
    ("P", ("p_onset", "p_offset"), COLOURS[0]),
    ("QRS", ("qrs_onset", "qrs_offset"), COLOURS[1]),
    ("T", ("t_peak", "t_offset"), COLOURS[2]),
)


def plot_beat(measurement: Measurement, title: str) -> "Figure":
    """Draw the median beats of a measurement on ECG paper.

    Parameters
    ----------
    measurement : Measurement
        Must contain a median beat.
    title : str

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    Failure
        If nothing could be measured.
    """
    if measurement.median_beat is None:
        raise Failure(
            f"{printable(title)} has no median beat: {measurement.reasons or 'nothing was measured'}"
        )
    beats = dict(zip(measurement.median_leads, measurement.median_beat, strict=True))
    rows = _rows(list(beats))
    extents = [_extent(*(beats[lead] for lead in row), least=7) for row in rows]
    baselines, height = _stack(extents, gap=5)
    x = (measurement.median_times - measurement.median_times[0]) / 1000 * MM_PER_S
    cell = np.ceil(x[-1] / 5) * 5 + GAP
    figure, axes = _paper(cell * max(map(len, rows)), height, left=5, scale=2)
    for row, y, extent in zip(rows, baselines, extents, strict=True):
        for column, lead in enumerate(row):
            left = column * cell
            _draw_boundaries(axes, measurement, left, y, extent)
            axes.plot(x + left, beats[lead] * MM_PER_MV + y, color=INK, lw=1.2, solid_joinstyle="round")
            axes.text(
                left,
                y + extent[1] + 0.5,
                printable(lead),
                fontsize=10,
                weight="bold",
                color=INK,
                **_text_outline(),
                **LITERAL,
            )
    axes.set_xticks([])
    heading = f"{printable(title)}: median of {int(measurement.dominant.sum())} of {measurement.beats} beats"
    axes.set_title(f"{heading}, 25 mm/s, 10 mm/mV", loc="left", fontsize=10, **LITERAL)
    values = "   ".join(f"{name} {text}" for name, text in interval_facts(measurement).items())
    axes.set_xlabel(
        f"{values}\nshaded: P and QRS, from onset to offset; T, from its peak to its end. Research use only.",
        fontsize=9, loc="left", **LITERAL,
    )  # fmt: skip
    return figure


def _rows(leads: list[str]) -> list[list[str]]:
    """Return the leads as on the standard sheet, or four per row in recorded order."""
    if all(lead in leads for row in SHEET for lead in row):
        others = [lead for lead in leads if not any(lead in row for row in SHEET)]
        return [*map(list, SHEET), *_rows_of_four(others)]
    return _rows_of_four(leads)


def _rows_of_four(leads: list[str]) -> list[list[str]]:
    return [leads[i : i + COLUMNS] for i in range(0, len(leads), COLUMNS)]


def _draw_boundaries(
    axes: "Axes", measurement: Measurement, left: float, y: float, extent: tuple[float, float]
) -> None:
    """Shade the measured waves of one beat, with a line at each boundary."""
    low, high = y + extent[0], y + extent[1]
    for name, bounds, colour in WAVES:
        if not all(bound in measurement.boundaries for bound in bounds):
            continue
        start, end = (
            left + (measurement.boundaries[bound] - measurement.median_times[0]) / 1000 * MM_PER_S
            for bound in bounds
        )
        axes.fill_between([start, end], low, high, color=colour, alpha=0.12, lw=0)
        axes.vlines([start, end], low, high, color=colour, lw=0.8, linestyle="--")
        axes.text((start + end) / 2, low, name, fontsize=7, color=colour, ha="center", va="top")
