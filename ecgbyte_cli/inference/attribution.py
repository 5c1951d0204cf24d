"""Attribute an answer to ECG tokens, and to the samples that they span.

One token of the answer is attributed: the first one that the signal makes at least twice as probable as a flat line
does. (The rest of "premature ventricular complexes" follows from its first token.) Its log-odds are attributed, because
its probability hardly changes once a model is sure.

None of the five methods is always right; `ecgbyte explain` measures how well each one locates the evidence.

- attention: weights of the last layer, from the position that predicts the token (mean over heads).
- rollout: attention through all layers, residual connections included (Abnar and Zuidema, ACL 2020).
- gradient: gradient x input on the embeddings (Shrikumar et al. 2016).
- integrated: integrated gradients (Sundararajan et al., ICML 2017), from the mean ECG token to each token; for the
  words, with the ECG unchanged, from the mean word to each word. Its scores should sum to the difference that
  the ECG makes; the completeness gap is the deviation from that sum.
- occlusion: the drop in the token's probability when a window of one lead is flat (Zeiler and Fergus, ECCV 2014). It
  changes the signal, not the tokens: the signal is encoded again.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import fit_prompt
from ecgbyte_cli.model.layout import lead_ranges
from ecgbyte_cli.model.prompt import trim_ecgs
from ecgbyte_cli.runtime.memory import in_parts
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.prompt import Prompt

METHODS = ("attention", "rollout", "gradient", "integrated", "occlusion")
WINDOW = 0.2  # seconds that occlusion flattens at a time
STEPS = 64  # steps of the integral; with 32, one record with a sudden change lost a third of the difference


@dataclass
class Case:
    """An answer to explain.

    Attributes
    ----------
    ids : numpy.ndarray
        int64, (n,): prompt and answer, as the model reads them.
    at : numpy.ndarray
        Positions of the answer's ids, including the closing id.
    ecg : numpy.ndarray
        Positions of the ECG's tokens; with several ECGs, those of the last one.
    spans : numpy.ndarray or None
        int64, (rows, 4): for each span of samples, the index of its token in `ecg`, lead, first sample, sample after
        the last. None if the ECG keeps all of its tokens.
    decided : int or None
        Which of the answer's ids is explained: see `Explainer.decided`.
    gap : float or None
        For integrated gradients: how far the sum of the ECG tokens' scores is from the difference that the ECG makes,
        as a percentage of that difference.
    """

    ids: np.ndarray
    at: np.ndarray
    ecg: np.ndarray
    spans: np.ndarray | None = None
    decided: int | None = None
    gap: float | None = None


class Explainer:
    """Attribute a model's answers about one segment at a time.

    Parameters
    ----------
    lm : ECGLM
    prompt : Prompt
    tokenizer : ECGTokenizer
    segmenter : str
        The segmenter that the model was trained with.
    batch : int
        Largest number of prompts computed together; lowered when memory runs out.
    longest : int or None
        Longest prompt in ids; the ECGs of a longer prompt lose tokens.
    before : str
        Text before the ECGs in a prompt.
    """

    def __init__(
        self,
        lm: "ECGLM",
        prompt: "Prompt",
        tokenizer: ECGTokenizer,
        segmenter: str = "longest",
        batch: int = 16,
        longest: int | None = None,
        before: str = "",
    ):
        self.lm, self.prompt, self.tokenizer = lm, prompt, tokenizer
        self.segmenter, self.batch, self.longest = segmenter, batch, longest
        self.before = before

    def case(self, letters: np.ndarray, question: str, answer: str) -> Case:
        """Return the case of one question and answer about a segment, uint8 (leads, samples)."""
        return self.case_of([self.tokenizer.encode(letters, self.segmenter)], [(question, answer)])

    def case_of(self, ecgs: list[np.ndarray], turns: Sequence[tuple[str, str | None]]) -> Case:
        """Return the case of several questions and answers about encoded ECGs; the last answer is explained.

        Raises
        ------
        Failure
            If the text leaves no room for the ECG.
        """
        prompt, tokenizer, lm = self.prompt, self.tokenizer, self.lm
        ids, labels, lost = fit_prompt(prompt, tokenizer, ecgs, turns, self.longest, self.before)
        *earlier, (question, _) = turns
        asked = [*earlier, (question, None)]
        before = len(fit_prompt(prompt, tokenizer, ecgs, asked, self.longest, self.before)[0])
        # indices of the tokens that are left of the last ECG
        leads = [lead_ranges(ecg, tokenizer.lengths, tokenizer.signal["samples"]) for ecg in ecgs]
        numbers, budget = [np.arange(len(ecg)) for ecg in ecgs], sum(map(len, ecgs)) - lost
        left = trim_ecgs(numbers, leads, budget)[0][-1] if lost else numbers[-1]
        left = left[lm.layout.read_tokens(ecgs[-1], leads[-1])[left]]
        if not len(left):
            raise Failure("the question leaves no room for the ECG: ask a shorter one")
        first = np.flatnonzero(ids[:before] == lm.offset)[-1]
        places = first + np.flatnonzero(ids[first:before] >= lm.layout.first)
        spans = tokenizer.spans(ecgs[-1])
        spans = spans[np.isin(spans[:, 0], left)]
        spans[:, 0] = np.searchsorted(left, spans[:, 0])
        at = before + np.flatnonzero(labels[before:] >= 0)
        return Case(ids, at, places, spans)

    def log_probabilities(self, cases: Sequence[Case]) -> np.ndarray:
        """Return the logarithm of the probability of each case's answer, float64 (cases,)."""
        return np.array([values.sum() for values in self._measure(cases, _log_probabilities)])

    @torch.no_grad()
    def _measure(
        self, cases: Sequence[Case], measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> list[np.ndarray]:
        """Apply `measure` to the logits of each case's answer and to its ids."""
        values: list[np.ndarray] = [np.zeros(0)] * len(cases)
        order = sorted(range(len(cases)), key=lambda i: len(cases[i].ids))

        def measured(group: list[int]) -> list[np.ndarray]:
            ids = torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(cases[i].ids) for i in group], batch_first=True
            ).to(self.lm.device)  # padded on the right, which no real token attends to
            # answers end at different positions: keep the logits from the first of them
            first = int(min(cases[i].at[0] for i in group)) - 1
            logits = self.lm.base(
                **self.lm.inputs(ids), use_cache=False, logits_to_keep=ids.shape[1] - first
            ).logits
            measures = []
            for row, i in enumerate(group):
                at = torch.from_numpy(cases[i].at).to(ids.device)
                measures.append(measure(logits[row, at - 1 - first], ids[row, at]))
            return [each.cpu().double().numpy() for each in measures]

        measures = itertools.chain.from_iterable(in_parts(order, self.batch, measured))
        for i, value in zip(order, measures, strict=True):
            values[i] = value
        return values

    def decided(self, case: Case) -> int:
        """Return which of the answer's ids depends on the signal: its index in the answer."""
        if case.decided is None:
            flat, layout = self.tokenizer.flat_line(self.segmenter), self.lm.layout
            block = layout.block(flat)
            first = np.flatnonzero(case.ids[: case.ecg[0]] == layout.offset)[-1]
            ids = np.concatenate([case.ids[:first], block, case.ids[case.ecg[-1] + 2 :]])
            places = first + np.flatnonzero(block >= layout.first)
            without = Case(ids, case.at + len(ids) - len(case.ids), places)
            with_signal, with_none = self._measure([case, without], _log_probabilities)
            # the first such id; without one, the first id of the answer
            case.decided = int((with_signal - with_none > np.log(2)).argmax())
        return case.decided

    def scores(self, case: Case, method: str) -> np.ndarray:
        """Attribute an answer to each id of its prompt.

        Parameters
        ----------
        case : Case
        method : str
            One of `METHODS` except occlusion.

        Returns
        -------
        numpy.ndarray
            float64, (positions before the answer,): how much each id raises the answer's probability, else 0.
        """
        scores = {
            "attention": self._attention,
            "rollout": self._rollout,
            "gradient": self._gradient,
            "integrated": self._integrated,
        }[method](case)
        return np.maximum(scores.cpu().double().numpy()[: case.at[0]], 0)

    def density(self, letters: np.ndarray, question: str, answer: str, method: str) -> np.ndarray:
        """Attribute an answer to the samples of a segment.

        Parameters
        ----------
        letters : numpy.ndarray
            uint8, (leads, samples).
        question, answer : str
        method : str
            One of `METHODS`.

        Returns
        -------
        numpy.ndarray
            float64, (leads, samples), sum 1: the score of a token is spread evenly over its samples.
        """
        return self.density_of(self.case(letters, question, answer), letters, question, answer, method)

    def density_of(
        self, case: Case, letters: np.ndarray, question: str, answer: str, method: str
    ) -> np.ndarray:
        """Return `density` for a case; the method `integrated` also sets `case.gap`."""
        if method == "occlusion":
            return _normalized(self._occlusion(case, letters, question, answer))
        return self.spread(case, self.scores(case, method))

    def words(self, case: Case) -> np.ndarray:
        """Return the positions of the text ids of a case's prompt."""
        return np.flatnonzero(case.ids[: case.at[0]] < self.lm.offset)

    def on_words(self, case: Case, scores: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Return the text tokens of a case's prompt and the share of the prompt's scores on each."""
        places = self.words(case)
        words = [self.prompt.words([int(i)]).replace("\n", "\\n") for i in case.ids[places]]
        return words, scores[places] / max(scores.sum(), 1e-300)

    def spread(self, case: Case, scores: np.ndarray) -> np.ndarray:
        """Spread the scores of a case's ECG tokens over their samples; the result sums to 1."""
        spans = case.spans
        if spans is None:
            spans = self.tokenizer.spans(case.ids[case.ecg] - self.lm.layout.first)
        lengths = np.bincount(spans[:, 0], weights=spans[:, 3] - spans[:, 2])
        per_sample = scores[case.ecg] / lengths
        density = np.zeros((len(self.tokenizer.signal["leads"]), self.tokenizer.signal["samples"]))
        for token, lead, start, stop in spans:
            density[lead, start:stop] = per_sample[token]
        return _normalized(density)

    # ---- the methods

    def _attention(self, case: Case) -> torch.Tensor:
        return self._maps(case)[-1][case.at[self.decided(case)] - 1]

    def _rollout(self, case: Case) -> torch.Tensor:
        maps = self._maps(case)
        flow = torch.zeros(len(case.ids), device=maps[0].device)
        flow[case.at[self.decided(case)] - 1] = 1
        # multiply (A + I)/2 of each layer, from the last to the first, as a row vector
        for attention in reversed(maps):
            flow = 0.5 * flow + 0.5 * flow @ attention
        return flow

    @torch.no_grad()
    def _maps(self, case: Case) -> list[torch.Tensor]:
        """Return the attention of each layer, mean over heads: float32 (n, n), rows look at columns."""
        base, maps = self.lm.base, []

        def keep(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, tuple) and torch.is_tensor(output[1]) and output[1].dim() == 4:
                maps.append(output[1][0].float().mean(0))

        hooks = [
            module.register_forward_hook(keep)
            for module in base.modules()
            if type(module).__name__.endswith("Attention")
        ]
        before = base.config._attn_implementation
        base.set_attn_implementation("eager")  # the faster implementations do not return the weights
        try:
            ids = torch.from_numpy(case.ids)[None].to(self.lm.device)
            base(**self.lm.inputs(ids), use_cache=False, logits_to_keep=1)
        finally:
            base.set_attn_implementation(before)
            for hook in hooks:
                hook.remove()
        if not maps:
            raise Failure(f"{type(base).__name__} does not return attention weights: use --method gradient")
        return maps

    def _gradient(self, case: Case) -> torch.Tensor:
        embedded = self._embedded(case)
        return (self._gradients(case, embedded[None])[0] * embedded).sum(-1)

    def _integrated(self, case: Case) -> torch.Tensor:
        embedded, lm = self._embedded(case), self.lm
        # the midpoint of each step
        parts = (torch.arange(STEPS, device=embedded.device) + 0.5) / STEPS
        scores = torch.zeros(len(case.ids), device=embedded.device)
        for places, rows in (
            (case.ecg, lm.ecg_rows.weight[lm.layout.first - lm.offset :]),
            (self.words(case), lm.text_rows()),
        ):
            start = embedded.clone()
            start[places] = rows.detach().mean(0).to(embedded.dtype)
            total = torch.zeros_like(embedded)

            def gradients(some: torch.Tensor, start: torch.Tensor = start) -> torch.Tensor:
                between = start + some[:, None, None].to(embedded.dtype) * (embedded - start)
                return self._gradients(case, between).sum(0)

            for gradient in in_parts(parts, self.batch, gradients):
                total += gradient
            path = (total / STEPS * (embedded - start)).sum(-1)
            scores += path
            if case.gap is None:  # the ECG is attributed first, so the gap is the ECG's
                makes = self._odds(case, embedded) - self._odds(case, start)
                case.gap = 100 * abs(path.sum().item() - makes) / max(abs(makes), 1e-12)
        return scores

    def _embedded(self, case: Case) -> torch.Tensor:
        return self.lm.embed(torch.from_numpy(case.ids)[None].to(self.lm.device))[0].detach()

    def _decided_odds(self, case: Case, embedded: torch.Tensor) -> torch.Tensor:
        """Return the log-odds of the decided id, (batch,), from embeddings, (batch, n, d)."""
        at = torch.tensor([case.at[self.decided(case)]], device=embedded.device)
        ids = torch.from_numpy(case.ids)[None].to(at.device).expand(len(embedded), -1)
        inputs = self.lm.inputs(ids) | {"inputs_embeds": embedded}
        logits = self.lm.base(**inputs, use_cache=False, logits_to_keep=at - 1).logits
        wanted = torch.from_numpy(case.ids).to(at.device)[at].expand(len(logits))
        return _log_odds(logits[:, 0], wanted)

    @torch.no_grad()
    def _odds(self, case: Case, embedded: torch.Tensor) -> float:
        return self._decided_odds(case, embedded[None]).item()

    def _gradients(self, case: Case, embedded: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the log-odds of the decided id with respect to the embeddings, (batch, n, d)."""
        embedded = embedded.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._decided_odds(case, embedded).sum(), embedded)[0]

    def _occlusion(self, case: Case, letters: np.ndarray, question: str, answer: str) -> np.ndarray:
        width = max(1, round(WINDOW * self.tokenizer.signal["fs"]))
        places = [
            (lead, start) for lead in range(len(letters)) for start in range(0, letters.shape[1], width)
        ]
        changed = []
        for lead, start in places:
            flat = letters.copy()
            flat[lead, start : start + width] = baseline_letters(letters)[lead]
            changed.append(self.case(flat, question, answer))
        decided = self.decided(case)
        whole, *without = (odds[decided] for odds in self._measure([case, *changed], _log_odds))
        density = np.zeros(letters.shape)
        for (lead, start), value in zip(places, without, strict=True):
            density[lead, start : start + width] = max(whole - value, 0)
        return density


def _log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each id, float32 (n,), from logits (n, vocabulary)."""
    return logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def _log_odds(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 - p)) of each id: its logit against the logits of all others."""
    logits, at = logits.float(), ids[:, None]
    return logits.gather(-1, at)[:, 0] - logits.scatter(-1, at, -torch.inf).logsumexp(-1)


def _normalized(density: np.ndarray) -> np.ndarray:
    """Scale numbers to sum 1; uniform if all are 0."""
    total = density.sum()
    return density / total if total > 0 else np.full(density.shape, 1 / density.size)


def baseline_letters(letters: np.ndarray) -> np.ndarray:
    """Return the baseline letter of each lead, which is its median, uint8 (leads,)."""
    return np.median(letters, axis=1).astype(np.uint8)
