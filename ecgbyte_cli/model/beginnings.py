"""The beginnings that prompts share, and texts side by side behind them.

A row of a batch is one beginning, with the rests of its prompts side by side behind it. A mask lets each rest see its
beginning and itself alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import DynamicCache

    from ecgbyte_cli.model.ecg_lm import ECGLM


class Beginnings(NamedTuple):
    """The beginnings of prompts, up to the end of their last ECGs, each once."""

    ids: list[np.ndarray]
    row_of: list[int]  # for each prompt, the index of its beginning


class Block(NamedTuple):
    """Ids in a row, which see the beginning of the row, themselves and their parent."""

    owner: int  # above 0, one number per block
    parent: int  # the owner of the block that they follow; the owner itself where they follow the beginning
    ids: np.ndarray
    positions: np.ndarray


def find_beginnings(lm: "ECGLM", prompts: Sequence[np.ndarray]) -> Beginnings:
    """Return what prompts begin with, up to the end of their last ECGs."""
    numbers: dict[bytes, int] = {}
    beginnings = Beginnings([], [])
    for prompt in prompts:
        beginning = prompt[: min(lm.layout.prefix(prompt), len(prompt) - 1)]
        number = numbers.setdefault(beginning.tobytes(), len(numbers))
        beginnings.row_of.append(number)
        if number == len(beginnings.ids):
            beginnings.ids.append(beginning)
    return beginnings


def read_beginnings(
    lm: "ECGLM", beginnings: Beginnings, states: "DynamicCache", read: int = 0
) -> torch.Tensor:
    """Read beginnings, of which `states` holds the first `read` ids, and add them to it.

    Returns
    -------
    int64 tensor (rows, n)
        0 where there is an id, -2 for padding on the right, which no id sees.
    """
    rows = [[Block(1, 1, ids, lm.layout.positions(ids))] for ids in beginnings.ids]
    ids, owner, _, positions = side_by_side(lm, rows)
    if read < ids.shape[1]:
        inputs = {"inputs_embeds": lm.embed(ids[:, read:])}
        if read or lm.layout.unit:
            inputs["position_ids"] = positions[:, read:]
        lm.outputs(lambda hidden: hidden[:, -1], states, **inputs)
    return owner - 1


@torch.no_grad()
def states_after(lm: "ECGLM", prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the last hidden state behind the ECG of each prompt: float32 (prompts, d).

    The state is the one that the output layer reads. It depends on the ECG and on what stands before it, not on the
    question.
    """
    beginnings = find_beginnings(lm, prompts)
    ids, *_ = side_by_side(lm, [[Block(1, 1, ids, ids)] for ids in beginnings.ids])
    _, hidden = lm.outputs(lambda hidden: hidden[:, -1], **lm.inputs(ids))
    last = torch.tensor([len(row) - 1 for row in beginnings.ids], device=hidden.device)
    states = hidden[torch.arange(len(last), device=hidden.device), last]
    return states.float().cpu().numpy()[beginnings.row_of]


def causal_mask(new: int, seen: int, device: torch.device) -> torch.Tensor:
    """Return bool (new, seen): which of all ids are not behind each of the last `new`."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def side_by_side(
    lm: "ECGLM", rows: Sequence[Sequence[Block]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the blocks of each row one behind the other, padded on the right.

    Returns
    -------
    (int64 tensor, int64 tensor, int64 tensor, int64 tensor)
        Ids, owners and parents (-1 for padding) and positions, (rows, n).
    """
    width = max(sum(len(block.ids) for block in row) for row in rows)
    columns = np.zeros((4, len(rows), width), np.int64)
    columns[1:3] = -1
    for number, row in enumerate(rows):
        at = 0
        for block in row:
            part = columns[:, number, at : at + len(block.ids)]
            part[0], part[1], part[2], part[3] = block.ids, block.owner, block.parent, block.positions
            at += len(block.ids)
    ids, owner, parent, position = torch.from_numpy(columns).to(lm.device).unbind()
    return ids, owner, parent, position
