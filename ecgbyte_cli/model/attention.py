"""Attention without a mask over the ECG that questions share, registered with Transformers.

The mask of `ECGLM.mask` has rows for the last ids only. The ids before them are the ECG: they see what is before them,
which needs no mask, so that a GPU takes its flash kernels. Models with sliding windows, soft-capping or an attention
of their own take a mask with a row for every id.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ecgbyte_cli.model.kv_cache import can_select_rows, new_cache
from ecgbyte_cli.runtime.memory import unsupported

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM

NAME = "ecgbyte"  # name of the attention function in Transformers
TAKE_MASKS = ("sdpa", "eager", NAME)  # attention functions that take a mask of any form
ROWS = 512  # rows of a mask that are computed together: none sees an id behind the last of them


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of a layer; see Vaswani et al. 2017, Attention Is All You Need, 3.2.

    Parameters
    ----------
    module : torch.nn.Module
    query : tensor (batch, heads, n, d)
    key, value : tensor (batch, heads of keys, of n, d)
        Each head of the keys belongs to as many heads of the queries (grouped queries).
    attention_mask : tensor or None
        One of `ECGLM.mask`, (batch, 1, m, of n), which is added to the scores of the last m queries. The queries
        before them see the ids up to themselves. Any other mask, and None, are as in Transformers.
    dropout : float
    scaling : float or None
        Factor of the scores; None: 1 / sqrt(d).

    Returns
    -------
    (tensor, None)
        The outputs, (batch, n, heads, d).
    """
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    rows, first = attention_mask.shape[2], query.shape[2] - attention_mask.shape[2]
    parts = []
    if first:
        parts.append(
            _attend(query[:, :, :first], key[:, :, :first], value[:, :, :first], None, dropout, scaling)
        )
    if not _takes_groups(query, key, value, attention_mask, dropout):
        key, value = _one_per_head(query, key, value)
    for row in range(0, rows, ROWS):
        mask = attention_mask[:, :, row : row + ROWS]
        end = key.shape[2] - rows + row + mask.shape[2]
        asking = query[:, :, first + row : first + row + ROWS]
        seen = mask[..., :end]
        parts.append(_attend(asking, key[:, :, :end], value[:, :, :end], seen, dropout, scaling))
    return torch.cat([part.transpose(1, 2) for part in parts], 1), None


def take_last_rows(lm: "ECGLM") -> bool:
    """Make the base model of an ECGLM compute its attention with `attention`, if it can; return whether it does.

    It can if its attention goes through Transformers' interface and every id sees all ids before it. This is tried
    on a few ids, without autocast, whose rounding would hide a difference.
    """
    base = lm.base
    before = base.config._attn_implementation
    if before != "sdpa" or not can_select_rows(new_cache(base)):
        return False
    rows, n = 5, 12
    seen = torch.ones(1, n, n, dtype=torch.bool, device=lm.device).tril()
    seen[:, n - 2 :, n - rows : n - 2] = False
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
            inputs = {
                "inputs_embeds": lm.embed(torch.arange(n, device=lm.device)[None] % lm.offset),
                "position_ids": torch.arange(n, device=lm.device)[None],
            }
            wanted = base(**inputs, attention_mask=lm.mask(seen), use_cache=False).logits
            base.set_attn_implementation(NAME)
            last = lm.mask(seen[:, n - rows :])
            found = base(**inputs, attention_mask=last, use_cache=False).logits
            close = 1e-4 if wanted.dtype == torch.float32 else 5e-2
            if (found - wanted).norm() <= close * wanted.norm():
                return True
    except (RuntimeError, TypeError, ValueError) as error:
        if not unsupported(error):
            raise
    finally:
        lm.train(training)
    base.set_attn_implementation(before)
    return False


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Return the attention of some queries: with a mask, or causal without."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and not _takes_groups(query, key, value, mask, dropout):
        key, value = _one_per_head(query, key, value)
        grouped = False
    return functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _takes_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> bool:
    """Return whether a fast kernel takes fewer heads of keys than of queries. The slow one keeps all scores."""
    if query.device.type != "cuda":
        return query.device.type == "cpu"
    params = torch.backends.cuda.SDPAParams(query, key, value, mask, dropout, mask is None, True)
    return torch.backends.cuda.can_use_flash_attention(params)


def _one_per_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values with a head for each head of the queries."""
    times = query.shape[1] // key.shape[1]
    return key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
