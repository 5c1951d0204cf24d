"""Figures of ECGs on standard paper: 25 mm/s, 10 mm/mV, a fine line every millimetre, a strong one every five.

All coordinates are millimetres of paper.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.storage.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MM_PER_S, MM_PER_MV = 25.0, 10.0
PAPER, FINE, STRONG, INK = "#fffaf8", "#f7dcd8", "#eab6ae", "#1a1a1a"
# the standard sheet
SHEET = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
# distinct in print and for colour-blind readers (Okabe and Ito), darkened for thin lines
COLOURS = ("#0072b2", "#d55e00", "#007f5f", "#b0508c", "#8a6d00", "#3b3b98", "#a03030", "#2a7f9e")
# a "$" in text from a file or a model does not start a formula
LITERAL: dict[str, Any] = {"parse_math": False}


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Write a figure as PNG, SVG or PDF, by the file's extension, completely or not at all."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("png", "svg", "pdf"):
        raise Failure(f"{path}: the name must end in .png, .svg or .pdf")
    with atomic_write(path) as beside:
        figure.savefig(beside, format=kind, dpi=150, facecolor="white")


def png_bytes(figure: "Figure") -> bytes:
    """Return a figure as the contents of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def plot_sheet(
    signal: np.ndarray, fs: float, leads: Sequence[str], title: str, start: float = 0.0, seconds: float = 10.0
) -> "Figure":
    """Draw a recording: twelve leads as the 3 x 4 sheet with a rhythm strip, other leads one below another.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV.
    fs : float
        Hz.
    leads : list of str
    title : str
    start, seconds : float
        The part to draw, in s.

    Returns
    -------
    matplotlib.figure.Figure
    """
    first = round(start * fs)
    rows_of = dict(zip(leads, signal[:, first : first + round(seconds * fs)], strict=True))
    if all(lead in rows_of for row in SHEET for lead in row):
        quarter = seconds / 4
        rows = [[(lead, i * quarter, (i + 1) * quarter) for i, lead in enumerate(row)] for row in SHEET]
        rows.append([("II", 0, seconds)])
    else:
        rows = [[(lead, 0, seconds)] for lead in leads]
    extents = [_extent(*(rows_of[lead][round(a * fs) : round(b * fs)] for lead, a, b in row)) for row in rows]
    baselines, height = _stack(extents, gap=4)  # room for the names of the leads
    figure, axes = _paper(seconds * MM_PER_S, height, left=12)
    for row, y, (_, high) in zip(rows, baselines, extents, strict=True):
        # the calibration pulse: 1 mV for 0.2 s
        axes.plot([-10, -8, -8, -3, -3, -1], np.array([0, 0, 10, 10, 0, 0]) + y, color=INK, lw=0.8)
        for lead, a, b in row:
            part = rows_of[lead][round(a * fs) : round(b * fs)]
            x = (a + np.arange(len(part)) / fs) * MM_PER_S
            axes.plot(x, part * MM_PER_MV + y, color=INK, lw=0.7, solid_joinstyle="round")
            if a:
                axes.plot([a * MM_PER_S] * 2, [y - 5, y + 5], color=INK, lw=0.7)
            axes.text(
                a * MM_PER_S + 1, y + high + 0.5, printable(lead),
                fontsize=9, weight="bold", color=INK, **_text_outline(), **LITERAL,
            )  # fmt: skip
    _time_axis(axes, start, seconds)
    axes.set_title(printable(title), loc="left", fontsize=10, **LITERAL)
    axes.annotate(
        "25 mm/s   10 mm/mV",
        (1, 0),
        (0, -20),
        "axes fraction",
        "offset points",
        ha="right",
        va="top",
        fontsize=8,
    )
    return figure


def plot_tokens(
    signal: np.ndarray,
    decoded: np.ndarray,
    fs: float,
    lead: str,
    ids: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    title: str,
    row_seconds: float = 2.5,
) -> "Figure":
    """Draw a lead with its tokens: each in colour with its id, in rows one below another.

    Parameters
    ----------
    signal : numpy.ndarray
        (samples,), mV: the lead before quantization.
    decoded : numpy.ndarray
        (samples,), mV: the letters converted back.
    fs : float
        Hz.
    lead : str
    ids, starts, stops : numpy.ndarray
        Token id, first sample and sample after the last of each token.
    title : str
    row_seconds : float
        Length of a row, s.

    Returns
    -------
    matplotlib.figure.Figure
    """
    samples = round(row_seconds * fs)
    cuts = list(range(0, len(signal), samples))
    extents = []
    for cut in cuts:
        low, high = _extent(signal[cut : cut + samples], decoded[cut : cut + samples], least=2)
        extents.append((low - 3.5, high + 1))  # room for the ids
    baselines, height = _stack(extents, gap=1)
    figure, axes = _paper(row_seconds * MM_PER_S, height, left=6, scale=4)
    for cut, y, (low, high) in zip(cuts, baselines, extents, strict=True):
        inside = np.flatnonzero((stops > cut) & (starts < cut + samples))
        part = signal[cut : cut + samples]
        axes.plot(np.arange(len(part)) / fs * MM_PER_S, part * MM_PER_MV + y, color="#9a9a9a", lw=0.8)
        for i in inside:
            a, b = max(starts[i], cut), min(stops[i], cut + samples)
            x = (np.arange(a, b + 1) - cut) / fs * MM_PER_S
            # each level extends from its sample to the next
            level = np.append(decoded[a:b], decoded[b - 1]) * MM_PER_MV + y
            _plot_token(axes, x, level, int(ids[i]), y + low, y + high)
        axes.text(-1, y, f"{cut / fs:g} s", ha="right", va="center", fontsize=8, color=INK)
    axes.plot([-5, -5], [baselines[0], baselines[0] + 10], color=INK, lw=1)
    axes.text(-5.4, baselines[0] + 5, "1 mV", ha="right", va="center", rotation=90, fontsize=7, color=INK)
    _time_axis(axes, 0, row_seconds, every=0.5)
    title = printable(f"{title}, lead {lead}: {len(ids)} tokens")
    axes.set_title(title, loc="left", fontsize=10, **LITERAL)
    axes.set_xlabel("s in the row      grey: the signal, coloured: its tokens, below: their ids", fontsize=8)
    return figure


def _plot_token(axes: "Axes", x: np.ndarray, level: np.ndarray, token: int, low: float, high: float) -> None:
    """Draw a token in its colour: its levels, a box from `low` to `high`, and its id below."""
    colour = COLOURS[token % len(COLOURS)]
    axes.fill_between(x[[0, -1]], low + 2.5, high, color=colour, alpha=0.10, lw=0)
    axes.plot(x, level, color=colour, lw=1.6, drawstyle="steps-post", solid_capstyle="butt")
    axes.plot([x[0]] * 2, [low + 2.5, high], color=colour, lw=0.4, alpha=0.6)
    if x[-1] - x[0] >= 0.75:  # room for upright digits
        axes.text(
            (x[0] + x[-1]) / 2, low + 2.3, str(token),
            ha="center", va="top", fontsize=6, color=colour, rotation=90,
        )  # fmt: skip


def plot_token_distribution(
    counts: np.ndarray, lengths: np.ndarray, per_segment: np.ndarray, title: str
) -> "Figure":
    """Draw how often tokens occur, how long they are, and how many a segment contains.

    Parameters
    ----------
    counts : numpy.ndarray
        (vocab,): how often each token occurs.
    lengths : numpy.ndarray
        (vocab,): length of each token in ms.
    per_segment : numpy.ndarray
        Number of tokens in each segment.
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    title = printable(f"{title}: {counts.sum():,} tokens")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, **LITERAL)
    rank, length, number = figure.subplots(1, 3)
    used = np.sort(counts[counts > 0])[::-1]
    rank.loglog(np.arange(1, len(used) + 1), used, color=COLOURS[0], marker="." if len(used) < 50 else None)
    rank.set(xlabel="rank of the token", ylabel="times it occurs")
    rank.set_title(f"{len(used):,} of {len(counts):,} tokens occur", fontsize=10)
    # one bar per doubling, around 1, 2, 4, … samples
    least, most = lengths.min(), max(lengths[counts > 0].max(), 2 * lengths.min())
    edges = least * 2.0 ** (np.arange(np.ceil(np.log2(most / least)) + 2) - 0.5)
    share = np.histogram(lengths, edges, weights=counts)[0] / counts.sum()
    length.stairs(100 * share, edges, fill=True, color=COLOURS[1])
    length.set_xscale("log")
    ticks = least * 2.0 ** np.arange(len(edges) - 1)
    length.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8, rotation=45)
    length.minorticks_off()
    length.set(xlabel="length of the token, ms", ylabel="% of the tokens")
    mean = np.sum(lengths * counts) / counts.sum()
    length.set_title(f"mean {mean:.0f} ms", fontsize=10)
    number.hist(per_segment, bins=40, range=(0, 1.1 * per_segment.max()), color=COLOURS[2])
    number.yaxis.get_major_locator().set_params(integer=True)
    number.set(xlabel="tokens per segment", ylabel="segments")
    number.set_title(f"median {np.median(per_segment):,.0f}", fontsize=10)
    for axes in (rank, length, number):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_attribution(
    signal: np.ndarray,
    fs: float,
    leads: Sequence[str],
    density: np.ndarray,
    words: Sequence[str],
    values: np.ndarray,
    title: str,
    start: float = 0.0,
) -> "Figure":
    """Draw the attribution of an answer under the leads, one below another.

    The bars under a lead are the attribution of its samples, the shade behind them is the mean over 0.1 s.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV.
    fs : float
        Hz.
    leads : list of str
    density : numpy.ndarray
        (leads, samples): attribution of each sample, not negative.
    words : list of str
        The text of the prompt, split into tokens; may be empty.
    values : numpy.ndarray
        Attribution of each token, as a share of the whole prompt's.
    title : str
    start : float
        Time of the first sample, s.
    """
    extents = [(low - 5, high) for low, high in (_extent(row) for row in signal)]  # room for the attribution
    baselines, height = _stack(extents, gap=4)
    below = 26.0 if words else 6.0  # mm for the words
    figure, axes = _paper(signal.shape[1] / fs * MM_PER_S, height + below, left=12)
    x = np.arange(signal.shape[1]) / fs * MM_PER_S
    edges = np.append(x, x[-1] + MM_PER_S / fs)
    width = max(1, round(0.1 * fs))
    shaded = np.apply_along_axis(np.convolve, 1, density, np.ones(width) / width, "same")
    most, darkest = density.max() or 1.0, shaded.max() or 1.0
    for row, shares, shades, lead, baseline, (low, high) in zip(
        signal, density, shaded, leads, baselines, extents, strict=True
    ):
        y = baseline + below
        shade = np.zeros((1, len(shares), 4))
        shade[..., :3], shade[0, :, 3] = (0.84, 0.37, 0.0), 0.85 * shades / darkest
        box, bars = (edges[0], edges[-1], y + low + 4.5, y + high), 4 * np.append(shares, 0) / most
        axes.imshow(shade, extent=box, aspect="auto", interpolation="nearest", zorder=1)
        axes.fill_between(edges, y + low, y + low + bars, step="post", color=COLOURS[1], lw=0, zorder=2)
        axes.plot(x, row * MM_PER_MV + y, color=INK, lw=0.8, solid_joinstyle="round", zorder=3)
        name = printable(lead)
        axes.text(
            -10, y + high + 0.5, name, fontsize=9, weight="bold", color=INK, **_text_outline(), **LITERAL
        )
    axes.set(xlim=(-12, edges[-1]), ylim=(0, height + below))  # imshow changed the limits
    axes.fill_between([-12, edges[-1]], 0, below, color="white", zorder=1)
    _plot_words(axes, words, values, edges[-1])
    _plot_seconds(axes, below, start, signal.shape[1] / fs)
    axes.set_title(printable(title), loc="left", fontsize=10, **LITERAL)
    return figure


def _plot_seconds(axes: "Axes", y: float, start: float, seconds: float) -> None:
    """Write the seconds at the edge of the paper, because the words are below the paper."""
    axes.set_xticks([])
    for second in range(int(seconds) + 1):
        axes.text(
            second * MM_PER_S, y + 0.5, f"{start + second:g} s",
            fontsize=7, ha="center", va="bottom", color=INK, **_text_outline(),
        )  # fmt: skip


def _plot_words(axes: "Axes", words: Sequence[str], values: np.ndarray, width: float) -> None:
    """Draw the prompt below the paper, with a bar of the attribution over each token."""
    step = width / max(len(words), 1)
    tallest = max(np.max(values, initial=0), 1e-12)
    for i, (word, value) in enumerate(zip(words, values, strict=True)):
        left = i * step
        axes.fill_between(
            [left, left + 0.8 * step], 11, 11 + 12 * value / tallest, color=COLOURS[0], lw=0, zorder=2
        )
        axes.text(
            left + 0.4 * step, 10, printable(word), ha="center", va="top", zorder=2,
            fontsize=min(7, 2.2 * step), rotation=90 if len(word) > 2 else 0, **LITERAL,
        )  # fmt: skip
    if words:
        axes.text(-11, 17, f"{100 * np.sum(values):.0f} %\nof it\non text", fontsize=7, va="center", zorder=2)


def plot_continuation(
    signal: np.ndarray,
    generated: np.ndarray,
    cut: int,
    fs: float,
    leads: Sequence[str],
    title: str,
    start: float = 0.0,
) -> "Figure":
    """Draw a recording and its generated continuations: the input in black, the true rest in grey, others in colour.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV: the recording.
    generated : numpy.ndarray
        (continuations, leads, samples), mV; the first three are drawn below the recording.
    cut : int
        Index of the first generated sample.
    fs : float
        Hz.
    leads : list of str
    title : str
    start : float
        Time of the first sample, s.

    Returns
    -------
    matplotlib.figure.Figure
    """
    shown = [signal, *(np.hstack([signal[:, :cut], one[:, cut:]]) for one in generated[:3])]
    rows = [(lead, i, number) for i, lead in enumerate(leads) for number in range(len(shown))]
    extents = [_extent(shown[number][i], least=5) for _, i, number in rows]
    baselines, height = _stack(extents, gap=3)
    figure, axes = _paper(signal.shape[1] / fs * MM_PER_S, height, left=12)
    x = np.arange(signal.shape[1]) / fs * MM_PER_S
    for (lead, i, number), y, (_, high) in zip(rows, baselines, extents, strict=True):
        row, colour = shown[number][i] * MM_PER_MV + y, COLOURS[number - 1] if number else "#9a9a9a"
        axes.plot(x[:cut], row[:cut], color=INK, lw=0.7, solid_joinstyle="round")
        # start at the last input sample, so that the line is continuous
        axes.plot(x[cut - 1 :], row[cut - 1 :], color=colour, lw=0.8, solid_joinstyle="round")
        name = f"generated {number}" if number else f"{printable(lead)}: recorded"
        axes.text(
            (x[cut] if number else 0) + 1, y + high - 1, name,
            fontsize=8, weight="normal" if number else "bold", color=colour if number else INK,
            **_text_outline(), **LITERAL,
        )  # fmt: skip
    axes.vlines(x[cut], 0, height, color=INK, lw=0.8, linestyle="--")
    _time_axis(axes, start, signal.shape[1] / fs)
    axes.set_title(printable(title), loc="left", fontsize=10, **LITERAL)
    return figure


def _extent(*parts: npt.ArrayLike, least: float = 10) -> tuple[float, float]:
    """Return the lowest and highest point of a row in mm from its baseline, at least `least` mm up and down."""
    values = np.concatenate([np.asarray(p, float).ravel() for p in parts]) * MM_PER_MV
    values = values[np.isfinite(values)]
    return min(values.min(initial=-least), -least), max(values.max(initial=least), least)


def _stack(extents: Sequence[tuple[float, float]], gap: float) -> tuple[list[float], float]:
    """Return the baselines of rows one below another, from the top, and the total height, in mm."""
    height = sum(high - low + gap for low, high in extents) + gap
    baselines, top = [], height
    for low, high in extents:
        baselines.append(top - gap - high)
        top += low - high - gap
    return baselines, height


def _paper(width: float, height: float, left: float, scale: float = 1) -> tuple["Figure", "Axes"]:
    """Return a figure and its axes in mm, with the paper's grid; `scale` is mm of picture per mm of paper."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    inches = scale / 25.4
    margin_x, below, above = 6 / scale, 14 / scale, 9 / scale
    figure = Figure(((width + left + 2 * margin_x) * inches, (height + below + above) * inches))
    FigureCanvasAgg(figure)
    total_x, total_y = width + left + 2 * margin_x, height + below + above
    axes = figure.add_axes((margin_x / total_x, below / total_y, (width + left) / total_x, height / total_y))
    axes.set(xlim=(-left, width), ylim=(0, height), facecolor=PAPER)
    for step, colour, line in ((1, FINE, 0.4), (5, STRONG, 0.6)):
        axes.vlines(
            np.arange(-left // step * step, width + 0.1, step), 0, height, color=colour, lw=line, zorder=0
        )
        axes.hlines(np.arange(0, height + 0.1, step), -left, width, color=colour, lw=line, zorder=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure, axes


def _time_axis(axes: "Axes", start: float, seconds: float, every: float = 1.0) -> None:
    at = np.arange(0, seconds + 1e-9, every)
    axes.set_xticks(at * MM_PER_S, [f"{start + t:g}" for t in at], fontsize=8)
    axes.set_xlabel("s", fontsize=8)


def _text_outline() -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    return {"path_effects": [withStroke(linewidth=2, foreground=PAPER)]}
