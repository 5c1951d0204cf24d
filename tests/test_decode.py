"""The decode stage: recordings written and errors measured."""

import json
import re
import shutil

import numpy as np
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st
from test_readers import LEADS, wave, write_wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.readers.wfdb_write import file_name
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.fixture
def work(small, tmp_path):
    shutil.copytree(
        small / "ecgbyte-work", tmp_path / "work", ignore=shutil.ignore_patterns("model", "answers")
    )
    return WorkDir(tmp_path / "work")


def test_the_errors_are_those_of_the_written_records(work, ecgbyte):
    result = json.loads(ecgbyte("decode", "--limit", 5, "--json").stdout)
    assert result["segments"] == 5
    settings, segments = read_json(work.symbol_settings)["signal"], read_table(work.symbol_segments)
    squares, prds, snrs, clipped = [], [], [], []
    for header in sorted(work.decoded.glob("*.hea")):
        record = wfdb.rdrecord(str(header.with_suffix("")))
        assert record.sig_name == ["II", "V1"] and record.fs == 100 and record.fmt == ["16"] * 2
        i = int(header.stem.rpartition("_")[2])
        original = readers.read_recording(segments["path"][i])
        assert record.comments[:-1] == original.comments
        ((_, x),) = preprocess.segments(original, settings)
        difference = record.p_signal.T - x
        squares.append(np.mean(difference**2))
        prds.append(100 * np.sqrt(np.sum(difference**2) / np.sum(x**2)))
        varying = np.sum((x - x.mean(axis=1, keepdims=True)) ** 2)
        snrs.append(10 * np.log10(varying / np.sum(difference**2)))
        clipped.append(np.mean((x < segments["lo"][i]) | (x > segments["hi"][i])))
    # the written files are rounded to 1 µV
    assert result["rmse_uv"] == pytest.approx(1000 * np.sqrt(np.mean(squares)), abs=0.1)
    assert result["prd_percent"] == pytest.approx(np.mean(prds), abs=0.1)
    assert result["clipped_fraction"] == pytest.approx(np.mean(clipped))
    assert result["snr_db"] == pytest.approx(np.mean(snrs), abs=0.1)
    assert result["beats"] >= 5 and 0 < result["r_amplitude_mv"]["mean_absolute"] < 1
    assert 0 <= result["r_time_ms"]["mean_absolute"] <= result["r_time_ms"]["p95_absolute"] < 60
    assert abs(result["st_level_mv"]["mean"]) <= result["st_level_mv"]["mean_absolute"]


def test_ids_that_do_not_give_their_letters_are_refused(work, ecgbyte):
    tokens = np.load(work.tokens)
    tokens[:] = tokens[::-1].copy()
    np.save(work.tokens, tokens)
    result = ecgbyte("decode")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert not work.decoded.exists()


def test_recordings_that_are_gone_are_said(work, small, tmp_path, ecgbyte):
    shutil.copytree(small / "data", tmp_path / "data")
    assert ecgbyte("symbolize", tmp_path / "data", "--fs", 50, "--overwrite", "learn", "--vocab", 60, "--overwrite",
                   "encode", "--overwrite").exit_code == 0  # fmt: skip
    shutil.rmtree(tmp_path / "data")
    result = ecgbyte("decode")
    assert result.exit_code == 1 and "nothing to compare with" in result.stderr


TOKENS = ("learn", "--vocab", 60, "--split", "all", "encode", "decode", "--json")
TWO = ("--leads", "II,V1", "--fs", 100, "--profile", "resample", "--segment", 2, "--jobs", 1)


@given(st.text(st.characters(exclude_categories=()), max_size=150))
def test_a_records_name_makes_a_files_name(name):
    assert re.fullmatch(r"[-A-Za-z0-9_]{0,100}", file_name(name))


@pytest.mark.parametrize("name", ["a b", "a.b", "$HOME", "a\nb", "Straße µ", "a..b", "-x", "n" * 200])
def test_records_of_any_name_are_decoded(tmp_path, ecgbyte, name):
    data = tmp_path / "data"
    data.mkdir()
    write_wfdb(data, "r", wave(2, 260), ["II", "V1"], fs=125, comments=["Name: x\x1b[31m"])
    (data / "r.hea").rename(data / f"{name}.hea")
    result = ecgbyte("symbolize", data, *TWO, *TOKENS)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["decode"]["compared"] == 1
    (header,) = (tmp_path / "work" / "decoded").glob("*.hea")
    record = wfdb.rdrecord(str(header.with_suffix("")))
    assert record.sig_len == 200 and record.comments[0] == "Name: x\\x1b[31m"


def test_recordings_that_changed_are_named_and_left_out(tmp_path, ecgbyte):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(6):
        write_wfdb(data, f"r{i}", wave(2, 260, i), ["II", "V1"], fs=125)
    whole = json.loads(ecgbyte("symbolize", data, *TWO, *TOKENS).stdout)["decode"]
    assert (whole["segments"], whole["compared"], whole["changed"]) == (6, 6, 0)
    write_wfdb(data, "r1", wave(2, 260, 99), ["II", "V1"], fs=125)  # another one
    write_wfdb(data, "r2", 2 * wave(2, 260, 2), ["II", "V1"], fs=125)  # another gain
    write_wfdb(data, "r3", wave(2, 260, 3)[::-1], ["II", "V1"], fs=125)  # leads exchanged
    (data / "r4.dat").unlink()
    result = ecgbyte("decode", "--overwrite", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["segments"], told["compared"], told["changed"]) == (6, 2, 3)
    assert (
        f"3 recordings have changed since they were symbolized: decoded, but not compared ({data / 'r1.hea'}"
        in (result.stderr)
    )
    assert "1 recordings cannot be read again" in result.stderr and "signal file missing" in result.stderr
    assert told["prd_percent"] < 2 * whole["prd_percent"]
    for i in (0, 5):
        write_wfdb(data, f"r{i}", wave(2, 260, 50 + i), ["II", "V1"], fs=125)
    result = ecgbyte("decode", "--overwrite")
    assert result.exit_code == 1 and "nothing to compare with" in result.stderr


@pytest.mark.parametrize(
    "how", ["--quantizer paper", "--profile elm", "--quantizer lloyd", "--quantizer trellis"]
)
def test_recordings_are_read_again_as_they_were_read(tmp_path, ecgbyte, how):
    """Rates, lead names and units that only the command line said; the figures are those of WFDB files."""
    import h5py

    signals = [np.round(wave(12, 5000, i), 3) for i in range(4)]
    order = [0, 1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11]
    for name in ("wfdb", "csv", "npz", "hdf5"):
        (tmp_path / name).mkdir()
    for i, signal in enumerate(signals):
        write_wfdb(tmp_path / "wfdb", f"{i}", signal, fs=500)
        np.savetxt(
            tmp_path / "csv" / f"{i}.csv", 1000 * signal.T, "%.0f", ",", header=",".join(LEADS), comments=""
        )
        np.savez(tmp_path / "npz" / f"{i}.npz", signal=1000 * signal[order].astype(np.float32), fs=500.0)
    with h5py.File(tmp_path / "hdf5" / "x.h5", "w") as file:
        file["tracings"] = np.stack(signals).transpose(0, 2, 1)[:, :, order].astype(np.float32) / 1000
        file["exam_id"] = np.arange(4)
    names = ",".join(LEADS[i] for i in order)
    figures = {}
    for name, options in {
        "wfdb": (),
        "csv": ("--input-fs", 500, "--units", "uV"),
        "npz": ("--lead-names", names, "--units", "uV"),
        "hdf5": ("--input-fs", 500, "--lead-names", names, "--units", "V"),
    }.items():
        args = ("symbolize", tmp_path / name, *how.split(), *options, "--jobs", 1, *TOKENS)
        result = ecgbyte(*args, work=tmp_path / f"work {name}")
        assert result.exit_code == 0, result.stderr
        figures[name] = json.loads(result.stdout)["decode"]
        reading = WorkDir(tmp_path / f"work {name}").reading()
        assert reading["units"] == dict(zip(options[::2], options[1::2], strict=True)).get("--units")
    for told in figures.values():
        assert told["compared"] == 4
        assert told["prd_percent"] == pytest.approx(figures["wfdb"]["prd_percent"], rel=0.02)
