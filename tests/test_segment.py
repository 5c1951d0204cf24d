"""Segmenters against the slow versions, the `tokenizers` library and the reference implementation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ecgbyte_kernels.bpe import bpe, bpe_tables
from ecgbyte_kernels.fewest import fewest, fewest_tables
from ecgbyte_kernels.longest import longest, longest_tables
from ecgbyte_kernels.tokens import expand, spell

pytestmark = pytest.mark.kernels
SEGMENTERS = {
    "longest": (longest, longest_tables),
    "bpe": (bpe, bpe_tables),
    "fewest": (fewest, fewest_tables),
}


def cut(name, pieces, merges, levels):
    """Ids of each piece."""
    segmenter, tables = SEGMENTERS[name]
    letters = np.array([letter for piece in pieces for letter in piece], np.uint8)
    bounds = np.cumsum([0, *map(len, pieces)])
    ids, counts = segmenter(letters, bounds, tables(merges, levels))
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])]


@st.composite
def texts_and_merges(draw):
    """Run-heavy pieces of few letters, and merges that were learned from other pieces, or drawn at random."""
    levels = draw(st.integers(2, 4))
    runs = st.lists(st.tuples(st.integers(0, levels - 1), st.integers(1, 9)), max_size=8)
    pieces = [
        [letter for letter, n in piece for _ in range(n)]
        for piece in draw(st.lists(runs, min_size=1, max_size=4))
    ]
    merges = []
    for _ in range(draw(st.integers(0, 8))):
        pair = draw(st.tuples(*[st.integers(0, levels + len(merges) - 1)] * 2))
        if pair not in merges:
            merges.append(pair)
    return pieces, np.array(merges, np.int32).reshape(-1, 2), levels


@settings(max_examples=150, deadline=None)
@given(texts_and_merges())
def test_segmenters_equal_the_slow_ones(case):
    pieces, merges, levels = case
    assert cut("longest", pieces, merges, levels) == [naive.longest(p, merges, levels) for p in pieces]
    assert cut("bpe", pieces, merges, levels) == [naive.bpe(p, merges.tolist(), levels) for p in pieces]
    assert [len(p) for p in cut("fewest", pieces, merges, levels)] == [
        naive.fewest(p, merges, levels) for p in pieces
    ]
    text, starts = spell(merges, levels)
    for name in SEGMENTERS:
        ids = np.array([i for piece in cut(name, pieces, merges, levels) for i in piece], np.int64)
        assert expand(ids, text, starts).tolist() == [letter for piece in pieces for letter in piece]


def reference_merges(golden):
    """The reference's merges by their letters, as pairs of ids: it lists each token's letters alone."""
    listed = json.loads((golden / "tokenizer.json").read_text())["merges"]
    return [letters for letters, _ in listed]


def test_longest_gives_the_references_ids(golden):
    """Over each whole flattened segment, all 25 recordings; the reference's ids of merges begin at 256."""
    spelled = reference_merges(golden)
    ids = {chr(97 + i): i for i in range(26)}
    merges = []
    for k, letters in enumerate(spelled):
        # any two tokens known before it that make up its letters: `longest` looks at the letters alone
        left = next(n for n in range(1, len(letters)) if letters[:n] in ids and letters[n:] in ids)
        merges.append((ids[letters[:left]], ids[letters[left:]]))
        ids.setdefault(letters, 26 + k)
    symbols, encoded = np.load(golden / "symbols.npz"), json.loads((golden / "encoded.json").read_text())
    names = sorted(encoded)[:3] if is_slow() else encoded
    tables = longest_tables(np.array(merges), 26)
    for name in names:
        letters = symbols[name].ravel()
        made, _ = longest(letters, [0, letters.size], tables)
        ours = np.where(made < 26, made + 97, made.astype(int) + 256 - 26)
        assert ours.tolist() == encoded[name], name


def is_slow():
    import numba

    return bool(numba.config.DISABLE_JIT)


def test_bpe_equals_the_tokenizers_library(golden):
    from tokenizers import Tokenizer, models, trainers

    symbols = np.load(golden / "symbols.npz")
    pieces = np.concatenate([symbols[name] for name in symbols.files])[: 6 if is_slow() else None]
    texts = [(piece + 97).tobytes().decode() for piece in pieces]
    library = Tokenizer(models.BPE())
    alphabet = [chr(97 + i) for i in range(26)]
    library.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=526, initial_alphabet=alphabet, show_progress=False)
    )
    described = json.loads(library.to_str())["model"]
    merges = np.array([[described["vocab"][part] for part in pair] for pair in described["merges"]])
    assert cut("bpe", pieces, merges, 26) == [e.ids for e in library.encode_batch(texts)]
    few = [len(p) for p in cut("fewest", pieces, merges, 26)]
    for name in ("longest", "bpe"):
        assert all(n <= len(p) for n, p in zip(few, cut(name, pieces, merges, 26), strict=True))


@pytest.mark.parametrize(
    ("merges", "levels", "said"),
    [
        ([[0, 5]], 3, "do not exist"),
        ([[0, 1], [0, 1]], 3, "twice"),
        ([], 300, "levels"),
        ([[i, i] for i in range(40)], 1, "levels"),
        ([[0, 0], *([i, i] for i in range(3, 45))], 3, "too long"),
        (np.zeros((2**20, 2)), 3, "at most 1,048,576"),
    ],
)
def test_merges_that_cannot_be_are_refused(merges, levels, said):
    with pytest.raises(ValueError, match=said):
        spell(merges, levels)


def test_letters_and_ids_out_of_range_are_refused():
    tables = longest_tables([[0, 1]], 3)
    with pytest.raises(ValueError, match="letter 3"):
        longest(np.array([0, 3], np.uint8), [0, 2], tables)
    with pytest.raises(ValueError, match="pieces"):
        longest(np.array([0, 1], np.uint8), [0, 1], tables)
    with pytest.raises(ValueError, match="vocabulary"):
        expand(np.array([4]), *spell([[0, 1]], 3))
