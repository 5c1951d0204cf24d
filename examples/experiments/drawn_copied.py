"""Check whether drawn ECGs are copies of training recordings.

    python examples/experiments/drawn_copied.py DRAWN --work ecgbyte-work

The similarity of two ECGs is their largest correlation over all shifts in time, all leads together, on the letters in
mV. For each ECG in DRAWN (a folder of `ecgbyte draw`, or a folder of such folders) the script finds the most similar
recording of the training split, and for that one the most similar recording of another patient. An ECG nearer to its
recording than that patient counts as near; a copy has a correlation of 1. The recordings of the validation split,
which are of other patients, are the reference: they are no copies.
"""

import argparse
from pathlib import Path

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.output import progress
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir

MOST = 200  # ECGs of each kind


def spectra(signals):
    """Of ECGs, (n, leads, samples), the spectra (n, leads, frequencies), so that their product is a correlation."""
    signals = signals - signals.mean(2, keepdims=True)
    signals = signals / np.maximum(np.sqrt(np.square(signals).sum((1, 2), keepdims=True)), 1e-9)
    return np.fft.rfft(signals.astype(np.float32), axis=2).astype(np.complex64)


def alike(one, others):
    """The largest correlation over all shifts of an ECG's spectra with each of others, (n,)."""
    return np.concatenate(
        [
            np.fft.irfft((np.conj(one) * others[i : i + 500]).sum(1), axis=1).max(1)
            for i in range(0, len(others), 500)
        ]
    )


def near(asked, training, patients, bar):
    """Of some spectra: how alike the most alike recording is, and that one and the nearest of another patient."""
    rows = []
    for one in asked:
        found = alike(one, training)
        nearest = int(found.argmax())
        others = alike(training[nearest], training[patients != patients[nearest]])
        rows.append((found[nearest], others.max()))
        bar.advance()
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("drawn", type=Path)
    parser.add_argument("--work", type=Path, default=Path("ecgbyte-work"))
    options = parser.parse_args()
    work = WorkDir(options.work)
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    letters, segments = read_array(work.symbols), read_table(work.symbol_segments)
    shape = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]

    def of(split):
        at = np.flatnonzero(np.asarray(segments["split"]) == split)
        mv = [
            tokenizer.to_mv(letters[i : i + shape[0] * shape[1]].reshape(shape), lo, hi)
            for i, lo, hi in zip(
                *(np.asarray(segments[name])[at] for name in ("offset", "lo", "hi")), strict=True
            )
        ]
        return spectra(np.stack(mv)), np.asarray(segments["patient"])[at]

    training, patients = of("train")
    paths = sorted(options.drawn.rglob("*.hea"))
    random = np.random.default_rng(0)
    paths = [paths[i] for i in np.sort(random.permutation(len(paths))[:MOST])]
    drawn = spectra(np.stack([readers.read_recording(path).signal for path in paths]))
    held_out = of("val")[0]
    held_out = held_out[np.sort(random.permutation(len(held_out))[:MOST])]
    print(
        "| | ECGs | correlation with the nearest, median | largest | nearer than its nearest other patient, % |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, some in (("drawn", drawn), ("recorded, of other patients", held_out)):
        with progress("compare", len(some), "ECGs") as bar:
            rows = near(some, training, patients, bar)
        share = 100 * (rows[:, 0] > rows[:, 1]).mean()
        print(
            f"| {name} | {len(rows)} | {np.median(rows[:, 0]):.3f} | {rows[:, 0].max():.3f} | {share:.1f} |"
        )


if __name__ == "__main__":
    main()
