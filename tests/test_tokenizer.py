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


@pytest.mark.parametrize("segmenter", ["longest", "bpe", "fewest"])
def test_a_flat_line_takes_few_tokens(segmenter):
    ours = tokenizer()
    zero = ours.encode(np.zeros(LETTERS.shape, np.float32), segmenter)
    assert np.array_equal(ours.flat_line(segmenter), zero)
    relative = tokenizer(
        signal={**ours.signal, "quantizer": {"name": "minmax", "levels": 4, "lo": None, "hi": None}}
    )
    letters = [np.full(LETTERS.shape, i, np.uint8) for i in range(4)]
    made = relative.flat_line(segmenter)
    assert len(np.unique(relative.decode(made))) == 1
    assert len(made) == min(len(relative.encode(line, segmenter)) for line in letters)
    assert len(made) < max(len(relative.encode(line, segmenter)) for line in letters)


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
        {"signal": []},
        {"boundary": "word"},
        {"boundary": None},
        {"merges": None},
        {"merges": {"0": [0, 0]}},
        {"merges": [[0, True]]},
        {"merges": [["0", "0"]]},
        {"merges": [[0.0, 1]]},
        {"merges": [[0, 10**12]]},
        {"merges": [[-1, 0]]},
        {"merges": [[0, 0], [0, 0]]},
        {"merges": [[0, 0], *([k, k] for k in range(4, 34))]},
        *(
            {"signal": {**ABOUT["signal"], key: value}}
            for key, values in {
                "fs": [float("nan"), float("inf"), 0, -5, 1e300, "5", None, True, [5]],
                "leads": [[], "II", ["I", "I"], ["I", 2], ["X"], None, ["I"] * 10_000],
                "segment_seconds": [float("nan"), -2, "2", 1e30, None],
                "samples": [0, -1, 10.0, 10**18, "10", True, None, 11_000],
                "profile": [None, "golden", 5, [], {}],
                "fill_nan": ["zero", 0],
                "quantizer": [
                    None,
                    [],
                    {},
                    {"name": "paper", "levels": "4", "lo": -1.0, "hi": 1.0},
                    {"name": "paper", "levels": 4.0, "lo": -1.0, "hi": 1.0},
                    {"name": "paper", "levels": 10**9, "lo": -1.0, "hi": 1.0},
                    {"name": "paper", "levels": 1, "lo": -1.0, "hi": 1.0},
                    {"name": "paper", "levels": 4, "lo": 1.0, "hi": -1.0},
                    {"name": "paper", "levels": 4, "lo": float("nan"), "hi": 1.0},
                    {"name": "paper", "levels": 4, "lo": None, "hi": 1.0},
                    {"name": "mulaw", "levels": 4},
                    {"name": "mulaw", "levels": 4, "mu": 0, "limit": 5.0},
                    {"name": "lloyd", "levels": 4, "edges": [0, 1, 2, 3, 4], "centroids": [0, 1, 2]},
                    {"name": "lloyd", "levels": 4, "edges": [0, 3, 2, 1, 4], "centroids": [0, 1, 2, 3]},
                    {"name": "trellis", "levels": 4, "mu": 2.0, "limit": 16.0, "penalty": "x"},
                    {"name": "minmax", "levels": 4, "margin": -1},
                    {"name": "minmax", "levels": 4, "margin": float("nan")},
                    {"name": "minmax", "levels": 4, "margin": None},
                    {"name": "zigzag", "levels": 4},
                ],
            }.items()
            for value in values
        ),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, changed):
    path = tmp_path / "ecg_tokenizer.json"
    path.write_text(json.dumps({**ABOUT, **changed}))
    with pytest.raises(Failure, match=r"ecg_tokenizer\.json") as error:
        ECGTokenizer.from_file(path)
    assert "\n" not in error.value.message and len(error.value.message) < 400


@pytest.mark.parametrize("segmenter", ["longest", "bpe", "fewest"])
@pytest.mark.parametrize(
    "merges",
    [
        [[0, 0], *([k, k] for k in range(4, 22))],  # one token of 2^19 letters
        # and 200 that end in each
        [[0, 0], *([k, k] for k in range(4, 17)), *([17, left] for left in range(200) if left != 17)],
    ],
)
def test_merges_that_double_fill_no_memory(segmenter, merges):
    import resource

    about = {**ABOUT, "merges": merges}
    about["signal"] = {**ABOUT["signal"], "quantizer": {**ABOUT["signal"]["quantizer"], "levels": 4}}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ids = ECGTokenizer.from_dict(about).encode(LETTERS, segmenter)
        assert len(ids) <= LETTERS.size
    except Failure as error:
        assert "too long" in error.message or "before it" in error.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kB


def test_a_file_that_is_none_does_not_hang(tmp_path):
    import os

    os.mkfifo(tmp_path / "ecg_tokenizer.json")
    with pytest.raises(Failure, match="not a regular file"):
        ECGTokenizer.from_file(tmp_path / "ecg_tokenizer.json")


def test_an_unknown_segmenter_is_one_line():
    with pytest.raises(Failure, match="longest, bpe, fewest"):
        tokenizer().encode(LETTERS, "shortest")


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
