"""Segmenters: letters to token ids over flat tables, and back.

A piece is what no token crosses; pieces lie end to end, piece p being letters[bounds[p]:bounds[p + 1]].
Three segmenters, each with a function that makes its tables from the merges:

longest   the longest token that matches, from the left
bpe       the merges in their order, each from the left
fewest    the fewest tokens; of several such ways, the one with the longest first token, and so on

All of them are linear in the number of letters. The functions hold no state and release the GIL, so that
threads may call them side by side, each with letters of its own.
"""

import numpy as np

from ecgbyte_kernels import jit

MOST_TOKENS = 1 << 20  # what `bpe` packs ids in


def spell(merges, levels):
    """Write every token out in letters.

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
        If a merge joins ids that do not exist before it, a pair is there twice, or there are more than
        `MOST_TOKENS`.
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
    # doubling a token with each merge makes one longer than any memory
    if lengths.max() > 2**24 or lengths.astype(float).sum() > 2**31:
        raise ValueError("the tokens are too long to be written out")
    starts = np.concatenate([[0], np.cumsum(lengths)])
    text = np.empty(starts[-1], np.uint8)
    text[:levels] = np.arange(levels)
    _spell(merges, levels, starts, text)
    return text, starts


@jit
def _add_up(merges, levels, lengths):
    for k in range(len(merges)):
        # capped, so that no sum overflows
        lengths[levels + k] = min(lengths[merges[k, 0]] + lengths[merges[k, 1]], 1 << 40)


@jit
def _spell(merges, levels, starts, text):
    for k in range(len(merges)):
        at = starts[levels + k]
        for side in range(2):
            token = merges[k, side]
            for i in range(starts[token], starts[token + 1]):
                text[at] = text[i]
                at += 1


def expand(ids, text, starts):
    """Turn ids back into letters, whichever segmenter made them.

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
def _expand(ids, text, starts, letters):
    at = 0
    for t in ids:
        for i in range(starts[t], starts[t + 1]):
            letters[at] = text[i]
            at += 1


# The trie of tokens, as a flat table -----------------------------------------------------------------------


def _trie(text, starts, levels, wanted, backwards=False):
    """The trie of the wanted tokens (of their letters from the right, if `backwards`).

    Node t is where token t ends; other nodes come behind them, and the letters themselves are the roots.
    Of tokens that spell the same, the first counts.

    Returns
    -------
    child : numpy.ndarray
        (nodes * levels,): the node behind each node by each letter; `nodes` where there is none.
        In 16 bits if they hold it: half the memory is half the cache misses.
    """
    child, nodes = _grow_trie(text, starts, levels, wanted, backwards)
    return child.astype(np.uint16 if nodes < 2**16 else np.uint32)


@jit
def _grow_trie(text, starts, levels, wanted, backwards):
    vocab = len(starts) - 1
    child = np.full((2 * vocab) * levels, -1, np.int64)
    nodes = levels
    token = np.full(2 * vocab, -1, np.int64)  # the token that ends at a node
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
                if nodes == len(token):
                    child = np.concatenate((child, np.full(len(child), -1, np.int64)))
                    token = np.concatenate((token, np.full(len(token), -1, np.int64)))
                child[at] = nodes
                nodes += 1
            node = child[at]
        if token[node] < 0:
            token[node] = t
    # number the nodes anew: tokens by their ids, the others behind them
    number = np.empty(nodes + 1, np.int64)
    after = vocab
    for node in range(nodes):
        if token[node] >= 0:
            number[node] = token[node]
        else:
            number[node] = after
            after += 1
    sorted_child = np.full(after * levels, after, np.int64)
    for node in range(nodes):
        for letter in range(levels):
            if child[node * levels + letter] >= 0:
                sorted_child[number[node] * levels + letter] = number[child[node * levels + letter]]
    return sorted_child, after


@jit
def _longest_at(letters, i, stop, child, levels, nodes, vocab):
    """The longest token that matches at letters[i:stop]."""
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


def _id_type(vocab):
    return np.uint16 if vocab <= 2**16 else np.uint32


def _checked(letters, bounds, levels):
    """Check what a segmenter is given; make room for what it returns."""
    letters = np.asarray(letters)
    bounds = np.ascontiguousarray(bounds, np.int64)
    if letters.dtype != np.uint8 or letters.ndim != 1:
        raise ValueError("letters must be a flat uint8 array")
    if bounds[0] != 0 or bounds[-1] != letters.size or (np.diff(bounds) < 0).any():
        raise ValueError("the pieces must lie end to end and hold all letters")
    if letters.size and letters.max() >= levels:
        raise ValueError(f"letter {letters.max()} is not among {levels}")
    return np.ascontiguousarray(letters), bounds, np.empty(len(bounds) - 1, np.int64)


# longest ---------------------------------------------------------------------------------------------------


def longest_tables(merges, levels):
    """The tables that `longest` needs, from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    lengths = np.diff(starts)
    return levels, lengths, _trie(text, starts, levels, np.ones(len(lengths), np.bool_))


def longest(letters, bounds, tables):
    """Cut pieces into the longest tokens that match, from the left.

    This is the encoder of the reference implementation (ECG-Byte, arXiv 2412.14373, section 3.1).

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, (n,), each below the tokenizer's number of letters.
    bounds : numpy.ndarray
        int64, (pieces + 1,), from 0 to n.
    tables : tuple
        From `longest_tables`.

    Returns
    -------
    ids : numpy.ndarray
        uint16 (uint32 if the vocabulary needs it), the ids of all pieces end to end.
    counts : numpy.ndarray
        int64, (pieces,): how many ids each piece has.

    Raises
    ------
    ValueError
        If there is a letter that the tokenizer has not, or the pieces do not hold all letters.
    """
    levels, lengths, child = tables
    letters, bounds, counts = _checked(letters, bounds, levels)
    # no more is touched than is filled
    ids = np.empty(letters.size, _id_type(lengths.size))
    return ids[: _longest(letters, bounds, levels, lengths.size, child, ids, counts)].copy(), counts


# Every step of a walk through the trie waits for the memory; two pieces are walked side by side, so that one
# steps while the other waits. Each writes its ids where its letters begin, and in the end they are moved up.


@jit
def _longest(letters, bounds, levels, vocab, child, ids, counts):
    nodes = len(child) // levels
    pieces = len(bounds) - 1
    half = pieces // 2
    for p in range(half):
        q = p + half
        first, stop, other_first, other_stop = bounds[p], bounds[p + 1], bounds[q], bounds[q + 1]
        n, other_n = first, other_first
        if first < stop and other_first < other_stop:
            i, node = first + 1, np.int64(letters[first])
            best, end = node, i
            other_i, other_node = other_first + 1, np.int64(letters[other_first])
            other_best, other_end = other_node, other_i
            while i < stop and other_i < other_stop:
                node = np.int64(child[node * levels + letters[i]])
                other_node = np.int64(child[other_node * levels + letters[other_i]])
                i += 1
                other_i += 1
                if node == nodes:
                    ids[n] = best
                    n += 1
                    first, i, node = end, end + 1, np.int64(letters[end])
                    best, end = node, i
                else:
                    end = i if node < vocab else end
                    best = node if node < vocab else best
                if other_node == nodes:
                    ids[other_n] = other_best
                    other_n += 1
                    other_first, other_i, other_node = other_end, other_end + 1, np.int64(letters[other_end])
                    other_best, other_end = other_node, other_i
                else:
                    other_end = other_i if other_node < vocab else other_end
                    other_best = other_node if other_node < vocab else other_best
        # one of them is at its end: the tokens begun are begun again
        n = _longest_alone(letters, first, stop, levels, vocab, child, ids, n)
        other_n = _longest_alone(letters, other_first, other_stop, levels, vocab, child, ids, other_n)
        counts[p], counts[q] = n - bounds[p], other_n - bounds[q]
    if pieces % 2:
        first, stop = bounds[pieces - 1], bounds[pieces]
        n = _longest_alone(letters, first, stop, levels, vocab, child, ids, first)
        counts[pieces - 1] = n - first
    total = 0
    for p in range(pieces):
        for k in range(bounds[p], bounds[p] + counts[p]):
            ids[total] = ids[k]
            total += 1
    return total


@jit
def _longest_alone(letters, i, stop, levels, vocab, child, ids, n):
    nodes = len(child) // levels
    while i < stop:
        # _longest_at, written out: the end of the match is known without a look at the lengths
        node = np.int64(letters[i])
        best = node
        i += 1
        end = i
        while i < stop:
            node = np.int64(child[node * levels + letters[i]])
            if node == nodes:
                break
            i += 1
            end = i if node < vocab else end
            best = node if node < vocab else best
        ids[n] = best
        n += 1
        i = end
    return n


# bpe -------------------------------------------------------------------------------------------------------
# The pairs wait in one list for each rank, and the ranks are gone through once, upwards: a merge makes a new
# token, so the pairs it brings have higher ranks. Neighbours that are the same token are one run with a count,
# because most merges of an ECG join equal neighbours: "aaaaa" becomes two "aa" and an "a" in one step.


def bpe_tables(merges, levels):
    """The tables that `bpe` needs, from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    merges = np.asarray(merges, np.int64).reshape(-1, 2)
    # open addressing, at most a quarter full, so that few searches take a second look
    slots = np.full(1 << max(4, (4 * len(merges)).bit_length()), -1, np.int64)
    same = np.full(len(starts) - 1, -1, np.int32)
    _fill_pairs(merges, slots, same)
    return levels, merges, slots, same


# An entry is left id (20 bits), right id (20 bits), rank (23 bits): 8 bytes, so one cache miss at most.


@jit(inline="always")
def _first_slot(left, right, mask):
    # Fibonacci hashing: bits of the product that both ids have reached
    return (((left << 20 | right) * 0x9E3779B97F4A7C1) >> 36) & mask


@jit
def _fill_pairs(merges, slots, same):
    mask = len(slots) - 1
    for k in range(len(merges)):
        left, right = merges[k, 0], merges[k, 1]
        at = _first_slot(left, right, mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = (left << 20 | right) << 23 | k
        if left == right:
            same[left] = k


@jit(inline="always")
def _rank(left, right, slots):
    """The rank of a pair of ids, or -1."""
    mask = len(slots) - 1
    at = _first_slot(left, right, mask)
    while slots[at] >= 0:
        if slots[at] >> 23 == left << 20 | right:
            return slots[at] & 0x7FFFFF
        at = (at + 1) & mask
    return -1


@jit(inline="always")
def _lowest_bit(word):
    """The place of the lowest bit that is set."""
    bit, width, low = 0, 32, np.uint64(0xFFFFFFFF)
    while width:
        if not word & low:
            word >>= np.uint64(width)
            bit += width
        width >>= 1
        low >>= np.uint64(width)
    return bit


def bpe(letters, bounds, tables):
    """Cut pieces into tokens by the merges in their order, as the `tokenizers` library does.

    Parameters and what is returned are those of `longest`, with tables from `bpe_tables`.
    """
    levels, merges, slots, same = tables
    letters, bounds, counts = _checked(letters, bounds, levels)
    ids = np.empty(letters.size, _id_type(levels + len(merges)))
    return ids[: _bpe(letters, bounds, levels, merges, slots, same, ids, counts)].copy(), counts


@jit
def _bpe(letters, bounds, levels, merges, slots, same, ids, counts):
    room = 0
    for p in range(len(bounds) - 1):
        room = max(room, bounds[p + 1] - bounds[p])
    # A run: its token, how many of it, the runs beside it (-1: none). A merge makes at most one more run.
    token, count = np.empty(2 * room, np.int32), np.empty(2 * room, np.int32)
    after, ahead = np.empty(2 * room, np.int32), np.empty(2 * room, np.int32)
    # The waiting pairs: entry e is the run entry_run[e], with the next entry of its rank in entry_next[e].
    # An entry whose run has changed since is passed over. A merge adds at most four.
    entry_run, entry_next = np.empty(6 * room, np.int32), np.empty(6 * room, np.int32)
    head = np.full(len(merges), -1, np.int32)
    waiting = np.zeros(len(merges) // 64 + 1, np.uint64)  # a bit for each rank
    n = 0
    for p in range(len(bounds) - 1):
        before = n
        runs, entries = 0, 0
        i, stop = bounds[p], bounds[p + 1]
        while i < stop:
            letter = letters[i]
            j = i + 1
            while j < stop and letters[j] == letter:
                j += 1
            token[runs], count[runs] = letter, j - i
            after[runs], ahead[runs] = runs + 1, runs - 1
            runs += 1
            i = j
        if runs:
            after[runs - 1] = -1
        for run in range(runs):
            entries = _wait_same(run, token, count, same, head, entry_run, entry_next, entries, waiting)
            entries = _wait_next(run, token, after, slots, head, entry_run, entry_next, entries, waiting)
        for w in range(len(waiting)):
            while waiting[w]:
                rank = 64 * w + _lowest_bit(waiting[w])
                waiting[w] &= waiting[w] - np.uint64(1)
                left, right, made = merges[rank, 0], merges[rank, 1], levels + rank
                entry = head[rank]
                head[rank] = -1
                while entry >= 0:
                    run = entry_run[entry]
                    entry = entry_next[entry]
                    if token[run] != left:
                        continue
                    last = run  # behind it the neighbours are as they were
                    if left == right:
                        if count[run] < 2:
                            continue
                        token[run] = made
                        if count[run] % 2:
                            last = runs
                            runs += 1
                            token[last], count[last] = left, 1
                            after[last], ahead[last] = after[run], run
                            if after[run] >= 0:
                                ahead[after[run]] = last
                            after[run] = last
                        count[run] //= 2
                    else:
                        other = after[run]
                        if other < 0 or token[other] != right:
                            continue
                        count[run] -= 1
                        count[other] -= 1
                        # the new token stands in the run that is used up, if there is one
                        if count[run] == 0:
                            middle = run
                        elif count[other] == 0:
                            middle = other
                        else:
                            middle = runs
                            runs += 1
                        if middle != run:
                            after[run], ahead[middle] = middle, run
                        if count[other] == 0:
                            token[other] = -1
                            other = after[other]
                        if other >= 0:
                            after[middle], ahead[other] = other, middle
                        else:
                            after[middle] = -1
                        token[middle], count[middle] = made, 1
                        # runs of the new token on either side become one with it
                        beside = ahead[middle]
                        if beside >= 0 and token[beside] == made:
                            count[beside] += 1
                            token[middle] = -1
                            after[beside] = other
                            if other >= 0:
                                ahead[other] = beside
                            middle = beside
                        if other >= 0 and token[other] == made:
                            count[middle] += count[other]
                            token[other] = -1
                            other = after[other]
                            after[middle] = other
                            if other >= 0:
                                ahead[other] = middle
                        run = last = middle
                    entries = _wait_same(
                        run, token, count, same, head, entry_run, entry_next, entries, waiting
                    )
                    if ahead[run] >= 0:
                        entries = _wait_next(
                            ahead[run], token, after, slots, head, entry_run, entry_next, entries, waiting
                        )
                    entries = _wait_next(
                        run, token, after, slots, head, entry_run, entry_next, entries, waiting
                    )
                    if last != run:
                        entries = _wait_next(
                            last, token, after, slots, head, entry_run, entry_next, entries, waiting
                        )
        run = 0 if stop > bounds[p] else -1
        while run >= 0:
            for _ in range(count[run]):
                ids[n] = token[run]
                n += 1
            run = after[run]
        counts[p] = n - before
    return n


@jit(inline="always")
def _wait_same(run, token, count, same, head, entry_run, entry_next, entries, waiting):
    """Let the pairs within a run wait for their rank; return the number of entries."""
    if count[run] < 2 or same[token[run]] < 0:
        return entries
    return _wait(run, same[token[run]], head, entry_run, entry_next, entries, waiting)


@jit(inline="always")
def _wait_next(run, token, after, slots, head, entry_run, entry_next, entries, waiting):
    """Let the pair of a run's last token and the next run's first wait; return the number of entries."""
    if after[run] < 0:
        return entries
    rank = _rank(np.int64(token[run]), np.int64(token[after[run]]), slots)
    if rank < 0:
        return entries
    return _wait(run, rank, head, entry_run, entry_next, entries, waiting)


@jit(inline="always")
def _wait(run, rank, head, entry_run, entry_next, entries, waiting):
    entry_run[entries], entry_next[entries] = run, head[rank]
    head[rank] = entries
    waiting[rank >> 6] |= np.uint64(1) << np.uint64(rank & 63)
    return entries + 1


# fewest ----------------------------------------------------------------------------------------------------


def fewest_tables(merges, levels):
    """The tables that `fewest` needs, from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    wanted = np.ones(len(starts) - 1, np.bool_)
    shorter = np.full(wanted.size, -1, np.int32)
    _find_prefixes(text, starts, levels, wanted, _trie(text, starts, levels, wanted), shorter)
    # every token with all tokens that it starts with, the longest first
    counts = np.zeros(wanted.size, np.int64)
    _count_prefixes(shorter, counts)
    firsts = np.concatenate([[0], np.cumsum(counts)])
    prefixes = np.empty(firsts[-1], np.int32)
    _list_prefixes(shorter, firsts, prefixes)
    lengths = np.diff(starts)
    following, match = _automaton(_trie(text, starts, levels, wanted, True), levels, lengths)
    return levels, lengths, following, match, firsts, prefixes, lengths[prefixes].astype(np.int32)


@jit
def _find_prefixes(text, starts, levels, wanted, child, shorter):
    """For each token the longest other token that it starts with, or -1."""
    vocab = len(shorter)
    nodes = len(child) // levels
    for t in range(levels, vocab):
        if wanted[t]:
            shorter[t] = _longest_at(text, starts[t], starts[t + 1] - 1, child, levels, nodes, vocab)


@jit
def _count_prefixes(shorter, counts):
    for t in range(len(shorter)):
        token = np.int64(t)
        while token >= 0:
            counts[t] += 1
            token = np.int64(shorter[token])


@jit
def _list_prefixes(shorter, firsts, prefixes):
    for t in range(len(shorter)):
        token = np.int64(t)
        for k in range(firsts[t], firsts[t + 1]):
            prefixes[k] = token
            token = np.int64(shorter[token])


def _automaton(child, levels, lengths):
    """Make a trie of tokens spelled backwards an automaton (Aho and Corasick, CACM 18, 1975).

    Reading letters from right to left, one step for each, its state is the longest run of letters from
    here on that ends some token; `match` is the longest token that is all of a state's letters or the
    first of them.

    Returns
    -------
    following : numpy.ndarray
        (nodes * levels,), the state behind each state by each letter.
    match : numpy.ndarray
        int32, (nodes,).
    """
    following = child.copy()
    match = np.empty(len(child) // levels, np.int32)
    _link(following, levels, lengths.size, match)
    return following, match


@jit
def _link(following, levels, vocab, match):
    nodes = len(following) // levels
    fail = np.zeros(nodes, np.int64)
    queue = np.empty(nodes, np.int64)
    n = 0
    for letter in range(levels):
        fail[letter] = -1  # the empty run of letters, behind which letter l is node l
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


def fewest(letters, bounds, tables):
    """Cut pieces into as few tokens as possible.

    Dynamic programming from the right: the fewest tokens for the letters from i on is one more than the
    fewest behind any token that matches at i. Of several such rows, the one with the longest first token
    is taken, and so on.

    Parameters and what is returned are those of `longest`, with tables from `fewest_tables`.
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
    letters, bounds, levels, following, match, firsts, prefixes, prefix_lengths, needed, choice, ids, counts
):
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


SEGMENTERS = {
    "longest": (longest_tables, longest),
    "bpe": (bpe_tables, bpe),
    "fewest": (fewest_tables, fewest),
}
