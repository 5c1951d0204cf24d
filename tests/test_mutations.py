"""Damaged and hostile files of every format: each is read or refused in one line, soon, and in little memory.

ECGBYTE_MUTATIONS says how many are tried (300).
"""

import faulthandler
import io
import multiprocessing
import os
import re
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_readers import LEADS, wave, write_edf, write_segmented, write_wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.edf import FIELDS
from ecgbyte_cli.signal import preprocess

WILD = [
    "0",
    "-1",
    "1",
    "3",
    "65536",
    "1000000000",
    "99999999999999999999",
    "1e308",
    "1e-308",
    "nan",
    "-inf",
    "",
    "x",
]
WILD += [
    "-5,0",
    "µV",
    "mV",
    "~",
    "..",
    "../x",
    "/dev/zero",
    "r/9",
    "16x4",
    "212:7",
    "16:999999999",
    "516",
    "8",
    "9" * 300,
]
WILD += ["00/00/0000", "1000(5)/uV", "a" * 5000, " " * 5000 + "x", "\0", "I (uV)", '"', "1,2"]


def seeds(folder):
    """A valid input of each kind: {name: the files to mutate, the first being the one to read}."""
    import h5py
    import wfdb
    from pydicom.data import get_testdata_file

    signal = wave()
    write_wfdb(folder, "plain", signal)
    write_wfdb(folder, "packed", signal[:, :800], fmt="212", gain=200)
    write_wfdb(folder, "flac", signal[:8], LEADS[:8], fmt="516")
    frames = [(row * 1000).astype(int) for row in wave(3, 2000)]
    frames[2] = frames[2][:1000]
    more = {"samps_per_frame": [2, 2, 1], "fmt": ["16"] * 3, "adc_gain": [1000.0] * 3, "baseline": [0] * 3}
    wfdb.wrsamp("frames", 125, ["mV"] * 3, LEADS[:3], e_d_signal=frames, write_dir=str(folder), **more)
    write_segmented(folder)
    write_edf(folder / "e.edf", signal)
    write_edf(folder / "b.bdf", signal)
    (folder / "d.dcm").write_bytes(Path(get_testdata_file("waveform_ecg.dcm", download=False)).read_bytes())
    rows = "\n".join(",".join(f"{v:.3f}" for v in row) for row in signal.T)
    (folder / "c.csv").write_text(",".join(f"{lead} (mV)" for lead in LEADS) + "\n" + rows + "\n")
    np.save(folder / "n.npy", signal)
    np.savez_compressed(folder / "z.npz", signal=signal, fs=250, leads=LEADS, units="mV")
    with h5py.File(folder / "h.h5", "w") as file:
        data = np.zeros((2, 4096, 12), "f4")
        data[0, 100:1600] = signal.T
        file.create_dataset("tracings", data=data, chunks=(1, 512, 12), compression="gzip")
        file["exam_id"] = [1, 2]
    groups = [["plain.hea", "plain.dat"], ["packed.hea", "packed.dat"], ["flac.hea", "flac.dat"]]
    groups += [
        ["frames.hea", "frames.dat"],
        ["multi.hea", "part1.hea", "part1.dat", "part2.hea", "part2.dat"],
    ]
    groups += [[name] for name in ("e.edf", "b.bdf", "d.dcm", "c.csv", "n.npy", "z.npz", "h.h5")]
    return [{name: (folder / name).read_bytes() for name in group} for group in groups]


def bytes_mutated(data, rng):
    """Change bytes, numbers, length, or order, one to three times."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        size = max(len(data), 1)
        # the first kilobyte is where headers are
        at = int(rng.integers(min(size, 1024)) if rng.random() < 0.7 else rng.integers(size))
        kind = rng.choice([0, 0, 0, 0, 1, 1, 2, 3, 4, 5])
        if kind == 0:
            data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            numbers = list(re.finditer(rb"\d+", bytes(data[:4096])))
            if numbers:
                number = numbers[rng.integers(len(numbers))]
                data[number.start() : number.end()] = wild(rng)
        elif kind == 2:
            del data[int(rng.integers(size)) :]
        elif kind == 3:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 4:
            data[at:at] = data[at : at + int(rng.integers(1, 64))]
        else:
            data[at : at + 4] = struct.pack(">I", rng.choice([0, 2**31 - 1, 2**32 - 1, 2**32 - 129]))
    return bytes(data)


def wild(rng):
    return WILD[rng.integers(len(WILD))].encode(rng.choice(["utf-8", "latin-1"]))


def lines_mutated(data, rng):
    """Change a word, or double, drop or swap lines, of a WFDB header or a table."""
    lines = data.split(b"\n")
    mark = b"," if data.count(b",") > 100 else b" "
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(min(len(lines), 16)))
        words = lines[at].split(mark)
        kind = rng.integers(5)
        if kind < 2:
            words[rng.integers(len(words))] = wild(rng)
        elif kind == 2:
            words = words * int(rng.choice([2, 600]))
        elif kind == 3:
            lines[at:at] = [lines[at]] * int(rng.choice([1, 20_000]))
        else:
            lines[at], lines[-1] = lines[-1], lines[at]
        lines[at] = mark.join(words)
    return b"\n".join(lines)


def edf_mutated(data, rng):
    """Overwrite a field of the header."""
    data = bytearray(data)
    count = int(data[252:256])
    for _ in range(rng.integers(1, 3)):
        if rng.random() < 0.4:
            at, width = [(168, 8), (176, 8), (184, 8), (192, 44), (236, 8), (244, 8), (252, 4)][
                rng.integers(7)
            ]
        else:
            field = list(FIELDS)[rng.integers(len(FIELDS))]
            before = sum(width for name, width in list(FIELDS.items())[: list(FIELDS).index(field)])
            width = FIELDS[field]
            at = 256 + count * before + int(rng.integers(count)) * width
        data[at : at + width] = wild(rng)[:width].ljust(width)
    return bytes(data)


def dicom_mutated(data, rng):
    """Set a value of the waveform to something wild, or repeat an element many times."""
    import pydicom

    read = pydicom.dcmread(io.BytesIO(data))
    group = read.WaveformSequence[rng.integers(len(read.WaveformSequence))]
    channels = group.ChannelDefinitionSequence
    kind = rng.integers(6)
    if kind == 0:
        name, most = [
            ("NumberOfWaveformSamples", 2**32),
            ("NumberOfWaveformChannels", 2**16),
            ("WaveformBitsAllocated", 2**16),
        ][rng.integers(3)]
        setattr(group, name, int(rng.choice([0, 1, 8, 13, most // 2, most - 1])))
    elif kind == 1:
        name = ["ChannelSensitivity", "ChannelBaseline", "ChannelSensitivityCorrectionFactor"][
            rng.integers(3)
        ]
        value = pydicom.valuerep.DSfloat(float(rng.choice([0, 1e-300, 1e300, -1])))
        setattr(channels[rng.integers(len(channels))], name, value)
    elif kind == 2:
        channel = channels[rng.integers(len(channels))]
        del channel[list(channel.keys())[rng.integers(len(channel))]]
    elif kind == 3:
        channels.extend([channels[0]] * int(rng.choice([1, 100, 3000])))
    elif kind == 4:
        group.WaveformSampleInterpretation = str(rng.choice(["MB", "UB", "SL", ""]))
    else:
        group.SamplingFrequency = pydicom.valuerep.DSfloat(float(rng.choice([0, -1, 1e300])))
    out = io.BytesIO()
    read.save_as(out)
    return out.getvalue()


def array_header(rng):
    """A .npy file of wild shape and type, with few bytes behind it."""
    shape = tuple(int(n) for n in rng.choice([0, 1, 12, 500, 2**20, 2**40, 2**62], rng.integers(0, 4)))
    kind = str(rng.choice(["<f8", "<f4", "<i2", "|O", "<U99999999", "<c16", "|V999999", "<f2", "|b1"]))
    text = repr({"descr": kind, "fortran_order": bool(rng.integers(2)), "shape": shape})
    text = text.ljust(int(rng.choice([118, 9000, 60_000]))) + "\n"
    return (
        b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + bytes(int(rng.choice([0, 96_000])))
    )


def archive(rng):
    """An .npz file of wild arrays, names and sizes."""
    import zipfile

    out = io.BytesIO()
    names = ["signal", "fs", "leads", "units", "a", "../x"]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name in rng.choice(names, rng.integers(1, 5), replace=False):
            file.writestr(f"{name}.npy", array_header(rng) if rng.random() < 0.6 else array_of(rng))
        for i in range(int(rng.choice([0, 0, 5, 3000]))):
            file.writestr(f"{i}.npy", b"")
    data = bytearray(out.getvalue())
    if rng.random() < 0.3:
        end = data.rindex(b"PK\5\6")
        at = end + int(rng.choice([8, 10, 12, 16]))
        data[at : at + 2] = bytes(rng.integers(0, 256, 2, np.uint8))
    return bytes(data)


def array_of(rng):
    out = io.BytesIO()
    choices = [
        wave(),
        np.array(250.0),
        np.array(LEADS),
        np.array(["uV"] * 12),
        np.array("?"),
        np.zeros((12, 0)),
    ]
    np.save(out, choices[rng.integers(len(choices))])
    return out.getvalue()


def hdf5(rng, folder):
    """An HDF5 file of wild shape, chunks, types and links; little of it is allocated."""
    import h5py

    with h5py.File(folder / "made.h5", "w", libver=rng.choice(["earliest", "latest"])) as file:
        shape = tuple(int(n) for n in [rng.choice([1, 3, 1000, 2**24]), *rng.choice([1, 12, 4096, 2**21], 2)])
        if rng.random() < 0.5:
            shape = (*shape[:2], 12)
        chunks = tuple(int(min(side, rng.choice([1, 2, 64, 1024]))) for side in shape[:2])
        chunks = (*chunks, int(min(shape[2], rng.choice([1, 12]))))
        kind = str(rng.choice(["f4", "f8", "i2", "c8", "S3", "u1"]))
        data = file.create_dataset(
            "tracings", shape, kind, chunks=chunks, compression=rng.choice([None, "gzip"])
        )
        # what would take long to write stays without a chunk
        pieces = np.prod([-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)], dtype=float)
        if rng.random() < 0.8 and kind != "S3" and np.prod(chunks) < 2**20 and pieces < 2**20:
            data[0, : min(shape[1], 2000), : min(shape[2], 12)] = 1
        data.attrs["units"] = ["uV", "", "°C", np.arange(3), "x" * 30_000][rng.integers(5)]
        exams = rng.integers(6)
        if exams == 0:
            file["exam_id"] = h5py.ExternalLink("/dev/zero", "/x")
        elif exams == 1:
            file["exam_id"] = h5py.SoftLink("/exam_id")
        elif exams == 2:
            file.create_dataset("exam_id", (2**40,), "S9", chunks=(1,))
        elif exams == 3:
            file["exam_id"] = np.array([b"\xff\n" * 2000] * 3)
        elif exams == 4:
            file["exam_id"] = file["tracings"]
        if rng.random() < 0.1:
            del file["tracings"]
            file["tracings"] = h5py.ExternalLink("made.h5", "/exam_id")
    return (folder / "made.h5").read_bytes()


def mutated(name, data, rng, folder):
    """Mutate a file by what its format is made of, or else by its bytes."""
    kind = os.path.splitext(name)[1]
    if kind == ".dat" or rng.random() < 0.4:
        return bytes_mutated(data, rng)
    if kind in (".hea", ".csv"):
        return lines_mutated(data, rng)
    if kind in (".edf", ".bdf"):
        return edf_mutated(data, rng)
    if kind == ".dcm":
        return dicom_mutated(data, rng)
    return {
        ".npy": lambda: array_header(rng),
        ".npz": lambda: archive(rng),
        ".h5": lambda: hdf5(rng, folder),
    }[kind]()


def read_mutated(folder, count, seed, queue):
    """Read mutated inputs, and report what became of them, of each kind how many and the longest, and the memory."""
    (folder / "seeds").mkdir()
    originals = seeds(folder / "seeds")
    settings = {"fs": 250.0, "leads": LEADS, "segment_seconds": 2.0, "samples": 500, "fill_nan": None}
    rng = np.random.default_rng(seed)
    outcomes, tried, slowest = Counter(), Counter(), {}
    place = folder / "mutated"
    place.mkdir()
    for i in range(count):
        group = originals[i % len(originals)]
        for name, data in group.items():
            changed = rng.random() < 1 / len(group) + 0.2
            (place / name).write_bytes(mutated(name, data, rng, folder) if changed else data)
        first = next(iter(group))
        faulthandler.dump_traceback_later(600, exit=True)  # a hang is an end, too
        started = time.process_time()
        for path in readers.find(place / first)[0][:5]:
            try:
                read = readers.read_recording(path, 250)
                assert read.signal.dtype == np.float32 and read.signal.shape[0] == len(read.leads)
                for profile in preprocess.PROFILES:
                    preprocess.segments(read, settings | {"profile": profile})
                outcomes["read"] += 1
            except Failure as error:
                assert error.message and "\n" not in error.message, path
                outcomes[error.message.partition(":")[0]] += 1
        tried[first] += 1
        slowest[first] = max(slowest.get(first, (0.0, 0)), (time.process_time() - started, i))
    # not getrusage: its peak is, after a fork, that of the parent if that is higher
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    faulthandler.cancel_dump_traceback_later()
    queue.put((outcomes, tried, slowest, int(status["VmHWM"].split()[0]) / 1024))


def test_mutated_inputs_are_read_or_refused(tmp_path):
    """No traceback, no crash, no input over 5 s of a processor, no more than 1 GB."""
    for package in ("edfio", "h5py", "pydicom"):
        pytest.importorskip(package)
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    count = int(os.environ.get("ECGBYTE_MUTATIONS", 300))
    process = context.Process(target=read_mutated, args=(tmp_path, count, 20, queue))
    process.start()
    process.join()
    assert process.exitcode == 0, f"the input is in {tmp_path}"
    outcomes, tried, slowest, megabytes = queue.get()
    print(outcomes)
    for kind, (seconds, which) in slowest.items():
        print(f"{kind}: {tried[kind]} inputs, {seconds:.2f} s at most, for number {which}")
    longest, _ = max(slowest.values())
    print(f"{tried.total()} inputs, {longest:.2f} s and {megabytes:.0f} MB at most")
    assert outcomes.total() >= count and longest < 5 and megabytes < 1000
    assert outcomes["read"] > count / 10 and len(outcomes) > 8
