"""Weigh answers to prompts: how probable each is. An ECG that several prompts begin with is read once.

Models that take no mask for texts side by side weigh the answers to one prompt at a time.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecgbyte_cli.model.attention import TAKE_MASKS
from ecgbyte_cli.model.beginnings import (
    Beginnings,
    Block,
    causal_mask,
    find_beginnings,
    read_beginnings,
    side_by_side,
)
from ecgbyte_cli.model.kv_cache import PromptCache, can_select_rows, new_cache
from ecgbyte_cli.runtime.memory import unsupported

if TYPE_CHECKING:
    from transformers import DynamicCache

    from ecgbyte_cli.model.ecg_lm import ECGLM

MOST_BESIDE, MOST_LOGITS = 512, 2**26  # ids behind a beginning in one forward pass, and logits


@torch.no_grad()
def weigh(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    cache: PromptCache | None = None,
) -> list[np.ndarray]:
    """Return how probable answers are behind prompts.

    Parameters
    ----------
    lm : ECGLM
    prompts : list of int arrays
        An ECG that several begin with is read once.
    answers : list of lists of int arrays
        The answers to each prompt, with the id that ends them.
    cache : PromptCache or None
        For one prompt: the part that it shares with an earlier one is not read again.

    Returns
    -------
    list of float64 arrays
        The logarithm of the probability of each answer to each prompt.
    """
    if lm.beside:
        return weigh_shared(lm, prompts, answers, cache)
    return [weigh_alone(lm, prompt, own) for prompt, own in zip(prompts, answers, strict=True)]


def weigh_shared(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    cache: PromptCache | None = None,
) -> list[np.ndarray]:
    """`weigh`, with prompts and answers side by side behind their beginnings."""
    states = new_cache(lm.base)
    if cache:
        states = cache.begin(prompts[0], states)
        beginnings = Beginnings([prompts[0][:-1]], [0])
        owner = read_beginnings(lm, beginnings, states, len(cache.ids))
        cache.ids = beginnings.ids[0].tolist()
    else:
        beginnings = find_beginnings(lm, prompts)
        owner = read_beginnings(lm, beginnings, states)
    weighed: list[np.ndarray] = [np.zeros(0)] * len(prompts)
    for numbers in _passes(lm, prompts, answers, beginnings):
        logs = _weigh_pass(lm, numbers, prompts, answers, beginnings, owner, states)
        for number, own in zip(numbers, logs, strict=True):
            weighed[number] = own
        for layer in states.layers:
            layer.keys, layer.values = (part[..., : owner.shape[1], :] for part in (layer.keys, layer.values))
    return weighed


def _passes(
    lm: "ECGLM",
    prompts: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    beginnings: Beginnings,
) -> list[list[int]]:
    """Return the numbers of prompts to weigh together, which have not too many ids in a row, or logits."""
    of_row, most = [0] * len(beginnings.ids), MOST_LOGITS // lm.offset
    order = []
    for number, row in enumerate(beginnings.row_of):
        order.append((of_row[row], number))
        of_row[row] += 1
    passes: list[list[int]] = []
    logits, in_row = 0, [0] * len(beginnings.ids)
    for _, number in sorted(order):
        row = beginnings.row_of[number]
        own = sum(map(len, answers[number]))
        ids = len(prompts[number]) - len(beginnings.ids[row]) + own
        if not passes or logits + own > most or in_row[row] + ids > MOST_BESIDE:
            passes.append([])
            logits, in_row = 0, [0] * len(beginnings.ids)
        passes[-1].append(number)
        logits += own
        in_row[row] += ids
    return passes


def _weigh_pass(
    lm: "ECGLM",
    numbers: list[int],
    prompts: Sequence[np.ndarray],
    answers: Sequence[Sequence[np.ndarray]],
    beginnings: Beginnings,
    owner: torch.Tensor,
    states: "DynamicCache",
) -> list[np.ndarray]:
    """Weigh the answers to some prompts in one forward pass: the rest of each prompt once, then its answers."""
    rows: list[list[Block]] = [[] for _ in beginnings.ids]
    widths, predicting, wanted, lengths = [0] * len(rows), [], [], []
    for number in numbers:
        row, prompt = beginnings.row_of[number], prompts[number]
        positions, n, parent = lm.layout.positions(prompt), len(beginnings.ids[row]), len(rows[row]) + 1
        rows[row].append(Block(parent, parent, prompt[n:], positions[n:]))
        widths[row] += len(prompt) - n
        last = widths[row] - 1
        for ids in answers[number]:
            own = len(ids) - 1  # the id that ends it is predicted, and predicts nothing
            after = positions[-1] + 1 + np.arange(own)
            rows[row].append(Block(len(rows[row]) + 1, parent, ids[:-1], after))
            predicting += [(row, last), *((row, widths[row] + i) for i in range(own))]
            wanted.append(ids)
            lengths.append(len(ids))
            widths[row] += own
    ids, of, parents, position = side_by_side(lm, rows)
    seen = torch.cat([owner, of], 1)[:, None]
    sees = (seen == 0) | (seen == of[..., None]) | (seen == parents[..., None])
    sees &= causal_mask(ids.shape[1], seen.shape[-1], ids.device)
    places, at = np.unique(np.array(predicting) @ [ids.shape[1], 1], return_inverse=True)
    index = torch.from_numpy(places).to(ids.device)
    logits, _ = lm.outputs(
        lambda hidden: hidden.flatten(0, 1)[index],
        states,
        inputs_embeds=lm.embed(ids),
        position_ids=position,
        attention_mask=lm.mask(sees),
    )
    logs = logits.float().log_softmax(-1)
    at, chosen = torch.from_numpy(np.stack([at, np.concatenate(wanted)])).to(ids.device)
    logs = logs[at, chosen].cpu().double().numpy()
    sums = np.add.reduceat(logs, np.cumsum(lengths) - np.array(lengths))
    return np.split(sums, np.cumsum([len(answers[number]) for number in numbers])[:-1])


def weigh_alone(lm: "ECGLM", prompt: np.ndarray, answers: Sequence[np.ndarray]) -> np.ndarray:
    """Weigh the answers to one prompt, each after its own copy of the prompt, padded on the right."""

    def at_answers(hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, len(prompt) - 1 : -1].flatten(0, 1)

    sums = []
    for start in range(0, len(answers), 8):
        some = answers[start : start + 8]
        ids = np.zeros((len(some), len(prompt) + max(map(len, some))), np.int64)
        ids[:, : len(prompt)] = prompt
        for row, answer_ids in enumerate(some):
            ids[row, len(prompt) : len(prompt) + len(answer_ids)] = answer_ids
        inputs = torch.from_numpy(ids).to(lm.device)
        logits, _ = lm.outputs(at_answers, **lm.inputs(inputs))
        logs = logits.float().log_softmax(-1).unflatten(0, (len(some), -1))
        chosen = logs.gather(-1, inputs[:, len(prompt) :, None])[..., 0].cpu().double().numpy()
        sums += [row[: len(answer_ids)].sum() for row, answer_ids in zip(chosen, some, strict=True)]
    return np.array(sums)


def takes_side_by_side(lm: "ECGLM") -> bool:
    """Try whether texts can stand side by side behind one beginning, with a mask.

    It is tried without autocast, whose rounding would hide what the mask does.
    """
    config = lm.base.config
    if config._attn_implementation not in TAKE_MASKS or getattr(config, "window_size", None):
        return False
    if not can_select_rows(new_cache(lm.base)):
        return False
    tokens = min(8, len(lm.ecg_rows.weight) - (lm.layout.first - lm.offset))
    begin = [lm.offset, *range(lm.layout.first, lm.layout.first + tokens), lm.offset + 1]
    prompts = [np.array([*begin, *rest]) for rest in ((3, 4), (5, 6, 7))]
    answers = [[np.array([8, 9, 10]), np.array([11, 12])]] * 2
    exact = next(p.dtype for p in lm.base.parameters() if p.is_floating_point()) == torch.float32
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
            shared = np.concatenate(weigh_shared(lm, prompts, answers))
            alone = [weigh_alone(lm, ids, own) for ids, own in zip(prompts, answers, strict=True)]
    except (RuntimeError, TypeError, ValueError) as error:
        if not unsupported(error):
            raise
        return False
    finally:
        lm.train(training)
    relative, absolute = (1e-3, 1e-3) if exact else (5e-2, 0.3)
    return bool(np.allclose(shared, np.concatenate(alone), relative, absolute))
