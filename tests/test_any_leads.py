"""Recordings with any of the leads, questions drawn at each reading, and signals kept for augmentation."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.layout import Layout, lead_ranges
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.render.terminal import panel_facts
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_json
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.dataset import ReadingPlan
from ecgbyte_cli.training.sampling import LEAD_SETS, drawing_chances, lead_subset
from ecgbyte_cli.training.setup import load_for_training

LEADS = ["I", "II", "V1", "V5"]
SIGNAL = ["--profile", "monitor", "--fs", 100, "--leads", ",".join(LEADS), "--any-leads", "--keep-signal"]
TRAINING = {
    "model": "tiny",
    "vary_leads": 0.7,
    "ask": 2,
    "augment": 1,
    "positions": "time",
    "steps": 3,
    "batch": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data/ (24 records, of which the first has lead II alone), and a trained model."""
    from ecgbyte_cli.__main__ import main

    root = tmp_path_factory.mktemp("any leads")
    training = [word for name, value in TRAINING.items() for word in (f"--{name.replace('_', '-')}", value)]
    commands = [
        ["synth", root / "data", "--records", 24, "--fs", 250],
        ["symbolize", root / "data", *SIGNAL, "--quantizer", "mulaw", "--levels", 17],
        ["learn", "--vocab", 200],
        ["encode"],
        ["finetune", "--qa", root / "data" / "qa.jsonl", *training],
    ]
    for args in commands:
        if args[0] == "symbolize":
            keep_one_lead(root / "data", "II")
        result = CliRunner().invoke(main, ["--work", str(root / "work"), *map(str, args), "--debug"])
        assert result.exit_code == 0, result.stderr
    return root


def keep_one_lead(data, lead):
    """Leave a single lead in the first record of a folder."""
    import wfdb

    path = sorted(data.rglob("*.hea"))[0].with_suffix("")
    record = wfdb.rdrecord(str(path))
    place = record.sig_name.index(lead)
    wfdb.wrsamp(
        path.name, record.fs, ["mV"], [lead], record.p_signal[:, [place]], fmt=["16"],
        comments=record.comments, write_dir=str(path.parent),
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples(folder):
    """The samples of the training."""
    work = WorkDir(folder / "work")
    settings = read_json(work.model_settings)["settings"]
    return load_for_training(work, settings, "cpu")[2]


def leads_in(ids, layout):
    """The leads whose marks are among ids."""
    return [int(i) - layout.offset - 2 for i in ids if layout.offset + 2 <= i < layout.first]


def test_a_missing_lead_has_neither_mark_nor_tokens(folder):
    session = Session.open(folder / "work" / "model")
    one, whole = (session.read(path) for path in sorted((folder / "data").rglob("*.hea"))[:2])
    layout = session.lm.layout
    for ecg, wanted in ((one, [1]), (whole, [0, 1, 2, 3])):
        ids, _ = session.prompt_ids([ecg], [("rhythm?", None)])
        assert leads_in(ids, layout) == wanted
    of_ii = one.tokens[lead_ranges(one.tokens, session.tokenizer.lengths, 1000) == 1]
    ids, _ = session.prompt_ids([one], [("rhythm?", None)])
    assert np.array_equal(ids[ids >= layout.first] - layout.first, of_ii)
    explainer = session.explainer()
    case = explainer.case_of([one.tokens], [("What is the rhythm?", "sinus rhythm")])
    density = explainer.spread(case, explainer.scores(case, "gradient"))
    assert density[1].sum() == pytest.approx(1) and not density[[0, 2, 3]].any()
    assert one.in_prompt == (["II"], len(of_ii)) and whole.in_prompt == (LEADS, len(whole.tokens))
    assert f"; II at 100 Hz: {len(of_ii)} ECG tokens" in panel_facts(one)["read"]
    assert not any("flat" in reason for reason in session.certainty.unlike(
        one.tokens, one.segments[0][1], session.tokenizer
    ))  # fmt: skip


def test_a_model_without_any_leads_reads_flat_leads(small):
    tokenizer = ECGTokenizer.from_file(small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json")
    flat = tokenizer.flat_line()
    assert len(Layout.of(10, tokenizer).block(flat)) == len(flat) + 2 + 2
    any_leads = {**json.loads((small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json").read_text())}
    any_leads["signal"] = any_leads["signal"] | {"any_leads": True}
    assert Layout.of(10, ECGTokenizer.from_dict(any_leads)).block(flat).tolist() == [10, 11]


def test_leads_vary_only_where_any_leads_are_read(small, ecgbyte):
    training = ["--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--vary-leads", 0.5, "--overwrite"]
    result = ecgbyte("finetune", *training, work=small / "ecgbyte-work")
    assert result.exit_code == 1 and "symbolize --any-leads" in result.stderr


def test_signals_are_kept_and_are_what_the_letters_stand_for(folder):
    work = WorkDir(folder / "work")
    signals, letters = read_array(work.signals), read_array(work.symbols)
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    first = np.asarray(signals[:4000], np.float32).reshape(4, 1000)
    assert (tokenizer.letters(first).ravel() == letters[:4000]).mean() > 0.99  # rounded to float16
    assert not first[[0, 2, 3]].any() and np.ptp(first[1]) > 0.3


def test_signals_that_are_no_longer_kept_are_removed(folder, ecgbyte, tmp_path):
    data = folder / "data"
    assert ecgbyte("symbolize", data, *SIGNAL).exit_code == 0
    assert (tmp_path / "work" / "symbols" / "signals.npy").exists()
    assert ecgbyte("symbolize", data, *SIGNAL[:-1], "--overwrite").exit_code == 0
    assert not (tmp_path / "work" / "symbols" / "signals.npy").exists()


def test_lead_sets_are_drawn_in_half_of_the_cases_and_few_leads_most_often():
    leads = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
    drawn = [tuple(leads[i] for i in lead_subset(leads, np.random.default_rng(s))) for s in range(2000)]
    assert all(list(each) == sorted(each, key=leads.index) and each for each in drawn)
    assert 0.5 < np.mean([each in LEAD_SETS for each in drawn]) < 0.75
    sizes = np.bincount([len(each) for each in drawn])
    assert sizes[1] > sizes[4] > 0 and sizes[8] > 0
    assert {*LEAD_SETS} <= {*drawn}


def test_only_drawn_leads_are_read_and_no_lead_twice(samples):
    plan = ReadingPlan((5,), (), 0)
    random = np.random.default_rng(0)
    reading = samples.reading(plan, None, random, leads=np.array([1, 3]))
    assert leads_in(reading.ids, samples.prompt.layout) == [1, 3]
    drawn = [samples.draw_leads(np.random.default_rng(seed)) for seed in range(500)]
    assert 0.6 < np.mean([leads is not None for leads in drawn]) < 0.8


SHARES = (0.5, 0.5, 0.1, 0.1, 0.01, 0.0, 0.4, 0.0)


def test_frequent_findings_are_asked_more_often():
    chances = drawing_chances(SHARES, 3)
    assert chances.sum() == pytest.approx(3) and chances.max() <= 1
    assert chances[0] == chances[1] > chances[2] > chances[4] > chances[5] > 0
    assert np.allclose(drawing_chances(SHARES, 8), 1)


def test_questions_with_no_are_drawn_and_count_for_those_left_out(samples, monkeypatch):
    answers = ["no"] * 6 + ["yes", "sinus rhythm"]
    questions = tuple(Question("r", f"q{i}", answer, "t", None) for i, answer in enumerate(answers))
    plan = ReadingPlan((5,), questions, 0)
    monkeypatch.setattr(samples, "yes_share", {f"q{i}": share for i, share in enumerate(SHARES)})
    asked = [samples._asked(plan, np.random.default_rng(seed)) for seed in range(4000)]
    times, denied = np.zeros(8), []
    for some, weights in asked:
        denied.append([q.answer for q in some].count("no"))
        assert some[-1].answer == "sinus rhythm"
        for question, weight in zip(some, weights, strict=True):
            times[questions.index(question)] += weight / len(asked)
    assert np.allclose(times, 1, atol=0.25) and np.allclose(times[-2:], 1)
    assert np.mean(denied) == pytest.approx(2, abs=0.1)
    assert samples._asked(plan, None) == (questions, [1.0] * 8)  # validation asks all
    readings = (samples.reading(plan, None, np.random.default_rng(seed)) for seed in range(50))
    reading = next(each for each in readings if each.weights is not None)
    assert 1.0 in reading.weights and (reading.weights >= 1).all() and reading.weights.max() > 1
    assert len(reading.weights) == len(reading.ids)


def test_the_weighted_loss_is_that_of_repeated_questions(folder, samples):
    """A question that counts three times has the loss of three such questions."""
    import torch

    lm = Session.open(folder / "work" / "model").lm
    one, three = (Question("r", text, "no", "t", None) for text in ("Is it?", "Or that?"))
    plan = ReadingPlan((5,), (one, three), 0)
    reading = samples.reading(plan)
    alone = [samples.reading(ReadingPlan((5,), (q,), 0)) for q in (one, three)]
    weights = np.where(reading.owner == 2, 3.0, 1.0).astype(np.float32)
    with torch.no_grad():
        weighted = lm(*samples.batch([reading._replace(weights=weights)]))[0]
        first, second = (lm(*samples.batch([each]))[0] for each in alone)
    assert weighted.item() == pytest.approx((first + 3 * second).item(), rel=1e-4)


def test_a_stopped_training_goes_on_to_the_same_weights(folder, ecgbyte, tmp_path):
    """Leads, questions and variations follow from the step alone."""
    import shutil

    from safetensors.numpy import load_file

    shutil.copytree(folder / "work", tmp_path / "work")
    work = WorkDir(tmp_path / "work")
    before = load_file(work.model / "ecg_rows.safetensors")["weight"]
    shutil.rmtree(work.model)
    for checkpoint in work.checkpoints("step"):
        shutil.rmtree(checkpoint)
    shutil.rmtree(work.training)
    training = [word for name, value in TRAINING.items() for word in (f"--{name.replace('_', '-')}", value)]
    result = ecgbyte("finetune", "--qa", folder / "data" / "qa.jsonl", *training)
    assert result.exit_code == 0, result.stderr
    assert np.array_equal(load_file(work.model / "ecg_rows.safetensors")["weight"], before)
