"""The attention's keys and values of what a model has read, kept so that it is not read again."""

import numpy as np
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingState(DynamicLayer):
    """Keys and values with room to grow; Transformers' own layer copies all of them for every new id."""

    def __init__(self):
        super().__init__()
        self.rooms = None

    def update(self, key_states, value_states, *args, **kwargs):
        """Add the keys and values of new ids, (batch, heads, n, d), and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        rooms, held = self.rooms, (self.keys, self.values)
        # what was taken apart since, or cut off, may lie elsewhere
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


def new_cache(base):
    """A DynamicCache for a base model, empty."""
    made = DynamicCache(config=base.config)
    made.layers = [GrowingState() if type(layer) is DynamicLayer else layer for layer in made.layers]
    return made


def can_select_rows(states):
    """Whether rows and last ids can be taken out of a cache.

    A layer with a window counts the ids of other questions in it, and one with a running state has them in there.
    """
    return all(type(layer) is GrowingState for layer in states.layers)


class PromptCache:
    """The attention's keys and values of the ids that a model read last, for a prompt that begins alike.

    Attributes
    ----------
    ids : list of int
        What was read whole. Reading that was interrupted may have left more in `states`.
    states : transformers.DynamicCache or None
    """

    def __init__(self):
        self.ids, self.states = [], None

    def begin(self, prompt, empty):
        """Keep what a prompt shares with the one before, and return its states: `empty` if it shares nothing."""
        # one id is always read anew: the first id of the answer comes from it
        most = min(len(self.ids), len(prompt) - 1)
        differ = np.flatnonzero(np.asarray(self.ids[:most]) != np.asarray(prompt)[:most])
        shared = int(differ[0]) if differ.size else most
        # a layer with a window, or with a running state, cannot be taken back to an earlier id
        if not shared or not can_select_rows(self.states):
            self.ids, self.states = [], empty
            return empty
        for layer in self.states.layers:
            layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
        self.ids = self.ids[:shared]
        return self.states
