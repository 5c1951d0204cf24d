"""The decode stage: recordings written and errors measured."""

import json
import shutil

import numpy as np
import pytest
import wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.workdir import WorkDir, read_json, read_table


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
        original = readers.read(segments["path"][i])
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
