"""The language model: any causal LM of Transformers, with a small table of ECG rows beside its embedding.

The ids from `offset` on, the number of rows of the base model's embedding, are those of `layout`: <sig_start>,
<sig_end>, a mark for each lead, and the ECG tokens. They are looked up in `ecg_rows`; the base model's embedding and
output layer keep their size, so it answers in text only and its weights stay as published. Inside an ECG the
rows of the ECG tokens are an output layer too: where the ECG itself is to be predicted, or written.
"""

import functools
import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.kv_cache import PromptCache, can_select_rows, new_cache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.runtime.memory import unsupported
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_kernels.tokens import spell

if TYPE_CHECKING:
    from transformers import DynamicCache


LIKENESS = 0.75  # how far apart two waveforms (their variance is 3) still start alike: a third of the usual

MOST_BESIDE, MOST_LOGITS = 512, 2**26  # ids that are read behind a beginning at a time, and logits


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
            made["attention_mask"] = self._mask(seen.tril())
        return made

    def _mask(self, seen):
        """An attention mask of what each id sees, bool (batch, n, of n), as the base model's attention takes it."""
        if self.base.config._attn_implementation == "sdpa":
            return seen[:, None]
        kind = self.base.get_input_embeddings().weight.dtype  # it is added to the scores
        mask = torch.zeros(seen.shape, dtype=kind, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(kind).min)[:, None]

    def _outputs(self, places, states=None, **inputs):
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
        logits, hidden = self._outputs(
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
        _, hidden = self._outputs(lambda hidden: hidden[:1, -1], states, **given)
        return self._ecg_scores(hidden[:, -1])

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        cache: PromptCache | None = None,
        pick: Callable[[torch.Tensor, list[int]], torch.Tensor] | None = None,
    ) -> Iterator[list[int | None]]:
        """Answer prompts together and yield the next ids as they are made.

        Parameters
        ----------
        prompts : list of int arrays
            Ids of any lengths; shorter ones are padded on the left. An ECG that several begin with is read once.
        end_ids : set of int
            An answer ends before the first of these.
        max_new : int
            An answer has at most so many tokens.
        cache : PromptCache or None
            With one prompt: what was read of an earlier one that begins alike is not read again.
        pick : callable or None
            Takes the logits of the next ids, (n, vocabulary), and the numbers of their n prompts, and returns the
            ids, (n,); None takes the likeliest (greedy).

        Yields
        ------
        list of int or None
            Per prompt the next id, or None if its answer has ended.
        """
        states, open_ = new_cache(self.base), [True] * len(prompts)
        if not cache:
            beginnings, row_of = self._beginnings(prompts)
            if self._can_share(beginnings, prompts, states):
                yield from self._from_shared(
                    prompts, beginnings, row_of, end_ids, max_new, pick or _greedy, states
                )
                return
        if cache:
            states = cache.begin(prompts[0], states)
        ids, position, mask = self._padded(prompts, len(cache.ids) if cache else 0)
        if cache:
            mask = mask.new_ones(1, len(prompts[0]))
        rows = list(range(len(prompts)))  # whose answers are still open, and some that have just ended
        for _ in range(max_new):
            logits = self.base(
                inputs_embeds=self.embed(ids),
                attention_mask=mask,
                position_ids=position,
                past_key_values=states,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            if cache:
                cache.ids += ids[0].tolist()
            ids = (pick or _greedy)(logits[:, -1], rows)[:, None]
            following: list[int | None] = [None] * len(prompts)
            for row, i in zip(rows, ids[:, 0].tolist(), strict=True):
                open_[row] = open_[row] and i not in end_ids
                following[row] = i if open_[row] else None
            if not any(open_):
                return
            yield following
            position = position[:, -1:] + 1
            left = [at for at, row in enumerate(rows) if open_[row]]
            if 2 * len(left) <= len(rows) and can_select_rows(states):
                index = torch.tensor(left, device=self.device)
                states.batch_select_indices(index)
                ids, mask, position, rows = (
                    ids[index],
                    mask[index],
                    position[index],
                    [rows[at] for at in left],
                )
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)

    def _padded(self, prompts, read=0):
        """Prompts as tensors, padded on the left, without what was read: ids, positions, and where there are ids."""
        places = [self.layout.positions(prompt)[read:] for prompt in prompts]
        prompts = [prompt[read:] for prompt in prompts]
        ids, position, mask = torch.zeros(3, len(prompts), max(map(len, prompts)), dtype=torch.long).unbind()
        for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
            at = slice(ids.shape[1] - len(prompt), None)
            ids[row, at] = torch.as_tensor(np.asarray(prompt, np.int64))
            position[row, at], mask[row, at] = torch.from_numpy(place), 1
        return ids.to(self.device), position.to(self.device), mask.to(self.device)

    def _beginnings(self, prompts):
        """What prompts begin with up to the end of their last ECGs, each once; and which of these each has."""
        numbers: dict[bytes, int] = {}
        beginnings, row_of = [], []
        for prompt in prompts:
            beginning = prompt[: min(self.layout.prefix(prompt), len(prompt) - 1)]
            row_of.append(numbers.setdefault(beginning.tobytes(), len(numbers)))
            if row_of[-1] == len(beginnings):
                beginnings.append(beginning)
        return beginnings, row_of

    def _can_share(self, beginnings, prompts, states):
        """Whether some prompts begin alike, with an ECG, and the layers' states can be shared."""
        return (
            can_select_rows(states)
            and min(map(len, beginnings)) > 0
            and len(beginnings) < len(prompts)
            and self.beside
        )

    def _from_shared(self, prompts, beginnings, row_of, end_ids, max_new, pick, states):
        """`stream`, where a row is what several prompts begin with, and these follow it side by side.

        So what they share is read once, kept once and looked at once for all of them.
        """
        ids, owner, _ = self._side_by_side([[(1, ids, ids)] for ids in beginnings])
        owner -= 1  # 0 for what is there, -2 for padding on the right, which no real id sees
        self._outputs(lambda hidden: hidden[:, -1], states, **self.inputs(ids))
        places = [self.layout.positions(prompt) for prompt in prompts]
        # of each row the prompts still open: number, ids to be read, their positions
        following = [[] for _ in beginnings]
        for prompt, row in enumerate(row_of):
            n = len(beginnings[row])
            following[row].append((prompt + 1, prompts[prompt][n:], places[prompt][n:]))
        seen = owner
        for _ in range(max_new):
            ids, owner, position = self._side_by_side(following)
            seen = torch.cat([seen, owner], 1)
            before = torch.ones(ids.shape[1], seen.shape[1], dtype=torch.bool, device=ids.device)
            sees = (seen[:, None] == 0) | (seen[:, None] == owner[..., None])
            sees &= before.tril(seen.shape[1] - ids.shape[1])
            last = torch.cat([owner[:, 1:] != owner[:, :-1], owner[:, -1:] > 0], 1) & (owner > 0)
            logits, _ = self._outputs(
                lambda hidden, last=last: hidden[last],
                states,
                inputs_embeds=self.embed(ids),
                position_ids=position,
                attention_mask=self._mask(sees),
            )
            open_ = [prompt - 1 for row in following for prompt, _, _ in row]
            new: list[int | None] = [None] * len(prompts)
            for prompt, i in zip(open_, pick(logits, open_).tolist(), strict=True):
                new[prompt] = i if i not in end_ids else None
            if not any(i is not None for i in new):
                return
            yield new
            following = [
                [(p, np.array([new[p - 1]]), place[-1:] + 1) for p, _, place in row if new[p - 1] is not None]
                for row in following
            ]
            left = [row for row, of in enumerate(following) if of]
            if 2 * len(left) <= len(following):
                index = torch.tensor(left, device=self.device)
                states.batch_select_indices(index)
                seen, following = seen[index], [following[row] for row in left]

    def _side_by_side(self, rows):
        """Stretches of ids one behind the other in each row, padded on the right.

        Parameters
        ----------
        rows : list of lists of (int, int array, int array)
            An owner, above 0, ids, and their positions.

        Returns
        -------
        (int64 tensor, int64 tensor, int64 tensor)
            Ids, owners (-1 for padding) and positions, (rows, n).
        """
        width = max(sum(len(ids) for _, ids, _ in row) for row in rows)
        made = np.zeros((3, len(rows), width), np.int64)
        made[1] = -1
        for number, row in enumerate(rows):
            at = 0
            for owner, ids, places in row:
                part = made[:, number, at : at + len(ids)]
                part[0], part[1], part[2] = ids, owner, places
                at += len(ids)
        return torch.from_numpy(made).to(self.device).unbind()

    def answer(
        self,
        prompts: Sequence[np.ndarray],
        end_ids: Container[int],
        max_new: int = 64,
        pick: Callable[[torch.Tensor, list[int]], torch.Tensor] | None = None,
    ) -> list[list[int]]:
        """Answer prompts together (see `stream`): a list of lists of text ids."""
        answers: list[list[int]] = [[] for _ in prompts]
        for following in self.stream(prompts, end_ids, max_new, pick=pick):
            for answer, i in zip(answers, following, strict=True):
                if i is not None:
                    answer.append(i)
        return answers

    @torch.no_grad()
    def weigh(
        self,
        prompts: Sequence[np.ndarray],
        answers: Sequence[Sequence[np.ndarray]],
        cache: PromptCache | None = None,
    ) -> list[np.ndarray]:
        """How likely answers are behind prompts.

        Parameters
        ----------
        prompts : list of int arrays
            An ECG that several begin with is read once.
        answers : list of lists of int arrays
            The answers to each prompt, with the id that ends them.
        cache : PromptCache or None
            With one prompt: what was read of an earlier one that begins alike is not read again.

        Returns
        -------
        list of float64 arrays
            The logarithm of the probability of each answer to each prompt.
        """
        if not self.beside:
            return [self._weigh_alone(prompt, some) for prompt, some in zip(prompts, answers, strict=True)]
        return self._weigh(prompts, answers, cache)

    def _weigh(self, prompts, answers, cache=None):
        states = new_cache(self.base)
        if cache:
            states = cache.begin(prompts[0], states)
            beginnings, row_of, read = [prompts[0][:-1]], [0], len(cache.ids)
        else:
            beginnings, row_of = self._beginnings(prompts)
            read = 0
        ids, owner, _ = self._side_by_side([[(1, ids, ids)] for ids in beginnings])
        owner -= 1  # 0 for what is there, -2 for padding on the right
        if read < ids.shape[1]:
            given = self.inputs(ids)
            if read:
                places = torch.from_numpy(self.layout.positions(beginnings[0])[None, read:]).to(self.device)
                given = {"inputs_embeds": self.embed(ids[:, read:]), "position_ids": places}
                given["attention_mask"] = torch.ones_like(ids)
            self._outputs(lambda hidden: hidden[:, -1], states, **given)
        if cache:
            cache.ids = beginnings[0].tolist()
        made: list[np.ndarray] = [np.zeros(0)] * len(prompts)
        for some in self._passes(prompts, answers, beginnings, row_of):
            self._weigh_side_by_side(some, prompts, answers, beginnings, row_of, owner, states, made)
            for layer in states.layers:
                layer.keys, layer.values = (
                    held[..., : owner.shape[1], :] for held in (layer.keys, layer.values)
                )
        return made

    def _passes(self, prompts, answers, beginnings, row_of):
        """Numbers of prompts in lists whose answers are weighed together: not too many ids in a row, or logits."""
        of_row, most = [0] * len(beginnings), MOST_LOGITS // self.offset
        order = []
        for number, row in enumerate(row_of):
            order.append((of_row[row], number))
            of_row[row] += 1
        passes: list[list[int]] = []
        counted, in_row = 0, [0] * len(beginnings)
        for _, number in sorted(order):
            row = row_of[number]
            logits = sum(map(len, answers[number]))
            ids = len(prompts[number]) - len(beginnings[row]) + logits
            if not passes or counted + logits > most or in_row[row] + ids > MOST_BESIDE:
                passes.append([])
                counted, in_row = 0, [0] * len(beginnings)
            passes[-1].append(number)
            counted += logits
            in_row[row] += ids
        return passes

    def _weigh_side_by_side(self, some, prompts, answers, beginnings, row_of, owner, states, made):
        """Weigh the answers to some prompts behind their beginnings: each prompt's rest once, then its answers."""
        rows = [[] for _ in beginnings]  # of (owner, owner of what it goes on from, ids, positions)
        widths, counted, wanted, lengths = [0] * len(rows), [], [], []
        for number in some:
            row, prompt = row_of[number], prompts[number]
            places, n, asks = self.layout.positions(prompt), len(beginnings[row]), len(rows[row]) + 1
            rows[row].append((asks, asks, prompt[n:], places[n:]))
            widths[row] += len(prompt) - n
            last = widths[row] - 1
            for answer in answers[number]:
                own = len(answer) - 1  # the id that ends it is predicted, and predicts nothing
                rows[row].append((len(rows[row]) + 1, asks, answer[:-1], places[-1] + 1 + np.arange(own)))
                counted += [(row, last), *((row, widths[row] + i) for i in range(own))]
                wanted.append(answer)
                lengths.append(len(answer))
                widths[row] += own
        ids, of, position = self._side_by_side([[(own, *rest) for own, _, *rest in row] for row in rows])
        _, parent, _ = self._side_by_side([[(above, *rest) for _, above, *rest in row] for row in rows])
        seen = torch.cat([owner, of], 1)[:, None]
        sees = (seen == 0) | (seen == of[..., None]) | (seen == parent[..., None])
        sees &= torch.ones(sees.shape[1:], dtype=torch.bool, device=ids.device).tril(owner.shape[1])
        flat = np.array(counted) @ [ids.shape[1], 1]
        places, at = np.unique(flat, return_inverse=True)
        places = torch.from_numpy(places).to(ids.device)
        logits, _ = self._outputs(
            lambda hidden: hidden.flatten(0, 1)[places],
            states,
            inputs_embeds=self.embed(ids),
            position_ids=position,
            attention_mask=self._mask(sees),
        )
        logs = logits.float().log_softmax(-1)[at, np.concatenate(wanted)].double().cpu().numpy()
        sums = np.add.reduceat(logs, np.cumsum(lengths) - lengths)
        begin = 0
        for number in some:
            made[number] = sums[begin : begin + len(answers[number])]
            begin += len(answers[number])

    def _weigh_alone(self, prompt, answers):
        """Weigh the answers to a prompt, each behind a prompt of its own; padded on the right, where nothing looks."""
        sums = []
        for start in range(0, len(answers), 8):
            some = answers[start : start + 8]
            ids = np.zeros((len(some), len(prompt) + max(map(len, some))), np.int64)
            ids[:, : len(prompt)] = prompt
            for row, answer in enumerate(some):
                ids[row, len(prompt) : len(prompt) + len(answer)] = answer
            given = torch.from_numpy(ids).to(self.device)
            here = slice(len(prompt) - 1, -1)
            logits, _ = self._outputs(
                lambda hidden, here=here: hidden[:, here].flatten(0, 1), **self.inputs(given)
            )
            logs = logits.float().log_softmax(-1).unflatten(0, (len(some), -1))
            logs = logs.gather(-1, given[:, len(prompt) :, None])[..., 0].double().cpu().numpy()
            sums += [row[: len(answer)].sum() for row, answer in zip(logs, some, strict=True)]
        return np.array(sums)

    @functools.cached_property
    def beside(self) -> bool:
        """Whether texts can stand side by side behind one beginning, with a mask: tried, not assumed.

        It is tried without autocast, whose rounding would hide what the mask does.
        """
        config = self.base.config
        if config._attn_implementation not in ("sdpa", "eager") or getattr(config, "window_size", None):
            return False
        if not can_select_rows(new_cache(self.base)):
            return False
        tokens = min(8, len(self.ecg_rows.weight) - (self.layout.first - self.offset))
        begin = [self.offset, *range(self.layout.first, self.layout.first + tokens), self.offset + 1]
        prompts = [np.array([*begin, *rest]) for rest in ((3, 4), (5, 6, 7))]
        answers = [[np.array([8, 9, 10]), np.array([11, 12])]] * 2
        exact = next(p.dtype for p in self.base.parameters() if p.is_floating_point()) == torch.float32
        training = self.training
        self.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                found = np.concatenate(self._weigh(prompts, answers))
                alone = np.concatenate(
                    [self._weigh_alone(p, a) for p, a in zip(prompts, answers, strict=True)]
                )
        except (RuntimeError, TypeError, ValueError) as error:
            if not unsupported(error):
                raise
            return False
        finally:
            self.train(training)
        return bool(np.allclose(found, alone, rtol=1e-3 if exact else 5e-2, atol=1e-3 if exact else 0.3))


def _greedy(logits, _rows):
    return logits.argmax(-1)


class ScoredPicks:
    """Picks ids as another does, greedily if that is None, and counts how likely each answer is, its end included.

    Attributes
    ----------
    logs : list of lists of float
        Of each answer, the logarithm of the probability of each of its ids.
    """

    def __init__(self, pick, end_ids, count):
        self.pick, self.end_ids, self.ended = pick or _greedy, end_ids, set()
        self.logs: list[list[float]] = [[] for _ in range(count)]

    def __call__(self, logits, rows):
        ids = self.pick(logits, rows)
        logs = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        for row, i, log in zip(rows, ids.tolist(), logs.tolist(), strict=True):
            if row not in self.ended:
                self.logs[row].append(log)
            if i in self.end_ids:
                self.ended.add(row)
        return ids


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
