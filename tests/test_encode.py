"""The encode stage."""

import shutil

import numpy as np
import pytest

from ecgbyte_cli.tokenizer import ECGTokenizer
from ecgbyte_cli.workdir import WorkDir, read_array, read_table


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
