"""Time symbolize and a straightforward version on the same recordings.

The straightforward version uses wfdb.rdsamp, SciPy's filtfilt for each filter, PyWavelets and interp1d for each lead,
and NumPy for the letters. Both run the profile `paper` at 250 Hz in one process. Then the whole command is timed on
all recordings.

    python examples/benchmarks/bench_symbolize.py [FOLDER] [--records 5000] [--jobs 2]

Without FOLDER, recordings are synthetic (12 leads, 10 s, 500 Hz). Both versions are timed on the first 100 recordings;
the best of three rounds counts.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pywt
import wfdb
from scipy.interpolate import interp1d
from scipy.signal import butter, filtfilt, iirnotch

from ecgbyte_cli import readers
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.quantizers import quantize
from ecgbyte_kernels import filters

QUANTIZER = {"name": "paper", "levels": 26, "lo": -1.5, "hi": 1.5}


def plain_read(path):
    signal, about = wfdb.rdsamp(path[: -len(".hea")])
    return signal, about["fs"]


def plain_filters(signal, fs):
    for notch in (50, 60):
        signal = filtfilt(*iirnotch(notch, 30, fs), signal, axis=0)
    signal = filtfilt(*butter(4, [0.5, 100], "bandpass", fs=fs), signal, axis=0)
    return filtfilt(*butter(4, 0.05, "highpass", fs=fs), signal, axis=0)


def plain_wavelet(signal):
    out = np.empty_like(signal)
    for lead in range(signal.shape[1]):
        coarse, *details = pywt.wavedec(signal[:, lead], "db6", level=4)
        threshold = np.median(np.abs(details[0])) / 0.6745
        details = [pywt.threshold(d, threshold, "soft") for d in details]
        out[:, lead] = pywt.waverec([coarse, *details], "db6")[: len(signal)]
    return out


def plain_resample(signal, fs):
    seconds = len(signal) / fs
    before = np.linspace(0, seconds, len(signal))
    after = np.linspace(0, seconds, int(len(signal) * 250 / fs))
    leads = [interp1d(before, lead, kind="cubic")(after) for lead in signal.T]
    return np.array(leads)


def plain_letters(signal):
    scaled = (signal - QUANTIZER["lo"]) / (QUANTIZER["hi"] - QUANTIZER["lo"])
    symbols = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    picked = symbols[np.minimum(np.floor(np.clip(scaled, 0, 1) * 26), 25).astype(int)]
    return "".join(picked.flatten())


def plain(paths):
    """Seconds spent in each stage, and the letters."""
    spent, out = np.zeros(5), []
    for path in paths:
        times = [time.perf_counter()]
        signal, fs = plain_read(path)
        times.append(time.perf_counter())
        signal = plain_filters(signal, fs)
        times.append(time.perf_counter())
        signal = plain_wavelet(signal)
        times.append(time.perf_counter())
        signal = plain_resample(signal, fs)
        times.append(time.perf_counter())
        out.append(np.frombuffer(plain_letters(signal).encode(), np.uint8) - ord("a"))
        times.append(time.perf_counter())
        spent += np.diff(times)
    return spent, out


def ours(paths):
    """The same stages by the package's own parts."""
    spent, out = np.zeros(5), []
    for path in paths:
        times = [time.perf_counter()]
        recording = readers.read_recording(path)
        signal = preprocess.pick(recording, preprocess.LEADS)
        times.append(time.perf_counter())
        designs = [f for f, _ in preprocess.paper_filters(recording.fs)[0]]
        signal = filters.zero_phase(signal.T, designs)
        times.append(time.perf_counter())
        signal = filters.denoise(signal, preprocess.db6(), 4)
        times.append(time.perf_counter())
        signal = filters.cubic(signal, int(signal.shape[0] * 250 / recording.fs)).T
        times.append(time.perf_counter())
        out.append(quantize(signal, QUANTIZER)[0].ravel())
        times.append(time.perf_counter())
        spent += np.diff(times)
    return spent, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="WFDB records with 12 leads")
    parser.add_argument("--records", type=int, default=5000, help="synthetic records to make")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the whole command")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder
        if folder is None:
            folder = str(Path(scratch) / "data")
            make = ["synth", folder, "--records", str(options.records), "--fs", "500"]
            subprocess.run([sys.executable, "-m", "ecgbyte_cli", *make], check=True, capture_output=True)
        found = readers.find(folder)[0]
        few = found[:100]
        ours(few[:2])  # compile
        spent = {"plain": [], "ours": []}
        for _ in range(3):
            for name, way in (("plain", plain), ("ours", ours)):
                seconds, letters = way(few)
                spent[name].append(seconds)
                if name == "plain":
                    expected = letters
        same = np.mean([np.mean(a == b) for a, b in zip(expected, letters, strict=True)])
        a, b = (np.min(spent[name], axis=0) / len(few) * 1000 for name in ("plain", "ours"))
        print(f"{len(few)} records, one process, ms a record; {100 * same:.2f} % of the letters are equal")
        print(f"{'stage':<12}{'plain':>8}{'ours':>8}{'times':>8}")
        stages = ("reading", "filters", "wavelet", "resampling", "letters", "all")
        for stage, x, y in zip(stages, [*a, a.sum()], [*b, b.sum()], strict=True):
            print(f"{stage:<12}{x:8.2f}{y:8.2f}{x / y:8.1f}")
        started = time.perf_counter()
        command = ["--work", str(Path(scratch) / "work"), "symbolize", folder, "--jobs", str(options.jobs)]
        subprocess.run([sys.executable, "-m", "ecgbyte_cli", *command], check=True, capture_output=True)
        seconds = time.perf_counter() - started
        print(
            f"ecgbyte symbolize, start to end: {len(found)} records in {seconds:.1f} s, "
            f"{len(found) / seconds:.0f} records/s with {options.jobs} processes"
        )


if __name__ == "__main__":
    main()
