"""ecgbyte generate: answers for many questions, and their scores."""

import json
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import metrics
from ecgbyte_cli import questions as question_files
from ecgbyte_cli.console import Failure, Stage, note, progress, table
from ecgbyte_cli.workdir import finished, read_array, read_json, read_table, sha256_of, whole, write_json

CONTROLS = ("no signal", "shuffled")


@click.command(
    cls=Stage,
    short_help="Answer many questions, and score the answers.",
    epilog="Example: ecgbyte generate --split test --limit 8",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file (JSONL).  [default: the one the model was trained on]",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model folder.  [default: the work folder's]")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which questions.",
)
@click.option("--limit", type=click.IntRange(1), help="Answer only so many questions, drawn by seed.")
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Questions answered together."
)
@click.option(
    "--max-new", type=click.IntRange(1), default=64, show_default=True, help="Longest answer in tokens."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the limit and of the shuffled control."
)
@click.option("--overwrite", is_flag=True, help="Replace answers made with other settings.")
@click.pass_obj
def command(work, **options):
    """Answer the questions of a split, greedily, and score the answers.

    Beside the score stand two controls: the same questions without a signal, and with the signal of another
    patient. A model that reads the ECG does much worse in both.
    """
    result = generate(work, **options)
    columns = {"signal": result, **result["control"]}
    rows = [
        (kind, *(f"{scores['by_type'][kind]:.1f}" for scores in columns.values()))
        for kind in sorted(result["by_type"])
    ]
    rows.append(("all", *(f"{scores['exact_match']:.1f}" for scores in columns.values())))
    table(
        rows,
        ("exact match, %", *columns),
        title=f"{result['questions']} questions of split {result['split']}",
    )
    return result


def generate(
    work, *, qa=None, model=None, split="test", limit=None, batch=32, max_new=64, seed=0, overwrite=False
):
    """Answer the questions of a split with and without their signal.

    Parameters
    ----------
    work : WorkDir
    qa : Path or None
        Question file; None is the one the model was trained on.
    model : Path or None
        Model folder; None is the work folder's.
    split : str
    limit : int or None
        At most so many questions.
    batch : int
        Questions answered together.
    max_new : int
        Longest answer in tokens.
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        questions, split, exact_match and by_type (percent, with the signal), control (the same for
        `no signal` and `shuffled`), bleu, rouge_l (None without the extra `eval`), seconds.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together.
    """
    model = model or work.model
    if not (model / "ecgbyte.json").exists():
        raise Failure(f"{model} holds no model: run `ecgbyte finetune` first, or name one with --model")
    work.need(work.token_settings, "encode")
    about = read_json(model / "ecgbyte.json")
    if read_json(work.token_settings)["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{model} was trained with another tokenizer than {work.tokens} was encoded with: "
            "encode with the model's, or train again"
        )
    qa = Path(qa or about["qa"])
    settings = {
        "model": sha256_of(model / "ecgbyte.json"),
        "qa": sha256_of(qa) if qa.exists() else None,
        "split": split,
        "limit": limit,
        "max_new": max_new,
        "seed": seed,
    }
    done = finished(work.metrics, settings, overwrite, "answers")
    if done:
        note(f"{work.answers} is there already, made with these settings: nothing to do")
        return done

    chosen = choose(question_files.read(qa), read_table(work.symbol_segments), split, limit, seed)
    from ecgbyte_cli import ecg_lm
    from ecgbyte_cli.prompt import Prompt

    start = time.perf_counter()
    with ecg_lm.quiet():
        lm, text_tokenizer, _, _ = ecg_lm.load(model)
    prompt = Prompt(text_tokenizer, lm.offset)
    tokens, segments = read_array(work.tokens), read_table(work.token_segments)

    def ecg(segment):
        begin, length = segments["offset"][segment], segments["length"][segment]
        return tokens[begin : begin + length]

    own = [segment for _, segment, _, _ in chosen]
    other = others([patient for *_, patient, _ in chosen], own, seed)
    signals = {
        "signal": [ecg(s) for s in own],
        "no signal": [np.zeros(0, np.int64)] * len(own),
        "shuffled": [ecg(s) for s in other],
    }
    answers = {}
    with progress("generate", len(signals) * len(chosen), "answers") as bar:
        for name, ecgs in signals.items():
            prompts = [
                prompt.build([e], [(question.question, None)])[0]
                for e, (question, *_) in zip(ecgs, chosen, strict=True)
            ]
            answers[name] = answer_all(lm, prompt, prompts, batch, max_new, bar)

    truths, types = [q.answer for q, *_ in chosen], [q.type for q, *_ in chosen]
    scores = {name: metrics.exact_match(given, truths, types) for name, given in answers.items()}
    result = {
        "questions": len(chosen),
        "split": split,
        **scores["signal"],
        "control": {name: scores[name] for name in CONTROLS},
        **metrics.overlap(answers["signal"], truths),
        "seconds": time.perf_counter() - start,
    }
    with whole(work.answers) as beside, open(beside, "w", encoding="utf-8") as file:
        for i, (question, *_) in enumerate(chosen):
            line = {
                "record": question.record,
                "question": question.question,
                "truth": question.answer,
                "answer": answers["signal"][i],
                "type": question.type,
                "control": {name: answers[name][i] for name in CONTROLS},
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    write_json(work.metrics, {"settings": settings, "result": result}, indent=1)
    return result


def choose(questions, segments, split, limit, seed):
    """The questions of a split that have a segment, at most `limit` of them, each with segment and patient."""
    joined, unmatched = question_files.join(questions, segments)
    if unmatched:
        note(
            f"{len(unmatched)} questions are about records that were not encoded ({unmatched[0].record}, …): left out"
        )
    chosen = [item for item in joined if item[3] == split]
    if not chosen:
        raise Failure(f"no question of split {split} is about an encoded record: try another --split or --qa")
    if limit and limit < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    return chosen


def others(patients, segments, seed):
    """For each question a segment of another patient, drawn by seed; with one patient alone, its own."""
    random, patients = np.random.default_rng(seed), np.array(patients)
    drawn = []
    for i, patient in enumerate(patients):
        strangers = np.flatnonzero(patients != patient)
        drawn.append(segments[random.choice(strangers)] if len(strangers) else segments[i])
    return drawn


def answer_all(lm, prompt, prompts, batch, max_new, bar):
    """Answer prompts in batches of like length; the answers come back in the order of the prompts."""
    answers = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch):
        group = by_length[start : start + batch]
        for i, ids in zip(
            group, lm.answer([prompts[i] for i in group], prompt.end_ids, max_new), strict=True
        ):
            answers[i] = prompt.text(ids)
        bar.advance(len(group))
    return answers
