"""The segmenter `fewest`: the fewest tokens; ties go to the longest first token, and so on."""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.tokens import _checked, _id_type, _trie, spell


def fewest_tables(merges: np.ndarray, levels: int) -> tuple:
    """Build the tables of `fewest` from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    wanted = np.ones(len(starts) - 1, np.bool_)
    shorter = np.full(wanted.size, -1, np.int32)
    _find_prefixes(text, starts, levels, wanted, _trie(text, starts, levels, wanted), shorter)
    # every token with all its prefixes that are tokens, the longest first
    counts = np.zeros(wanted.size, np.int64)
    _count_prefixes(shorter, counts)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    prefixes = np.empty(firsts[-1], np.int32)
    _list_prefixes(shorter, firsts, prefixes)
    lengths = np.diff(starts)
    following, match = _automaton(_trie(text, starts, levels, wanted, True), levels, lengths)
    return levels, lengths, following, match, firsts, prefixes, lengths[prefixes].astype(np.int32)


@jit
def _find_prefixes(
    text: np.ndarray,
    starts: np.ndarray,
    levels: int,
    wanted: np.ndarray,
    child: np.ndarray,
    shorter: np.ndarray,
) -> None:
    """Find for each token the longest other token that it starts with, or -1."""
    vocab = len(shorter)
    nodes = len(child) // levels
    for t in range(levels, vocab):
        if wanted[t]:
            shorter[t] = _longest_at(text, starts[t], starts[t + 1] - 1, child, levels, nodes, vocab)


@jit
def _longest_at(
    letters: np.ndarray, i: int, stop: int, child: np.ndarray, levels: int, nodes: int, vocab: int
) -> np.int64:
    """Return the longest token that matches at letters[i:stop]."""
    node = np.int64(letters[i])
    best = node
    i += 1
    while i < stop:
        node = np.int64(child[node * levels + letters[i]])
        if node == nodes:
            break
        best = node if node < vocab else best
        i += 1
    return best


@jit
def _count_prefixes(shorter: np.ndarray, counts: np.ndarray) -> None:
    for t in range(len(shorter)):
        token = np.int64(t)
        while token >= 0:
            counts[t] += 1
            token = np.int64(shorter[token])


@jit
def _list_prefixes(shorter: np.ndarray, firsts: np.ndarray, prefixes: np.ndarray) -> None:
    for t in range(len(shorter)):
        token = np.int64(t)
        for k in range(firsts[t], firsts[t + 1]):
            prefixes[k] = token
            token = np.int64(shorter[token])


def _automaton(child: np.ndarray, levels: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a trie of tokens spelled backwards into an automaton (Aho and Corasick, CACM 18, 1975).

    It reads letters from right to left, one step each. Its state is the longest run of letters from here on that ends
    some token; `match` is the longest token that a state's letters start with.

    Returns
    -------
    following : numpy.ndarray
        (nodes * levels,), the next state of each state by each letter.
    match : numpy.ndarray
        int32, (nodes,).
    """
    following = child.copy()
    match = np.empty(len(child) // levels, np.int32)
    _link(following, levels, lengths.size, match)
    return following, match


@jit
def _link(following: np.ndarray, levels: int, vocab: int, match: np.ndarray) -> None:
    nodes = len(following) // levels
    fail = np.zeros(nodes, np.int64)
    queue = np.empty(nodes, np.int64)
    n = 0
    for letter in range(levels):
        fail[letter] = -1  # the empty run: letter l leads to node l
        match[letter] = letter
        queue[n] = letter
        n += 1
    k = 0
    while k < n:
        node = queue[k]
        k += 1
        for letter in range(levels):
            back = np.int64(letter) if fail[node] < 0 else np.int64(following[fail[node] * levels + letter])
            to = np.int64(following[node * levels + letter])
            if to == nodes:
                following[node * levels + letter] = back
            else:
                fail[to] = back
                match[to] = to if to < vocab else match[back]
                queue[n] = to
                n += 1


def fewest(letters: np.ndarray, bounds: np.ndarray, tables: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Cut pieces into as few tokens as possible.

    Dynamic programming from the right: the fewest tokens for the letters from i on is one more than the fewest behind
    any token that matches at i. Ties go to the longest first token, and so on.

    Parameters and results are the same as for `longest`, with tables from `fewest_tables`.
    """
    levels, lengths, following, match, firsts, prefixes, prefix_lengths = tables
    letters, bounds, counts = _checked(letters, bounds, levels)
    ids = np.empty(letters.size, _id_type(lengths.size))
    longest_piece = int(np.diff(bounds).max(initial=0))
    needed, choice = np.empty(longest_piece + 1, np.int32), np.empty(longest_piece, np.int32)
    n = _fewest(
        letters,
        bounds,
        levels,
        following,
        match,
        firsts,
        prefixes,
        prefix_lengths,
        needed,
        choice,
        ids,
        counts,
    )
    return ids[:n].copy(), counts


@jit
def _fewest(
    letters: np.ndarray,
    bounds: np.ndarray,
    levels: int,
    following: np.ndarray,
    match: np.ndarray,
    firsts: np.ndarray,
    prefixes: np.ndarray,
    prefix_lengths: np.ndarray,
    needed: np.ndarray,
    choice: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
) -> int:
    n = 0
    for p in range(len(bounds) - 1):
        first, before = bounds[p], n
        length = bounds[p + 1] - first
        needed[length] = 0
        state = np.int64(0)
        for i in range(length - 1, -1, -1):
            letter = np.int64(letters[first + i])
            state = letter if i == length - 1 else np.int64(following[state * levels + letter])
            # needed[i] = 1 + min(needed[i + length of t] for tokens t that match at i)
            token = match[state]
            best = np.int32(2**31 - 1)
            for k in range(firsts[token], firsts[token + 1]):
                if needed[i + prefix_lengths[k]] < best:
                    best = needed[i + prefix_lengths[k]]
                    choice[i] = k
            needed[i] = best + 1
        i = 0
        while i < length:
            k = choice[i]
            ids[n] = prefixes[k]
            n += 1
            i += prefix_lengths[k]
        counts[p] = n - before
    return n
