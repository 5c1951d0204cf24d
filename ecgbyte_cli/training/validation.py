"""Compute the loss on validation data, on one process or several."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.distributed import sum_over_processes

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM

ValidationLoss = tuple[float | None, float | None, float | None]  # see `validation_loss`


def validation_loss(
    lm: "ECGLM",
    samples: SampleBuilder,
    plans: Sequence[ReadingPlan],
    batch: int,
    learn_ecg: bool = False,
    bar: Any = None,
    check: Callable[[], object] = lambda: None,
) -> ValidationLoss:
    """Return the loss of a model on held-out plans.

    Parameters
    ----------
    lm : ECGLM
    samples : SampleBuilder
    plans : list of ReadingPlan
    batch : int
        Number of plans computed together.
    learn_ecg : bool
        Whether the ECG tokens are predicted too.
    bar : object or None
        Progress bar.
    check : callable
        Called before each batch, on all processes. It ends the validation by raising an exception.

    Returns
    -------
    (float or None, float or None, float or None)
        Loss per text label, loss per ECG token, and bits of the ECG tokens per second of signal and lead;
        None if there are no such tokens.
    """
    import torch

    rank, processes = process_rank()
    was_training, losses, counts, letters = lm.training, [torch.zeros(2)], np.zeros(2), 0
    plans = sorted(plans, key=lambda plan: plan.length)
    groups = [plans[i : i + batch] for i in range(0, len(plans), batch)]
    lm.eval()
    with torch.no_grad(), lm.autocast():
        for first in range(0, len(groups), processes):
            check()
            # a process without a batch recomputes the last one: all processes of a sharded model must run together
            group = groups[min(first + rank, len(groups) - 1)]
            inputs = samples.batch([samples.reading(plan, learn_ecg=learn_ecg) for plan in group])
            loss = lm(*inputs.to(lm.device)).cpu()
            if first + rank < len(groups):
                losses.append(loss)
                counts += inputs.counts
                letters += samples.letters_labelled(inputs.labels)
                if bar:
                    bar.advance(processes * sum(max(1, len(plan.questions)) for plan in group))
    lm.train(was_training)
    sums = torch.stack(losses).double().sum(0).tolist()
    text_loss, ecg_loss, text, ecg, length = sum_over_processes([*sums, *counts, letters], lm.device)
    bits = ecg_loss / math.log(2) / (length / samples.tokenizer.signal["fs"]) if ecg else None
    return text_loss / text if text else None, ecg_loss / ecg if ecg else None, bits


def format_loss(loss: float | None) -> str:
    """Format a loss."""
    return "none" if loss is None else f"{loss:.4f}"


def format_ecg_loss(loss: float | None, bits: float | None) -> str:
    """Format the loss of the ECG tokens; empty if there is none."""
    if loss is None:
        return ""
    return f", ECG perplexity {math.exp(min(loss, 700)):.1f}, {bits:.1f} bits per second and lead"


def sample_answers(
    lm: "ECGLM", samples: SampleBuilder, questions: Sequence[Question], max_new: int
) -> list[str]:
    """Return lines with the model's current answers to some questions."""
    prompt, was_training, lines = samples.prompt, lm.training, []
    lm.eval()
    for question in questions:
        ids, _, _ = samples(question, asked=True)
        (answer,) = lm.answer([ids], prompt.end_ids, max_new)
        lines.append(f'  {question.question} "{prompt.text(answer)}" (true: "{question.answer}")')
    lm.train(was_training)
    return lines
