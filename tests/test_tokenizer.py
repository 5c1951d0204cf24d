"""ECGTokenizer: signal to letters to ids and back, and where each token lies."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

ABOUT = {
    "format": "ecgbyte-tokenizer",
    "format_version": 1,
    "signal": {
        "fs": 5.0,
        "leads": ["I", "II"],
        "segment_seconds": 2.0,
        "samples": 10,
        "profile": "resample",
        "fill_nan": None,
        "quantizer": {"name": "paper", "levels": 4, "lo": -1.0, "hi": 1.0},
    },
    "boundary": "lead",
    "merges": [[1, 1], [4, 4], [1, 2]],
}
LETTERS = np.array([[1] * 10, [0, 1, 1, 2, 3, 1, 1, 1, 1, 2]], np.uint8)


def tokenizer(**changed):
    return ECGTokenizer.from_dict({**ABOUT, **changed})


@pytest.mark.parametrize("boundary", ["lead", "segment", "none"])
@pytest.mark.parametrize("segmenter", ["longest", "bpe", "fewest"])
def test_encode_and_decode(boundary, segmenter):
    ours = tokenizer(boundary=boundary)
    ids = ours.encode(LETTERS, segmenter)
    assert ids.dtype == np.int32
    assert np.array_equal(ours.decode(ids), LETTERS)
    token, lead, start, stop = ours.spans(ids).T
    # the spans follow one another over every sample of every lead
    covered = [(line, i) for line, a, b in zip(lead, start, stop, strict=True) for i in range(a, b)]
    assert covered == [(line, i) for line in range(2) for i in range(10)]
    assert np.array_equal(np.bincount(token, stop - start), ours.lengths[ids])


def test_ids_and_spans_by_hand():
    ours = tokenizer()
    assert ours.lengths.tolist() == [1, 1, 1, 1, 2, 4, 2]
    ids = ours.encode(LETTERS)
    assert ids.tolist() == [5, 5, 4, 0, 4, 2, 3, 5, 2]
    assert ours.spans(ids)[:4].tolist() == [[0, 0, 0, 4], [1, 0, 4, 8], [2, 0, 8, 10], [3, 1, 0, 1]]


def test_a_token_that_crosses_leads_has_a_row_for_each():
    ours = tokenizer(boundary="segment")
    ids = ours.encode(np.array([[0] * 9 + [1], [1] + [0] * 9], np.uint8))
    crossing = ids.tolist().index(4)
    assert ours.spans(ids)[ours.spans(ids)[:, 0] == crossing].tolist() == [
        [crossing, 0, 9, 10],
        [crossing, 1, 0, 1],
    ]


def test_signal_to_letters_and_back_is_within_half_a_level():
    ours = tokenizer()
    signal = np.linspace(-0.99, 0.99, 20, dtype=np.float32).reshape(2, 10)
    letters = ours.letters(signal)
    assert np.abs(ours.to_mv(letters) - signal).max() <= 0.25
    assert np.array_equal(ours.encode(signal), ours.encode(letters))


def test_the_hash_tells_what_decides_ids_and_nothing_else():
    assert tokenizer().sha256 == tokenizer(counts=[1, 2, 3]).sha256
    assert len({tokenizer(**c).sha256 for c in ({}, {"merges": []}, {"boundary": "none"})}) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "x"},
        {"format_version": 2},
        {"merges": [[0, 9]]},
        {"merges": "abc"},
        {"merges": [[0]]},
        {"signal": {}},
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, changed):
    path = tmp_path / "ecg_tokenizer.json"
    path.write_text(json.dumps({**ABOUT, **changed}))
    with pytest.raises(Failure, match=r"ecg_tokenizer\.json") as error:
        ECGTokenizer.from_file(path)
    assert "\n" not in error.value.message


def test_the_example_of_the_documentation(small, monkeypatch):
    """The docstring's lines, run beside the work folder; the README has the same."""
    monkeypatch.chdir(small)
    lines = re.findall(r">>> (.*)", ECGTokenizer.__doc__)
    names = {}
    exec("\n".join(lines), names)
    own, ids, signal = names["tokenizer"], names["ids"], names["signal"]
    assert np.array_equal(own.decode(ids), own.quantize(signal)[0])
    assert np.abs(own.to_mv(*own.quantize(signal)) - signal).mean() < 0.1
    assert len(own.spans(ids)) == len(ids)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    if "ECGTokenizer" in readme:
        assert all(line in readme for line in lines)
