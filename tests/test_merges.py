import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ecgbyte_kernels import merge_heap, merge_lists
from ecgbyte_kernels import merges as kernels

NO_MERGES = np.zeros((0, 2), np.int64)


def texts_of(pieces, levels, shards=1):
    """Pieces as texts, dealt out to shards in turn."""
    kind = kernels.text_type(levels)
    texts = []
    for part in (pieces[i::shards] for i in range(shards)):
        lengths = np.array([len(piece) for piece in part], np.int64)
        letters = np.array([letter for piece in part for letter in piece], np.uint8)
        text = np.empty(len(letters) + len(part) + 1, kind)
        at, _ = kernels.cut_pieces(letters, np.cumsum(lengths) - lengths, lengths, text, 0)
        assert at == len(text)
        texts.append(text)
    return texts


def learned(steps):
    """All merges that `learn_merges` yields, as tuples, and the tokens at the end."""
    rows = []
    for fresh, tokens in steps:  # noqa: B007 (the last is returned)
        rows += [tuple(row) for row in fresh.tolist()]
    return rows, tokens


def learn(pieces, levels, merges, min_count=2, max_length=0, shards=1, threads=1, known=NO_MERGES, **ways):
    """`learn_merges`, and with `few` or `scan_share` the driver under it, which else takes no such orders."""
    texts = texts_of(pieces, levels, shards)
    if not ways:
        return learned(kernels.learn_merges(texts, levels, merges, min_count, max_length, threads, known))
    lengths = np.ones(levels + merges, np.int64)
    for i, (left, right) in enumerate(known):
        lengths[levels + i] = lengths[left] + lengths[right]
    limit = max_length or 1 << 62
    over = partial(kernels._over, None, 0)
    return learned(kernels._learn(texts, levels, merges, min_count, limit, lengths, known, over, **ways))


def runs(levels):
    """Texts with long runs: the places where counts, ties and overlaps go wrong."""
    run = st.tuples(st.integers(0, levels - 1), st.integers(1, 9))
    piece = st.lists(run, max_size=12).map(lambda parts: [x for x, n in parts for _ in range(n)])
    return st.lists(piece, min_size=1, max_size=6).map(lambda pieces: (levels, pieces))


corpora = st.integers(2, 4).flatmap(runs)


@pytest.mark.kernels
@settings(max_examples=300, deadline=None)
@given(
    corpus=corpora,
    merges=st.sampled_from([0, 3, 60]),
    min_count=st.sampled_from([1, 2, 3]),
    max_length=st.sampled_from([0, 0, 1, 2, 3, 5, 8]),
    shards=st.integers(1, 3),
    few=st.sampled_from([0, 10**9]),
    scan_share=st.sampled_from([0, 0.1, 2]),
    share_known=st.sampled_from([0, 0.3, 1]),
)
def test_equal_to_naive(corpus, merges, min_count, max_length, shards, few, scan_share, share_known):
    levels, pieces = corpus
    expected, left = naive.learn_merges(pieces, levels, merges, min_count, max_length)
    known = np.array([row[:2] for row in expected[: int(share_known * len(expected))]], np.int64).reshape(
        -1, 2
    )
    rows, tokens = learn(
        pieces, levels, merges, min_count, max_length, shards, known=known, few=few, scan_share=scan_share
    )
    assert rows == expected[len(known) :]
    assert tokens == sum(len(piece) for piece in left)


@pytest.mark.kernels
@pytest.mark.parametrize("levels", [1, 5, 254, 255, 256])
def test_every_number_of_letters(levels):
    rng = np.random.default_rng(levels)
    pieces = [np.minimum(rng.geometric(0.3, n) % levels, levels - 1).tolist() for n in (0, 1, 2, 3, 80)]
    pieces.append([levels - 1] * 9)
    expected, _ = naive.learn_merges(pieces, levels, 40, 1)
    assert learn(pieces, levels, 40, 1)[0] == expected
    assert learn(pieces, levels, 40, 1, shards=2, few=0, scan_share=2)[0] == expected


@pytest.mark.kernels
@pytest.mark.parametrize("spare", [0, 4, 40])
def test_a_generation_that_runs_out_of_room(monkeypatch, spare):
    for module in (merge_heap, merge_lists):
        monkeypatch.setattr(module, "SPARE", 16 * spare)
    rng = np.random.default_rng(7)
    for levels in (2, 6):  # with few letters it is the pairs that there is no room for
        pieces = [rng.integers(0, levels, 60).tolist() for _ in range(4)]
        expected, _ = naive.learn_merges(pieces, levels, 90, 1)
        for shards in (1, 3):
            assert learn(pieces, levels, 90, 1, shards=shards, few=0, scan_share=2)[0] == expected


@pytest.mark.kernels
def test_shards_that_differ():
    """A pair is frequent in one shard and rare in another, where no list of it is written."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        levels, merges = rng.integers(3, 7), rng.integers(10, 40)
        pieces = []
        for _ in range(6):  # each from a Markov chain of its own
            chances = np.cumsum(rng.dirichlet(np.full(levels, 0.3), levels), axis=1)
            piece = [0]
            for x in rng.random(500):
                piece.append(min(int(np.searchsorted(chances[piece[-1]], x)), int(levels) - 1))
            pieces.append(piece)
        expected, _ = naive.learn_merges(pieces, levels, merges)
        for shards in (2, 3, 6):
            for scan_share in (0, 2):
                rows, _ = learn(pieces, levels, merges, shards=shards, few=0, scan_share=scan_share)
                assert rows == expected


def test_ids_of_two_bytes_run_out_and_scans_run_out_of_ids():
    rng = np.random.default_rng(3)
    pieces = [rng.integers(0, 20, 200).tolist() for _ in range(4)]
    expected, _ = naive.learn_merges(pieces, 20, 300, 1)
    assert learn(pieces, 20, 300, 1, few=0, scan_share=0)[0] == expected
    # from 65,534 ids on, a cell has four bytes
    known = np.array([row[:2] for row in expected[:250]])
    more, _ = learn(pieces, 20, 70_000, 1, known=known)
    assert more[:50] == expected[250:]


@pytest.fixture(scope="module")
def walk():
    """A slow random walk on 26 letters: 240 pieces of 1,000."""
    steps = np.random.default_rng(1).choice([-1, 0, 0, 0, 0, 1], (240, 1000))
    return np.clip(13 + np.cumsum(steps, axis=1), 0, 25).tolist()


def test_the_same_at_any_number_of_shards_and_threads(walk):
    expected, tokens = learn(walk, 26, 1500)
    assert len(expected) == 1500
    for shards, threads in ((2, 2), (8, 8), (5, 2)):
        assert learn(walk, 26, 1500, shards=shards, threads=threads) == (expected, tokens)
        # unlike above, with the shards kept apart to the end
        assert learn(walk, 26, 1500, shards=shards, few=0) == (expected, tokens)


def test_the_known_merges_are_made_without_counting(walk):
    expected, tokens = learn(walk, 26, 600)
    for n in (1, 40, 229, 230, 400, 600):
        known = np.array([row[:2] for row in expected[:n]])
        assert learn(walk, 26, 600, shards=2, threads=2, known=known) == (expected[n:], tokens)


def trained_by_tokenizers(pieces, merges, min_count, max_length):
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    options = {"max_token_length": max_length + 1} if max_length else {}  # its limit is exclusive
    trainer = trainers.BpeTrainer(
        vocab_size=26 + merges,
        min_frequency=min_count,
        initial_alphabet=[chr(97 + i) for i in range(26)],
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(["".join(chr(97 + x) for x in piece) for piece in pieces], trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def as_letters(rows):
    names = [chr(97 + i) for i in range(26)]
    for left, right, _ in rows:
        names.append(names[left] + names[right])
    return [(names[left], names[right]) for left, right, _ in rows]


@settings(max_examples=60, deadline=None)
@given(corpus=corpora, min_count=st.sampled_from([1, 2]), max_length=st.sampled_from([0, 3, 6]))
def test_equal_to_tokenizers_on_runs(corpus, min_count, max_length):
    _, pieces = corpus
    rows, _ = learn(pieces, 26, 50, min_count, max_length)
    assert as_letters(rows) == trained_by_tokenizers(pieces, 50, min_count, max_length)


@pytest.mark.parametrize("max_length", [0, 30])
def test_equal_to_tokenizers_on_real_recordings(golden, max_length):
    with np.load(golden / "symbols.npz") as letters:
        pieces = [lead for name in letters.files for lead in letters[name].tolist()]
    rows, _ = learn(pieces, 26, 4974, 2, max_length, shards=2, threads=2)
    assert len(rows) == 4974
    assert as_letters(rows) == trained_by_tokenizers(pieces, 4974, 2, max_length)


def test_one_piece_of_all_agrees_with_the_reference(golden):
    # The reference breaks ties by the order of a hash table: compared are the first merges, which are no ties
    reference = json.loads((golden / "tokenizer.json").read_text())
    with np.load(golden / "symbols.npz") as letters:
        piece = np.concatenate([letters[name].ravel() for name in reference["order"]])
    text = np.concatenate([[255], piece, [255]]).astype(np.uint8)
    rows, _ = learned(kernels.learn_merges([text], 26, 30))
    names = [left + right for left, right in as_letters(rows)]
    assert names == [name for name, _ in reference["merges"][:30]]


@pytest.mark.kernels
def test_cut_pieces():
    letters = np.array([5, 6, 7, 8, 9], np.uint8)
    text = np.zeros(8, np.uint8)
    assert kernels.cut_pieces(letters, [3, 0], [2, 1], text, 0) == (6, 9)
    assert kernels.cut_pieces(letters, [1], [1], text, 6) == (8, 6)
    assert text.tolist() == [255, 8, 9, 255, 5, 255, 6, 255]
    whole = np.zeros(5, np.uint16)
    assert kernels.cut_pieces(letters, [3, 0], [2, 1], whole, 0, ends=False) == (4, 9)
    assert whole.tolist() == [65535, 8, 9, 5, 0]


@pytest.mark.kernels
@pytest.mark.parametrize(
    "change",
    [
        {"levels": 0},
        {"levels": 255},
        {"merges": -1},
        {"min_count": 0},
        {"max_length": -1},
        {"threads": 0},
        {"texts": []},
        {"texts": [np.array([255, 0], np.uint8)]},
        {"texts": [np.array([0, 255], np.uint8)]},
        {"texts": [np.zeros((2, 2), np.uint8)]},
        {"texts": [np.array([255], np.uint8), np.array([65535], np.uint16)]},
        {"known": np.array([[0, 9]])},
        {"known": np.array([[0, 1], [0, -1]])},
        {"known": np.array([[0, 1]] * 6)},
    ],
)
def test_arguments_that_make_no_sense(change):
    good = {"texts": [np.array([255, 0, 1, 255], np.uint8)], "levels": 2, "merges": 5}
    with pytest.raises(ValueError):
        list(kernels.learn_merges(**{**good, **change}))


@pytest.mark.kernels
def test_pieces_outside_the_letters():
    letters = np.zeros(5, np.uint8)
    for starts, lengths, room in (([3], [3], 9), ([-1], [2], 9), ([0], [-1], 9), ([0], [5], 6)):
        with pytest.raises(ValueError):
            kernels.cut_pieces(letters, starts, lengths, np.zeros(room, np.uint8), 0)
