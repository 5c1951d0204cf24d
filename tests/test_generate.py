"""Answers and scores over a split, and the controls."""

import json
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ecgbyte_cli.evaluation import controls
from ecgbyte_cli.inference import batch_answering, certainty
from ecgbyte_cli.model import ecg_lm, model_folder
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.stages import generate
from ecgbyte_cli.storage.files import read_table
from ecgbyte_cli.storage.workdir import WorkDir

CONTROLS = {"no signal", "shuffled", "flat line", "noise", "majority"}
ASK = ("generate", "--limit", 6, "--max-new", 8)


@pytest.fixture
def copied(small, tmp_path):
    """A work folder of one's own, with the answers."""
    shutil.copytree(small / "ecgbyte-work", tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture(scope="module")
def parts(small):
    """The small model, its prompt, the questions of all splits and their signals."""
    work = WorkDir(small / "ecgbyte-work")
    lm, text_tokenizer, tokenizer, _ = model_folder.load_model(work.model, "cpu")
    asked = question_file.read_questions(small / "data" / "qa.jsonl")
    chosen, _ = generate.choose(asked, read_table(work.symbol_segments), "test", None, 0)
    return (
        lm,
        Prompt(text_tokenizer, lm.layout),
        controls.ControlInputs(work, tokenizer, "longest", chosen, 0),
    )


def answers_of(work):
    return [json.loads(line) for line in (work / "answers" / "answers.jsonl").read_text().splitlines()]


def test_shuffled_signals_come_from_other_patients():
    patients, segments = ["a", "a", "b", "c", "c"], [(0,), (1,), (2,), (3, 4), (4,)]
    drawn = controls.other_patients(patients, segments, seed=0)
    owner = {0: "a", 1: "a", 2: "b", 3: "c", 4: "c"}
    for patient, own, other in zip(patients, segments, drawn, strict=True):
        assert len(own) == len(other) and all(owner[s] != patient for s in other)
    assert drawn == controls.other_patients(patients, segments, seed=0)
    assert controls.other_patients(["a"], [(7,)], 0) == [(7,)]


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_strangers_are_a_permutation_without_ones_own(patients, seed):
    count, (_, most) = len(patients), Counter(patients).most_common(1)[0]
    drawn = [i for (i,) in controls.other_patients(patients, [(i,) for i in range(count)], seed)]
    if len(set(patients)) > 1:
        assert all(patients[i] != patient for i, patient in zip(drawn, patients, strict=True))
    if 2 * most <= count or len(set(patients)) == 1:
        assert sorted(drawn) == list(range(count))


def test_strangers_differ_by_seed_and_take_linear_time():
    patients = np.random.default_rng(0).integers(0, 100_000, 400_000)
    segments, began = [(i,) for i in range(len(patients))], time.process_time()
    drawn = controls.other_patients(patients, segments, 0)
    assert (
        time.process_time() - began < 20
    )  # a look at every patient for each question would take many minutes
    other = controls.other_patients(patients, segments, 1)
    assert np.mean([a == b for a, b in zip(drawn, other, strict=True)]) < 0.01


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 300), st.integers(0, 2**32 - 1))
def test_noise_keeps_power_and_what_leads_have_in_common(leads, samples, seed):
    random = np.random.default_rng(seed)
    signal = random.normal(size=(leads, samples)).cumsum(1)
    noise = controls.spectrum_noise(signal, random)
    before, after = np.fft.rfft(signal, axis=1), np.fft.rfft(noise.astype(float), axis=1)
    scale = np.abs(before).max()
    assert np.allclose(np.abs(before), np.abs(after), atol=1e-5 * scale)
    assert np.allclose(before[0].conj() * before, after[0].conj() * after, atol=1e-5 * scale**2)
    assert np.allclose(signal.mean(1), noise.mean(1), atol=1e-5 * scale)


def test_noise_has_lost_the_shape():
    signal = np.zeros((1, 1000))
    signal[0, ::100] = 1
    noise = controls.spectrum_noise(signal, np.random.default_rng(0))
    assert abs(np.corrcoef(signal[0], noise[0])[0, 1]) < 0.3 and noise.max() < 0.8


def test_controls_go_through_letters_and_merges(parts):
    *_, signals = parts
    tokenizer = signals.tokenizer
    (flat,) = signals.of("flat line")[0]
    letters = tokenizer.decode(flat)
    assert len(np.unique(letters)) == 1
    step = np.ptp(tokenizer.to_mv(np.arange(2, dtype=np.uint8)[None]))
    assert np.abs(tokenizer.to_mv(letters)).max() <= step / 2 + 1e-6
    for question, own, noise in zip(signals.chosen, signals.of("signal"), signals.of("noise"), strict=True):
        (own,), (noise,) = own, noise
        assert np.array_equal(own, signals.own(question[1]))
        a, b = tokenizer.to_mv(tokenizer.decode(own)), tokenizer.to_mv(tokenizer.decode(noise))
        # but for rounding to letters, and clipping at the outermost
        assert np.allclose(a.std(1), b.std(1), rtol=0.15) and not np.array_equal(own, noise)
    assert all(len(ecg) == 0 for (ecg,) in signals.of("no signal"))


@pytest.mark.parametrize("batch", [2, 7, 64])
def test_answers_together_equal_answers_alone_for_lengths_that_differ_ten_times(parts, batch):
    lm, prompt, signals = parts
    ecgs = [ecg for (ecg,) in signals.of("signal")[:8]]
    lengths = [len(ecgs[0]), 20, 7, 3, 100, 0, 50, len(ecgs[7])]
    prompts = [
        prompt.build([ecg[:n]], [(question.question, None)])[0]
        for ecg, n, (question, *_) in zip(ecgs, lengths, signals.chosen, strict=False)
    ]
    assert max(lengths) > 10 * sorted(lengths)[2]

    def answer(batch):
        answers = {}
        made = batch_answering.PromptSet(prompt)
        for i, ids in enumerate(prompts):
            made.add(i, ids)
        batch_answering.answer_all(
            lm, made, batch, 8, set(), lambda i, given: answers.__setitem__(i, given.answer)
        )
        return [answers[i] for i in range(len(prompts))]

    assert answer(batch) == answer(1)


def test_drawn_answers_depend_on_the_seed_and_not_on_the_batch(parts):
    lm, prompt, signals = parts
    prompts = [
        prompt.build(ecgs, [(question.question, None)])[0]
        for ecgs, (question, *_) in zip(signals.of("signal")[:6], signals.chosen, strict=False)
    ]

    def answer(batch, seed):
        answers = {}
        made = batch_answering.PromptSet(prompt)
        for i, ids in enumerate(prompts):
            made.add(("signal", i, 0), ids)
        batch_answering.answer_all(
            *(lm, made, batch, 8, set(), lambda key, given: answers.__setitem__(key[1], given.answer)),
            batch_answering.Sampler(1.0, seed),
        )
        return [answers[i] for i in range(len(prompts))]

    assert answer(6, 0) == answer(1, 0) != answer(6, 1)


def test_the_answer_of_several_segments_is_the_one_that_they_make_likeliest():
    given = [batch_answering.Answer(*one) for one in (("no", 0.6, 1.0), ("yes", 0.9, 2.0), ("no", 0.2, 3.0))]
    assert batch_answering.best_over_segments(given)[:3] == ("yes", 0.3, 6.0)
    assert batch_answering.best_over_segments([*given, batch_answering.Answer("no", 0.2, 0.0)])[:3] == (
        "no",
        0.25,
        6.0,
    )
    assert batch_answering.best_over_segments(given[:1]) == given[0]
    sure = certainty.Certainty([], {}, {"more": 0.6}, None, None, *[np.zeros(0, int)] * 3)
    three = [
        batch_answering.most_probable(sure.choose, ["a", "b", "c"], np.array(w), 1.0)
        for w in ((0.9, 0.1, 0), (0, 0.6, 0.4))
    ]
    together = batch_answering.most_probable_over_segments(sure.choose, ["a", "b", "c"], three)
    assert together[:3] == ("a", pytest.approx(0.45), 2.0) and together.other == "b" and not together.sure


def test_all_segments_of_a_recording_are_asked(small, tmp_path, ecgbyte):
    """Records of 10 s in segments of 2: each question about five, and each answer as that segment alone has it."""
    work, data = tmp_path / "work", small / "data"
    for args in (
        ["symbolize", data, "--profile", "resample", "--fs", 100, "--leads", "II,V1", "--segment", 2],
        ["learn", "--vocab", 100],
        ["encode"],
        ["finetune", "--qa", data / "qa.jsonl", "--model", "tiny", "--steps", 3, "--batch", 2],
    ):
        result = ecgbyte(*args, work=work)
        assert result.exit_code == 0, result.stderr
    args = ["generate", "--limit", 4, "--max-new", 3, "--overwrite", "--json"]
    assert ecgbyte(*args, work=work).exit_code == 0
    first = answers_of(work)
    result = ecgbyte(*args, "--segments", "all", work=work)
    assert result.exit_code == 0, result.stderr
    every = answers_of(work)
    assert all(line["probability"] > 0 for line in first + every)
    assert [line["question"] for line in first] == [line["question"] for line in every]
    assert [line["probability"] for line in first] != [line["probability"] for line in every]
    chosen, _ = generate.choose(
        question_file.read_questions(data / "qa.jsonl"),
        read_table(WorkDir(work).symbol_segments),
        "test",
        4,
        0,
    )
    signals = controls.ControlInputs(
        WorkDir(work), model_folder.load_model(work / "model", "cpu")[2], "longest", chosen, 0
    )
    assert [signals.parts(i, True) for i in range(4)] == [5] * 4 and signals.parts(0, False) == 1
    for part in range(5):
        for (ecg,), (question, *_) in zip(signals.of("signal", part), chosen, strict=True):
            assert np.array_equal(ecg, signals.own(question.segments[0] + part))


def test_drawn_ids_have_the_probabilities_of_the_model():
    import torch

    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(4000, 1)
    sampler = batch_answering.Sampler(0.5, 0)
    sampler.begin([("noise", i, 0) for i in range(4000)])
    counts = np.bincount(sampler(logits, range(4000)).numpy(), minlength=3) / 4000
    assert counts == pytest.approx((logits[0] / 0.5).softmax(0).numpy(), abs=0.03)


def test_answers_are_written_with_their_controls(small):
    folder = small / "ecgbyte-work" / "answers"
    result = json.loads((folder / "metrics.json").read_text())["result"]
    lines = answers_of(small / "ecgbyte-work")
    assert len(lines) == result["questions"] == 6
    right = [line["answer"].strip().casefold() == line["truth"].casefold() for line in lines]
    assert result["exact_match"] == pytest.approx(100 * np.mean(right))
    assert set(result["control"]) == set(lines[0]["control"]) == CONTROLS
    assert all(line["seconds"] > 0 and line["type"] and line["patient"] for line in lines)
    assert not (folder / "partial.jsonl").exists()
    assert "| all |" in (folder / "metrics.md").read_text()


def test_the_json_keys_and_the_table(small, ecgbyte):
    result = ecgbyte(*ASK, "--json", work=small / "ecgbyte-work")
    keys = {"questions", "exact_match", "by_type", "control", "bleu", "rouge_l", "difference_interval"}
    assert keys <= set(json.loads(result.stdout))
    text = ecgbyte(*ASK, work=small / "ecgbyte-work").stdout
    assert all(name in text for name in [*CONTROLS, "all", "signal minus best control", "95 % interval"])
    assert max(map(len, text.split("signal minus")[0].splitlines())) <= 80


def test_an_interrupted_run_goes_on(copied, ecgbyte, monkeypatch):
    before = answers_of(copied)
    shutil.rmtree(copied / "answers")
    weigh, asked = ecg_lm.ECGLM.weigh, []

    def breaks(self, prompts, *args):
        if len(asked) == 3:
            raise RuntimeError("the lights went out")
        asked.append(len(prompts))
        return weigh(self, prompts, *args)

    monkeypatch.setattr(ecg_lm.ECGLM, "weigh", breaks)
    result = ecgbyte(*ASK, "--batch", 2, work=copied)
    # the cause and the place, in one line; no score was made of it
    assert result.exit_code == 1 and "the lights went out" in result.stderr and "synth" in result.stderr
    assert not (copied / "answers" / "metrics.json").exists()
    partial = copied / "answers" / "partial.jsonl"
    done = len(partial.read_text().splitlines()) - 1
    assert 6 <= done < 30
    with open(partial, "a") as file:
        file.write('{"name": "signal", "i": 9, "an')  # cut off in the middle of a line
    again = []
    monkeypatch.setattr(ecg_lm.ECGLM, "weigh", lambda s, p, *args: again.append(len(p)) or weigh(s, p, *args))
    result = ecgbyte(*ASK, work=copied)
    assert result.exit_code == 0 and f"resuming: {done} answers" in result.stderr
    assert [{**a, "seconds": 0} for a in answers_of(copied)] == [{**b, "seconds": 0} for b in before]
    assert sum(again) <= 30 - done and not partial.exists()


def test_answers_of_other_settings_are_not_gone_on_with(copied, ecgbyte):
    partial = copied / "answers" / "partial.jsonl"
    shutil.rmtree(copied / "answers")
    partial.parent.mkdir()
    partial.write_text('{"settings": {}}\n{"name": "signal", "i": 0, "answer": "wrong", "seconds": 1}\n')
    result = ecgbyte(*ASK, work=copied)
    assert result.exit_code == 0 and "resuming" not in result.stderr
    assert answers_of(copied)[0]["answer"] != "wrong"


def test_without_controls(copied, ecgbyte):
    result = ecgbyte(*ASK, "--no-controls", "--overwrite", work=copied)
    assert result.exit_code == 0 and "without controls" in result.stdout
    assert answers_of(copied)[0]["control"] == {}


def test_questions_about_several_records_and_earlier_turns(small, copied, tmp_path, ecgbyte):
    records = sorted(p.stem for p in (small / "data").glob("*.hea"))[:3]
    items = [
        {"record": records[:2], "question": "Which is faster?", "answer": "the first", "split": "test"},
        {
            "record": records[2],
            "conversations": [
                {"from": "human", "value": "What is it?"},
                {"from": "gpt", "value": "An ECG."},
                {"from": "human", "value": "Is it fast?"},
                {"from": "gpt", "value": "no"},
            ],
            "split": "test",
        },
    ]
    qa = tmp_path / "qa.jsonl"
    qa.write_text("\n".join(map(json.dumps, items)))
    result = ecgbyte("generate", "--qa", qa, "--max-new", 4, "--overwrite", work=copied)
    assert result.exit_code == 0, result.stderr
    assert answers_of(copied)[0]["record"] == records[:2]


@pytest.mark.parametrize("known", [True, False])
def test_long_prompts_lose_ecg_tokens_as_in_training(copied, ecgbyte, monkeypatch, known):
    """Models of older versions say the longest sample, others the longest prompt."""
    from ecgbyte_cli.model import ecg_lm

    about = json.loads((copied / "model" / "ecgbyte.json").read_text())

    def limit(tokens):
        about["settings"]["max_length"], about["prompt_tokens"] = tokens + 30, tokens
        written = {k: v for k, v in about.items() if known or k != "prompt_tokens"}
        (copied / "model" / "ecgbyte.json").write_text(json.dumps(written))

    asked, weigh = [], ecg_lm.ECGLM.weigh
    monkeypatch.setattr(
        ecg_lm.ECGLM,
        "weigh",
        lambda self, prompts, *args: asked.extend(map(len, prompts)) or weigh(self, prompts, *args),
    )
    limit(100)
    result = ecgbyte(*ASK, "--overwrite", work=copied)
    assert result.exit_code == 0 and "lost ECG tokens" in result.stderr
    assert max(asked) == 100 if known else 100 <= max(asked) < 130
    limit(10 if known else -20)
    result = ecgbyte(*ASK, "--overwrite", work=copied)
    assert result.exit_code == 1 and "tokens of text alone" in result.stderr


def test_an_empty_split_and_a_missing_model_are_one_line(copied, tmp_path, ecgbyte):
    (tmp_path / "qa.jsonl").write_text('{"record": "nobody", "question": "q", "answer": "a"}')
    result = ecgbyte("generate", "--qa", tmp_path / "qa.jsonl", "--overwrite", work=copied)
    assert result.exit_code == 1 and "no question of split test" in result.stderr
    shutil.rmtree(copied / "model")
    result = ecgbyte("generate", work=copied)
    assert result.exit_code == 1 and "ecgbyte finetune" in result.stderr


def test_tokens_of_another_segmenter_are_refused(copied, ecgbyte):
    assert ecgbyte("encode", "--segmenter", "bpe", "--overwrite", work=copied).exit_code == 0
    result = ecgbyte("generate", "--overwrite", work=copied)
    assert result.exit_code == 1 and "encode --segmenter longest --overwrite" in result.stderr
    assert ecgbyte("encode", "--overwrite", work=copied).exit_code == 0
    assert ecgbyte(*ASK, "--overwrite", work=copied).exit_code == 0


def test_a_base_model_that_has_moved_is_named(small, copied, tmp_path, ecgbyte):
    from ecgbyte_cli.model import tiny

    base, text_tokenizer = tiny.build_tiny()
    before, after = tmp_path / "before", tmp_path / "after"
    base.save_pretrained(before), text_tokenizer.save_pretrained(before)
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", before, "--method", "lora"]
    args += ["--steps", 1, "--batch", 1, "--max-length", 120, "--overwrite"]
    assert ecgbyte(*args, work=copied).exit_code == 0
    before.rename(after)
    ask = ["generate", "--limit", 1, "--max-new", 2, "--no-controls", "--overwrite"]
    result = ecgbyte(*ask, work=copied)
    assert result.exit_code == 1 and "--base" in result.stderr
    result = ecgbyte(*ask, "--base", after, work=copied)
    assert result.exit_code == 0, result.stderr


def answering_anything(work):
    """Let the model of a work folder answer questions that it was not trained on."""
    path = work / "model" / "ecgbyte.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"conversations": True}))


def test_what_chat_declines_is_not_asked(small, copied, tmp_path, ecgbyte):
    record = sorted(p.stem for p in (small / "data").glob("*.hea"))[0]
    known = json.loads((small / "data" / "qa.jsonl").read_text().splitlines()[0])["question"]
    items = [
        {"record": record, "question": q, "answer": "no", "split": "test"} for q in (known, "Is it raining?")
    ]
    qa = tmp_path / "qa.jsonl"
    qa.write_text("\n".join(map(json.dumps, items)))
    program = ("generate", "--qa", qa, "--out", tmp_path / "other", "--max-new", 2, "--json")
    result = ecgbyte(*program, work=copied)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["questions"], told["declined"]) == (1, 1)
    assert "not trained on 1 of 2 questions" in result.stderr and "Is it raining?" in result.stderr
    qa.write_text(json.dumps(items[1]))
    result = ecgbyte(*program, "--overwrite", work=copied)
    assert result.exit_code == 1 and "declines them" in result.stderr
    answering_anything(copied)
    told = json.loads(ecgbyte(*program, "--overwrite", work=copied).stdout)
    assert (told["questions"], told["declined"]) == (1, 0)


def test_all_splits_and_a_folder_of_its_own(small, copied, tmp_path, ecgbyte):
    before = (copied / "answers" / "answers.jsonl").read_bytes()
    out = tmp_path / "elsewhere"
    program = ("generate", "--split", "all", "--limit", 60, "--no-controls", "--out", out)
    result = ecgbyte(*program, "--json", work=copied)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    sides = read_table(WorkDir(copied).symbol_segments)
    of = dict(zip(sides["record"], sides["split"], strict=True))
    assert len(lines) == told["questions"] == 60 and {of[line["record"]] for line in lines} == {
        "train",
        "val",
        "test",
    }
    assert (copied / "answers" / "answers.jsonl").read_bytes() == before
    assert "nothing to do" in ecgbyte(*program, work=copied).stderr
    other = ecgbyte(*program[:-1], small / "data", work=copied)
    assert other.exit_code == 1 and "contains files other than" in other.stderr
    changed = ecgbyte(*program, "--seed", 1, work=copied)
    assert changed.exit_code == 1 and "name another folder with --out" in changed.stderr
    assert ecgbyte(*program, "--seeds", 2, work=copied).exit_code == 2


def test_findings_have_sensitivity_and_specificity_and_chosen_answers_no_bleu(small, copied, ecgbyte):
    result = ecgbyte("generate", "--split", "all", "--no-controls", "--overwrite", "--json", work=copied)
    told = json.loads(result.stdout)
    assert told["bleu"] is None and told["rouge_l"] is None
    for name, one in told["findings"].items():
        some = [
            line
            for line in answers_of(copied)
            if line["p_yes"] is not None and name in (line["topic"], line["type"])
        ]
        counted = Counter(
            ("unsure" if line["sure"] is False else line["answer"], line["truth"]) for line in some
        )
        hits, missed = counted["yes", "yes"], counted["no", "yes"]
        assert one["recordings"] == len(some) and one["true_positives"] == hits
        assert told["sensitivity"][name] == (hits / (hits + missed) if hits + missed else None)
        assert told["auroc"].get(name) == one["auroc"]
    assert told["findings"]
    text = ecgbyte("generate", "--split", "all", "--no-controls", work=copied).stdout
    assert "sens" in text and "BLEU" not in text and "METEOR" not in text
    assert "| finding | yes/all |" in (copied / "answers" / "metrics.md").read_text()


def test_messages_name_the_next_command(copied, tmp_path, ecgbyte):
    result = ecgbyte("generate", "--model", "ptbxl", work=copied)
    assert result.exit_code == 1
    assert "ecgbyte symbolize DATA --like ptbxl --overwrite encode --overwrite" in result.stderr
    result = ecgbyte("generate", work=tmp_path / "none")
    assert result.exit_code == 1 and "ecgbyte symbolize DATA --like ptbxl encode" in result.stderr
    path = copied / "model" / "ecgbyte.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"qa": "gone.jsonl"}))
    result = ecgbyte("generate", "--overwrite", work=copied)
    assert result.exit_code == 1 and "ecgbyte questions DATA --out qa.jsonl" in result.stderr


def test_ecg_qa_keeps_its_lists_templates_and_attributes(small, copied, tmp_path, ecgbyte):
    answering_anything(copied)
    item = {"record": sorted(p.stem for p in (small / "data").glob("*.hea"))[0], "question": "Which?"}
    item |= {"template_id": 7, "attribute_type": "noise", "type": "single-query", "split": "test"}
    (tmp_path / "qa.json").write_text(json.dumps([item | {"answer": ["b", "a, with a comma"]}]))
    result = ecgbyte(
        *("generate", "--qa", tmp_path / "qa.json", "--max-new", 2, "--overwrite", "--json"), work=copied
    )
    numbers = json.loads(result.stdout)
    assert list(numbers["by_attribute"]) == ["noise"]
    assert numbers["control"]["majority"]["exact_match"] == 100 and numbers["majority_by"] == "type"
    (line,) = answers_of(copied)
    assert (line["template_id"], line["attribute_type"]) == (7, "noise")
    assert line["truth"] == line["control"]["majority"] == "a, with a comma; b"


def test_tokens_of_another_tokenizer_are_refused(copied, ecgbyte):
    assert (
        ecgbyte("learn", "--vocab", 100, "--overwrite", "encode", "--overwrite", work=copied).exit_code == 0
    )
    result = ecgbyte("generate", "--overwrite", work=copied)
    assert result.exit_code == 1 and "use different tokenizers" in result.stderr


def test_the_witness_of_an_answer_comes_from_the_controls():
    def answer(words, probability, weights):
        place = ["no", "yes"].index(words) if weights else None
        return batch_answering.Answer(words, probability, 0.1, weights=weights, place=place)

    given = {
        "signal": [answer("yes", 0.9, [0.1, 0.9]), answer("no", 0.9, [0.9, 0.1]), answer("free", 0.5, None)],
        "no signal": [
            answer("no", 0.8, [0.8, 0.2]),
            answer("no", 0.8, [0.8, 0.2]),
            answer("free", 0.5, None),
        ],
        "flat line": [
            answer("no", 0.7, [0.7, 0.3]),
            answer("no", 0.7, [0.7, 0.3]),
            answer("free", 0.5, None),
        ],
    }
    first, second = (generate.witness_among(given, i) for i in range(2))
    assert first.as_json() == {
        "without_ecg": {"answer": "no", "probability": 0.8},
        "flat_line": {"answer": "no", "probability": 0.7},
        "same_answer_without_ecg": 0.2,
        "depends_on_ecg": True,
    }
    assert not second.depends
    unlikely = {name: [answer("yes", 0.2, [0.8, 0.2])] for name in given}  # as where yes begins at 0.1
    assert not generate.witness_among(unlikely, 0).depends
    assert generate.witness_among(given, 2) is None  # written freely
    assert generate.witness_among({"signal": given["signal"]}, 0) is None  # --no-controls
