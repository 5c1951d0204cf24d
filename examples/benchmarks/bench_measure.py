"""Score `measure` on LUDB, whose waves were marked by cardiologists, beside NeuroKit2, and time both.

    python examples/benchmarks/bench_measure.py LUDB --part tune [--neurokit] [--rates] [--json FILE]

LUDB is the data set's folder, with its file RECORDS. Part `tune` is the first half of RECORDS, on which the thresholds
were chosen, `test` the second, which was scored once, `all` both.

Reference: of each beat of the dominant class (measure's), each lead's mark relative to the beat's R; median over
beats, then over leads, of which six must have it. Recordings with pacing are listed apart: LUDB starts QRS after the
spike. R peaks: within 75 ms, between the first and the last mark, as the ends of the recordings are not marked.

NeuroKit2 gets the same eight leads: per lead clean, peaks and delineate as its documentation calls them, the median
over beats, then over leads. Times are CPU times of one core after a warm-up. --rates measures the recordings again at
other rates, with hum, noise and drift, and with fewer leads.
"""

import argparse
import json
import time
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import wfdb
from scipy.signal import resample_poly

from ecgbyte_cli import Recording, read
from ecgbyte_cli.signal.measure import measure

ALL_LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
EIGHT = [0, 1, 6, 7, 8, 9, 10, 11]
FS = 500
NEAR = 0.075 * FS
VALUES = ("p", "pr", "qrs", "qt")
IEC = {"p": (10, 15), "pr": (10, 10), "qrs": (10, 10), "qt": (25, 30)}  # IEC 60601-2-25, mean and SD


def records(folder, part):
    names = (Path(folder) / "RECORDS").read_text().split()
    half = len(names) // 2
    return [
        str(Path(folder) / name) for name in {"tune": names[:half], "test": names[half:], "all": names}[part]
    ]


def marks(path):
    """By lead, the waves that are marked: (kind, onset or None, peak, offset), in samples."""
    found = {}
    for lead in ALL_LEADS:
        notes, waves, onset, peak = wfdb.rdann(path, lead), [], None, None
        for sample, symbol in zip(notes.sample, notes.symbol, strict=True):
            if symbol == "(":
                onset = sample
            elif symbol == ")":
                if peak:
                    waves.append((*peak[:1], onset, peak[1], sample))
                onset = peak = None
            else:
                peak = symbol, sample
        found[lead] = waves
    return found


def beats_of(waves):
    """The R peaks: medians over the leads of the QRS marks that belong together, of six leads at least."""
    found = sorted((wave[2], lead) for lead, its in waves.items() for wave in its if wave[0] == "N")
    groups = []
    for sample, lead in found:
        if groups and sample - np.median([s for s, _ in groups[-1]]) < 75:
            groups[-1].append((sample, lead))
        else:
            groups.append([(sample, lead)])
    return np.array([np.median([s for s, _ in g]) for g in groups if len({lead for _, lead in g}) >= 6])


def reference(path, dominant):
    """The reference values in ms (None where six leads do not have them), R peaks, and what is marked at all.

    `dominant` are the R peaks of measure's dominant class, in samples.
    """
    waves = marks(path)
    peaks = beats_of(waves)
    used = np.array([dominant.size and np.abs(dominant - r).min() <= NEAR for r in peaks], bool)
    used = used if used.any() else np.ones(peaks.size, bool)
    at = {name: [] for name in ("p_on", "p_off", "q_on", "q_off", "t_off")}
    for its in waves.values():
        own, count = {name: [] for name in at}, 0
        complexes = [wave for wave in its if wave[0] == "N"]
        for i, (_, onset, peak, offset) in enumerate(complexes):
            j = int(np.abs(peaks - peak).argmin())
            if abs(peaks[j] - peak) > 1.5 * NEAR or not used[j]:
                continue
            count += 1
            before = complexes[i - 1][2] if i else -np.inf
            after = complexes[i + 1][2] if i + 1 < len(complexes) else np.inf
            p = [w for w in its if w[0] == "p" and before < w[2] < peak and peak - w[2] < FS / 2]
            t = [w for w in its if w[0] == "t" and peak < w[2] < after]
            for name, mark in (
                ("q_on", onset),
                ("q_off", offset),
                ("p_on", p[-1][1] if p else None),
                ("p_off", p[-1][3] if p else None),
                ("t_off", t[-1][3] if t else None),
            ):
                if mark is not None:
                    own[name].append(mark - peaks[j])
        for name, found in own.items():
            if found and len(found) >= count / 2:
                at[name].append(np.median(found))
    middle = {name: np.median(found) * 1000 / FS if len(found) >= 6 else None for name, found in at.items()}

    def between(a, b):
        return None if middle[a] is None or middle[b] is None else middle[b] - middle[a]

    comments = wfdb.rdheader(path).comments
    everything = [mark for its in waves.values() for wave in its for mark in wave[1:] if mark is not None]
    return {
        "p": between("p_on", "p_off"),
        "pr": between("p_on", "q_on"),
        "qrs": between("q_on", "q_off"),
        "qt": between("q_on", "t_off"),
        "peaks": peaks,
        "span": (min(everything), max(everything)),
        "has_p": any(wave[0] == "p" for its in waves.values() for wave in its),
        "paced": any("pacing" in line.lower() for line in comments),
        "rhythm": next((line for line in comments if line.startswith("Rhythm")), ""),
    }


def peak_errors(found, told):
    """True, missed and false R peaks between the first and the last mark."""
    first, last = told["span"]
    missed = sum(not found.size or np.abs(found - r).min() > NEAR for r in told["peaks"])
    inside = found[(found > first) & (found < last)]
    false = sum(np.abs(told["peaks"] - r).min() > NEAR for r in inside)
    return len(told["peaks"]) - missed, missed, false


def errors(values, told, name, paced):
    """Errors in ms of a value, and of how many recordings that have a reference."""
    pairs = [(v[name], t[name]) for v, t in zip(values, told, strict=True) if t[name] and t["paced"] in paced]
    return np.array([value - right for value, right in pairs if value is not None]), len(pairs)


def summary(values, told):
    out = {}
    for group, paced in (("without pacing", (False,)), ("all", (False, True))):
        for name in VALUES:
            wrong, count = errors(values, told, name, paced)
            out[f"{name}, {group}"] = {
                "recordings": count,
                "answered": wrong.size,
                "mean": wrong.mean(),
                "sd": wrong.std(ddof=1),
                "mean_absolute": np.abs(wrong).mean(),
                "p90": np.percentile(np.abs(wrong), 90),
            }
    return out


def show(title, found):
    print(
        f"\n{title}\n| value | answered | mean ± SD | mean absolute | 90 % |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, row in found.items():
        print(
            f"| {name} | {row['answered']}/{row['recordings']} | {row['mean']:.1f} ± {row['sd']:.1f} | "
            f"{row['mean_absolute']:.1f} | {row['p90']:.1f} |"
        )


def ours(recordings):
    measured = [measure(recording) for recording in recordings]  # the warm-up
    start = time.process_time()
    measured = [measure(recording) for recording in recordings]
    return measured, (time.process_time() - start) / len(recordings)


def neurokit(recordings, method):
    """The same values by NeuroKit2, and CPU seconds a recording."""
    import neurokit2 as nk

    def one_lead(row):
        clean = nk.ecg_clean(row, sampling_rate=FS)
        _, peaks = nk.ecg_peaks(clean, sampling_rate=FS)
        _, found = nk.ecg_delineate(clean, peaks["ECG_R_Peaks"], sampling_rate=FS, method=method)
        at = {k: np.array(v, float) for k, v in found.items()}

        def between(a, b):
            size = min(at[a].size, at[b].size)
            both = at[b][:size] - at[a][:size]
            return np.nanmedian(both) * 1000 / FS if np.isfinite(both).any() else np.nan

        return [
            between("ECG_P_Onsets", "ECG_P_Offsets"),
            between("ECG_P_Onsets", "ECG_R_Onsets"),
            between("ECG_R_Onsets", "ECG_R_Offsets"),
            between("ECG_R_Onsets", "ECG_T_Offsets"),
        ]

    def one(recording):
        rows = []
        for row in recording.signal[EIGHT]:
            try:
                rows.append(one_lead(row.astype(float)))
            except Exception:  # noqa: BLE001 (whatever it raises, the lead is not answered)
                continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            middle = np.nanmedian(rows, axis=0) if rows else [np.nan] * 4
        return {name: None if np.isnan(v) else v for name, v in zip(VALUES, middle, strict=True)}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one(recordings[0])
        start = time.process_time()
        found = [one(recording) for recording in recordings]
        return found, (time.process_time() - start) / len(recordings)


def variants():
    """The recordings as others would have them: name to a function of the signal (leads, samples) and the leads."""
    t = np.arange(10 * FS) / FS
    random = np.random.default_rng(0)

    def at(rate):
        ratio = Fraction(rate, FS)
        return lambda s, leads: (
            resample_poly(s, ratio.numerator, ratio.denominator, axis=1, padtype="line"),
            rate,
            leads,
        )

    def plus(make):
        return lambda s, leads: (s + make(s), FS, leads)

    return {
        "1000 Hz": at(1000),
        "250 Hz": at(250),
        "100 Hz": at(100),
        "50 Hz hum, 50 µV": plus(lambda s: 0.05 * np.sin(2 * np.pi * 50.03 * t + 1)[: s.shape[1]]),
        "60 Hz hum, 50 µV": plus(lambda s: 0.05 * np.sin(2 * np.pi * 59.97 * t + 1)[: s.shape[1]]),
        "noise, 20 µV": plus(lambda s: 0.02 * random.standard_normal(s.shape)),
        "drift of 0.3 Hz, 0.3 mV": plus(lambda s: 0.3 * np.sin(2 * np.pi * 0.3 * t)[: s.shape[1]]),
        "0.5 s cut off": lambda s, leads: (s[:, FS // 2 :], FS, leads),
        "lead II alone": lambda s, leads: (s[1:2], FS, leads[1:2]),
    }


def show_variants(recordings, before):
    print("\n| recordings | " + " | ".join(VALUES) + " |\n| --- |" + " ---: |" * len(VALUES))
    for title, change in variants().items():
        after = []
        for r in recordings:
            signal, fs, leads = change(r.signal, r.leads)
            after.append(measure(Recording(signal.astype(np.float32), float(fs), leads, r.name, r.path)))
        cells = []
        for name in VALUES:
            pairs = [
                (getattr(a, f"{name}_ms"), getattr(b, f"{name}_ms"))
                for a, b in zip(before, after, strict=True)
            ]
            moved = np.array([abs(b - a) for a, b in pairs if a is not None and b is not None])
            lost = sum(a is not None and b is None for a, b in pairs)
            new = sum(a is None and b is not None for a, b in pairs)
            more = "".join(f", {n} {word}" for n, word in ((lost, "lost"), (new, "new")) if n)
            cells.append(f"{np.median(moved):.1f}, {np.percentile(moved, 95):.1f}{more}")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
    print("(median and 95th percentile of the absolute difference in ms)")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--part", choices=("tune", "test", "all"), required=True)
    parser.add_argument("--neurokit", action="store_true")
    parser.add_argument("--rates", action="store_true")
    parser.add_argument("--worst", action="store_true", help="list each recording's errors")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    paths = records(told.folder, told.part)
    recordings = [read(path) for path in paths]
    measured, seconds = ours(recordings)
    right = [reference(p, m.beat_times[m.dominant] * FS) for p, m in zip(paths, measured, strict=True)]
    values = [{name: getattr(m, f"{name}_ms") for name in VALUES} for m in measured]
    counts = np.sum([peak_errors(m.beat_times * FS, t) for m, t in zip(measured, right, strict=True)], axis=0)
    found = summary(values, right)
    show(f"ecgbyte measure, {len(paths)} recordings, {1000 * seconds:.1f} ms of CPU each", found)
    true, missed, false = (int(n) for n in counts)
    print(
        f"\nR peaks: {true} found, {missed} missed, {false} false: "
        f"sensitivity {true / (true + missed):.4f}, predictive value {true / (true + false):.4f}"
    )
    without = [m for m, t in zip(measured, right, strict=True) if not t["has_p"]]
    false_p = sum(m.p_ms is not None for m in without)
    print(f"P waves reported in {false_p} of {len(without)} recordings without any")
    result = {"ecgbyte": found, "seconds": {"ecgbyte": seconds}, "peaks": [true, missed, false]}
    result["false_p"] = [false_p, len(without)]
    if told.worst:
        for path, v, t, m in zip(paths, values, right, measured, strict=True):
            wrong = {k: round(v[k] - t[k]) for k in VALUES if t[k] and v[k] is not None}
            print(Path(path).name, wrong, t["rhythm"], "paced" * t["paced"], ";".join(m.flags), m.reasons)
    for method in ("dwt", "prominence") if told.neurokit else ():
        theirs, cost = neurokit(recordings, method)
        result[method], result["seconds"][method] = summary(theirs, right), cost
        show(f"NeuroKit2 {method}, {1000 * cost:.0f} ms of CPU each", result[method])
    if told.rates:
        show_variants(recordings, measured)
    if told.json:
        told.json.write_text(json.dumps(result, indent=1, default=float) + "\n")
    print(
        "\nIEC 60601-2-25 asks of an electrocardiograph, on its own data base, for mean and SD at most: "
        + ", ".join(f"{name} {mean} and {sd} ms" for name, (mean, sd) in IEC.items())
        + ": a comparison, no conformity."
    )


if __name__ == "__main__":
    main()
