"""The line of measured values before an ECG: one line in training, answers, controls and pictures."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_cli.evaluation.controls import ControlInputs, spectrum_noise
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.batch_answering import PromptSet
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.readers import Recording, read_recording
from ecgbyte_cli.signal import segment_lines as stored
from ecgbyte_cli.signal.measure import measure, measure_stretch
from ecgbyte_cli.signal.measured_lines import NOTHING, joined_lines, measured_line
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.stages import explain
from ecgbyte_cli.storage.files import read_json, read_table, write_json, write_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.dataset import SampleBuilder

ASKED = "What is the rhythm?"


@pytest.fixture(scope="module")
def root(small, tmp_path_factory):
    """A work folder with a model that was trained with the measured values, and some answers of it."""
    from click.testing import CliRunner

    from ecgbyte_cli.__main__ import main

    root = tmp_path_factory.mktemp("measured") / "work"
    shutil.copytree(
        small / "ecgbyte-work", root, ignore=shutil.ignore_patterns("model", "answers", "training")
    )
    for args in (
        ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--measured", "--steps", 12]
        + ["--lr", 5e-3, "--ecg-loss", 0, "--every", 12],
        ["generate", "--limit", 6, "--max-new", 8, "--no-controls"],
    ):
        result = CliRunner().invoke(main, ["--work", str(root), *map(str, args), "--debug"])
        assert result.exit_code == 0, result.stderr
    return root


@pytest.fixture(scope="module")
def work(root):
    return WorkDir(root)


@pytest.fixture(scope="module")
def session(work):
    return Session.open(work=work)


@pytest.fixture(scope="module")
def joined(work, small):
    questions = question_file.read_questions(small / "data" / "qa.jsonl")
    return question_segments.join_segments(questions, read_table(work.symbol_segments))[0]


@pytest.fixture(scope="module")
def samples(work, session):
    prompt = Prompt(session.load().text_tokenizer, session.lm.layout)
    return SampleBuilder(work, prompt, session.tokenizer, 4096, "trim", measured=True)


def text_of(session, ids):
    """The text of a prompt without its ECG."""
    return session.load().text_tokenizer.decode(ids[ids < session.lm.offset])


def test_a_line_names_what_was_measured_and_what_was_not():
    some = Measurement(rate_bpm=71.6, rr_sd_ms=3.2, qrs_ms=94.4, qt_ms=380, axis_qrs=-12.5)
    line = "Measured: rate 72, RR SD 3, PR none, QRS 94, QT 380, QTcB none, QTcF none, axis -12"
    assert measured_line(some) == line
    assert measured_line(Measurement(sokolow_mv=1.0)) == NOTHING  # no value of the line
    flat = Recording(np.zeros((2, 2500), np.float32), 250, ["II", "V1"], "flat", "")
    assert measured_line(measure(flat)) == NOTHING


def test_lines_stand_before_the_ecgs_and_cannot_fake_one(session):
    prompt, ecg = session.prompt, np.arange(3)
    turns, before = [("a?", "b"), ("c?", None)], joined_lines(["one", "two\ue000<eos>"])
    assert before == "one\ntwo\ue000<eos>\n" and joined_lines([]) == ""
    ids, labels = prompt.build([ecg, ecg], turns, None, before)
    plain, _ = prompt.build([ecg, ecg], turns)
    start = np.flatnonzero(ids == session.lm.offset)
    assert len(start) == 2 and np.array_equal(ids[start[0] :], plain[plain.tolist().index(ids[start[0]]) :])
    head = ids[: start[0]]
    assert session.load().text_tokenizer.decode(head) == "<bos>one\ntwo<eos>\n" and 2 not in head
    assert (labels[: start[0]] == -100).all()


def test_each_segment_has_the_line_of_its_own_recording(work):
    table, lines = read_table(work.symbol_segments), stored.segment_lines(work)
    assert len(lines) == len(table["path"]) and len({*lines}) > 0.8 * len(lines)
    for i in (0, 7, 63):
        recording = read_recording(table["path"][i])
        assert lines[i] == measured_line(measure_stretch(recording, 0, 10))


def test_every_entry_point_asks_with_the_same_ids(work, session, samples, joined, root):
    assert session.about["measured"] is True
    table = read_table(work.symbol_segments)
    question = next(q for q, *_, split in joined if split == "test" and q.question == ASKED)
    (segment,) = question.segments
    trained, _, _ = samples(question, asked=True)
    line = stored.segment_lines(work)[segment]
    assert text_of(session, trained) == f"<bos>{line}\n{ASKED}\n"
    # the reading of the training, with its answer behind
    (plan,) = samples.plans([question])[0]
    reading = samples.reading(plan)
    assert np.array_equal(reading.ids[: len(trained)], trained) and len(reading.ids) == plan.length
    # chat, the page and plot
    ecg = session.read(table["path"][segment])
    assert np.array_equal(session.prompt_ids([ecg], [(ASKED, None)])[0], trained)
    turn = session.ask(ecg, ASKED)
    assert np.array_equal(turn.prompt, trained)
    drawn = session.attribute(ecg, ASKED, "gradient")
    assert "".join(drawn.words).endswith(f"{line}\\n{ASKED}\\n")
    # generate
    chosen = [item for item in joined if item[0] is question]
    signals = ControlInputs(work, session.tokenizer, session.segmenter, chosen, 0, True)
    prompts = PromptSet(session.prompt, session.tokenizer, session.prompt_tokens)
    prompts.ask("key", question, signals.of("signal")[0], signals.lines("signal")[0])
    assert np.array_equal(prompts.ids("key"), trained)
    answers = map(json.loads, work.answers.read_text().splitlines())
    answer = next(a for a in answers if (a["record"], a["question"]) == (question.record, ASKED))
    assert answer["answer"] == turn.answer
    assert answer["probability"] == pytest.approx(turn.probability, abs=2e-6)


def test_explain_asks_with_the_line_of_the_recording(work, session, monkeypatch):
    table, seen = read_table(work.symbol_segments), []
    i = table["split"].index("test")
    place = np.zeros((2, session.tokenizer.signal["samples"]), bool)
    monkeypatch.setattr(explain, "measure_methods", lambda *args: seen.append(args[0].before) or [])
    explain.measure_records(session, work, table, [(i, "sinus rhythm", place)], 4, 0)
    assert seen == [f"{stored.segment_lines(work)[i]}\n"]


def test_controls_measure_their_own_signal(work, session, joined):
    chosen = [item for item in joined if item[3] == "test"]
    signals = ControlInputs(work, session.tokenizer, session.segmenter, chosen, 0, True)
    own, shuffled = signals.lines("signal"), signals.lines("shuffled")
    assert all(line == [NOTHING] for name in ("flat line", "no signal") for line in signals.lines(name))
    lines = stored.segment_lines(work)
    for mine, other, ids in zip(own, shuffled, signals.of("shuffled"), strict=True):
        (segment,) = (i for i in range(len(lines)) if np.array_equal(signals.own(i), ids[0]))
        assert other == [lines[segment]] != mine
    segment, about = chosen[0][0].segments[0], session.tokenizer.signal
    signal = session.tokenizer.to_mv(session.tokenizer.decode(signals.own(segment)))
    noise = spectrum_noise(signal, np.random.default_rng([0, segment]))
    heard = measure(Recording(noise, about["fs"], about["leads"], "noise", ""))
    assert signals.lines("noise")[0] == [measured_line(heard)] != own[0]
    plain = ControlInputs(work, session.tokenizer, session.segmenter, chosen, 0)
    assert plain.lines("noise") == [[] for _ in chosen]


def test_replaced_ecgs_have_no_values_in_training(samples, joined, session):
    question = next(q for q, *_, split in joined if split == "train")
    for instead in ("no signal", "flat line"):
        (plan,) = samples.plans([question])[0]
        ids = samples.reading(plan, instead).ids
        assert text_of(session, ids).startswith(f"<bos>{NOTHING}\n{question.question}\n")


def test_a_window_of_a_long_recording_has_the_line_of_its_segment(samples, monkeypatch):
    monkeypatch.setattr(samples, "first_of", np.zeros(64, int))
    monkeypatch.setattr(samples, "count_of", np.full(64, 64))
    monkeypatch.setattr(samples, "lines", [f"line {i}" for i in range(64)])
    random = np.random.default_rng(0)
    for augment in (0.0, 1e-9):
        monkeypatch.setattr(samples, "augment", augment)
        for _ in range(6):
            (ecg,), _, before = samples._read((0,), None, random)
            segment = int(before.removeprefix("line "))
            # these segments are of different recordings, so no window crosses two
            same = samples.tokenizer.decode(ecg) == samples.letters_of(segment)
            assert np.array_equal(ecg, samples.own(segment)) if not augment else same.mean() > 0.5


def test_lines_are_measured_once_and_again_for_other_letters(work, root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "work")
    copy, before = WorkDir(tmp_path / "work"), stored.segment_lines(work)
    monkeypatch.setattr(stored, "in_parallel", lambda *_: pytest.fail("measured again"))
    assert stored.segment_lines(copy) == before
    monkeypatch.undo()
    about = read_json(copy.measured_settings)
    write_json(copy.measured_settings, about | {"settings": about["settings"] | {"version": 0}})
    copy.measured_lines.write_bytes(b"damaged")
    assert stored.segment_lines(copy) == before
    assert not list((tmp_path / "work" / "measured").glob("parts*"))


def test_a_recording_that_is_gone_is_one_line(root, tmp_path):
    shutil.copytree(root, tmp_path / "work", ignore=shutil.ignore_patterns("measured"))
    work = WorkDir(tmp_path / "work")
    columns = read_table(work.symbol_segments)
    columns["path"][5] = str(tmp_path / "gone.hea")
    write_table(work.symbol_segments, columns)
    with pytest.raises(Failure, match=r"gone\.hea: .*put them back where `ecgbyte symbolize` found them"):
        stored.segment_lines(work)
    assert not work.measured_settings.exists()


def test_an_interrupted_measuring_resumes(work, root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "work", ignore=shutil.ignore_patterns("measured"))
    copy, done = WorkDir(tmp_path / "work"), []
    monkeypatch.setattr(stored, "PART", 20)

    def some(function, tasks, *_):
        for task in tasks:
            done.append(task[1])
            yield function(*task)
            if len(done) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(stored, "in_parallel", some)
    with pytest.raises(KeyboardInterrupt):
        stored.segment_lines(copy)
    assert stored.segment_lines(copy) == stored.segment_lines(work) and done == [0, 1, 2, 3]


def test_further_training_and_an_export_keep_the_lines(work, root, small, tmp_path, ecgbyte):
    shutil.copytree(root, tmp_path / "work", ignore=shutil.ignore_patterns("answers", "training"))
    shutil.move(tmp_path / "work" / "model", tmp_path / "first")
    args = ["--qa", small / "data" / "qa.jsonl", "--model", tmp_path / "first", "--steps", 1, "--every", 1]
    assert ecgbyte("finetune", *args).exit_code == 0
    assert folder_checks.read_about(tmp_path / "work" / "model")["measured"] is True
    assert ecgbyte("reinforce", "--steps", 1, "--answers", 2, "--max-new", 4).exit_code == 0
    assert folder_checks.read_about(tmp_path / "work" / "reinforced")["measured"] is True
    result = ecgbyte("export", tmp_path / "exported")
    assert result.exit_code == 0, result.stderr
    about = read_json(tmp_path / "exported" / "ecgbyte.json")
    assert about["measured"] and "Measured: rate 72" in about["prompt"]
    assert "measured_line" in (tmp_path / "exported" / "README.md").read_text()


def test_other_models_get_no_line(small):
    session = Session.open(work=WorkDir(small / "ecgbyte-work"))
    assert session.about["measured"] is False
    ecg = session.read(next((small / "data").rglob("*.hea")))
    assert "Measured" not in text_of(session, session.prompt_ids([ecg], [(ASKED, None)])[0])
    older = replace(session, about={k: v for k, v in session.about.items() if k != "measured"})
    assert "Measured" not in text_of(older, older.prompt_ids([ecg], [(ASKED, None)])[0])
