"""Generate ECGs token by token, constrained to the grammar of an ECG.

A lead is its mark, followed by tokens for exactly the lead's number of letters; <sig_end> follows the last lead. So
marks and ends are never sampled. A token longer than the rest of its lead is cut, and its first letters are encoded
again. If such tokens were excluded instead, leads would end in unusually rare tokens.
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
PADDING = -1  # fills the letters of tokens that are shorter than the longest
BATCH_SIZE = 16  # largest number of ECGs generated at once


class Sampling(NamedTuple):
    """How tokens are sampled: the temperature, and top-p (nucleus) sampling."""

    temperature: float = 1.0  # greater than 0
    top_p: float = 1.0  # Holtzman et al. 2020, The Curious Case of Neural Text Degeneration
    seed: int = 0
    # classifier-free guidance (Sanchez et al. 2023, Stay on Topic); 1 means no guidance
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
    """Generate ECGs.

    Parameters
    ----------
    lm : ECGLM
    tokenizer : ECGTokenizer
    head : sequence of int
        The ids before <sig_start>.
    numbers : sequence of int
        One per ECG. It seeds the ECG's random numbers, so that an ECG does not depend on the others.
    draw : Sampling
    given, segmenter
        The first letters of each lead, uint8 (leads, n), or None, and the segmenter that encodes them.
    bar : object or None
        Progress bar that counts ECGs.
    plain : sequence of int
        The ids before an ECG without words, for guidance.

    Yields
    ------
    int array
        The tokens (0 …) of each ECG, in the order of `numbers`.

    Raises
    ------
    Failure
        If the model cannot generate ECGs of this tokenizer, or an ECG exceeds its positions, or memory runs out.
    """
    layout, samples, leads = lm.layout, tokenizer.signal["samples"], len(tokenizer.signal["leads"])
    # without marks an ECG is a single piece
    pieces, room = (leads, samples) if layout.marks else (1, leads * samples)
    if layout.marks not in (0, leads) or (given is not None and len(given) != pieces):
        raise Failure(
            f"the model has marks for {layout.marks} leads, but the ECGs have {leads}: it cannot generate them"
        )
    begun = [(NO_TOKEN, NO_TOKEN)] * pieces
    if given is not None:
        begun = [tokenize_start(tokenizer, row, segmenter) for row in given]
    starts = [_lead_start(layout, tokenizer, piece, room, *one) for piece, one in enumerate(begun)]
    heads = [head] if draw.guidance == 1 else [head, plain]
    less = "use a machine with more memory" if draw.guidance == 1 else "remove --guidance"
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
    """Generate several ECGs at once."""
    layout = lm.layout
    random, count = [np.random.default_rng([draw.seed, number]) for number in numbers], len(numbers)
    block = [layout.offset, *starts[0].ids]
    ecgs = [GeneratedECG(list(block), starts) for _ in range(count)]
    open_, most, readings = [*range(count)], max_positions(lm), [DecoderState(lm, head) for head in heads]
    new = [block] * count  # the next ids of each ECG
    while True:
        written = [ecgs[row].ids for row in open_]
        scores = [reading.go_on(new, written) for reading in readings]
        if max(reading.count for reading in readings) > most:
            raise Failure(
                f"the model can read {most} tokens, but an ECG of this tokenizer can have more: lower --top-p "
                "for more common, longer tokens"
            )
        # once a lead is full, the next id is known
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
            else:  # finished ECGs stay in the batch and are ignored
                follows = [layout.offset + 1 if i is None else i for i in follows]
        new = [[i] for i in follows]
    return [row.tokens(layout) for row in ecgs]


class DecoderState:
    """The decoder state of a model that reads several ECGs after the same head."""

    def __init__(self, lm: "ECGLM", head: Sequence[int]):
        self.lm, self.head, self.states, self.count = lm, head, new_cache(lm.base), 0

    def go_on(self, new: list[list[int]], blocks: list[list[int]]) -> torch.Tensor:
        """Read new ids of each ECG (`blocks` holds all of its ids); return the logits of the next tokens."""
        new = new if self.count else [[*self.head, *ids] for ids in new]
        ids = torch.tensor(new, device=self.lm.device)
        places = torch.stack(
            [_next_positions(self.lm.layout, self.head, block, ids.shape[1]) for block in blocks]
        )
        before, self.count = self.count, self.count + ids.shape[1]
        return self.lm.following(ids, places.to(ids.device), self.states, before)


class LeadStart(NamedTuple):
    """The start of a lead."""

    ids: list[int]
    left: int  # number of letters after `ids`
    rest: np.ndarray  # the first of these letters, if they are known


class GeneratedECG:
    """A partly generated ECG."""

    def __init__(self, ids: list[int], starts: list[LeadStart]):
        self.ids, self.starts, self.piece = ids, starts, 0
        self.waiting: list[int] = []  # ids that come next without sampling
        self.then = 0  # letters that the lead still needs after these ids
        _, self.left, self.rest = starts[0]

    def go_on(self, token: int, layout: "Layout", tokenizer: ECGTokenizer) -> int | None:
        """Append the sampled token, or the next known id; return the id, or None once the ECG is complete."""
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
        """Return the ECG's tokens, without marks."""
        ids = np.array(self.ids)
        return ids[ids >= layout.first] - layout.first


def tokenize_start(
    tokenizer: ECGTokenizer, letters: np.ndarray, segmenter: str
) -> tuple[np.ndarray, np.ndarray]:
    """Encode the first letters of a lead, up to the point where a token might extend beyond them.

    A lead that ends early would end in a shorter token than usual, which would tell the model where it was cut.
    So the last letters are not encoded. The next tokens must begin with them.

    Returns
    -------
    (int array, uint8 array)
        Tokens, and the letters that were not encoded.
    """
    tokens = tokenizer.encode(letters[None], segmenter)
    starts = np.cumsum(tokenizer.lengths[tokens]) - tokenizer.lengths[tokens]
    for at, start in enumerate(starts):
        rest = letters[start:]
        if (compatible_tokens(tokenizer, rest) & (tokenizer.lengths > len(rest))).any():
            return tokens[:at], rest
    return tokens, letters[:0]


def compatible_tokens(tokenizer: ECGTokenizer, letters: np.ndarray) -> np.ndarray:
    """Return which tokens match the letters over their common length: bool (vocabulary,)."""
    spelled = token_letters(tokenizer)[:, : len(letters)]
    return ((spelled == letters[: spelled.shape[1]]) | (spelled == PADDING)).all(1)


@lru_cache(2)
def token_letters(tokenizer: ECGTokenizer) -> np.ndarray:
    """Return the letters of all tokens, int16 (vocabulary, longest), padded with PADDING."""
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
    """Return the start of a lead with `room` letters: encoded tokens, and the known letters after them."""
    left = room - int(tokenizer.lengths[tokens].sum())
    return LeadStart(_lead_ids(layout, piece, tokens), left, rest)


def _lead_ids(layout: "Layout", piece: int, tokens: np.ndarray) -> list[int]:
    """Return the ids at the start of a lead: its mark and tokens."""
    return [
        *([layout.offset + 2 + piece] if layout.marks else []),
        *(np.asarray(tokens) + layout.first).tolist(),
    ]


def _next_positions(layout: "Layout", head: Sequence[int], block: Sequence[int], count: int) -> torch.Tensor:
    """Return the positions of the last ids of a prompt that ends in an unfinished ECG, (count,)."""
    if not layout.unit:
        return torch.arange(len(head) + len(block) - count, len(head) + len(block))
    return torch.from_numpy(layout.positions(np.array([*head, *block, layout.offset + 1]))[-count - 1 : -1])


def _sample_tokens(scores: torch.Tensor, draw: Sampling, numbers: Sequence[float]) -> list[int]:
    """Sample a token for each row of scores, (n, tokens), with random numbers from 0 to 1."""
    chances = ((scores - scores.amax(-1, keepdim=True)) / draw.temperature).softmax(-1)
    if draw.top_p < 1:
        ordered, order = chances.sort(-1, descending=True)
        # top-p: the fewest most probable tokens whose probabilities reach the limit
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= draw.top_p, 0)
        chances = torch.zeros_like(chances).scatter(-1, order, ordered)
    sums = chances.cumsum(-1)
    wanted = torch.tensor(numbers, dtype=torch.float32, device=scores.device)[:, None] * sums[:, -1:]
    wanted = torch.minimum(wanted, torch.nextafter(sums[:, -1:], torch.zeros_like(wanted)))
    # the first token whose cumulative sum exceeds the number; a token of probability 0 is never chosen
    tokens = torch.searchsorted(sums, wanted, right=True)[:, 0]
    drawn = tokens.masked_fill(scores.isnan().any(-1), -1).tolist()  # the only wait for the device
    if min(drawn) < 0:
        raise Failure("the model's weights give no probabilities (NaN): train it again")
    return drawn
