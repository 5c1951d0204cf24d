"""Keep the keys and values of ids that a model has read, so that they are not read again."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GrowingState(DynamicLayer):
    """Keys and values with room to grow; Transformers' own layer copies all of them for every new id."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[torch.Tensor] = []
        self.keys: torch.Tensor
        self.values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new ids, (batch, heads, n, d), and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        rooms, held = self.rooms, (self.keys, self.values)
        # selecting rows or cutting ids may have moved them
        if not before or rooms[0].data_ptr() != held[0].data_ptr() or rooms[0].shape[-2] < after:
            rooms = [
                new.new_empty(*new.shape[:2], after + 64, new.shape[-1]) for new in (key_states, value_states)
            ]
            if before:
                for room, old in zip(rooms, held, strict=True):
                    room[..., :before, :] = old
            self.rooms = rooms
        for room, new in zip(rooms, (key_states, value_states), strict=True):
            room[..., before:after, :] = new
        self.keys, self.values = (room[..., :after, :] for room in rooms)
        return self.keys, self.values


def new_cache(base: "PreTrainedModel") -> DynamicCache:
    """Return an empty DynamicCache for a base model."""
    cache = DynamicCache(config=base.config)
    cache.layers = [GrowingState() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_select_rows(states: DynamicCache) -> bool:
    """Return whether rows and last ids can be taken out of a cache.

    A layer with a window counts the ids of other questions in it, and one with a running state has them in there.
    """
    return all(type(layer) is GrowingState for layer in states.layers)


class PromptCache:
    """Keys and values of the ids that a model read last, for the next prompt that begins alike.

    Attributes
    ----------
    ids : list of int
        The ids that were read. An interrupted run may have left more in `states`.
    states : transformers.DynamicCache or None
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.states: DynamicCache | None = None

    def begin(self, prompt: np.ndarray, empty: DynamicCache) -> DynamicCache:
        """Keep the states that a prompt shares with the previous one, and return them; `empty` if it shares none."""
        # one id is always read again: the first id of the answer comes from it
        most = min(len(self.ids), len(prompt) - 1)
        differ = np.flatnonzero(np.asarray(self.ids[:most]) != np.asarray(prompt)[:most])
        shared = int(differ[0]) if differ.size else most
        # a layer with a window, or with a running state, cannot be taken back to an earlier id
        if not shared or self.states is None or not can_select_rows(self.states):
            self.ids, self.states = [], empty
            return empty
        for layer in self.states.layers:
            layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
        self.ids = self.ids[:shared]
        return self.states
