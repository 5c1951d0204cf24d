"""The ECG sheet as SVG text, for the page and for `ecgbyte plot ecg --out FILE.svg`.

One unit of the drawing is a millimetre of paper. Every section of a lead is a group `<g class="lead">` with data
attributes, so that a page can draw on it and a test can read it back:

- data-lead, data-start (s), data-seconds
- data-x, data-y: the position of its start and its baseline; data-top, data-bottom: the edges of its row
- data-baseline: the mV of the baseline, the lead's median over the section

The svg element itself has data-start, data-seconds, data-speed (mm/s), data-gain (mm/mV) and data-layout.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.render.figures import FINE, INK, PAPER, SHEET, STRONG
from ecgbyte_cli.render.measured_facts import sheet_line
from ecgbyte_cli.signal import preprocess

LAYOUTS = ("3x4", "6x2", "12x1")
SPEEDS, GAINS = (25, 50), (5, 10, 20)  # mm/s, mm/mV
LONGEST = 60.0  # s on one sheet
MOST_ROWS = 16
LEFT, MARGIN, ABOVE, BELOW = 15, 5, 10, 10  # mm around the leads; the calibration pulses are on the left
FURTHEST = 60.0  # mm from the baseline; samples farther away are drawn at this distance
_SPELLED: list[str] = []
FINEST = 0.05  # mm between two points; of closer points only the lowest and the highest are drawn
Span = tuple[str, float, float]  # lead, start and end in s


def drawable_leads(
    recording: readers.Recording, start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """Return the leads to draw from a part of a recording.

    Parameters
    ----------
    recording : Recording
    start : float
        s.
    seconds : float or None
        None means the rest.

    Returns
    -------
    signal : numpy.ndarray
        float32 (leads, samples), mV.
    names : list of str
        The twelve leads if they are recorded or can be derived from I and II, then the other leads.
    """
    part = recording.part(start, None if seconds is None else start + seconds)
    names = [readers.lead_name(name) or name for name in part.leads]
    try:
        twelve = preprocess.pick(part, preprocess.LEADS)
    except readers.Unusable:
        return part.signal, names
    others = [i for i, name in enumerate(names) if name not in preprocess.LEADS]
    return np.concatenate([twelve, part.signal[others]]), [*preprocess.LEADS, *(names[i] for i in others)]


def svg_sheet(
    recording: readers.Recording,
    start: float = 0.0,
    seconds: float = 10.0,
    layout: str = "3x4",
    speed: float = 25,
    gain: float = 10,
    leads: Sequence[str] | None = None,
    title: str | None = None,
) -> str:
    """Draw a part of a recording as SVG.

    Parameters
    ----------
    recording : Recording
        NaN samples are not drawn.
    start, seconds : float
        The part to draw, in s; it ends at the end of the recording.
    layout : {"3x4", "6x2", "12x1"}
        Rows by columns; 3x4 has a rhythm strip too. A layout with a missing lead becomes 12x1.
    speed, gain : float
        mm/s and mm/mV.
    leads : list of str or None
        Leads to draw, one below another; None means all leads from `drawable_leads`.
    title : str or None
        None means the recording's name.

    Raises
    ------
    Failure
        If the part, lead or layout does not exist.
    """
    title = recording.name if title is None else title
    _check_options(recording, title, start, seconds, layout, speed, gain)
    signal, names = drawable_leads(recording, start, seconds)
    missing = [lead for lead in leads or () if lead not in names]
    if missing:
        raise Failure(f"{title} has no lead {', '.join(missing)[:200]}: only {', '.join(names)}")
    places = {lead: names.index(lead) for lead in leads or names}
    layout, rows = _rows(places, seconds, "12x1" if leads else layout)
    cells = _cells(signal.astype(float), places, rows, recording.fs, gain, 10 if layout == "3x4" else 7)
    width = LEFT + 5 * math.ceil(seconds * speed / 5) + MARGIN
    height = 5 * math.ceil((cells[-1].bottom + BELOW) / 5)
    scale = f"{speed:g} mm/s   {gain:g} mm/mV"
    drawn = [_paper(width, height), _text("title", LEFT, 6, 4, title[:120])]
    drawn.append(_text("measured", LEFT, 9.5, 2.5, sheet_line(recording, start, seconds)))
    for cell in cells:
        drawn += _cell(cell, start, recording.fs, speed, gain)
    for second in range(int(seconds + 1e-9) + 1):
        x, text = LEFT + second * speed, f"{start + second:g} s"
        drawn.append(_text("time", x, height - 5, 2.5, text, 'text-anchor="middle"'))
    drawn.append(_text("scale", width - MARGIN, height - 1.5, 2.5, scale, 'text-anchor="end"'))
    label = _safe(f"ECG {title}: {', '.join(lead for row in rows for lead, _, _ in row)}; {scale}")
    length = min(seconds, recording.seconds - start)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" role="img" aria-label="{label}" '
        f'viewBox="0 0 {width} {height}" width="{width}mm" height="{height}mm" data-layout="{layout}" '
        f'data-start="{start:g}" data-seconds="{length:g}" data-speed="{speed:g}" '
        f'data-gain="{gain:g}" font-family="sans-serif" fill="{INK}">' + "".join(drawn) + "</svg>\n"
    )


def _check_options(
    recording: readers.Recording,
    title: str,
    start: float,
    seconds: float,
    layout: str,
    speed: float,
    gain: float,
) -> None:
    if layout not in LAYOUTS or speed not in SPEEDS or gain not in GAINS:
        raise Failure(
            f"a sheet is one of {', '.join(LAYOUTS)}, at {' or '.join(map(str, SPEEDS))} mm/s and "
            f"{', '.join(map(str, GAINS))} mm/mV"
        )
    samples = recording.signal.shape[1]
    if not (0 <= start and round(start * recording.fs) < samples and 0 < seconds <= LONGEST):
        raise Failure(
            f"{title} is {samples / recording.fs:g} s long: it has no part of {seconds:g} s at {start:g} s"
        )


class Stretch(NamedTuple):
    """A section of a lead in a row of the sheet."""

    lead: str
    start: float  # s from the first second of the sheet
    end: float
    first: int  # its first sample
    values: np.ndarray  # mm above the baseline
    baseline: float  # mV


class Cell(NamedTuple):
    """A row of the sheet, mm from the top."""

    top: float
    base: float
    bottom: float
    stretches: list[Stretch]


def _cells(
    signal: np.ndarray, places: dict[str, int], rows: list[list[Span]], fs: float, gain: float, least: int
) -> list[Cell]:
    """Lay out rows, each as tall as its leads need, and at least `least` mm above the baseline."""
    with np.errstate(all="ignore"):
        medians = [float(np.nanmedian(row)) if np.isfinite(row).any() else 0.0 for row in signal]
    cells, y = [], float(ABOVE)
    for row in rows:
        stretches = []
        for lead, a, b in row:
            first, stop = math.ceil(a * fs - 1e-6), math.ceil(b * fs - 1e-6)
            baseline = medians[places[lead]]
            values = np.clip((signal[places[lead], first:stop] - baseline) * gain, -FURTHEST, FURTHEST)
            stretches.append(Stretch(lead, a, b, first, values, baseline))
        every = np.concatenate([part.values[np.isfinite(part.values)] for part in stretches])
        above = max(least, math.ceil(every.max(initial=0)) + 5)  # with room for the name
        below = max(least - 3, math.ceil(-every.min(initial=0)) + 1)
        cells.append(Cell(y, y + above, y + above + below, stretches))
        y += above + below
    return cells


def _cell(cell: Cell, start: float, fs: float, speed: float, gain: float) -> Iterator[str]:
    """Yield the elements of a row: the calibration pulse, and a group for each section."""
    base = cell.base
    yield (
        f'<path class="pulse" fill="none" stroke="{INK}" stroke-width=".3" data-mv="1" data-seconds="0.2" '
        f'd="M{LEFT - 12} {base:g}h2v{-gain:g}h{0.2 * speed:g}v{gain:g}h2"/>'
    )
    for lead, a, b, first, values, baseline in cell.stretches:
        x = LEFT + a * speed
        trace = _path(LEFT + (first + np.arange(len(values))) * (speed / fs), base - values)
        yield (
            f'<g class="lead" data-lead="{_safe(lead)}" data-start="{start + a:g}" '
            f'data-seconds="{b - a:g}" data-x="{x:g}" data-y="{base:g}" data-top="{cell.top:g}" '
            f'data-bottom="{cell.bottom:g}" data-baseline="{baseline:.4g}">'
            f'<path class="trace" fill="none" stroke="{INK}" stroke-width=".25" stroke-linejoin="round" d="{trace}"/>'
        )
        if a:
            yield f'<path class="part" stroke="{INK}" stroke-width=".25" d="M{x:g} {base - 4:g}v8"/>'
        yield _text("name", x + 1, cell.top + 4, 3.5, lead[:40], 'font-weight="bold"') + "</g>"


def svg_thumbnail(recording: readers.Recording, seconds: float = 4.0) -> str:
    """Draw the first seconds of lead II, or of the first lead, small: SVG of 60 by 16 mm."""
    signal, leads = drawable_leads(recording, 0, seconds)
    fs, row = recording.fs, signal[leads.index("II") if "II" in leads else 0].astype(float)
    row = row - (np.nanmedian(row) if np.isfinite(row).any() else 0)
    scale = 6 / max(np.nanmax(np.abs(row), initial=0), 0.5) if np.isfinite(row).any() else 1
    d = _path(np.arange(len(row)) * (60 / (seconds * fs)), 8 - row * scale, finest=0.2)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 60 16" width="60mm" height="16mm">'
        f'<rect width="60" height="16" fill="{PAPER}"/>'
        f'<path fill="none" stroke="{INK}" stroke-width=".4" stroke-linejoin="round" d="{d}"/></svg>\n'
    )


def _rows(places: dict[str, int], seconds: float, layout: str) -> tuple[str, list[list[Span]]]:
    """Return the layout that the leads allow, and its rows."""
    limbs, chest = preprocess.LEADS[:6], preprocess.LEADS[6:]
    if all(lead in places for lead in (*limbs, *chest)) and layout != "12x1":
        columns = SHEET if layout == "3x4" else tuple(zip(limbs, chest, strict=True))
        wide = seconds / len(columns[0])
        rows = [[(lead, i * wide, (i + 1) * wide) for i, lead in enumerate(row)] for row in columns]
        return layout, rows + ([[("II", 0.0, seconds)]] if layout == "3x4" else [])
    return "12x1", [[(lead, 0.0, seconds)] for lead in list(places)[:MOST_ROWS]]


def _paper(width: float, height: float) -> str:
    """Draw the paper with its grid, with a strong line at the start."""
    return (
        f'<defs><pattern id="ecg-grid" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<path class="fine" fill="none" stroke="{FINE}" stroke-width=".1" '
        'd="M1 0V5M2 0V5M3 0V5M4 0V5M0 1H5M0 2H5M0 3H5M0 4H5"/>'
        f'<path class="strong" fill="none" stroke="{STRONG}" stroke-width=".2" d="M0 5V0H5"/></pattern></defs>'
        f'<rect class="paper" width="{width}" height="{height}" fill="{PAPER}"/>'
        f'<rect class="grid" width="{width}" height="{height}" fill="url(#ecg-grid)"/>'
    )


def _path(x: np.ndarray, y: np.ndarray, finest: float = FINEST) -> str:
    """Draw a line through points in mm, broken at NaN; of very close points only the lowest and the highest."""
    step = (x[1] - x[0]) if len(x) > 1 else 1.0
    together = 2 * math.ceil(finest / step) if step < 0.8 * finest else 1
    if together > 1:
        x, y = _min_max_envelope(x, y, together)
    good = np.isfinite(y)
    # in hundredths of a millimetre, each formatted once: formatting every number takes ten times as long
    x, y = (np.rint(100 * part[good]).astype(int) for part in (x, y))
    most = max(x.max(initial=0), y.max(initial=0))
    _SPELLED.extend(f"{i / 100:g}" for i in range(len(_SPELLED), most + 1))
    begins = (good & ~np.concatenate([[False], good[:-1]]))[good]  # a run of good samples
    marks = np.where(begins, "M", "L").tolist()
    return "".join(
        f"{mark}{_SPELLED[u]} {_SPELLED[v]}"
        for mark, u, v in zip(marks, x.tolist(), y.clip(0).tolist(), strict=True)
    )


def _min_max_envelope(x: np.ndarray, y: np.ndarray, together: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest of each `together` points, in time order; NaN where all are NaN."""
    blocks = len(x) // together * together
    rows = y[:blocks].reshape(-1, together)
    first = np.arange(0, blocks, together)
    low = np.where(np.isfinite(rows), rows, np.inf).argmin(axis=1)
    high = np.where(np.isfinite(rows), rows, -np.inf).argmax(axis=1)
    places = np.sort(np.stack([first + low, first + high], axis=1), axis=1).ravel()
    places = np.concatenate([places, np.arange(blocks, len(x))])
    return x[places], y[places]


def _text(kind: str, x: float, y: float, size: float, text: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:g}" {more}>{_safe(text)}</text>'


def _safe(text: object) -> str:
    """Escape text for XML; characters that XML cannot contain, such as control characters, are replaced."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in str(text)))
