"""The language model: any causal LM of Transformers, with a small table of ECG rows beside its embedding.

The ids from `offset` on, the number of rows of the base model's embedding, are those of `layout`: <sig_start>,
<sig_end>, a mark for each lead, and the ECG tokens. They are looked up in `ecg_rows`; the base model's embedding and
output layer keep their size, so it answers in text only and its weights stay as published. Inside an ECG the
rows of the ECG tokens are an output layer too: where the ECG itself is to be predicted, or written.
"""

import functools
import itertools
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import decoding, weighing
from ecgbyte_cli.model.kv_cache import PromptCache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_kernels.tokens import spell

if TYPE_CHECKING:
    from transformers import DynamicCache


LIKENESS = 0.75  # how far apart two waveforms (their variance is 3) still start alike: a third of the usual


class ECGLM(torch.nn.Module):
    """A causal language model that reads ECG ids and text ids, and writes text ids.

    Parameters
    ----------
    base : transformers.PreTrainedModel or peft.PeftModel
        The causal language model.
    ecg_vocab : int
        Number of ECG tokens; the table has more rows, for <sig_start>, <sig_end> and the leads' marks.
    seed : int
        Of the rows' first values.
    layout : Layout or None
        Which ids ECGs have; None is one without marks.
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
            # some models scale what they look up, and the rows with it: as an output layer they are as large as its own
            self.scale = (text.norm() / embedding.weight[: len(text)].float().norm()).item()
        self.ecg_rows.to(embedding.weight.device)

    @torch.no_grad()
    def text_rows(self) -> torch.Tensor:
        """What the embedding puts out for some text ids (some models scale it: not the weights as they are)."""
        embedding = self.base.get_input_embeddings()
        ids = torch.arange(min(4096, self.offset), device=embedding.weight.device)
        return embedding(ids).float()

    @torch.no_grad()
    def init_rows(self, how: str, ecg_tokenizer: ECGTokenizer, seed: int = 0) -> None:
        """Give the ECG rows their first values.

        Parameters
        ----------
        how : {"random", "mean", "signal"}
            `random`: normal, as large as the text embeddings; what a new ECGLM has already. `mean`: close to
            the mean of the text embeddings (Hewitt 2021, Initializing New Word Embeddings). `signal`: random
            Fourier features of each token's own waveform (Rahimi and Recht, NIPS 2007), so that tokens that look
            alike start alike, and others do not.
        ecg_tokenizer : ECGTokenizer
        seed : int
            Of the noise and of the projection.
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
        """Leave out a share of what attention and MLP add to the hidden states, drawn anew at each training step.

        Residual dropout (Vaswani et al. 2017, Attention Is All You Need, 5.4), for models whose projections are named
        as a Llama's.

        Raises
        ------
        Failure
            If there are no such projections.
        """

        def dropped(module, _given, made):
            return functional.dropout(made, share, module.training)

        into = [m for name, m in self.base.named_modules() if name.endswith((".o_proj", ".down_proj"))]
        if not into:
            raise Failure("--dropout knows no layers of this base model: leave it out")
        for module in into:
            module.register_forward_hook(dropped)

    @property
    def device(self) -> torch.device:
        return self.ecg_rows.weight.device

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up text ids in the base model's embedding and ECG ids in the table: (batch, n) -> (batch, n, d)."""
        is_ecg = ids >= self.offset
        text = self.base.get_input_embeddings()(ids.masked_fill(is_ecg, 0))
        ecg = self.ecg_rows((ids - self.offset).clamp(min=0)).to(text.dtype)
        return torch.where(is_ecg[..., None], ecg, text)

    def inputs(
        self, ids: torch.Tensor, positions: torch.Tensor | None = None, owner: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """What the base model is called with.

        Parameters
        ----------
        ids : int64 tensor (batch, n)
            Padded on the right: no real token sees what comes after it, so no mask is needed.
        positions : int64 tensor (batch, n) or None
            None: one after another, unless the layout has them follow time.
        owner : int64 tensor (batch, n) or None
            0 for what several questions begin with, and k for the k-th of them, which sees the beginning and itself.
        """
        made = {"inputs_embeds": self.embed(ids)}
        if positions is None and self.layout.unit:
            rows = [self.layout.positions(row) for row in ids.cpu().numpy()]
            positions = torch.from_numpy(np.stack(rows)).to(ids.device)
        if positions is not None:
            # with a mask, or Transformers would take steps in the positions for several texts end to end
            made["position_ids"], made["attention_mask"] = positions, torch.ones_like(ids)
        if owner is not None:
            seen = (owner[:, None, :] == 0) | (owner[:, :, None] == owner[:, None, :])
            made["attention_mask"] = self.mask(seen.tril())
        return made

    def mask(self, seen):
        """An attention mask of what each id sees, bool (batch, n, of n), as the base model's attention takes it."""
        if self.base.config._attn_implementation == "sdpa":
            return seen[:, None]
        kind = self.base.get_input_embeddings().weight.dtype  # it is added to the scores
        mask = torch.zeros(seen.shape, dtype=kind, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(kind).min)[:, None]

    def outputs(self, places, states=None, **inputs):
        """The logits at some places alone, (n, vocabulary), and the hidden states (batch, n, d) that they are made of.

        A text vocabulary is large: `places` takes the hidden states and returns those wanted, (n, d).
        """
        hidden = []

        def chosen(_head, given):
            hidden.append(given[0])
            return (places(given[0])[None], *given[1:])

        with self.base.get_output_embeddings().register_forward_pre_hook(chosen):
            logits = self.base(**inputs, past_key_values=states, use_cache=states is not None).logits[0]
        return logits, hidden[0]

    def forward(
        self,
        ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor | None = None,
        owner: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of the labelled tokens: (2,), the sums over text and over ECG tokens.

        Parameters
        ----------
        ids, positions, owner
            As in `inputs`.
        labels : int64 tensor (batch, n)
            The ids where the loss is counted, -100 elsewhere. An ECG token is told from all ECG tokens, by the rows
            that it is looked up in.
        """
        wanted = labels[:, 1:]
        text, ecg = (wanted != -100) & (wanted < self.offset), wanted >= self.offset
        logits, hidden = self.outputs(
            lambda states: states[:, :-1][text], **self.inputs(ids, positions, owner)
        )
        losses = [functional.cross_entropy(logits.float(), wanted[text], reduction="sum")]
        if ecg.any():
            scores = self._ecg_scores(hidden[:, :-1][ecg])
            losses.append(functional.cross_entropy(scores, wanted[ecg] - self.layout.first, reduction="sum"))
        else:
            losses.append(torch.zeros_like(losses[0]))
        return torch.stack(losses)

    def _ecg_scores(self, states):
        """The logits of all ECG tokens at hidden states, (n, d): the rows that they are looked up in, tied."""
        rows = self.ecg_rows.weight[self.layout.first - self.offset :].to(states.dtype)
        return (states / self.scale @ rows.T).float()

    @torch.no_grad()
    def following(
        self, ids: torch.Tensor, positions: torch.Tensor, states: "DynamicCache", read: int
    ) -> torch.Tensor:
        """Read ids behind those that were read, and say which ECG token comes next.

        Parameters
        ----------
        ids, positions : int64 tensor (batch, n)
        states : transformers.DynamicCache
            What was read before; it grows.
        read : int
            How many ids that was.

        Returns
        -------
        float32 tensor (batch, ECG tokens)
            Logits.
        """
        mask = ids.new_ones(len(ids), read + ids.shape[1])
        given = {"inputs_embeds": self.embed(ids), "position_ids": positions, "attention_mask": mask}
        _, hidden = self.outputs(lambda hidden: hidden[:1, -1], states, **given)
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
        return decoding.answer(self, prompts, end_ids, max_new, pick)

    def weigh(
        self,
        prompts: Sequence[np.ndarray],
        answers: Sequence[Sequence[np.ndarray]],
        cache: PromptCache | None = None,
    ) -> list[np.ndarray]:
        """Return the logarithms of the probabilities of answers to prompts; see `weighing.weigh`."""
        return weighing.weigh(self, prompts, answers, cache)

    @functools.cached_property
    def beside(self) -> bool:
        """Whether texts can stand side by side behind one beginning; see `weighing.takes_side_by_side`."""
        return weighing.takes_side_by_side(self)


def waveforms(ecg_tokenizer, points=16):
    """Describe the waveform of each ECG token by numbers: its shape, its level and its length.

    Returns
    -------
    numpy.ndarray
        float64, (vocab_size, points + 2): the letters, resampled to so many points, without their mean; the
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
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
