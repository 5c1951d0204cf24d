"""What quantizer, levels and vocabulary cost in tokens, and what they lose.

    python examples/rate_distortion.py FOLDER [--out rate_distortion.svg] [--swap]

Every second recording of FOLDER is learned from: the quantizer's range or levels, and the merges. The others
are measured, all after the profile `paper` (250 Hz, 12 leads, 10 s; a piece per lead): tokens a record by the
segmenters `longest` and `fewest`, PRD, SNR, and the mean absolute error of the R amplitude and of the ST level
on the beats of lead II (see ecgbyte_cli/signal/fidelity.py). --swap turns the halves round. The table is printed as
Markdown; the chart shows tokens against PRD at the largest vocabulary.
"""

import argparse

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.render import figures
from ecgbyte_cli.signal import fidelity, preprocess
from ecgbyte_cli.signal.corpus import read_texts
from ecgbyte_cli.signal.tokenizer import SEGMENTERS
from ecgbyte_kernels import merges, quantize

VOCABULARIES = (1000, 2000, 5026)
SIGNAL = {
    "fs": 250.0,
    "leads": preprocess.LEADS,
    "segment_seconds": 10.0,
    "samples": 2500,
    "profile": "paper",
    "fill_nan": None,
}
MOST_TOKENS, MOST_PRD = 2200, 12  # what was asked for


def settings(signals):
    """The quantizers to try, fitted to `signals` (segments, leads, samples): (label, quantizer)."""
    low, high = np.percentile(signals, (1, 99))
    counts = np.zeros(2**16, np.int64)
    quantize.count_upper(signals, counts)
    for levels in (20, 26, 40, 60):
        bounds = {"lo": low - 0.5, "hi": high + 0.5}
        yield "paper", {"name": "paper", "levels": levels, **bounds}
    for levels in (26, 40, 60, 80):
        yield "minmax", {"name": "minmax", "levels": levels}
    for levels in (16, 20, 26, 32):
        yield "mulaw", {"name": "mulaw", "levels": levels, "mu": 20.0, "limit": 5.0}
    for levels in (16, 20, 26, 32):
        edges, centroids = quantize.fit_lloyd(counts, levels)
        yield "lloyd", {"name": "lloyd", "levels": levels, "edges": edges, "centroids": centroids}
    for penalty in (0.0, 0.25, 1.5):
        for levels in (33, 37, 41, 43, 45, 49, 53):
            quantizer = {"name": "trellis", "levels": levels, "mu": 2.0, "limit": 16.0, "penalty": penalty}
            yield f"trellis, penalty {penalty:g}", quantizer


def learn(letters, levels):
    """Merges up to the largest vocabulary, from letters (segments, leads, samples)."""
    count, leads, samples = letters.shape
    places = {
        "offset": np.arange(count) * leads * samples,
        "leads": np.full(count, leads),
        "samples": np.full(count, samples),
    }
    texts = read_texts(letters.ravel(), places, "lead", levels, 1, "the letters")
    steps = merges.learn_merges(texts, levels, max(VOCABULARIES) - levels, max_length=256)
    return np.concatenate([made for made, _ in steps])[:, :2]


def tokens(letters, name, pairs, levels):
    """Tokens a segment."""
    cut, make = SEGMENTERS[name]
    bounds = np.arange(0, letters.size + 1, letters.shape[-1])
    return cut(letters.ravel(), bounds, make(pairs, levels))[1].sum() / len(letters)


def measure(label, quantizer, learned, measured, beats):
    """Rows of the table: one for each vocabulary."""
    levels, fs = quantizer["levels"], SIGNAL["fs"]
    pairs = learn(np.stack([quantize.quantize(x, quantizer)[0] for x in learned]), levels)
    made = [quantize.quantize(x, quantizer) for x in measured]
    decoded = [quantize.dequantize(letters, quantizer, lo, hi) for letters, lo, hi in made]
    losses = [fidelity.differences(x, y)[1:] for x, y in zip(measured, decoded, strict=True)]
    prd, snr = np.nanmean(losses, axis=0)
    two = SIGNAL["leads"].index("II")
    errors = [
        fidelity.beat_errors(x[two], y[two], fs, found)
        for x, y, found in zip(measured, decoded, beats, strict=True)
    ]
    r_amplitude, _, st_level = np.abs(np.concatenate(errors)).mean(axis=0)
    letters = np.stack([letters for letters, _, _ in made])
    for vocabulary in VOCABULARIES:  # the last is smaller where no pair is found twice
        few = pairs[: vocabulary - levels]
        needed = [tokens(letters, name, few, levels) for name in ("longest", "fewest")]
        yield [label, levels, levels + len(few), *needed, prd, snr, 1000 * r_amplitude, 1000 * st_level]


def chart(rows, path):
    """Tokens by `longest` against PRD, a line for each quantizer with its levels along it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for k, label in enumerate(dict.fromkeys(row[0] for row in rows)):
        # the largest vocabulary of each number of levels
        points = list({row[1]: row for row in rows if row[0] == label}.values())
        x, y = [row[3] for row in points], [row[5] for row in points]
        axes.plot(x, y, marker="o", ms=4, lw=1.2, color=figures.COLOURS[k], label=label)
        for row in (points[0], points[-1]):
            axes.annotate(
                f"{row[1]}", (row[3], row[5]), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    axes.fill_between([0, MOST_TOKENS], MOST_PRD, color="#007f5f", alpha=0.08, lw=0)
    axes.set(xlabel="tokens a record (10 s, 12 leads)", ylabel="PRD, %", xlim=(1000, 3200), ylim=(0, 45))
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        f"Beside the ends of the lines: levels. Vocabulary {VOCABULARIES[-1]:,} or what is found",
        fontsize=9,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figures.save_figure(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", default="rate_distortion.svg")
    parser.add_argument("--swap", action="store_true")
    args = parser.parse_args()

    recordings = [
        preprocess.segments(readers.read_recording(path), SIGNAL) for path in readers.find(args.folder)[0]
    ]
    halves = [
        np.stack([signal for recording in recordings[side::2] for _, signal in recording]) for side in (0, 1)
    ]
    learned, measured = halves[:: -1 if args.swap else 1]
    beats = [fidelity.beats(x[SIGNAL["leads"].index("II")], SIGNAL["fs"]) for x in measured]
    print(
        f"learned from {len(learned)} segments, measured on {len(measured)}, {sum(map(len, beats))} beats\n"
    )
    print("| quantizer | levels | vocabulary | tokens, longest | fewest | PRD % | SNR dB | R µV | ST µV |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    for label, quantizer in settings(learned):
        for row in measure(label, quantizer, learned, measured, beats):
            rows.append(row)
            label, levels, vocabulary, longest, fewest, prd, snr, r, st = row
            print(
                f"| {label} | {levels} | {vocabulary:,} | {longest:,.0f} | {fewest:,.0f} | {prd:.1f} | {snr:.1f} "
                f"| {r:.0f} | {st:.0f} |",
                flush=True,
            )
    chart(rows, args.out)
    good = [row for row in rows if row[3] <= MOST_TOKENS and row[5] <= MOST_PRD]
    if good:
        label, levels, vocabulary, longest, *_ = best = min(good, key=lambda row: row[5])
        print(
            f"\nbest at no more than {MOST_TOKENS:,} tokens: {label}, {levels} levels, vocabulary {vocabulary:,}: "
            f"{longest:,.0f} tokens, PRD {best[5]:.1f} %"
        )
    else:
        print(f"\nno setting has a PRD of {MOST_PRD} % at {MOST_TOKENS:,} tokens")


if __name__ == "__main__":
    main()
