"""Shared by the segmenters: the letters of tokens, the trie of tokens, and ids turned back into letters.

A segmenter turns letters into token ids with flat tables. No token crosses a piece; pieces lie end to end, and piece p
is letters[bounds[p]:bounds[p + 1]]. There are three, each with a function that builds its tables from the merges:

longest   the longest token that matches, from the left
bpe       the merges in their order, each from the left
fewest    the fewest tokens; ties go to the longest first token, and so on

All are linear in the number of letters. They hold no state and release the GIL, so threads may call them side by side.
"""

import numpy as np

from ecgbyte_kernels import jit

MOST_TOKENS = 1 << 20  # `bpe` packs an id into 20 bits
# Limits of all tokens spelled, in letters, and of their trie, in nodes times letters: in all, or for each token
# where there are many. Learned merges stay far below; merges that keep doubling would fill any memory.
MOST_LETTERS, LETTERS_EACH = 1 << 22, 256
MOST_STEPS, NODES_EACH = 1 << 25, 16


def spell(merges: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Spell every token in letters.

    Parameters
    ----------
    merges : array_like
        int, (m, 2): left and right id; merge k makes id `levels + k`.
    levels : int
        Number of letters, 2 to 256.

    Returns
    -------
    text : numpy.ndarray
        uint8, the letters of all tokens end to end, by id.
    starts : numpy.ndarray
        int64, (levels + m + 1,): token t is text[starts[t]:starts[t + 1]].

    Raises
    ------
    ValueError
        If a merge joins ids that do not exist before it, a pair occurs twice, there are more than `MOST_TOKENS`, or
        the tokens are too long to spell.
    """
    merges = np.asarray(merges, np.int64).reshape(-1, 2)
    if levels + len(merges) > MOST_TOKENS:
        raise ValueError(f"a vocabulary holds at most {MOST_TOKENS:,} tokens")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be 2 to 256, not {levels}")
    if merges.size and (merges.min() < 0 or (merges.max(axis=1) >= levels + np.arange(len(merges))).any()):
        raise ValueError("a merge joins ids that do not exist before it")
    if len(np.unique(merges[:, 0] << 32 | merges[:, 1])) < len(merges):
        raise ValueError("a pair is merged twice")
    lengths = np.ones(levels + len(merges), np.int64)
    _add_up(merges, levels, lengths)
    most = max(MOST_LETTERS, LETTERS_EACH * len(lengths))
    if lengths.astype(float).sum() > most:  # a sum of int64 could overflow
        raise ValueError(f"the tokens are too long: written out they have more than {most:,} letters")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    text = np.empty(starts[-1], np.uint8)
    text[:levels] = np.arange(levels)
    _spell(merges, levels, starts, text)
    return text, starts


@jit
def _add_up(merges: np.ndarray, levels: int, lengths: np.ndarray) -> None:
    for k in range(len(merges)):
        # capped, so that no sum overflows
        lengths[levels + k] = min(lengths[merges[k, 0]] + lengths[merges[k, 1]], 1 << 40)


@jit
def _spell(merges: np.ndarray, levels: int, starts: np.ndarray, text: np.ndarray) -> None:
    for k in range(len(merges)):
        at = starts[levels + k]
        for side in range(2):
            token = merges[k, side]
            for i in range(starts[token], starts[token + 1]):
                text[at] = text[i]
                at += 1


def expand(ids: np.ndarray, text: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Turn ids back into letters, from any segmenter.

    Parameters
    ----------
    ids : numpy.ndarray
        Integers, (n,).
    text, starts : numpy.ndarray
        From `spell`.

    Returns
    -------
    numpy.ndarray
        uint8.

    Raises
    ------
    ValueError
        If an id is not in the vocabulary.
    """
    ids = np.ascontiguousarray(ids)
    if ids.size and (ids.min() < 0 or ids.max() >= len(starts) - 1):
        raise ValueError(f"an id is not in the vocabulary of {len(starts) - 1}")
    letters = np.empty(int((starts[1:] - starts[:-1])[ids].sum()), np.uint8)
    _expand(ids, text, starts, letters)
    return letters


@jit
def _expand(ids: np.ndarray, text: np.ndarray, starts: np.ndarray, letters: np.ndarray) -> None:
    at = 0
    for t in ids:
        for i in range(starts[t], starts[t + 1]):
            letters[at] = text[i]
            at += 1


def _trie(
    text: np.ndarray, starts: np.ndarray, levels: int, wanted: np.ndarray, backwards: bool = False
) -> np.ndarray:
    """Build the trie of the wanted tokens (of their letters from the right, if `backwards`).

    Token t ends at node t; other nodes come behind, and the letters are the roots. Of tokens with the same letters the
    first counts.

    Returns
    -------
    child : numpy.ndarray
        (nodes * levels,): the next node of each node by each letter; `nodes` where there is none.
        In 16 bits if they suffice: half the memory is half the cache misses.

    Raises
    ------
    ValueError
        If the trie would be too large.
    """
    vocab = len(starts) - 1
    most = max(MOST_STEPS // levels, NODES_EACH * vocab, 2 * vocab)
    child, nodes = _grow_trie(text, starts, levels, wanted, backwards, most)
    if nodes < 0:
        raise ValueError(f"the tokens are too long and too many: their trie has more than {most:,} nodes")
    return child.astype(np.uint16) if nodes < 2**16 else child.view(np.uint32)


@jit
def _grow_trie(
    text: np.ndarray, starts: np.ndarray, levels: int, wanted: np.ndarray, backwards: bool, most: int
) -> tuple[np.ndarray, int]:
    vocab = len(starts) - 1
    child = np.full((2 * vocab) * levels, -1, np.int32)
    nodes = levels
    token = np.full(2 * vocab, -1, np.int32)  # the token that ends at a node
    for t in range(vocab):
        if not wanted[t]:
            continue
        first, step, length = starts[t], 1, starts[t + 1] - starts[t]
        if backwards:
            first, step = starts[t + 1] - 1, -1
        node = np.int64(text[first])
        for k in range(1, length):
            at = node * levels + text[first + k * step]
            if child[at] < 0:
                if nodes == most:
                    return child, -1
                if nodes == len(token):
                    more = min(nodes, most - nodes)
                    child = np.concatenate((child, np.full(more * levels, -1, np.int32)))
                    token = np.concatenate((token, np.full(more, -1, np.int32)))
                child[at] = nodes
                nodes += 1
            node = np.int64(child[at])
        if token[node] < 0:
            token[node] = t
    # renumber the nodes: tokens by their ids, the others behind them
    number = np.empty(nodes, np.int32)
    after = vocab
    for k in range(nodes):
        if token[k] >= 0:
            number[k] = token[k]
        else:
            number[k] = after
            after += 1
    sorted_child = np.full(after * levels, after, np.int32)
    for k in range(nodes):
        first = np.int64(number[k]) * levels
        for letter in range(levels):
            if child[k * levels + letter] >= 0:
                sorted_child[first + letter] = number[child[k * levels + letter]]
    return sorted_child, after


def _id_type(vocab: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocab <= 2**16 else np.uint32


def _checked(
    letters: np.ndarray, bounds: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the arguments of a segmenter; return them with an array for the counts."""
    letters = np.asarray(letters)
    bounds = np.ascontiguousarray(bounds, np.int64)
    if letters.dtype != np.uint8 or letters.ndim != 1:
        raise ValueError("letters must be a flat uint8 array")
    if bounds[0] != 0 or bounds[-1] != letters.size or (np.diff(bounds) < 0).any():
        raise ValueError("the pieces must lie end to end and hold all letters")
    if letters.size and letters.max() >= levels:
        raise ValueError(f"letter {letters.max()} is not among {levels}")
    return np.ascontiguousarray(letters), bounds, np.empty(len(bounds) - 1, np.int64)
