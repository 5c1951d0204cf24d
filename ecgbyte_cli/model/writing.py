"""ECGs that a model writes, token by token, in the grammar that every ECG has.

Of each lead comes its mark, then tokens of exactly as many letters as a lead has; <sig_end> comes when the last lead is
full. So marks and ends are never drawn, and of the tokens only those that fit into what is left of the lead.
"""

from typing import NamedTuple

import numpy as np
import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.answering import positions
from ecgbyte_cli.model.kept import divisible, states_of


class Draw(NamedTuple):
    """How tokens are drawn: by their probabilities at a temperature, of the likeliest that have `top_p` together."""

    temperature: float = 1.0  # above 0
    top_p: float = 1.0  # Holtzman et al. 2020, The Curious Case of Neural Text Degeneration
    seed: int = 0


def write(lm, tokenizer, head, numbers, draw, given=None, bar=None):
    """Write ECGs.

    Parameters
    ----------
    lm : ECGLM
    tokenizer : ECGTokenizer
    head : sequence of int
        The ids in front of <sig_start>.
    numbers : sequence of int
        Of each ECG, which are written side by side: each from random numbers of its own, whatever is beside it.
    draw : Draw
    given : list of int arrays or None
        Of each lead the tokens that it begins with.
    bar : object or None
        Shows how many letters of all are written.

    Returns
    -------
    list of int arrays
        The tokens (0 …) of each ECG.

    Raises
    ------
    Failure
        If an ECG has more tokens than the model has positions.
    """
    layout, samples = lm.layout, tokenizer.signal["samples"]
    leads = len(tokenizer.signal["leads"])
    # without marks, tokens may lie on two leads, and an ECG is one stretch
    pieces, room = (leads, samples) if layout.marks else (1, leads * samples)
    given = given or [np.zeros(0, np.int64)] * pieces
    begins = [_begin(layout, piece, given[piece]) for piece in range(pieces)]
    left_of = [room - int(tokenizer.lengths[tokens].sum()) for tokens in given]
    lengths = torch.from_numpy(tokenizer.lengths).to(lm.device)
    random, count = [np.random.default_rng([draw.seed, number]) for number in numbers], len(numbers)
    block = [layout.offset, *begins[0]]
    ecgs = [Row(list(block), begins, left_of) for _ in range(count)]
    ids = torch.tensor([[*head, *block]] * count, device=lm.device)
    places = _places(layout, head, block, len(ids[0])).expand(count, -1).to(lm.device)
    open_, states, read, most = [*range(count)], states_of(lm.base), 0, positions(lm)
    while True:
        if read + ids.shape[1] > most:
            raise Failure(
                f"the model reads {most} tokens, and an ECG of its tokenizer can have more: take fewer leads"
            )
        scores = lm.following(ids, places, states, read)
        read += ids.shape[1]
        left = torch.tensor([ecgs[row].left for row in open_], device=lm.device)
        scores.masked_fill_(lengths > left[:, None], -torch.inf)
        # where a lead is full there is none to draw: what comes next is known
        free = left > 0
        drawn = torch.full((len(open_),), -1, device=lm.device)
        if free.any():
            chance = [
                random[row].random() for row, wanted in zip(open_, free.tolist(), strict=True) if wanted
            ]
            drawn[free] = _pick(scores[free], draw, chance)
        new = [
            ecgs[row].go_on(token, layout, lengths) for row, token in zip(open_, drawn.tolist(), strict=True)
        ]
        if bar:
            bar.advance(sum(0 if token < 0 else int(tokenizer.lengths[token]) for token in drawn.tolist()))
        going = [at for at, i in enumerate(new) if i is not None]
        if not going:
            break
        if len(going) < len(open_):
            if divisible(states):
                states.batch_select_indices(torch.tensor(going, device=lm.device))
                open_, new = [open_[at] for at in going], [new[at] for at in going]
            else:  # what is done is read on, and not looked at
                new = [layout.offset + 1 if i is None else i for i in new]
        ids = torch.tensor(new, device=lm.device)[:, None]
        places = torch.stack([_places(layout, head, ecgs[row].ids, 1) for row in open_]).to(lm.device)
    return [row.tokens(layout) for row in ecgs]


class Row:
    """An ECG as far as it is written."""

    def __init__(self, ids, begins, left_of):
        self.ids, self.begins, self.left_of = ids, begins, left_of
        self.piece, self.left, self.waiting = 0, left_of[0], []

    def go_on(self, token, layout, lengths):
        """Take the token drawn, or what has to come; the next id, or None where the ECG is whole."""
        if self.left == 0 and not self.waiting:
            self.piece += 1
            if self.piece >= len(self.begins):
                return None
            self.waiting = list(self.begins[self.piece])
        if self.waiting:
            self.ids.append(self.waiting.pop(0))
            if not self.waiting:
                self.left = self.left_of[self.piece]
        else:
            self.left -= int(lengths[token])
            self.ids.append(layout.first + token)
        return self.ids[-1]

    def tokens(self, layout):
        """The tokens alone."""
        ids = np.array(self.ids)
        return ids[ids >= layout.first] - layout.first


def _begin(layout, piece, tokens):
    """The ids that a piece begins with: its mark and the tokens given."""
    return [
        *([layout.offset + 2 + piece] if layout.marks else []),
        *(np.asarray(tokens) + layout.first).tolist(),
    ]


def _places(layout, head, block, count):
    """The positions of the last ids of a prompt whose ECG goes on, (count,)."""
    if not layout.unit:
        return torch.arange(len(head) + len(block) - count, len(head) + len(block))
    return torch.from_numpy(layout.positions([*head, *block, layout.offset + 1])[-count - 1 : -1])


def _pick(scores, draw, numbers):
    """A token for each row of scores, (n,), by numbers from 0 to 1."""
    chances = (scores.double() / draw.temperature).softmax(-1)
    if draw.top_p < 1:
        ordered, order = chances.sort(-1, descending=True)
        # the first that are needed to have so much together
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= draw.top_p, 0)
        chances = torch.zeros_like(chances).scatter(-1, order, ordered)
    sums = chances.cumsum(-1)
    wanted = torch.tensor(numbers, dtype=torch.float64, device=scores.device)[:, None] * sums[:, -1:]
    wanted = torch.minimum(wanted, torch.nextafter(sums[:, -1:], torch.zeros_like(wanted)))
    # the first whose sum is above: one of no chance adds nothing, and is never it
    return torch.searchsorted(sums, wanted, right=True)[:, 0]
