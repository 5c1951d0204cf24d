"""ecgbyte generate: answers for many questions, and their scores."""

import json
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import metrics
from ecgbyte_cli import questions as question_files
from ecgbyte_cli.console import Failure, Stage, note, progress, say, table
from ecgbyte_cli.prompt import Prompt, leads_of, trim
from ecgbyte_cli.workdir import finished, read_array, read_json, read_table, sha256_of, whole, write_json

CONTROLS = ("no signal", "shuffled", "flat line", "noise")


@click.command(
    cls=Stage,
    short_help="Answer many questions, and score the answers.",
    epilog="Example: ecgbyte generate --split test --limit 8",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one the model was trained on]",
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
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 answers greedily; above 0 answers are drawn by seed.",
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Whether to ask the same without the signal too.",
)
@click.option("--bertscore", metavar="MODEL", help="Add BERTScore, by this model (hub id or folder).")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the limit, the controls, and answers that are drawn.",
)
@click.option("--overwrite", is_flag=True, help="Replace answers made with other settings.")
@click.pass_obj
def command(work, **options):
    """Answer the questions of a split, and score the answers beside those of controls.

    The controls ask the same questions with no signal, with the signal of another patient, with a flat line, and
    with noise of the segment's own spectrum; the last one is the most frequent answer of the training questions
    of the same type. A model that reads the ECG does much worse in all of them: what counts is the difference to
    the best. Intervals hold 95 % of a bootstrap over patients.
    """
    result = generate(work, **options)
    header, lines = metrics.rows(result)
    table(
        lines, header, title=f"Exact match in %, {result['questions']} questions of split {result['split']}"
    )
    say(metrics.headline(result))
    say(metrics.texts(result))
    return result


def generate(
    work,
    *,
    qa=None,
    model=None,
    split="test",
    limit=None,
    batch=32,
    max_new=64,
    temperature=0.0,
    controls=True,
    bertscore=None,
    seed=0,
    overwrite=False,
):
    """Answer the questions of a split with and without their signal.

    Parameters
    ----------
    work : WorkDir
    qa : Path or None
        Question file or folder; None is the one the model was trained on.
    model : Path or None
        Model folder; None is the work folder's.
    split : str
    limit : int or None
        At most so many questions.
    batch : int
        Questions answered together; the answers do not depend on it.
    max_new : int
        Longest answer in tokens.
    temperature : float
        0 is greedy.
    controls : bool
    bertscore : str or None
        Model for BERTScore.
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        What `metrics.score` and `metrics.overlap` return, split and seconds.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or the model fails on a question: what
        was answered until then is kept, and the next run goes on from there.
    """
    start = time.perf_counter()
    model = Path(model or work.model)
    if not (model / "ecgbyte.json").exists():
        raise Failure(f"{model} holds no model: run `ecgbyte finetune` first, or name one with --model")
    work.need(work.token_settings, "encode")
    about, encoded = read_json(model / "ecgbyte.json"), read_json(work.token_settings)
    if encoded["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{model} was trained with another tokenizer than {work.tokens} was encoded with: "
            "encode with the model's, or train again"
        )
    qa = Path(qa or about["qa"])
    settings = {
        "model": sha256_of(model / "ecgbyte.json"),
        "qa": question_files.sha256(qa),
        "tokens": encoded["settings"],
        "split": split,
        "limit": limit,
        "max_new": max_new,
        "temperature": temperature,
        "controls": controls,
        "bertscore": bertscore,
        "seed": seed,
    }
    done = finished(work.metrics, settings, overwrite, "answers")
    if done:
        note(f"{work.answers} is there already, made with these settings: nothing to do")
        return done

    chosen, guesses = choose(question_files.read(qa), read_table(work.symbol_segments), split, limit, seed)
    from ecgbyte_cli import ecg_lm

    with ecg_lm.quiet():
        lm, text_tokenizer, ecg_tokenizer, _ = ecg_lm.load(model)
    prompt = Prompt(text_tokenizer, lm.offset)
    signals = Signals(work, ecg_tokenizer, encoded.get("segmenter", "longest"), chosen, seed)
    names = ("signal", *CONTROLS) if controls else ("signal",)
    longest = longest_prompt(lm, prompt, about, [q.answer for q, *_ in chosen], max_new)
    answers, seconds = {}, {}
    with (
        Partial(work.partial_answers, settings) as partial,
        progress("generate", len(names) * len(chosen), "answers") as bar,
    ):
        bar.update(len(partial.answers))
        for name in names:
            prompts = Prompts(prompt, ecg_tokenizer, [q for q, *_ in chosen], signals.of(name), longest)
            if prompts.trimmed and name == "signal":
                note(f"{prompts.trimmed} prompts were longer than in training, and lost ECG tokens")

            def keep(i, text, took, name=name):
                partial.add(name, i, text, took)
                bar.advance()

            pick = Sampler(temperature, seed, name) if temperature else None
            answer_all(lm, prompt, prompts.ids, batch, max_new, partial.of(name), keep, pick, chosen)
            answers[name] = [partial.answers[name, i][0] for i in range(len(chosen))]
            seconds[name] = [partial.answers[name, i][1] for i in range(len(chosen))]
    if controls:
        answers["majority"] = [guesses[question.type] for question, *_ in chosen]

    truths, types = [q.answer for q, *_ in chosen], [q.type for q, *_ in chosen]
    patients = [patient for *_, patient, _ in chosen]
    result = {
        **metrics.score(answers, truths, types, patients, seed),
        **metrics.overlap(answers["signal"], truths, bertscore),
        "split": split,
        "seconds": time.perf_counter() - start,
    }
    with whole(work.answers) as beside, open(beside, "w", encoding="utf-8") as file:
        for i, (question, _, patient, _) in enumerate(chosen):
            line = {
                "record": question.record if len(question.records) == 1 else list(question.records),
                "patient": patient,
                "question": question.question,
                "truth": question.answer,
                "answer": answers["signal"][i],
                "type": question.type,
                "seconds": round(seconds["signal"][i], 4),
                "control": {name: given[i] for name, given in answers.items() if name != "signal"},
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    title = f"Exact match in %, {result['questions']} questions of split {split}"
    with whole(work.metrics_table) as beside:
        beside.write_text(metrics.markdown(result, title), encoding="utf-8")
    write_json(work.metrics, {"settings": settings, "result": result}, indent=1)
    work.partial_answers.unlink(missing_ok=True)
    return result


# ---- which questions, and the answers known without any model


def choose(questions, segments, split, limit, seed):
    """The questions of a split that have a segment, and the most frequent answer of each type.

    Returns
    -------
    (list of (Question, int, str, str), dict)
        At most `limit` questions with segment, patient and split; and type to answer: the training split's most
        frequent one, or that of the questions themselves where the training split has none of the type.

    Raises
    ------
    Failure
        If there is no such question.
    """
    joined, unmatched = question_files.join(questions, segments)
    if unmatched:
        note(question_files.describe(unmatched, len(questions)))
    chosen = [item for item in joined if item[3] == split]
    if not chosen:
        raise Failure(f"no question of split {split} is about an encoded record: try another --split or --qa")
    if limit and limit < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    training = [question for question, *_, side in joined if side == "train"]
    guesses = metrics.majority([q.answer for q, *_ in chosen], [q.type for q, *_ in chosen])
    guesses |= metrics.majority([q.answer for q in training], [q.type for q in training])
    return chosen, guesses


# ---- the signal, and what stands in its place in the controls


class Signals:
    """ECG tokens of questions: their own, and those of the controls.

    Parameters
    ----------
    work : WorkDir
    tokenizer : ECGTokenizer
    segmenter : str
        The one that made the ids on disk, which the model knows.
    chosen : list
        From `choose`.
    seed : int
    """

    def __init__(self, work, tokenizer, segmenter, chosen, seed):
        self.tokenizer, self.segmenter, self.chosen, self.seed = tokenizer, segmenter, chosen, seed
        self.tokens, self.places = read_array(work.tokens), read_table(work.token_segments)
        segments = read_table(work.symbol_segments)
        self.lo, self.hi = segments["lo"], segments["hi"]
        shape = (len(tokenizer.signal["leads"]), tokenizer.signal["samples"])
        self.flat = tokenizer.encode(np.zeros(shape, np.float32), segmenter)

    def own(self, segment):
        """The ids of a segment."""
        begin = self.places["offset"][segment]
        return self.tokens[begin : begin + self.places["length"][segment]]

    def noise(self, segment):
        """Noise with the spectrum of a segment, through quantizer and merges."""
        letters = self.tokenizer.decode(self.own(segment))
        signal = self.tokenizer.to_mv(letters, self.lo[segment], self.hi[segment])
        random = np.random.default_rng([self.seed, int(segment)])
        return self.tokenizer.encode(same_spectrum(signal, random), self.segmenter)

    def of(self, name):
        """For each question the list of its ECGs' ids, under `signal` or the name of a control."""
        wanted = [question.segments for question, *_ in self.chosen]
        if name == "no signal":
            return [[np.zeros(0, np.int32)] * len(segments) for segments in wanted]
        if name == "flat line":
            return [[self.flat] * len(segments) for segments in wanted]
        if name == "shuffled":
            wanted = others([patient for *_, patient, _ in self.chosen], wanted, self.seed)
        made = {s: self.noise(s) if name == "noise" else self.own(s) for segments in wanted for s in segments}
        return [[made[s] for s in segments] for segments in wanted]


def others(patients, segments, seed):
    """For each question as many segments of another patient, drawn by seed; with one patient alone, its own."""
    random, patients = np.random.default_rng(seed), np.asarray(patients)
    drawn = []
    for patient, own in zip(patients, segments, strict=True):
        strangers = np.flatnonzero(patients != patient)
        pool = [s for i in random.permutation(strangers)[: len(own)] for s in segments[i]] or list(own)
        # a stranger's question may be about fewer segments than this one
        drawn.append(tuple(pool[i % len(pool)] for i in range(len(own))))
    return drawn


def same_spectrum(signal, random):
    """Noise with a signal's spectrum: phases shifted at random, by the same angle in all leads.

    So the power of each lead and what the leads have in common stay, and all shape in time goes (Prichard and
    Theiler 1994, Generating surrogate data for time series with several simultaneously measured variables).

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV.
    random : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        float32 (leads, samples), mV; each lead keeps its mean.
    """
    spectrum, samples = np.fft.rfft(signal, axis=1), signal.shape[1]
    turned = np.exp(2j * np.pi * random.random(spectrum.shape[1]))
    turned[0] = 1
    if samples % 2 == 0:
        turned[-1] = 1  # the component at half the rate is real
    return np.fft.irfft(spectrum * turned, samples, axis=1).astype(np.float32)


# ---- asking


def longest_prompt(lm, prompt, about, truths, max_new):
    """Ids that a prompt may have: as in training, where a prompt and its answer had a longest length together."""
    room = max(len(prompt.text_tokenizer.encode(t, add_special_tokens=False)) for t in set(truths)) + 1
    longest = (about["settings"].get("max_length") or 2**31) - room
    positions = getattr(lm.base.config, "max_position_embeddings", None) or 2**31
    return min(longest, positions - max_new)


class Prompts:
    """The ids of prompts, trimmed as in training where they are longer than there.

    Parameters
    ----------
    prompt : Prompt
    tokenizer : ECGTokenizer
    questions : list of Question
    ecgs : list of list of int arrays
    longest : int
        Ids that a prompt may have.
    """

    def __init__(self, prompt, tokenizer, questions, ecgs, longest):
        self.trimmed = 0
        self.ids = [self._ids(prompt, tokenizer, q, e, longest) for q, e in zip(questions, ecgs, strict=True)]

    def _ids(self, prompt, tokenizer, question, ecgs, longest):
        turns = [*question.earlier, (question.question, None)]
        ids, _ = prompt.build(ecgs, turns)
        excess, tokens = len(ids) - longest, sum(map(len, ecgs))
        if excess > 0:
            if excess >= tokens:
                raise Failure(
                    f"the question about record {question.record} has {len(ids) - tokens} tokens of text "
                    f"alone, and the model takes prompts of {longest} at most: leave it out of the question file"
                )
            leads = [leads_of(e, tokenizer.lengths, tokenizer.signal["samples"]) for e in ecgs]
            ids, _ = prompt.build(trim(ecgs, leads, tokens - excess), turns)
            self.trimmed += 1
        return ids.astype(np.int32)


def answer_all(lm, prompt, prompts, batch, max_new, known, keep, pick=None, chosen=None):
    """Answer prompts in batches of like length.

    Parameters
    ----------
    lm : ECGLM
    prompt : Prompt
    prompts : list of int arrays
    batch, max_new : int
    known : set of int
        Numbers of the prompts that are answered already.
    keep : callable
        Called with number, text and seconds of each answer, a batch at a time.
    pick : Sampler or None
        None answers greedily; then equal prompts are answered once.
    chosen : list or None
        From `choose`, to name a question that fails.
    """
    same = {}
    for i, ids in enumerate(prompts):
        if i not in known:
            same.setdefault(ids.tobytes() if pick is None else i, []).append(i)
    groups = sorted(same.values(), key=lambda group: len(prompts[group[0]]))
    for start in range(0, len(groups), batch):
        together, began = groups[start : start + batch], time.perf_counter()
        ask = [prompts[group[0]] for group in together]
        try:
            if pick:
                pick.begin([group[0] for group in together])
            answers = lm.answer(ask, prompt.end_ids, max_new, pick)
        except Exception as error:
            where = f" (record {chosen[together[0][0]][0].record}, …)" if chosen else ""
            raise Failure(
                f"the model failed on {len(ask)} questions of up to {max(map(len, ask))} tokens{where}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}; the answers before it are kept"
            ) from error
        took = (time.perf_counter() - began) / sum(map(len, together))
        for group, ids in zip(together, answers, strict=True):
            text = prompt.text(ids)
            for i in group:
                keep(i, text, took)


class Sampler:
    """Draws ids by their probability, each answer from a stream of its own: they do not depend on the batch.

    Parameters
    ----------
    temperature : float
        Above 0.
    seed : int
    name : str
        `signal` or the control.
    """

    def __init__(self, temperature, seed, name):
        self.temperature = temperature
        self.seed = [seed, ("signal", *CONTROLS).index(name)]

    def begin(self, numbers):
        """Start on the questions of these numbers."""
        self.random = [np.random.default_rng([*self.seed, i]) for i in numbers]

    def __call__(self, logits):
        """The next id of each answer, from logits (batch, vocabulary)."""
        import torch

        cumulative = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        drawn = torch.tensor([random.random() for random in self.random], dtype=torch.float64)
        place = torch.searchsorted(cumulative, drawn.to(logits.device)[:, None] * cumulative[:, -1:])
        return place[:, 0].clamp(max=logits.shape[-1] - 1)


class Partial:
    """The answers so far, in a file beside the answers, so that an interrupted run goes on.

    The first line says the settings; then a line for each answer. Of a line that was cut off, nothing is taken.

    Parameters
    ----------
    path : Path
    settings : dict

    Attributes
    ----------
    answers : dict
        (name, number) to (text, seconds).
    """

    def __init__(self, path, settings):
        self.path, self.answers = path, {}
        first = json.dumps({"settings": settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines and lines[0] == first:
            for line in lines[1:-1]:
                item = json.loads(line)
                self.answers[item["name"], item["i"]] = item["answer"], item["seconds"]
            note(f"going on: {len(self.answers)} answers are there")
            whole_lines = "\n".join(lines[:-1]) + "\n"
        else:
            whole_lines = first + "\n"
        with whole(path) as beside:
            beside.write_text(whole_lines, encoding="utf-8")

    def __enter__(self):
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.file.close()

    def of(self, name):
        """The numbers answered under a name."""
        return {i for known, i in self.answers if known == name}

    def add(self, name, i, answer, seconds):
        """Keep an answer."""
        self.answers[name, i] = answer, seconds
        line = {"name": name, "i": i, "answer": answer, "seconds": seconds}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
