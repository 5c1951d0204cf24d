"""The language model: any causal LM of Transformers, with a small table of ECG rows next to its embedding.

The ids from `offset` on, the number of rows of the base model's embedding, are those of `layout`: <sig_start>,
<sig_end>, a mark for each lead, and the ECG tokens. They are looked up in `ecg_rows`. The base model's embedding and
output layer keep their size, so it answers in text only and its weights stay as published. Inside an ECG the rows of
the ECG tokens are an output layer too, tied, to predict or write the ECG.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import attention, decoding, weighing
from ecgbyte_cli.model.beginnings import causal_mask
from ecgbyte_cli.model.kv_cache import PromptCache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_kernels.tokens import spell

if TYPE_CHECKING:
    from transformers import DynamicCache


LIKENESS = 0.75  # distance of waveforms (variance 3) whose rows still start alike: a third of the typical one


class ECGLM(torch.nn.Module):
    """A causal language model that reads ECG ids and text ids, and writes text ids.

    Parameters
    ----------
    base : transformers.PreTrainedModel or peft.PeftModel
        The causal language model.
    ecg_vocab : int
        Number of ECG tokens; the table has more rows, for <sig_start>, <sig_end> and the leads' marks.
    seed : int
        Seed of the rows' initial values.
    layout : Layout or None
        The ids of ECGs; None is a layout without marks.
    """

    def __init__(self, base: torch.nn.Module, ecg_vocab: int, seed: int = 0, layout: Layout | None = None):
        super().__init__()
        self.base = base
        embedding = base.get_input_embeddings()
        self.offset = embedding.num_embeddings
        self.layout = layout or Layout(self.offset)
        self.ecg_rows = torch.nn.Embedding(
            self.layout.first - self.offset + ecg_vocab, embedding.embedding_dim
        )
        rows = torch.randn(self.ecg_rows.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            text = self.text_rows()
            self.ecg_rows.weight.copy_(rows * text.std().cpu())
            # some models scale their embeddings, and the rows with them; the output layer has the original scale
            self.scale = (text.norm() / embedding.weight[: len(text)].float().norm()).item()
        self.ecg_rows.to(embedding.weight.device)

    @torch.no_grad()
    def text_rows(self) -> torch.Tensor:
        """Return the embeddings of some text ids (some models scale them: they differ from the weights)."""
        embedding = self.base.get_input_embeddings()
        ids = torch.arange(min(4096, self.offset), device=embedding.weight.device)
        return embedding(ids).float()

    @torch.no_grad()
    def init_rows(self, how: str, ecg_tokenizer: ECGTokenizer, seed: int = 0) -> None:
        """Initialize the ECG rows.

        Parameters
        ----------
        how : {"random", "mean", "signal"}
            `random`: normal, as large as the text embeddings, as in a new ECGLM. `mean`: close to
            the mean of the text embeddings (Hewitt 2021, Initializing New Word Embeddings). `signal`: random
            Fourier features of each token's own waveform (Rahimi and Recht, NIPS 2007), so that only tokens with
            similar waveforms start alike.
        ecg_tokenizer : ECGTokenizer
        seed : int
            Seed of the noise and of the projection.
        """
        if how == "random":
            return
        text, rows = self.text_rows().cpu(), self.ecg_rows.weight
        random = torch.Generator().manual_seed(seed)
        if how == "mean":
            first = text.mean(0) + 0.1 * text.std() * torch.randn(rows.shape, generator=random)
        else:
            features = torch.from_numpy(waveforms(ecg_tokenizer)).float()
            directions = torch.randn(features.shape[1], rows.shape[1], generator=random) / LIKENESS
            phases = 2 * torch.pi * torch.rand(rows.shape[1], generator=random)
            features = torch.cos(features @ directions + phases)
            # the rows of the marks stay random
            first = torch.cat(
                [rows[: self.layout.first - self.offset].cpu(), features * text.std() / features.std()]
            )
        rows.copy_(first)

    def drop(self, share: float) -> None:
        """Add residual dropout to the outputs of attention and MLP.

        See Vaswani et al. 2017, Attention Is All You Need, 5.4. It works for models whose projections are named as a
        Llama's.

        Raises
        ------
        Failure
            If there are no such projections.
        """

        def dropped(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return functional.dropout(output, share, module.training)

        projections = [m for name, m in self.base.named_modules() if name.endswith((".o_proj", ".down_proj"))]
        if not projections:
            raise Failure("--dropout supports no layer of this base model: remove the option")
        for module in projections:
            module.register_forward_hook(dropped)

    @property
    def device(self) -> torch.device:
        return self.ecg_rows.weight.device

    def autocast(self) -> torch.autocast:
        """Return a context that computes in 16 bits: on a GPU, and on a CPU if the base model is in bfloat16."""
        kind, half = self.device.type, devices.half_type(self.device)
        held = self.base.get_input_embeddings().weight.dtype
        return torch.autocast(kind, half, enabled=half is not None and (kind != "cpu" or held == half))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up text ids in the base model's embedding and ECG ids in the table: (batch, n) -> (batch, n, d)."""
        is_ecg = ids >= self.offset
        text = self.base.get_input_embeddings()(ids.masked_fill(is_ecg, 0))
        ecg = self.ecg_rows((ids - self.offset).clamp(min=0)).to(text.dtype)
        return torch.where(is_ecg[..., None], ecg, text)

    def inputs(
        self, ids: torch.Tensor, positions: torch.Tensor | None = None, owner: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the arguments of the base model.

        Parameters
        ----------
        ids : int64 tensor (batch, n)
            Padded on the right: no real token sees what comes after it, so no mask is needed.
        positions : int64 tensor (batch, n) or None
            None: consecutive, unless positions follow time in the layout.
        owner : int64 tensor (batch, m) or None
            Of the last m ids: 0 for the beginning that several questions share, and k for the k-th of them, which
            sees the beginning and itself. All ids before them belong to the beginning.
        """
        inputs = {"inputs_embeds": self.embed(ids)}
        if positions is None and self.layout.unit:
            rows = [self.layout.positions(row) for row in ids.cpu().numpy()]
            positions = torch.from_numpy(np.stack(rows)).to(ids.device)
        if positions is not None:
            # with a mask, or Transformers would take steps in the positions for several texts end to end
            inputs["position_ids"], inputs["attention_mask"] = positions, torch.ones_like(ids)
        if owner is not None:
            whole = functional.pad(owner, (ids.shape[1] - owner.shape[1], 0))
            asking = owner if self.takes_last_rows else whole
            seen = (whole[:, None] == 0) | (whole[:, None] == asking[..., None])
            seen &= causal_mask(asking.shape[1], ids.shape[1], ids.device)
            inputs["attention_mask"] = self.mask(seen)
        return inputs

    def mask(self, seen: torch.Tensor) -> torch.Tensor:
        """Return an attention mask for the base model, from which ids each of the last ids sees.

        It is in the type that the model computes in, so that no layer converts it.

        Parameters
        ----------
        seen : bool tensor (batch, m, n)
            No id sees one behind it. Only with `takes_last_rows` may there be more ids than rows.

        Returns
        -------
        tensor (batch, 1, m, n)
            It is added to the scores.
        """
        kind, device = self.base.get_input_embeddings().weight.dtype, seen.device.type
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
        rows, columns = seen.shape[1:]
        # kernels of GPUs want rows that begin at multiples of 8, and would copy others in each layer
        mask = torch.zeros(len(seen), rows, -(-columns // 8) * 8, dtype=kind, device=seen.device)[
            ..., :columns
        ]
        return mask.masked_fill_(~seen, torch.finfo(kind).min)[:, None]

    def outputs(
        self,
        places: Callable[[torch.Tensor], torch.Tensor],
        states: "DynamicCache | None" = None,
        **inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the logits at some places only, because a text vocabulary is large.

        Parameters
        ----------
        places : callable
            Takes the hidden states, (batch, n, d), and returns those at the places, (m, d).
        states : transformers.DynamicCache or None
            The ids that were read before; it grows.
        inputs
            From `inputs`.

        Returns
        -------
        (tensor, tensor)
            Logits, (m, vocabulary), and hidden states, (batch, n, d).
        """
        hidden = []

        def chosen(_head: torch.nn.Module, args: tuple) -> tuple:
            hidden.append(args[0])
            return (places(args[0])[None], *args[1:])

        with self.base.get_output_embeddings().register_forward_pre_hook(chosen):
            logits = self.base(**inputs, past_key_values=states, use_cache=states is not None).logits[0]
        return logits, hidden[0]

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor | None = None,
        owner: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
        text: torch.Tensor | None = None,
        ecg: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the cross-entropy of the labelled tokens: (2,), the sums over text and over ECG tokens.

        Parameters
        ----------
        ids, positions, owner
            See `inputs`.
        labels : int64 tensor (batch, n)
            The ids that count towards the loss, -100 elsewhere. An ECG token is predicted among all ECG tokens, by the
            rows of the table.
        weights : float32 tensor (batch, n) or None
            How often each text label counts; None: once.
        text, ecg : int64 tensor (m,) or None
            From `label_places`; None: found here, for which the host waits for the device.
        """
        if text is None or ecg is None:
            text, ecg = label_places(labels, self.offset)
        labels, before = labels.flatten(), text - 1
        logits, hidden = self.outputs(
            lambda states: states.flatten(0, 1).index_select(0, before),
            **self.inputs(ids, positions, owner),
        )
        each = functional.cross_entropy(logits.float(), labels[text], reduction="none")
        losses = [each.sum() if weights is None else each @ weights.flatten()[text]]
        if len(ecg):
            scores = self._ecg_scores(hidden.flatten(0, 1).index_select(0, ecg - 1))
            wanted = labels[ecg] - self.layout.first
            losses.append(functional.cross_entropy(scores, wanted, reduction="sum"))
        else:
            losses.append(torch.zeros_like(losses[0]))
        return torch.stack(losses)

    def _ecg_scores(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits of all ECG tokens at hidden states, (n, d), by the tied rows of the table."""
        rows = self.ecg_rows.weight[self.layout.first - self.offset :].to(states.dtype)
        return (states / self.scale @ rows.T).float()

    @torch.no_grad()
    def following(
        self, ids: torch.Tensor, positions: torch.Tensor, states: "DynamicCache", read: int
    ) -> torch.Tensor:
        """Read more ids, and predict the next ECG token.

        Parameters
        ----------
        ids, positions : int64 tensor (batch, n)
        states : transformers.DynamicCache
            The ids that were read before; it grows.
        read : int
            How many ids were read before.

        Returns
        -------
        float32 tensor (batch, ECG tokens)
            Logits.
        """
        with self.autocast():
            _, hidden = self.outputs(
                lambda hidden: hidden[:1, -1], states, inputs_embeds=self.embed(ids), position_ids=positions
            )
            return self._ecg_scores(hidden[:, -1])

    def stream(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        cache: PromptCache | None = None,
        pick: decoding.Pick | None = None,
    ) -> Iterator[list[int | None]]:
        """Answer prompts together and yield the next ids as they are written; see `decoding.stream`."""
        return decoding.stream(self, prompts, end_ids, max_new, cache, pick)

    def answer(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        pick: decoding.Pick | None = None,
    ) -> list[list[int]]:
        """Answer prompts together; see `decoding.answer`."""
        with self.autocast():
            return decoding.answer(self, prompts, end_ids, max_new, pick)

    def weigh(
        self,
        prompts: Sequence[np.ndarray],
        answers: Sequence[Sequence[np.ndarray]],
        cache: PromptCache | None = None,
    ) -> list[np.ndarray]:
        """Return the logarithms of the probabilities of answers to prompts; see `weighing.weigh`."""
        with self.autocast():
            return weighing.weigh(self, prompts, answers, cache)

    @functools.cached_property
    def takes_last_rows(self) -> bool:
        """Whether the base model takes a mask for the last ids alone; see `attention.take_last_rows`."""
        return attention.take_last_rows(self)

    @functools.cached_property
    def beside(self) -> bool:
        """Whether texts can stand side by side behind one beginning; see `weighing.takes_side_by_side`."""
        return weighing.takes_side_by_side(self)


def label_places(labels: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of the text labels and of the ECG labels.

    Parameters
    ----------
    labels : int64 tensor (batch, n)
        -100 where there is none. The first of a row is never predicted.
    offset : int
        The first ECG id.

    Returns
    -------
    (int64 tensor, int64 tensor)
        Numbers in the flattened labels. The previous position's hidden state predicts a label.
    """
    counted = labels[:, 1:] != -100
    is_ecg = labels[:, 1:] >= offset
    places = torch.arange(labels.numel(), device=labels.device).view_as(labels)[:, 1:]
    return places[counted & ~is_ecg], places[is_ecg]


def waveforms(ecg_tokenizer: ECGTokenizer, points: int = 16) -> np.ndarray:
    """Return features of the waveform of each ECG token: shape, level and length.

    Returns
    -------
    numpy.ndarray
        float64, (vocab_size, points + 2): the letters, resampled to `points`, without their mean; the
        mean; the logarithm of the length. Each of the three has variance 1 over the vocabulary.
    """
    letters, starts = spell(ecg_tokenizer.merges, ecg_tokenizer.levels)
    shapes = np.empty((ecg_tokenizer.vocab_size, points))
    for token, (start, stop) in enumerate(itertools.pairwise(starts)):
        places = np.linspace(0, stop - start - 1, points)
        shapes[token] = np.interp(places, np.arange(stop - start), letters[start:stop])
    level = shapes.mean(1, keepdims=True)
    parts = [shapes - level, level - level.mean(), np.log(np.diff(starts))[:, None]]
    parts[2] = parts[2] - parts[2].mean()
    return np.concatenate([part / max(np.sqrt((part**2).sum(1).mean()), 1e-9) for part in parts], 1)


def checkpoint_layers(base: torch.nn.Module) -> None:
    """Make a base model compute its layers again in the backward pass instead of keeping their states."""
    options = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # older versions of Transformers
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


@contextlib.contextmanager
def recomputing_layers(base: torch.nn.Module) -> Iterator[None]:
    """Let `checkpoint_layers` work in evaluation mode too, in which Transformers ignores it.

    Only the layers themselves are set to training: the modules in them, with their dropout, are not.
    """
    layers = [module for module in base.modules() if getattr(module, "gradient_checkpointing", False)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, was_training in zip(layers, before, strict=True):
            layer.training = was_training
