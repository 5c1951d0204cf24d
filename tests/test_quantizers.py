"""A new quantizer is one row of the table: everything else finds it there."""

import numpy as np
import pytest
from test_readers import wave, write_wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import quantizers
from ecgbyte_cli.signal.preprocess import PROFILES, segments
from ecgbyte_cli.signal.quantizers import QUANTIZERS, Quantizer
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages.symbolize import SymbolizeOptions, symbolize
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir


def _quantize(settings, signal):
    steps = np.floor((signal - settings["zero"]) / settings["step"]) + settings["levels"] // 2
    half = settings["step"] * settings["levels"] / 2
    return np.clip(steps, 0, settings["levels"] - 1).astype(np.uint8), -half, half


def _values(settings, lo, hi):
    return settings["zero"] + settings["step"] * (
        np.arange(settings["levels"]) - settings["levels"] // 2 + 0.5
    )


def _fit(settings, counts, blocks):
    return {"zero": float(np.mean([block.mean() for block in blocks()]))}


TOY = Quantizer(
    help="equal steps around the corpus' mean",
    check=lambda settings: quantizers.check_number(settings["step"], 0.001, 10),
    quantize=_quantize,
    values=_values,
    own_settings=lambda mu, margin: {"step": 0.1},
    fit=_fit,
    fitted="zero",
)


def test_a_row_is_all_that_a_new_quantizer_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(QUANTIZERS, "toy", TOY)
    (tmp_path / "data").mkdir()
    for i in range(3):
        write_wfdb(tmp_path / "data", f"r{i}", wave(2, 1000, i), ["II", "V1"], fs=250)
    work = WorkDir(tmp_path / "work")
    options = {"leads": "II,V1", "segment": 2.0, "profile": "resample", "levels": 64, "jobs": 1}
    symbolize(work, [str(tmp_path / "data")], SymbolizeOptions(quantizer="toy", **options))
    signal = read_json(work.symbol_settings)["signal"]
    assert signal["quantizer"].keys() == {"name", "levels", "lo", "hi", "step", "zero"}
    tokenizer = ECGTokenizer.from_dict(
        {
            "format": "ecgbyte-tokenizer",
            "format_version": 1,
            "signal": signal,
            "boundary": "lead",
            "merges": [],
        }
    )
    table, letters = read_table(work.symbol_segments), read_array(work.symbols)
    for path, start, offset in zip(table["path"], table["start"], table["offset"], strict=True):
        cut = dict(segments(readers.read_recording(path), signal))[start]
        got = letters[offset : offset + cut.size].reshape(cut.shape)
        assert np.array_equal(tokenizer.letters(cut), got)
        assert np.abs(tokenizer.to_mv(got) - cut).max() <= 0.0501
    assert "`toy`: equal steps around the corpus' mean." in quantizers.help_text()
    signal["quantizer"]["step"] = -1
    with pytest.raises(Failure, match="-1 is not from"):
        ECGTokenizer.from_dict(
            {"format": "ecgbyte-tokenizer", "format_version": 1, "signal": signal, "boundary": "lead"}
        )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_row_goes_from_mv_to_letters_and_back(name):
    signal = np.random.default_rng(3).normal(0, 0.4, (2, 500)).astype(np.float32)
    counts = np.zeros(2**16, np.int64)
    quantizers.kernels.count_upper(signal, counts)
    settings = quantizers.describe(name, 64)
    assert quantizers.is_complete(settings) == (QUANTIZERS[name].fit is None)
    settings = quantizers.fit(settings, counts, lambda: [signal])
    assert quantizers.is_complete(settings)
    quantizers.check(settings)
    letters, lo, hi = quantizers.quantize(signal, settings)
    assert letters.shape == signal.shape and letters.max() < 64
    back = quantizers.dequantize(letters, settings, lo, hi)
    assert np.sqrt(np.mean((back - signal) ** 2)) < 0.06
    if quantizers.has_size(settings):
        assert np.array_equal(quantizers.dequantize(letters, settings), back)
    else:
        with pytest.raises(ValueError, match="own range"):
            quantizers.dequantize(letters, settings)


def test_a_profile_names_its_quantizer():
    for profile, row in PROFILES.items():
        settings = quantizers.describe(None, 26, profile=profile)
        assert settings["name"] == row.quantizer
        assert settings.get("margin", 0) == row.margin
