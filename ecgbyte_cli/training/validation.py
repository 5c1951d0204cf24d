"""How well a model predicts what it was not trained on; on one process or several."""

import math

import numpy as np

from ecgbyte_cli.model.prompt import IGNORED
from ecgbyte_cli.training.distributed import process_rank, sum_over_processes


def autocast(lm):
    """Compute in bfloat16 where the device has it; on a CPU only over a base model that is in it."""
    import torch

    from ecgbyte_cli.model import base_model

    kind = lm.device.type
    held = lm.base.get_input_embeddings().weight.dtype == torch.bfloat16
    return torch.autocast(
        kind, torch.bfloat16, enabled=kind == "cuda" or (held and base_model.supports_bfloat16(kind))
    )


def count_labels(batch, lm):
    """How many labels of a batch are text, and how many ECG tokens."""
    wanted = batch.labels[:, 1:]
    return int(((wanted != IGNORED) & (wanted < lm.offset)).sum()), int((wanted >= lm.offset).sum())


def validation_loss(lm, samples, plans, batch, learn_ecg=False, bar=None, check=lambda: None):
    """How well a model predicts what it was not trained on.

    Parameters
    ----------
    lm : ECGLM
    samples : Samples
    plans : list of Plan
    batch : int
        Of them computed together.
    learn_ecg : bool
        Whether the ECG's tokens are predicted too.
    bar : object or None
        Shows how far it is.
    check : callable
        Called before each batch, on all processes alike. It ends the validation by an exception.

    Returns
    -------
    (float or None, float or None, float or None)
        Loss per labelled token of text, loss per ECG token, and bits per second of signal and lead that the ECG tokens
        take; None of what there was none of.
    """
    import torch

    rank, processes = process_rank()
    was_training, sums, counts, letters = lm.training, np.zeros(2), np.zeros(2), 0
    plans = sorted(plans, key=lambda plan: plan.length)
    groups = [plans[i : i + batch] for i in range(0, len(plans), batch)]
    lm.eval()
    with torch.no_grad(), autocast(lm):
        for first in range(0, len(groups), processes):
            check()
            for group in groups[first : first + processes][rank : rank + 1]:
                made = samples.batch([samples.reading(plan, learn_ecg=learn_ecg) for plan in group])
                sums += lm(*made.to(lm.device)).double().cpu().numpy()
                counts += count_labels(made, lm)
                letters += samples.letters_labelled(made.labels)
                if bar:
                    bar.advance(processes * sum(max(1, len(plan.questions)) for plan in group))
    lm.train(was_training)
    *sums, text, ecg, letters = sum_over_processes([*sums, *counts, letters], lm.device)
    bits = sums[1] / math.log(2) / (letters / samples.tokenizer.signal["fs"]) if ecg else None
    return sums[0] / text if text else None, sums[1] / ecg if ecg else None, bits


def format_loss(loss):
    """A loss in words."""
    return "none" if loss is None else f"{loss:.4f}"


def format_ecg_loss(loss, bits):
    """Words for the loss of the ECG's own tokens, if there is one."""
    if loss is None:
        return ""
    return f", ECG perplexity {math.exp(min(loss, 700)):.1f}, {bits:.1f} bits per second and lead"


def sample_answers(lm, samples, questions, max_new):
    """Lines with what the model answers to some questions, as it is now."""
    prompt, was_training, lines = samples.prompt, lm.training, []
    lm.eval()
    for question in questions:
        ids, _, _ = samples(question, asked=True)
        (answer,) = lm.answer([ids], prompt.end_ids, max_new)
        lines.append(f'  {question.question} "{prompt.text(answer)}" (true: "{question.answer}")')
    lm.train(was_training)
    return lines
