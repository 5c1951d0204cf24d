"""Write ECGs, token by token, in the grammar that every ECG has.

A lead is its mark, then tokens of exactly as many letters as a lead has; <sig_end> comes when the last lead is full. So
marks and ends are never sampled. Of a token longer than the rest of a lead the beginning is taken, cut into tokens of
its own. If such tokens were left out, the ends of leads would be made of rare tokens.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.batch_answering import max_positions
from ecgbyte_cli.model.kv_cache import can_select_rows, new_cache
from ecgbyte_cli.runtime.memory import in_parts, reporting_out_of_memory
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.layout import Layout

NO_TOKEN = np.zeros(0, np.int64)
PADDING = -1  # no letter: a token is shorter
BATCH_SIZE = 16  # ECGs written side by side, at most


class Sampling(NamedTuple):
    """How tokens are sampled: at a temperature, from the most probable ones that have `top_p` together."""

    temperature: float = 1.0  # above 0
    top_p: float = 1.0  # Holtzman et al. 2020, The Curious Case of Neural Text Degeneration
    seed: int = 0
    # classifier-free guidance (Sanchez et al. 2023, Stay on Topic); 1 is none
    guidance: float = 1.0


def generate_ecgs(
    lm: "ECGLM",
    tokenizer: ECGTokenizer,
    head: Sequence[int],
    numbers: Sequence[int],
    draw: Sampling,
    given: np.ndarray | None = None,
    segmenter: str = "longest",
    bar: Any = None,
    plain: Sequence[int] = (),
) -> Iterator[np.ndarray]:
    """Write ECGs.

    Parameters
    ----------
    lm : ECGLM
    tokenizer : ECGTokenizer
    head : sequence of int
        The ids in front of <sig_start>.
    numbers : sequence of int
        One per ECG, which seeds its own random numbers: an ECG does not depend on the others.
    draw : Sampling
    given, segmenter
        The letters that each lead begins with, uint8 (leads, n) or None, and what cuts them into tokens.
    bar : object or None
        Progress bar of the ECGs.
    plain : sequence of int
        The ids in front of an ECG without words, for guidance.

    Yields
    ------
    int array
        The tokens (0 …) of each ECG, in order.

    Raises
    ------
    Failure
        If the model cannot write ECGs of this tokenizer, or an ECG exceeds its positions or the memory.
    """
    layout, samples, leads = lm.layout, tokenizer.signal["samples"], len(tokenizer.signal["leads"])
    # without marks an ECG is one stretch
    pieces, room = (leads, samples) if layout.marks else (1, leads * samples)
    if layout.marks not in (0, leads) or (given is not None and len(given) != pieces):
        raise Failure(
            f"the model has marks for {layout.marks} leads, and its ECGs have {leads}: it cannot write them"
        )
    begun = [(NO_TOKEN, NO_TOKEN)] * pieces
    if given is not None:
        begun = [tokenize_start(tokenizer, row, segmenter) for row in given]
    starts = [_lead_start(layout, tokenizer, piece, room, *one) for piece, one in enumerate(begun)]
    heads = [head] if draw.guidance == 1 else [head, plain]
    less = "use a machine with more memory" if draw.guidance == 1 else "leave out --guidance"
    written = in_parts(
        numbers, BATCH_SIZE, lambda some: _generate_batch(lm, tokenizer, heads, starts, some, draw)
    )
    with reporting_out_of_memory("for one ECG", less):
        for ecgs in written:
            yield from ecgs
            if bar:
                bar.advance(len(ecgs))


def _generate_batch(
    lm: "ECGLM",
    tokenizer: ECGTokenizer,
    heads: list[Sequence[int]],
    starts: "list[LeadStart]",
    numbers: Sequence[int],
    draw: Sampling,
) -> list[np.ndarray]:
    """Write some ECGs side by side."""
    layout = lm.layout
    random, count = [np.random.default_rng([draw.seed, number]) for number in numbers], len(numbers)
    block = [layout.offset, *starts[0].ids]
    ecgs = [GeneratedECG(list(block), starts) for _ in range(count)]
    open_, most, readings = [*range(count)], max_positions(lm), [DecoderState(lm, head) for head in heads]
    new = [block] * count  # the ids that follow
    while True:
        written = [ecgs[row].ids for row in open_]
        scores = [reading.go_on(new, written) for reading in readings]
        if max(reading.count for reading in readings) > most:
            raise Failure(
                f"the model reads {most} tokens, and an ECG of its tokenizer can have more: lower --top-p makes what "
                "is usual likelier"
            )
        # where a lead is full the next id is known
        free = [ecgs[row].left > 0 for row in open_]
        drawn = [-1] * len(open_)
        if any(free):
            chance = [
                random[row].random() if wanted else 0.5 for row, wanted in zip(open_, free, strict=True)
            ]
            led = scores[-1] + draw.guidance * (scores[0] - scores[-1])
            barred = np.zeros(led.shape, bool)
            for at, row in enumerate(open_):
                if free[at] and len(ecgs[row].rest):
                    barred[at] = ~compatible_tokens(tokenizer, ecgs[row].rest)
            if barred.any():
                led = led.masked_fill(torch.from_numpy(barred).to(led.device), -torch.inf)
            drawn = _sample_tokens(led, draw, chance)
        follows = [ecgs[row].go_on(token, layout, tokenizer) for row, token in zip(open_, drawn, strict=True)]
        going = [at for at, i in enumerate(follows) if i is not None]
        if not going:
            break
        if len(going) < len(open_):
            if all(can_select_rows(reading.states) for reading in readings):
                for reading in readings:
                    reading.states.batch_select_indices(torch.tensor(going, device=lm.device))
                open_, follows = [open_[at] for at in going], [follows[at] for at in going]
            else:  # what is done is read on, and not looked at
                follows = [layout.offset + 1 if i is None else i for i in follows]
        new = [[i] for i in follows]
    return [row.tokens(layout) for row in ecgs]


class DecoderState:
    """The state of a model that has read some ECGs behind the same ids."""

    def __init__(self, lm: "ECGLM", head: Sequence[int]):
        self.lm, self.head, self.states, self.count = lm, head, new_cache(lm.base), 0

    def go_on(self, new: list[list[int]], blocks: list[list[int]]) -> torch.Tensor:
        """Read new ids of each ECG, of which `blocks` are all ids; return the logits of the next tokens."""
        new = new if self.count else [[*self.head, *ids] for ids in new]
        ids = torch.tensor(new, device=self.lm.device)
        places = torch.stack(
            [_next_positions(self.lm.layout, self.head, block, ids.shape[1]) for block in blocks]
        )
        before, self.count = self.count, self.count + ids.shape[1]
        return self.lm.following(ids, places.to(ids.device), self.states, before)


class LeadStart(NamedTuple):
    """The beginning of a lead."""

    ids: list[int]
    left: int  # letters behind them
    rest: np.ndarray  # the first of these letters, where they are known


class GeneratedECG:
    """An ECG as far as it is written."""

    def __init__(self, ids: list[int], starts: list[LeadStart]):
        self.ids, self.starts, self.piece = ids, starts, 0
        self.waiting: list[int] = []  # the next ids, where they are known
        self.then = 0  # letters left of the lead behind them
        _, self.left, self.rest = starts[0]

    def go_on(self, token: int, layout: "Layout", tokenizer: ECGTokenizer) -> int | None:
        """Add the sampled token, or the known next id; return the id, or None where the ECG is complete."""
        if not self.waiting and not self.left:
            self.piece += 1
            if self.piece >= len(self.starts):
                return None
            ids, self.then, self.rest = self.starts[self.piece]
            self.waiting = list(ids)
        elif not self.waiting:
            self.rest = self.rest[tokenizer.lengths[token] :]
            if tokenizer.lengths[token] > self.left:
                letters = tokenizer.letters_of(token)[: self.left]
                self.waiting, self.then = (tokenizer.encode(letters[None]) + layout.first).tolist(), 0
        if self.waiting:
            self.ids.append(self.waiting.pop(0))
            self.left = 0 if self.waiting else self.then
        else:
            self.left -= int(tokenizer.lengths[token])
            self.ids.append(layout.first + token)
        return self.ids[-1]

    def tokens(self, layout: "Layout") -> np.ndarray:
        """Return the tokens alone."""
        ids = np.array(self.ids)
        return ids[ids >= layout.first] - layout.first


def tokenize_start(
    tokenizer: ECGTokenizer, letters: np.ndarray, segmenter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the letters that a lead begins with into tokens, up to where a token might reach beyond them.

    A lead that is cut ends in a shorter token than it would otherwise have, from which the model could tell the cut.
    So the last letters are returned as such, and the next tokens must begin with them.

    Returns
    -------
    (int array, uint8 array)
        Tokens, and the letters behind them.
    """
    tokens = tokenizer.encode(letters[None], segmenter)
    starts = np.cumsum(tokenizer.lengths[tokens]) - tokenizer.lengths[tokens]
    for at, start in enumerate(starts):
        rest = letters[start:]
        if (compatible_tokens(tokenizer, rest) & (tokenizer.lengths > len(rest))).any():
            return tokens[:at], rest
    return tokens, letters[:0]


def compatible_tokens(tokenizer: ECGTokenizer, letters: np.ndarray) -> np.ndarray:
    """Return which tokens agree with some letters over their common length: bool (vocabulary,)."""
    spelled = token_letters(tokenizer)[:, : len(letters)]
    return ((spelled == letters[: spelled.shape[1]]) | (spelled == PADDING)).all(1)


@lru_cache(2)
def token_letters(tokenizer: ECGTokenizer) -> np.ndarray:
    """Return the letters of all tokens, int16 (vocabulary, longest), with PADDING behind them."""
    letters = np.full((tokenizer.vocab_size, tokenizer.lengths.max()), PADDING, np.int16)
    for token, length in enumerate(tokenizer.lengths):
        letters[token, :length] = tokenizer.letters_of(token)
    return letters


def _lead_start(
    layout: "Layout",
    tokenizer: ECGTokenizer,
    piece: int,
    room: int,
    tokens: np.ndarray,
    rest: np.ndarray,
) -> "LeadStart":
    """Return the beginning of a lead of `room` letters: some tokens, and the known letters behind them."""
    left = room - int(tokenizer.lengths[tokens].sum())
    return LeadStart(_lead_ids(layout, piece, tokens), left, rest)


def _lead_ids(layout: "Layout", piece: int, tokens: np.ndarray) -> list[int]:
    """Return the ids that a lead begins with: its mark and tokens."""
    return [
        *([layout.offset + 2 + piece] if layout.marks else []),
        *(np.asarray(tokens) + layout.first).tolist(),
    ]


def _next_positions(layout: "Layout", head: Sequence[int], block: Sequence[int], count: int) -> torch.Tensor:
    """Return the positions of the last ids of a prompt whose ECG goes on, (count,)."""
    if not layout.unit:
        return torch.arange(len(head) + len(block) - count, len(head) + len(block))
    return torch.from_numpy(layout.positions(np.array([*head, *block, layout.offset + 1]))[-count - 1 : -1])


def _sample_tokens(scores: torch.Tensor, draw: Sampling, numbers: Sequence[float]) -> list[int]:
    """Sample a token for each row of scores, (n, tokens), with random numbers from 0 to 1."""
    chances = ((scores - scores.amax(-1, keepdim=True)) / draw.temperature).softmax(-1)
    if draw.top_p < 1:
        ordered, order = chances.sort(-1, descending=True)
        # the first that are needed to have so much together
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= draw.top_p, 0)
        chances = torch.zeros_like(chances).scatter(-1, order, ordered)
    sums = chances.cumsum(-1)
    wanted = torch.tensor(numbers, dtype=torch.float32, device=scores.device)[:, None] * sums[:, -1:]
    wanted = torch.minimum(wanted, torch.nextafter(sums[:, -1:], torch.zeros_like(wanted)))
    # the first whose sum is above: one of no chance adds nothing, and is never it
    tokens = torch.searchsorted(sums, wanted, right=True)[:, 0]
    drawn = tokens.masked_fill(scores.isnan().any(-1), -1).tolist()  # the only wait for the device
    if min(drawn) < 0:
        raise Failure("the model's weights give no probabilities (NaN): train it again")
    return drawn
