"""ecgbyte finetune: questions and ECG tokens to an adapted language model."""

import math
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import questions as question_files
from ecgbyte_cli.console import Failure, Stage, note, progress, say
from ecgbyte_cli.workdir import finished, new_folder, read_array, read_json, read_table, sha256_of

LEARNING_RATE = {"full": 2e-3, "lora": 2e-4, "qlora": 2e-4}


@click.command(
    cls=Stage,
    short_help="Train a language model on questions and ECG tokens.",
    epilog="Example: ecgbyte finetune --qa data/qa.jsonl --model tiny --steps 20",
)
@click.option("--qa", type=click.Path(path_type=Path), required=True, help="Question file (JSONL).")
@click.option(
    "--model",
    default="Qwen/Qwen2.5-0.5B-Instruct",
    show_default=True,
    help="Base model: a hub id, a local folder, or tiny (a small decoder, trained in full, no download).",
)
@click.option(
    "--method",
    type=click.Choice(["qlora", "lora", "full"]),
    default=None,
    help="4-bit base with LoRA, LoRA, or everything.  [default: qlora; full for tiny]",
)
@click.option(
    "--ecg-rows",
    type=click.Choice(["frozen", "train"]),
    default="train",
    show_default=True,
    help="Whether the ECG tokens' embeddings are trained.",
)
@click.option("--steps", type=click.IntRange(1), help="Updates of the weights.  [default: one epoch]")
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Samples per update.")
@click.option("--lr", type=float, help="Highest learning rate.  [default: 2e-3 for full, else 2e-4]")
@click.option(
    "--max-length",
    type=click.IntRange(16),
    default=4096,
    show_default=True,
    help="Longest sample in tokens; longer ones are left out, and counted.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of order and first values.")
@click.option("--overwrite", is_flag=True, help="Replace a model made with other settings.")
@click.pass_obj
def command(work, **options):
    """Train a language model to answer questions about ECGs (decoder-only, loss on the answer alone).

    Reads the tokens that `ecgbyte encode` left and a question file; writes the folder model/.
    """
    result = finetune(work, **options)
    say(
        f"{result['model']}: {result['steps']} steps, training loss {result['train_loss']:.4f}, "
        f"validation loss {_loss(result['val_loss'])}, {result['trainable_parameters']:,} parameters trained, "
        f"{result['tokens_per_second']:.0f} tokens/s"
    )
    return result


def finetune(
    work,
    *,
    qa,
    model="Qwen/Qwen2.5-0.5B-Instruct",
    method=None,
    ecg_rows="train",
    steps=None,
    batch=4,
    lr=None,
    max_length=4096,
    seed=0,
    overwrite=False,
):
    """Train a model on the training split and write it to the work folder.

    Parameters
    ----------
    work : WorkDir
    qa : Path
        Question file.
    model : str
        Hub id, folder, or `tiny`.
    method : str or None
        `qlora`, `lora` or `full`; None is `full` for `tiny` and `qlora` otherwise.
    ecg_rows : str
        `train` or `frozen`.
    steps : int or None
        Updates; None is one epoch.
    batch : int
        Samples per update.
    lr : float or None
        Highest learning rate.
    max_length : int
        In tokens.
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        steps, train_loss (mean of the last tenth), val_loss (None without validation questions),
        tokens_per_second, trainable_parameters, peak_gpu_mb (None without a GPU), model (path).

    Raises
    ------
    Failure
        If tokens or questions are missing or do not fit together, or the base model cannot be loaded.
    """
    work.need(work.token_settings, "encode")
    method = method or ("full" if model == "tiny" else "qlora")
    if model == "tiny" and method != "full":
        raise Failure("--model tiny is trained in full: leave out --method, or name another base model")
    settings = {
        "qa": sha256_of_questions(qa),
        "tokens": read_json(work.token_settings)["tokenizer_sha256"],
        "base": model,
        "method": method,
        "ecg_rows": ecg_rows,
        "steps": steps,
        "batch": batch,
        "lr": lr or LEARNING_RATE[method],
        "max_length": max_length,
        "seed": seed,
    }
    done = finished(work.model_settings, settings, overwrite, "a model")
    if done:
        note(f"{work.model} is there already, made with these settings: nothing to do")
        return done

    import torch

    from ecgbyte_cli import ecg_lm
    from ecgbyte_cli.prompt import Prompt
    from ecgbyte_cli.tokenizer import ECGTokenizer

    training, validation = read_samples(work, qa)
    tokens, segments = read_array(work.tokens), read_table(work.token_segments)
    device = ecg_lm.best_device()
    if method == "qlora" and device == "cpu":
        note("no GPU: 4-bit training runs on the CPU, which takes minutes per step for models above 1B")
    torch.manual_seed(seed)
    with ecg_lm.quiet():
        base, text_tokenizer = ecg_lm.load_base(model, method, device)
        if method != "full":
            base = ecg_lm.add_adapter(base, method)
    lm = ecg_lm.ECGLM(base, ECGTokenizer.from_file(work.ecg_tokenizer).vocab_size, seed)
    lm.ecg_rows.requires_grad_(ecg_rows == "train")
    prompt = Prompt(text_tokenizer, lm.offset)

    def sample(question, segment):
        start, length = segments["offset"][segment], segments["length"][segment]
        return prompt.build([tokens[start : start + length]], [(question.question, question.answer)])

    training, validation = (
        fitting(samples, sample, max_length, name)
        for samples, name in ((training, "training"), (validation, "validation"))
    )
    if not training:
        raise Failure(f"no training question of {qa} is at most {max_length} tokens long: raise --max-length")
    steps = steps or math.ceil(len(training) / batch)
    optimizer = make_optimizer(lm, settings, device)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps))
    trained = [p for p in lm.parameters() if p.requires_grad]
    # a broken evaluation should show now, and not after the last step
    first = validation_loss(lm, sample, validation[: 2 * batch], batch)
    note(
        f"{model} ({method}) on {device}: {len(training)} training and {len(validation)} validation "
        f"questions, {steps} steps of {batch}; validation loss before training {_loss(first)}"
    )

    losses, seen, start, seconds = [], 0, time.perf_counter(), 0.0
    every = max(1, steps // 5)
    order = batches([length for *_, length in training], batch, seed)
    lm.train()
    with progress("finetune", steps, "steps") as bar:
        for step in range(steps):
            ids, labels = collate([sample(*training[i][:2]) for i in next(order)], lm.device)
            loss = lm(ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise Failure(f"the loss is no longer finite at step {step + 1}: try a smaller --lr")
            seen += ids.numel()
            bar.update(step + 1, f"loss {np.mean(losses[-50:]):.3f}")
            if (step + 1) % every == 0 and step + 1 < steps and validation:
                pause = time.perf_counter()
                val_loss = validation_loss(lm, sample, validation[:128], batch)
                note(
                    f"step {step + 1}: training loss {np.mean(losses[-every:]):.4f}, validation loss {val_loss:.4f}"
                )
                start += time.perf_counter() - pause
    seconds = time.perf_counter() - start
    result = {
        "steps": steps,
        "train_loss": float(np.mean(losses[-max(1, steps // 10) :])),
        "val_loss": validation_loss(lm, sample, validation, batch),
        "tokens_per_second": seen / seconds,
        "trainable_parameters": sum(p.numel() for p in trained),
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None,
        "seconds": seconds,
        "model": str(work.model),
    }
    about = {
        "base": model,
        "method": method,
        "qa": str(Path(qa).resolve()),
        "settings": settings,
        "result": result,
    }
    with new_folder(work.model) as folder:
        ecg_lm.save(folder, lm, text_tokenizer, work.ecg_tokenizer, about)
    return result


def sha256_of_questions(qa):
    """The SHA-256 of a question file; one line if there is none."""
    try:
        return sha256_of(qa)
    except OSError as error:
        raise Failure(f"question file {qa} cannot be read: {error.strerror}") from error


def read_samples(work, qa):
    """The questions of the training and of the validation split, each with its segment's number."""
    joined, unmatched = question_files.join(question_files.read(qa), read_table(work.symbol_segments))
    if unmatched:
        some = ", ".join(sorted({question.record for question in unmatched})[:3])
        note(f"{len(unmatched)} questions are about records that were not encoded ({some}, …): left out")
    training, validation = (
        [(question, segment) for question, segment, _, split in joined if split == name]
        for name in ("train", "val")
    )
    if not training:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    return training, validation


def fitting(samples, sample, max_length, name):
    """The samples of at most max_length tokens, each with its length."""
    measured = [(*s, len(sample(*s)[0])) for s in samples]
    short = [s for s in measured if s[2] <= max_length]
    if len(short) < len(measured):
        note(
            f"{len(measured) - len(short)} of {len(measured)} {name} samples are longer than "
            f"{max_length} tokens: left out"
        )
    return short


def make_optimizer(lm, settings, device):
    """AdamW, in paged 8-bit form for QLoRA on a GPU; no weight decay on vectors."""
    import torch

    trained = [p for p in lm.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings["method"] == "qlora" and device == "cuda":
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(groups, lr=settings["lr"], betas=(0.9, 0.98))
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.98))


def warmup_cosine(steps):
    """The learning rate's factor per step: a linear rise over 4 % of the steps, then half a cosine to zero."""
    rise = max(1, round(0.04 * steps))

    def factor(step):
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def batches(lengths, batch, seed):
    """Endless batches of sample numbers, of like length each, in an order that the seed decides.

    Each epoch shuffles the samples, sorts stretches of 50 batches by length, and shuffles the batches.
    """
    lengths, epoch = np.asarray(lengths), 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        stretches = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([s[np.argsort(lengths[s], kind="stable")] for s in stretches])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        for i in random.permutation(len(groups)):
            yield groups[i].tolist()
        epoch += 1


def collate(samples, device):
    """Samples of ids and labels as two int64 tensors (batch, n), padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (i, label) in enumerate(samples):
        ids[row, : len(i)], labels[row, : len(i)] = torch.from_numpy(i), torch.from_numpy(label)
    return ids.to(device), labels.to(device)


def validation_loss(lm, sample, questions, batch):
    """Mean loss over questions, per labelled token; None if there are none."""
    import torch

    if not questions:
        return None
    was_training, total, count = lm.training, 0.0, 0
    questions = sorted(questions, key=lambda q: q[2])
    lm.eval()
    with torch.no_grad():
        for i in range(0, len(questions), batch):
            ids, labels = collate([sample(*q[:2]) for q in questions[i : i + batch]], lm.device)
            n = int((labels != -100).sum())
            total, count = total + lm(ids, labels).item() * n, count + n
    lm.train(was_training)
    return total / count


def _loss(value):
    return "none" if value is None else f"{value:.4f}"
