"""ecgbyte generate: answers for many questions, and their scores."""

import json
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, dask_option, max_new_option, seeds_option, types_option
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.evaluation import metrics, reliability, report
from ecgbyte_cli.evaluation.controls import CONTROLS, ControlInputs
from ecgbyte_cli.evaluation.text_scores import text_scores
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import certainty
from ecgbyte_cli.inference.batch_answering import (
    PartialAnswers,
    PromptSet,
    Sampler,
    answer_all,
    best_over_segments,
    choose_all,
    longest_prompt,
    most_probable_over_segments,
    on_cluster,
)
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.questions.reasoning import split_reasoning
from ecgbyte_cli.signal.origin import patients_learned_from
from ecgbyte_cli.storage.files import atomic_write, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import completed_result


@click.command(
    cls=Stage,
    groups={
        "Data": ("qa", "split", "types", "limit", "segments"),
        "Model": ("model", "base", "max_new", "temperature", "seeds"),
        "Evaluation": ("controls", "bertscore"),
    },
    short_help="Answer many questions, and score the answers.",
    epilog="Example: ecgbyte generate --split test --limit 8",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one the model was trained on]",
)
@click.option("--model", type=Model(), help="Model folder.  [default: the work folder's]")
@base_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which questions.",
)
@types_option
@click.option("--limit", type=click.IntRange(1), help="Answer only so many questions, drawn by seed.")
@click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Questions answered together."
)
@max_new_option
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
@click.option(
    "--segments",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="Answer about the first segment of a longer recording, or about all: the answer that they make likeliest "
    "together.",
)
@click.option("--bertscore", metavar="MODEL", help="Add BERTScore, by this model (hub id or folder).")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the limit, the controls, and answers that are drawn.",
)
@seeds_option
@dask_option
@click.option("--overwrite", is_flag=True, help="Replace answers made with other settings.")
@click.pass_obj
def command(work, **options):
    """Answer the questions of a split, and score the answers beside those of controls.

    The controls ask the same questions with no signal, with the signal of another patient, with a flat line, and
    with noise of the segment's own spectrum; the last one is the most frequent answer of the training questions
    of the same type, or of the same words, whichever is better. A model that reads the ECG does much worse in
    all of them: what counts is the difference to the best. Intervals hold 95 % of a bootstrap over patients.
    """
    seeds = options.pop("seeds")
    if seeds > 1 and options["model"]:
        raise click.UsageError("--seeds asks the models of `ecgbyte finetune --seeds`: leave out --model")
    others = [work.of_seed(number) for number in range(1, seeds)]
    paths = (
        [work.need(of.model_settings, f"finetune --seeds {seeds}") for of in (work, *others)]
        if others
        else []
    )
    if len({json.dumps(read_json(path)["settings"] | {"seed": None}, sort_keys=True) for path in paths}) > 1:
        raise Failure(
            f"models of {work.root} differ in more than their seed: run `ecgbyte finetune --seeds {seeds}`"
        )
    result = generate(work, **options)
    header, lines = report.score_rows(result)
    table(
        lines, header, title=f"Exact match in %, {result['questions']} questions of split {result['split']}"
    )
    print_result(report.headline(result))
    if "form_kept" in result:
        print_result(
            f"reasoning, then answer: {100 * result['form_kept']:.1f} % of the answers have this form"
        )
    print_result(report.text_score_line(result))
    for line in report.reliability_lines(result):
        print_result(line)
    if seeds > 1:
        every = [result, *(generate(of, **options) for of in others)]
        result = result | {"seeds": metrics.summarize_seeds(every)}
        table(*report.seed_table(result["seeds"]), title=f"Exact match in %, {seeds} trainings")
        write_json(work.metrics, read_json(work.metrics) | {"result": result}, indent=1)
    return result


def generate(
    work,
    *,
    qa=None,
    model=None,
    base=None,
    split="test",
    types=(),
    limit=None,
    batch=64,
    max_new=None,
    temperature=0.0,
    controls=True,
    segments="first",
    bertscore=None,
    seed=0,
    dask=None,
    overwrite=False,
):
    """Answer the questions of a split with and without their signal.

    The parameters are the options of the command, which says what they do; the answers do not depend on `batch`.

    Returns
    -------
    dict
        What `metrics.score` and `text_scores` return, split, majority_by (`type` or `question`),
        seen_in_training (questions of the split that stand in training too) and seconds.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or the model fails on a question: what
        was answered until then is kept, and the next run goes on from there.
    """
    start = time.perf_counter()
    with work.checked("tokens", "model"), work.making("answers"):
        model = folder_checks.choose_model_folder(work, model)
        about, encoded = check(work, model)
        qa = qa or about["qa"]
        settings = {
            "model": folder_checks.model_sha256(model),
            "qa": question_file.questions_sha256(qa),
            "tokens": encoded["settings"],
            "split": split,
            "types": list(types) or None,
            "limit": limit,
            "max_new": folder_checks.answer_limit(about, max_new),
            "temperature": temperature,
            "controls": controls,
            "segments": segments,
            "bertscore": bertscore,
            "seed": seed,
        }
        done = completed_result(work.metrics, settings, overwrite, "answers")
        if done:
            return done
        questions = question_file.filter_types(question_file.read_questions(qa), types)
        table_of = read_table(work.symbol_segments)
        chosen, joined = choose(questions, table_of, split, limit, seed)
        for line in question_segments.split_leaks(joined, patients_learned_from(work), qa):
            note(line)
        asked = [question for question, *_ in chosen]
        given = answer(work, model, base, chosen, settings, batch, dask)
        answers, thoughts = {name: [one.answer for one in some] for name, some in given.items()}, None
        result = {}
        if tags := about.get("think"):
            parts = {name: [split_reasoning(text, tags) for text in some] for name, some in answers.items()}
            answers, thoughts = (
                {n: [part.answer for part in some] for n, some in parts.items()},
                parts["signal"],
            )
            result["form_kept"] = sum(thought.kept for thought in thoughts) / len(thoughts)
        if controls:
            training = [question for question, *_, side in joined if side == "train"]
            answers["majority"], result["majority_by"] = metrics.baseline_guesses(training, asked)
        result |= metrics.score(
            answers,
            [question.truth for question in asked],
            [question.type for question in asked],
            [patient for *_, patient, _ in chosen],
            seed,
            [question.attribute_type for question in asked],
        )
        result |= text_scores(answers["signal"], [question.answer for question in asked], bertscore)
        result |= reliability.score_probabilities(
            asked, given["signal"], [patient for *_, patient, _ in chosen], seed
        )
        result |= {"split": split, "seen_in_training": question_segments.count_seen_in_training(joined)}
        result["seconds"] = time.perf_counter() - start
        write(work, chosen, answers, given["signal"], thoughts, settings, result)
        return result


def check(work, model):
    """Check that model and tokens belong together, and return what the settings of both say."""
    about, encoded = folder_checks.read_about(model), read_json(work.token_settings)
    if encoded["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{model} was trained with another tokenizer than {work.tokens} was encoded with: "
            "encode with the model's, or train one with `ecgbyte finetune`"
        )
    if encoded.get("segmenter", about["segmenter"]) != about["segmenter"]:
        raise Failure(
            f"{model} was trained on tokens of the segmenter {about['segmenter']}, and {work.tokens} was encoded "
            f"with {encoded['segmenter']}: run `ecgbyte encode --segmenter {about['segmenter']} --overwrite`"
        )
    return about, encoded


def answer(work, model, base, chosen, settings, batch, dask=None):
    """Ask the model each question, and each under every control.

    Returns
    -------
    dict of str to list of Given
        By `signal` or the control's name.
    """
    from ecgbyte_cli.model import model_folder

    seed, max_new, asked = settings["seed"], settings["max_new"], [question for question, *_ in chosen]
    lm, text_tokenizer, ecg_tokenizer, about = model_folder.load_model(model, base=base)
    prompt = Prompt.of(about, text_tokenizer, lm.layout)
    signals = ControlInputs(work, ecg_tokenizer, about["segmenter"], chosen, seed)
    names = ("signal", *CONTROLS) if settings["controls"] else ("signal",)
    longest = longest_prompt(lm, prompt, about, [question.answer for question in asked], max_new)
    known = certainty.read_certainty(model, ecg_tokenizer.vocab_size) if not settings["temperature"] else None
    found = [
        known.match(q.question) if known and not q.earlier and len(q.records) == 1 else None for q in asked
    ]
    found = [None if f and f.parts else f for f in found]  # a list is put together in a conversation alone
    # the words that the model was trained on
    asked = [replace(q, question=f.text) if f else q for q, f in zip(asked, found, strict=True)]
    parts = [signals.parts(i, settings["segments"] == "all") for i in range(len(asked))]
    with (
        PartialAnswers(work.partial_answers, settings) as partial,
        progress("generate", len(names) * sum(parts), "answers") as bar,
    ):
        bar.update(len(partial.answers))
        # all together: the ECGs of the questions are those of strangers' questions too
        free, closed = PromptSet(prompt, ecg_tokenizer, longest), PromptSet(prompt, ecg_tokenizer, longest)
        for name in names:
            for part in range(max(parts)):
                for i, (question, ecgs) in enumerate(zip(asked, signals.of(name, part), strict=True)):
                    if part < parts[i]:
                        prompts = closed if found[i] and found[i].answers else free
                        prompts.ask((name, i, part), question, ecgs)
            trimmed = free.trimmed + closed.trimmed
            if trimmed and name == "signal":
                note(f"{trimmed} prompts were longer than in training, and lost ECG tokens")

        def keep(*answer):
            partial.add(*answer)
            bar.advance()

        pick = Sampler(settings["temperature"], seed) if settings["temperature"] else None
        there, told = partial.answers.keys(), lambda key: f"record {asked[key[1]].record}"

        def answers(key):
            return found[key[1]].answers

        if dask:
            loaded, sampled = (model, base, settings["model"]), pick and (settings["temperature"], seed)
            on_cluster(dask, work.root, loaded, closed, free, batch, max_new, there, keep, answers, sampled)
        else:
            choose_all(lm, closed, batch, there, keep, answers, known, told)
            answer_all(lm, free, batch, max_new, there, keep, pick, told)
        made = {}
        for name in names:
            of_each = [[partial.answers[name, i, part] for part in range(n)] for i, n in enumerate(parts)]
            made[name] = [
                most_probable_over_segments(known, f.answers, some)
                if f and f.answers
                else best_over_segments(some)
                for f, some in zip(found, of_each, strict=True)
            ]
        return made


def write(work, chosen, answers, given, thoughts, settings, result):
    """Write the answers, their scores as a table, and at last the settings and scores as JSON."""
    with atomic_write(work.answers) as beside, open(beside, "w", encoding="utf-8") as file:
        for i, (question, _, patient, _) in enumerate(chosen):
            controls = {name: given[i] for name, given in answers.items() if name != "signal"}
            line = {
                "record": question.record if len(question.records) == 1 else list(question.records),
                "patient": patient,
                "question": question.question,
                "truth": question.answer,
                "answer": answers["signal"][i],
                "type": question.type,
                "template_id": question.template_id,
                "attribute_type": question.attribute_type,
                "topic": question.topic,
                "probability": round(given[i].probability, 6),
                "sure": given[i].sure,
                "runner_up": given[i].other
                and {"answer": given[i].other, "probability": round(given[i].other_probability, 6)},
                "p_yes": None if given[i].yes is None else round(given[i].yes, 6),
                "seconds": round(given[i].seconds, 4),
                **({"reasoning": thoughts[i].reasoning, "form_kept": thoughts[i].kept} if thoughts else {}),
                "control": {
                    name: a if isinstance(a, str) else question_file.BETWEEN.join(a)
                    for name, a in controls.items()
                },
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    title = f"Exact match in %, {result['questions']} questions of split {result['split']}"
    with atomic_write(work.metrics_table) as beside:
        more = "".join(f"- {line}\n" for line in report.reliability_lines(result))
        parts = [report.metrics_markdown(result, title), more, report.confusion_tables(result)]
        beside.write_text("\n".join(filter(None, parts)), encoding="utf-8")
    write_json(work.metrics, {"settings": settings, "result": result}, indent=1)
    work.partial_answers.unlink(missing_ok=True)


def choose(questions, segments, split, limit, seed):
    """The questions of a split that have a segment.

    Returns
    -------
    (list of (Question, int, str, str), list of the same)
        At most `limit` questions with segment, patient and split, drawn by seed; and those of all splits.

    Raises
    ------
    Failure
        If there is no such question.
    """
    joined, unmatched = question_segments.join_segments(questions, segments)
    if unmatched:
        note(question_segments.describe_unmatched(unmatched, len(questions)))
    chosen = [item for item in joined if item[3] == split]
    if not chosen:
        raise Failure(f"no question of split {split} is about an encoded record: try another --split or --qa")
    if limit and limit < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    return chosen, joined
