"""The ECG sheet as SVG text: what the page shows, and what `ecgbyte plot ecg --out FILE.svg` writes.

One unit of the drawing is a millimetre of paper. Every stretch of a lead is a group `<g class="lead">` whose data
attributes say what it is and where, so that a page can put things on it and a test can read it back:

- data-lead, data-start (s), data-seconds
- data-x, data-y: where its first second and its baseline lie; data-top, data-bottom: the edges of its row
- data-baseline: the mV that the baseline stands for, which is the lead's median over the stretch

The svg element itself has data-start, data-seconds, data-speed (mm/s), data-gain (mm/mV) and data-layout.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from html import escape

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
LEFT, MARGIN, ABOVE, BELOW = 15, 5, 10, 10  # mm around the leads; the calibration pulses stand on the left
FURTHEST = 60.0  # mm from its baseline; what lies beyond is drawn there
_SPELLED: list[str] = []
FINEST = 0.05  # mm between two points: closer ones become a lowest and a highest


def drawable_leads(
    recording: readers.Recording, start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, list[str]]:
    """The leads to draw of a stretch of a recording.

    Parameters
    ----------
    recording : Recording
    start : float
        s.
    seconds : float or None
        None is all that follows.

    Returns
    -------
    signal : numpy.ndarray
        float32 (leads, samples), mV.
    names : list of str
        The twelve where they are there or follow from I and II, and behind them what else was recorded.
    """
    first = round(start * recording.fs)
    stop = None if seconds is None else first + round(seconds * recording.fs)
    part = replace(recording, signal=recording.signal[:, first:stop])
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
    """Draw a stretch of a recording as SVG.

    Parameters
    ----------
    recording : Recording
        Where it is NaN nothing is drawn.
    start, seconds : float
        The stretch to draw, s; it ends where the recording ends.
    layout : {"3x4", "6x2", "12x1"}
        Three rows of four leads over a rhythm strip, six rows of two, or one lead under another. Where a lead
        that a layout needs is missing, those that are there stand one under another.
    speed, gain : float
        mm/s and mm/mV.
    leads : list of str or None
        Draw these, one under another; None is all that `leads_of` finds.
    title : str or None
        What stands above; None is the recording's name.

    Returns
    -------
    str

    Raises
    ------
    Failure
        If there is no such stretch, lead or layout.
    """
    fs, title = recording.fs, recording.name if title is None else title
    whole = recording.signal.shape[1] / fs
    if layout not in LAYOUTS or speed not in SPEEDS or gain not in GAINS:
        raise Failure(
            f"a sheet is one of {', '.join(LAYOUTS)}, at {' or '.join(map(str, SPEEDS))} mm/s and "
            f"{', '.join(map(str, GAINS))} mm/mV"
        )
    if not (0 <= start and round(start * fs) < recording.signal.shape[1] and 0 < seconds <= LONGEST):
        raise Failure(f"{title} is {whole:g} s long: there is no stretch of {seconds:g} s from {start:g} s")
    part, names = drawable_leads(recording, start, seconds)
    missing = [lead for lead in leads or () if lead not in names]
    if missing:
        raise Failure(f"{title} has no lead {', '.join(missing)[:200]}: there are {', '.join(names)}")
    part = part.astype(float)
    at = {lead: names.index(lead) for lead in leads or names}
    layout, rows = _rows(at, seconds, "12x1" if leads else layout)
    with np.errstate(all="ignore"):
        middles = [float(np.nanmedian(row)) if np.isfinite(row).any() else 0.0 for row in part]
    # each row as tall as its own leads need, and at least as the others leave it
    least = 10 if layout == "3x4" else 7
    cells, y = [], float(ABOVE)
    for row in rows:
        stretches = []
        for lead, a, b in row:
            low, high = math.ceil(a * fs - 1e-6), math.ceil(b * fs - 1e-6)
            values = (part[at[lead], low:high] - middles[at[lead]]) * gain
            stretches.append((lead, a, b, low, np.clip(values, -FURTHEST, FURTHEST)))
        every = np.concatenate([values[np.isfinite(values)] for *_, values in stretches])
        above = max(least, math.ceil(every.max(initial=0)) + 5)  # the name stands above
        below = max(least - 3, math.ceil(-every.min(initial=0)) + 1)
        cells.append((y, y + above, y + above + below, stretches))
        y += above + below
    width = LEFT + 5 * math.ceil(seconds * speed / 5) + MARGIN
    height = 5 * math.ceil((y + BELOW) / 5)
    about = f"{speed:g} mm/s   {gain:g} mm/mV"
    drawn = [_paper(width, height), _text("title", LEFT, 6, 4, title[:120])]
    drawn.append(_text("measured", LEFT, 9.5, 2.5, sheet_line(recording, start, seconds)))
    for top, base, bottom, stretches in cells:
        drawn.append(
            f'<path class="pulse" fill="none" stroke="{INK}" stroke-width=".3" data-mv="1" data-seconds="0.2" '
            f'd="M{LEFT - 12} {base:g}h2v{-gain:g}h{0.2 * speed:g}v{gain:g}h2"/>'
        )
        for lead, a, b, low, values in stretches:
            x = LEFT + a * speed
            drawn.append(
                f'<g class="lead" data-lead="{_safe(lead)}" data-start="{start + a:g}" '
                f'data-seconds="{b - a:g}" data-x="{x:g}" data-y="{base:g}" data-top="{top:g}" '
                f'data-bottom="{bottom:g}" data-baseline="{middles[at[lead]]:.4g}">'
                f'<path class="trace" fill="none" stroke="{INK}" stroke-width=".25" stroke-linejoin="round" '
                f'd="{_path(LEFT + (low + np.arange(len(values))) * (speed / fs), base - values)}"/>'
                + (
                    f'<path class="part" stroke="{INK}" stroke-width=".25" d="M{x:g} {base - 4:g}v8"/>'
                    if a
                    else ""
                )
                + _text("name", x + 1, top + 4, 3.5, lead[:40], 'font-weight="bold"')
                + "</g>"
            )
    centred = 'text-anchor="middle"'
    for second in range(int(seconds + 1e-9) + 1):
        drawn.append(_text("time", LEFT + second * speed, height - 5, 2.5, f"{start + second:g} s", centred))
    drawn.append(_text("scale", width - MARGIN, height - 1.5, 2.5, about, 'text-anchor="end"'))
    said = _safe(f"ECG {title}: {', '.join(lead for row in rows for lead, _, _ in row)}; {about}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" role="img" aria-label="{said}" '
        f'viewBox="0 0 {width} {height}" width="{width}mm" height="{height}mm" data-layout="{layout}" '
        f'data-start="{start:g}" data-seconds="{min(seconds, whole - start):g}" data-speed="{speed:g}" '
        f'data-gain="{gain:g}" font-family="sans-serif" fill="{INK}">' + "".join(drawn) + "</svg>\n"
    )


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


def _rows(at, seconds, layout):
    """The rows of a layout, of (lead, first second, last), and what it is called."""
    limbs, chest = preprocess.LEADS[:6], preprocess.LEADS[6:]
    if all(lead in at for lead in (*limbs, *chest)) and layout != "12x1":
        columns = SHEET if layout == "3x4" else tuple(zip(limbs, chest, strict=True))
        wide = seconds / len(columns[0])
        rows = [[(lead, i * wide, (i + 1) * wide) for i, lead in enumerate(row)] for row in columns]
        return layout, rows + ([[("II", 0.0, seconds)]] if layout == "3x4" else [])
    return "12x1", [[(lead, 0.0, seconds)] for lead in list(at)[:MOST_ROWS]]


def _paper(width, height):
    """The paper with its grid, which begins with a strong line at the first second."""
    return (
        f'<defs><pattern id="ecg-grid" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<path class="fine" fill="none" stroke="{FINE}" stroke-width=".1" '
        'd="M1 0V5M2 0V5M3 0V5M4 0V5M0 1H5M0 2H5M0 3H5M0 4H5"/>'
        f'<path class="strong" fill="none" stroke="{STRONG}" stroke-width=".2" d="M0 5V0H5"/></pattern></defs>'
        f'<rect class="paper" width="{width}" height="{height}" fill="{PAPER}"/>'
        f'<rect class="grid" width="{width}" height="{height}" fill="url(#ecg-grid)"/>'
    )


def _path(x, y, finest=FINEST):
    """A line through points in mm, broken where there is none; of very close ones the lowest and the highest."""
    step = (x[1] - x[0]) if len(x) > 1 else 1.0
    together = 2 * math.ceil(finest / step) if step < 0.8 * finest else 1
    if together > 1:
        x, y = _min_max_envelope(x, y, together)
    good = np.isfinite(y)
    # in hundredths of a millimetre, each of which is spelled once: to format every number takes ten times as long
    x, y = (np.rint(100 * part[good]).astype(int) for part in (x, y))
    most = max(x.max(initial=0), y.max(initial=0))
    _SPELLED.extend(f"{i / 100:g}" for i in range(len(_SPELLED), most + 1))
    begins = (good & ~np.concatenate([[False], good[:-1]]))[good]  # a run of good samples
    marks = np.where(begins, "M", "L").tolist()
    return "".join(
        f"{mark}{_SPELLED[u]} {_SPELLED[v]}"
        for mark, u, v in zip(marks, x.tolist(), y.clip(0).tolist(), strict=True)
    )


def _min_max_envelope(x, y, together):
    """The lowest and the highest of each `together` points, in the order of time; NaN where all of them are."""
    blocks = len(x) // together * together
    rows = y[:blocks].reshape(-1, together)
    first = np.arange(0, blocks, together)
    low = np.where(np.isfinite(rows), rows, np.inf).argmin(axis=1)
    high = np.where(np.isfinite(rows), rows, -np.inf).argmax(axis=1)
    places = np.sort(np.stack([first + low, first + high], axis=1), axis=1).ravel()
    places = np.concatenate([places, np.arange(blocks, len(x))])
    return x[places], y[places]


def _text(kind, x, y, size, text, more=""):
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:g}" {more}>{_safe(text)}</text>'


def _safe(text):
    """Text for XML: what it cannot hold at all, such as control characters, is a replacement character."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in str(text)))
