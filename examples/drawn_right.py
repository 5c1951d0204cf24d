"""Whether drawn ECGs show what was asked for, by measuring them: on the synthetic conditions, whose truth is known.

    ecgbyte finetune --qa data/qa.jsonl --model tiny --draw rhythm --ecg-loss 1 …
    python examples/drawn_right.py --work ecgbyte-work --out drawn/ --records 50

Nothing here asks a model what it sees. Beats are found by the slope of a lead; from them come the rate, how much the
intervals vary, and which beats come early; from the mean beat of lead II the width of the QRS complex and the P wave,
from that of V1 the ST level. A condition is what its definition says, checked on all of these, so that an ECG can be
right for one of the eight alone. The same is measured on the true test recordings, after they were letters: how often
the measurement is right where the truth is known. OUT gets a folder for each condition, as `ecgbyte draw` writes it;
options that are not known here, such as --temperature, are given to it.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.render import figures
from ecgbyte_cli.signal.simulate import CONDITIONS
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir

WIDE = 0.1  # s


def beats(leads, fs):
    """Middles of the QRS complexes, in samples, one in a quarter of a second, and how steep the leads are there."""
    width = round(0.16 * fs)
    raw = np.square(np.gradient(leads, axis=1)).sum(0)
    steep = np.convolve(raw, np.hanning(width + 2)[1:-1], "same")
    least = 0.14 * np.percentile(steep, 98)
    found: list[int] = []
    for at in np.flatnonzero((steep >= np.roll(steep, 1)) & (steep > np.roll(steep, -1)) & (steep > least)):
        if not found or at - found[-1] >= 0.25 * fs:
            found.append(int(at))
        elif steep[at] > steep[found[-1]]:
            found[-1] = int(at)
    near = np.arange(-round(0.12 * fs), round(0.12 * fs) + 1)
    middles = []
    for at in found:
        here = np.clip(at + near, 0, len(raw) - 1)
        middles.append(round(float((here * raw[here]).sum() / raw[here].sum())))
    return np.array(middles, np.int64), steep[found]


def mean_beat(leads, at, fs):
    """The median of leads around some beats, (leads, samples), from 420 ms before to 400 ms behind; None of none."""
    before, behind = round(0.42 * fs), round(0.40 * fs)
    cut = [leads[:, i - before : i + behind] for i in at if before <= i <= leads.shape[1] - behind]
    return np.median(cut, axis=0) if cut else None


def measure(leads, fs):
    """What is measured of an ECG.

    Parameters
    ----------
    leads : numpy.ndarray
        (2, samples), mV: II and V1.
    fs : float
        Hz.

    Returns
    -------
    dict or None
        rate (beats per minute); variation (standard deviation of the intervals between beats over their mean, without
        those beside early beats); early (beats that come after less than four fifths of the usual interval, with a
        pause behind them); of the mean beat qrs (width of the complex in II, s), pr (from the peak of the P wave in II
        to the middle of the complex, s), and st (in V1, mV). None where there are too few beats.
    """
    at, heights = beats(leads, fs)
    middle, strong = round(0.42 * fs), heights > 0.5 * np.percentile(heights, 75)
    mean = mean_beat(leads, at[strong], fs)
    # behind wide complexes what is less steep are T waves; among narrow ones it is a wide beat
    at = at[strong] if mean is not None and width(mean, middle, fs) >= WIDE else at
    if len(at) < 5:
        return None
    intervals = np.diff(at) / fs
    usual = float(np.median(intervals))
    soon, pause = intervals[:-1] < 0.8 * usual, intervals[1:] > 1.15 * usual
    early = np.flatnonzero(soon & pause) + 1
    mean, rest = (
        mean_beat(leads, np.delete(at, early), fs),
        np.delete(intervals, np.union1d(early - 1, early)),
    )
    if mean is None or len(rest) < 2:
        return None
    two, chest = mean
    return {
        "rate": 60 / float(intervals.mean()),
        "variation": float(rest.std() / rest.mean()),
        "early": len(early),
        "qrs": width(mean, middle, fs),
        "pr": p_wave(two, middle, fs, usual),
        "st": st_level(chest, middle, fs),
    }


def width(beat, middle, fs):
    """How long the middle 90 % of what is steep in a mean beat, (leads, samples), lasts within 140 ms of its middle."""
    reach = round(0.14 * fs)
    steep = np.square(np.gradient(beat[:, middle - reach : middle + reach + 1], axis=1)).sum(0).cumsum()
    first, last = np.interp([0.05 * steep[-1], 0.95 * steep[-1]], steep, np.arange(len(steep)))
    return float((last - first) / fs)


def p_wave(beat, middle, fs, usual):
    """From the highest point between the T wave (which ends by Bazett's formula) and the QRS complex to that, s."""
    since = min(0.38, usual - 0.42 * np.sqrt(usual))
    part = np.convolve(beat[: middle - round(0.07 * fs)], np.ones(5) / 5, "same")[:-3]
    first = max(0, middle - round(since * fs))
    return float((middle - first - part[first:].argmax()) / fs) if len(part) > first else 0.0


def st_level(beat, middle, fs):
    """Level of V1 90 to 130 ms behind the middle of the QRS complex, above that 70 to 140 ms before it, mV."""
    before = np.median(beat[middle - round(0.14 * fs) : middle - round(0.07 * fs)])
    return float(np.mean(beat[middle + round(0.09 * fs) : middle + round(0.13 * fs)]) - before)


def shown(found):
    """Which of the eight conditions a measurement is of, or why of none."""
    if found is None:
        return "too few beats"
    if found["qrs"] >= WIDE and found["variation"] < 0.1:
        return "left bundle branch block"
    if found["early"] and found["variation"] < 0.06:
        return "premature ventricular complexes"
    if found["variation"] > 0.1:
        return "atrial fibrillation"
    if found["st"] >= 0.14:
        return "anterior ST elevation"
    if found["pr"] >= 0.22:
        return "first-degree AV block"
    if found["rate"] < 58:
        return "sinus bradycardia"
    return "sinus tachycardia" if found["rate"] > 100 else "sinus rhythm"


def of_recordings(work):
    """Of the true test recordings, after they were letters: pairs of what they show and what is measured."""
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    letters, segments = read_array(work.symbols), read_table(work.symbol_segments)
    shape = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
    for i in np.flatnonzero(np.asarray(segments["split"]) == "test"):
        at = segments["offset"][i]
        mv = tokenizer.to_mv(letters[at : at + shape[0] * shape[1]].reshape(shape))
        truth = dict(
            line.split(": ", 1)
            for line in readers.read_recording(segments["path"][i]).comments
            if ": " in line
        )
        yield truth["Condition"], shown(measure(mv, tokenizer.signal["fs"]))


def of_drawn(work, out, records, more):
    """Of drawn ECGs: pairs of what was asked for and what is measured."""
    for condition in CONDITIONS:
        folder = out / condition.replace(" ", "-")
        command = [sys.executable, "-m", "ecgbyte_cli", "--work", str(work.root), "draw", condition]
        subprocess.run([*command, "--records", str(records), "--out", str(folder), *more], check=True)
        for path in sorted(folder.glob("*.hea")):
            drawn = readers.read_recording(path)
            yield condition, shown(measure(drawn.signal, drawn.fs))


def table(pairs, title):
    """Print how often each condition is what is measured, and what else is."""
    pairs = list(pairs)
    print(f"\n| {title} | ECGs | right, % | measured instead |\n| --- | ---: | ---: | --- |")
    for condition in CONDITIONS:
        found = [measured for asked, measured in pairs if asked == condition]
        other = Counter(measured for measured in found if measured != condition)
        listed = ", ".join(f"{name} {count}" for name, count in other.most_common(3))
        print(f"| {condition} | {len(found)} | {100 * found.count(condition) / len(found):.0f} | {listed} |")
    right = np.mean([asked == measured for asked, measured in pairs])
    print(f"| all | {len(pairs)} | {100 * right:.1f} | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("ecgbyte-work"), help="its model draws, its letters are true"
    )
    parser.add_argument("--out", type=Path, default=Path("drawn"))
    parser.add_argument("--records", type=int, default=50, help="ECGs of each condition")
    options, more = parser.parse_known_args()  # what is not known here, `ecgbyte draw` is told
    work = WorkDir(options.work)
    table(of_recordings(work), "recorded, as letters")
    table(of_drawn(work, options.out, options.records, more), "drawn")
    # the first of each, lead II
    first = [
        readers.read_recording(options.out / name.replace(" ", "-") / "drawn00001.hea") for name in CONDITIONS
    ]
    rows, fs = np.stack([drawn.signal[0] for drawn in first]), first[0].fs
    figure = figures.plot_sheet(
        rows, fs, [*CONDITIONS], "generated by ecgbyte, no recordings of patients; lead II"
    )
    figures.save_figure(figure, options.out / "drawn.png")


if __name__ == "__main__":
    main()
