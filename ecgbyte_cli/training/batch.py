"""Readings as ids, and batches of readings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import IGNORED

if TYPE_CHECKING:
    import torch


class Reading(NamedTuple):
    """A plan as ids: the ECGs once, then each question, at the positions that it would have alone."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    owner: np.ndarray  # 0 for the shared start, k for the k-th question
    weights: np.ndarray | None = None  # float32: weight of each label in the loss; None: all 1


class Batch(NamedTuple):
    """Readings as tensors (batch, n), padded on the right, and the positions of labels: see `ECGLM.forward`."""

    ids: "torch.Tensor"
    labels: "torch.Tensor"
    positions: "torch.Tensor | None"  # None: consecutive
    owner: "torch.Tensor | None"  # of the last ids; earlier ids are shared. None: no reading has several questions
    weights: "torch.Tensor | None"  # None: all labels have weight 1
    text: "torch.Tensor"  # from `label_places`, like `ecg`
    ecg: "torch.Tensor"

    def to(self, device: "torch.device") -> "Batch":
        """Copy to a device. CUDA copies from pinned memory asynchronously."""
        alone = device.type == "cuda"
        return Batch(*(part if part is None else part.to(device, non_blocking=alone) for part in self))

    def pinned(self) -> "Batch":
        """Copy to pinned memory, from which CUDA copies asynchronously."""
        return Batch(*(part if part is None else part.pin_memory() for part in self))

    @property
    def counts(self) -> tuple[float, float]:
        """The number of text labels, by weight, and of ECG-token labels."""
        text = len(self.text) if self.weights is None else self.weights.flatten()[self.text].sum()
        return float(text), float(len(self.ecg))


def collate(readings: Sequence[Reading], layout: Layout) -> Batch:
    """Pad and stack readings. Consecutive positions are omitted, and so are the owners of ids shared by all rows."""
    import torch

    from ecgbyte_cli.model.ecg_lm import label_places

    width = max(len(reading.ids) for reading in readings)
    shared = any(reading.owner[-1] > 1 for reading in readings)
    ids, positions, owner = torch.zeros(3, len(readings), width, dtype=torch.long).unbind()
    labels = torch.full_like(ids, IGNORED)
    for row, reading in enumerate(readings):
        for tensor, values in zip((ids, labels, positions, owner), reading[:4], strict=True):
            tensor[row, : len(values)] = torch.from_numpy(values)
    weights = None
    if any(reading.weights is not None for reading in readings):
        weights = torch.ones(ids.shape)
        for row, reading in enumerate(readings):
            if reading.weights is not None:
                weights[row, : len(reading.weights)] = torch.from_numpy(reading.weights)
    first = int(owner.any(0).int().argmax())  # all ids before it are ECGs and need no mask
    # CUDA copies asynchronously from contiguous memory only
    asking = owner[:, first:].contiguous() if shared else None
    kept = positions if shared or layout.unit else None, asking
    return Batch(ids, labels, *kept, weights, *label_places(labels, layout.offset))
