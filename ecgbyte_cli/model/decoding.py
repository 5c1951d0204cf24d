"""Write answers to prompts, token by token. An ECG that several prompts begin with is read once.

Models that take no mask for texts side by side answer prompts that are padded on the left.
"""

import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecgbyte_cli.model.beginnings import (
    Beginnings,
    Block,
    causal_mask,
    find_beginnings,
    read_beginnings,
    side_by_side,
)
from ecgbyte_cli.model.kv_cache import PromptCache, can_select_rows, new_cache

if TYPE_CHECKING:
    from transformers import DynamicCache

    from ecgbyte_cli.model.ecg_lm import ECGLM

Pick = Callable[[torch.Tensor, list[int]], torch.Tensor]


def stream(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    end_ids: Container[int],
    max_new: int = 64,
    cache: PromptCache | None = None,
    pick: Pick | None = None,
) -> Iterator[list[int | None]]:
    """Answer prompts together and yield the next ids as they are written.

    Parameters
    ----------
    lm : ECGLM
    prompts : list of int arrays
        Ids of any lengths; shorter ones are padded on the left. An ECG that several begin with is read once.
    end_ids : set of int
        An answer ends before the first of these.
    max_new : int
        Longest answer in tokens.
    cache : PromptCache or None
        For one prompt: the part that it shares with an earlier one is not read again.
    pick : callable or None
        Takes the logits of the next ids, (n, vocabulary), and the numbers of their n prompts, and returns the
        ids, (n,); None takes the most probable (greedy).

    Yields
    ------
    list of int or None
        Per prompt the next id, or None if its answer has ended.
    """
    states = new_cache(lm.base)
    if not cache:
        beginnings = find_beginnings(lm, prompts)
        if can_share(lm, beginnings, states):
            written = _stream_shared(lm, prompts, beginnings, end_ids, max_new, pick or greedy, states)
            return _in_autocast(lm, written)
    return _in_autocast(lm, _stream_padded(lm, prompts, end_ids, max_new, cache, pick or greedy, states))


def _in_autocast(lm: "ECGLM", written: Iterator[list[int | None]]) -> Iterator[list[int | None]]:
    """Compute each step in `lm.autocast`, and leave it before the caller goes on."""
    while True:
        with lm.autocast():
            new = next(written, None)
        if new is None:
            return
        yield new


@torch.no_grad()
def _stream_padded(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    end_ids: Container[int],
    max_new: int,
    cache: PromptCache | None,
    pick: Pick,
    states: "DynamicCache",
) -> Iterator[list[int | None]]:
    """Answer prompts, one per row, padded on the left."""
    if cache:
        states = cache.begin(prompts[0], states)
    ids, position, mask = _pad_left(lm, prompts, len(cache.ids) if cache else 0)
    padded = len(prompts) > 1
    # Transformers waits for the device to look into a mask of two dimensions
    own = padded and can_select_rows(states) and lm.beside
    read = [int(i) for i in prompts[0][len(cache.ids) :]] if cache else []
    is_open = [True] * len(prompts)
    rows = list(range(len(prompts)))  # prompts whose answers are open, and some that have just ended
    for _ in range(max_new):
        logits = lm.base(
            inputs_embeds=lm.embed(ids),
            attention_mask=_mask(lm, mask, ids.shape[1]) if own else mask if padded else None,
            position_ids=position,
            past_key_values=states,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        if cache:
            cache.ids += read
        ids = pick(logits[:, -1], rows)[:, None]
        following: list[int | None] = [None] * len(prompts)
        for row, i in zip(rows, ids[:, 0].tolist(), strict=True):  # the only wait for the device
            is_open[row] = is_open[row] and i not in end_ids
            following[row] = i if is_open[row] else None
        if not any(is_open):
            return
        yield following
        read = [i for i in following if i is not None]
        position = position[:, -1:] + 1
        left = [at for at, row in enumerate(rows) if is_open[row]]
        if 2 * len(left) <= len(rows) and can_select_rows(states):
            index = torch.tensor(left, device=lm.device)
            states.batch_select_indices(index)
            ids, mask, position = ids[index], mask[index], position[index]
            rows = [rows[at] for at in left]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)


def _pad_left(
    lm: "ECGLM", prompts: Sequence[np.ndarray], read: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, positions and mask of prompts without their first `read` ids, padded on the left."""
    positions = [lm.layout.positions(prompt)[read:] for prompt in prompts]
    prompts = [prompt[read:] for prompt in prompts]
    padded = torch.zeros(3, len(prompts), max(map(len, prompts)), dtype=torch.long)
    ids, position, mask = padded.unbind()
    for row, (prompt, own) in enumerate(zip(prompts, positions, strict=True)):
        at = slice(ids.shape[1] - len(prompt), None)
        ids[row, at] = torch.as_tensor(np.asarray(prompt, np.int64))
        position[row, at], mask[row, at] = torch.from_numpy(own), 1
    return ids.to(lm.device), position.to(lm.device), mask.to(lm.device)


def _mask(lm: "ECGLM", mask: torch.Tensor, new: int) -> torch.Tensor:
    """Return the attention mask of the last `new` ids, from which ids are no padding, int64 (batch, n)."""
    return lm.mask(mask.bool()[:, None] & causal_mask(new, mask.shape[1], mask.device))


def can_share(lm: "ECGLM", beginnings: Beginnings, states: "DynamicCache") -> bool:
    """Return whether some prompts begin alike, with an ECG, and the model can answer them side by side."""
    return (
        can_select_rows(states)
        and min(map(len, beginnings.ids)) > 0
        and len(beginnings.ids) < len(beginnings.row_of)
        and lm.beside
    )


@torch.no_grad()
def _stream_shared(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    beginnings: Beginnings,
    end_ids: Container[int],
    max_new: int,
    pick: Pick,
    states: "DynamicCache",
) -> Iterator[list[int | None]]:
    """Answer prompts side by side behind their beginnings, which are read, kept and attended to once."""
    seen = read_beginnings(lm, beginnings, states)
    following: list[list[Block]] = [[] for _ in beginnings.ids]  # of each row, the prompts that are open
    for number, (prompt, row) in enumerate(zip(prompts, beginnings.row_of, strict=True)):
        n = len(beginnings.ids[row])
        positions = lm.layout.positions(prompt)[n:]
        following[row].append(Block(number + 1, number + 1, prompt[n:], positions))
    for _ in range(max_new):
        ids, owner, _, position = side_by_side(lm, following)
        seen = torch.cat([seen, owner], 1)
        sees = (seen[:, None] == 0) | (seen[:, None] == owner[..., None])
        sees &= causal_mask(ids.shape[1], seen.shape[1], ids.device)
        last = _last_places(following, ids)
        logits, _ = lm.outputs(
            lambda hidden: hidden.flatten(0, 1).index_select(0, last),  # noqa: B023 (called at once)
            states,
            inputs_embeds=lm.embed(ids),
            position_ids=position,
            attention_mask=lm.mask(sees),
        )
        numbers = [block.owner - 1 for row in following for block in row]
        new: list[int | None] = [None] * len(prompts)
        for number, i in zip(numbers, pick(logits, numbers).tolist(), strict=True):
            new[number] = i if i not in end_ids else None
        if not any(i is not None for i in new):
            return
        yield new
        following = [_next_blocks(row, new) for row in following]
        left = [row for row, blocks in enumerate(following) if blocks]
        if 2 * len(left) <= len(following):
            index = torch.tensor(left, device=lm.device)
            states.batch_select_indices(index)
            seen, following = seen[index], [following[row] for row in left]


def _last_places(rows: Sequence[Sequence[Block]], ids: torch.Tensor) -> torch.Tensor:
    """Return the place of each block's last id in the flattened ids of the rows, (blocks,)."""
    places = [
        number * ids.shape[1] + stop - 1
        for number, row in enumerate(rows)
        for stop in itertools.accumulate(len(block.ids) for block in row)
    ]
    return torch.tensor(places, device=ids.device)


def _next_blocks(row: list[Block], new: list[int | None]) -> list[Block]:
    """Return the next id of each prompt in a row whose answer is open."""
    return [
        block._replace(ids=np.array([new[block.owner - 1]]), positions=block.positions[-1:] + 1)
        for block in row
        if new[block.owner - 1] is not None
    ]


def answer(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    end_ids: Container[int],
    max_new: int = 64,
    pick: Pick | None = None,
) -> list[list[int]]:
    """Answer prompts together (see `stream`); return the ids of each answer."""
    answers: list[list[int]] = [[] for _ in prompts]
    for following in lm.stream(prompts, end_ids, max_new, pick=pick):
        for written, i in zip(answers, following, strict=True):
            if i is not None:
                written.append(i)
    return answers


def greedy(logits: torch.Tensor, _rows: list[int]) -> torch.Tensor:
    """Pick the most probable ids."""
    return logits.argmax(-1)


class RecordedPicks:
    """Picks ids as `pick` does (greedily if it is None), and records them and how probable they were.

    They stay on the device until `answers` reads them, so that no pick waits for the device.
    """

    def __init__(self, pick: Pick | None, end_ids: Container[int], count: int):
        self.pick, self.end_ids, self.count = pick or greedy, end_ids, count
        self.rows: list[int] = []
        self.ids: list[torch.Tensor] = []
        self.logs: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        ids = self.pick(logits, rows)
        self.rows += rows
        self.ids.append(ids)
        self.logs.append(logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0])
        return ids

    def answers(self) -> list[tuple[list[int], list[float]]]:
        """Return the ids of each answer, the one that ends it included, and the logarithms of their probabilities."""
        read: list[tuple[list[int], list[float]]] = [([], []) for _ in range(self.count)]
        if not self.rows:
            return read
        # in one tensor, so that the host waits once; the bits of float32 stand in int32
        both = torch.stack([torch.cat(self.ids).int(), torch.cat(self.logs).view(torch.int32)]).cpu()
        for row, i, log in zip(
            self.rows, both[0].tolist(), both[1].view(torch.float32).tolist(), strict=True
        ):
            ids, logs = read[row]
            if not (ids and ids[-1] in self.end_ids):
                ids.append(i)
                logs.append(log)
        return read
