"""The encode stage."""

import shutil

import numpy as np
import pytest

from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.fixture
def work(small, tmp_path):
    shutil.copytree(
        small / "ecgbyte-work", tmp_path / "work", ignore=shutil.ignore_patterns("model", "answers")
    )
    return WorkDir(tmp_path / "work")


@pytest.mark.parametrize("segmenter", ["longest", "bpe", "fewest"])
def test_the_ids_are_those_of_each_segment_alone(work, ecgbyte, segmenter, monkeypatch):
    monkeypatch.setattr("ecgbyte_cli.stages.encode.LETTERS", 7000)  # several parts
    assert ecgbyte("encode", "--segmenter", segmenter, "--overwrite", "--threads", 3).exit_code == 0
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    letters, tokens = read_array(work.symbols), read_array(work.tokens)
    places = read_table(work.token_segments)
    assert tokens.dtype == np.uint16 and places["length"].sum() == len(tokens)
    for i in (0, 5, 63):
        own = np.array(letters[2000 * i : 2000 * (i + 1)]).reshape(2, 1000)
        at = places["offset"][i]
        assert np.array_equal(tokens[at : at + places["length"][i]], tokenizer.encode(own, segmenter))


def test_letters_of_another_tokenizer_are_refused(work, small, ecgbyte):
    again = ecgbyte(
        "symbolize", small / "data", "--fs", 50, "--leads", "II,V1", "--overwrite", "encode", "--overwrite"
    )
    assert again.exit_code == 1 and "learn again" in again.stderr


def test_an_interrupted_run_goes_on(work, ecgbyte, monkeypatch):
    before, table = np.load(work.tokens), read_table(work.token_segments)
    shutil.rmtree(work.tokens.parent)
    monkeypatch.setattr("ecgbyte_cli.stages.encode.LETTERS", 10_000)  # 5 of the 64 segments a part
    real, asked = ECGTokenizer.encode_segments, []

    def stops(self, letters, *args):
        asked.append(letters.size)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(self, letters, *args)

    monkeypatch.setattr(ECGTokenizer, "encode_segments", stops)
    stopped = ecgbyte("encode", "--threads", 1)
    assert stopped.exit_code == 1 and "resumes from there" in stopped.stderr
    assert not work.tokens.exists() and not work.token_settings.exists()
    kept = len(list(work.token_parts.glob("*.part")))
    assert kept >= 3
    other = ecgbyte("encode", "--segmenter", "fewest")
    assert other.exit_code == 1 and "other settings" in other.stderr
    asked.clear()
    asked += [0] * 4
    again = ecgbyte("encode", "--threads", 2)
    assert again.exit_code == 0 and f"after {5 * kept} of 64" in again.stderr
    assert sum(asked) == 2000 * (64 - 5 * kept)  # what was done is not done again
    assert np.array_equal(np.load(work.tokens), before)
    assert all(np.array_equal(table[k], v) for k, v in read_table(work.token_segments).items())
    assert not work.token_parts.exists()
