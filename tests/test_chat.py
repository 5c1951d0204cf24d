"""Talking about recordings: what is asked, said, drawn and written, with a stand-in model and with a real one."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.measured_turns import conflicts_of
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.session import LoadedModel, Session
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.inference.witness import percent
from ecgbyte_cli.model import model_folder, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.render import terminal
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import chat
from ecgbyte_cli.storage.workdir import WorkDir

QUESTION = "What is the rhythm?"
ALL_BLOCKS = ("complete right bundle branch block", "complete left bundle branch block")


class StandIn:
    """A model that answers "1: 2 ECGs, …" with what it was asked, a byte at a time."""

    offset, layout = 259, Layout(259)
    base = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=4000))

    def __init__(self, text_tokenizer):
        self.text_tokenizer, self.asked, self.interrupt_at = text_tokenizer, [], None

    def stream(self, prompts, end_ids, max_new, cache, pick=None):
        (ids,) = prompts
        words = self.text_tokenizer.decode(ids[ids < self.offset], skip_special_tokens=True)
        self.asked.append(words.strip().split("\n"))
        answer = f"{np.sum(ids == self.offset)} ECG: é"
        for n, i in enumerate(self.text_tokenizer.encode(answer, add_special_tokens=False)[:max_new]):
            if n == self.interrupt_at:
                raise KeyboardInterrupt
            yield [i]


@pytest.fixture
def record(small):
    return sorted((small / "data").rglob("*.hea"))[0]


@pytest.fixture
def long_record(tmp_path):
    """25 s of two leads with a wave of 1 mV every second, 40 ms wide, the second lead upside down."""
    time = np.arange(25 * 250) / 250
    waves = np.exp(-(((time + 0.6) % 1 - 0.5) ** 2) / (2 * 0.01**2))
    spikes = (
        np.stack([waves, -waves], axis=1) + 0.005 * np.sin(8 * time)[:, None]
    )  # a lead that is off is constant
    wfdb.wrsamp("long", 250, ["mV"] * 2, ["II", "V1"], spikes, fmt=["16"] * 2, adc_gain=[1000.0] * 2,
                baseline=[0] * 2, write_dir=str(tmp_path), comments=["Note: \x1b[31mred", "second"])  # fmt: skip
    return tmp_path / "long.hea"


@pytest.fixture
def conversation(small, record):
    """With a stand-in model that knew conversations before it was trained."""
    _, text_tokenizer = tiny.build_tiny()
    tokenizer = ECGTokenizer.from_file(small / "ecgbyte-work" / "model" / "ecg_tokenizer.json")
    about, lm = (
        {"base": "stand-in", "folder": "model", "notice": model_folder.NOTICE, "most_ecgs": 2},
        StandIn(text_tokenizer),
    )
    loaded = LoadedModel(lm, text_tokenizer, Prompt(text_tokenizer, lm.layout), None)
    session = Session(Path("model"), about, RecordingLoader(tokenizer, "longest"), loaded=loaded)
    return session.conversation([session.read(record)])


def opened(work, record, max_new):
    """A conversation with the model of a work folder."""
    session = Session.open(work=WorkDir(work), max_new=max_new)
    return session.conversation([session.read(record)])


def without_certainty(session):
    session.loaded = session.load()._replace(certainty=None)


def typed(*lines):
    """A reader of lines, of which some are exceptions to raise; then the input ends."""
    lines = iter(lines)

    def read():
        line = next(lines, EOFError)
        if isinstance(line, str):
            return line + "\n"
        raise line

    return read


# Transcripts -------------------------------------------------------------------------------------------------


def test_a_whole_conversation(conversation, record, long_record, tmp_path, capsys):
    read = typed(
        QUESTION,
        "",
        "   ",
        f"/ecg {long_record}",
        " and now?  ",
        "/ecg",
        "/segment 2",
        "again?",
        "/clear",
        "alone?",
        "/nonsense",
        "/segment",
        "/segment 0",
        "/segment 4",
        "/lead",
        "/lead V6",
        "/save",
        "/tokens x.md",
        "/ecg none.hea",
        "/ecg none",
        "still there?",
        "/quit",
        "not read",
    )
    assert chat.talk(conversation, read) is None
    out, err = capsys.readouterr()
    assert out == "1 ECG: é\n2 ECG: é\n2 ECG: é\n1 ECG: é\n1 ECG: é\n"
    first = len(conversation.session.reader.read(record).tokens)
    counts = [
        len(conversation.session.reader.segment(*segments_of(conversation, long_record), i).tokens)
        for i in (0, 1)
    ]
    assert err.splitlines() == [
        "2 recordings are open; questions are about all of them, in this order",
        f"{record.stem}: 0 to 10 s, segment 1 of 1, {first} ECG tokens",
        f"long: 0 to 10 s, segment 1 of 2, {counts[0]} ECG tokens",
        "long: 10 to 20 s, segment 2 of 2; earlier turns are forgotten",
        "starting afresh with long",
        "unknown command /nonsense: /help lists them",
        "which segment? /segment 2",
        "long has the segments 1 to 2",
        "long has the segments 1 to 2",
        "which lead? /lead V1",
        "leads missing: V6",
        "which file? /save FILE.md",
        "which file? /tokens FILE.png",
        "none.hea cannot be used: file missing: none.hea",
        "none cannot be used: no such recording",
    ]
    assert conversation.session.lm.asked == [
        [QUESTION],
        [QUESTION, "1 ECG: éand now?"],
        ["again?"],
        ["alone?"],
        ["alone?", "1 ECG: éstill there?"],
    ]


def segments_of(conversation, path):
    recording = readers.read_recording(path)
    return recording, preprocess.segments(recording, conversation.session.reader.tokenizer.signal)


def test_help_lists_every_command_and_each_is_known(conversation, capsys):
    chat.talk(conversation, typed("/help"))
    listed = [line.split()[0] for line in capsys.readouterr().err.splitlines()]
    assert listed == [usage.split()[0] for usage in terminal.COMMANDS]
    for word in listed:
        chat.talk(conversation, typed(word))
        assert "unknown command" not in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(conversation, capsys):
    conversation.session.lm.interrupt_at = 3
    chat.talk(conversation, typed(QUESTION, "/ecg", "more?", KeyboardInterrupt, "not read"), interactive=True)
    out, err = capsys.readouterr()
    assert out == "1 E\n1 E\n"
    assert err.count("(stopped)") == 2
    assert [turn.stopped for turn in conversation.log] == [True, True]
    # what was written stays in the context
    assert conversation.session.lm.asked[1] == [QUESTION, "1 Emore?"]
    conversation.session.lm.interrupt_at = None
    chat.talk(conversation, typed("whole?"), interactive=True)
    assert capsys.readouterr().out == "1 ECG: é\n"


def test_ctrl_c_at_the_prompt_leaves_the_second_time(conversation, capsys):
    one = KeyboardInterrupt
    chat.talk(conversation, typed(one, QUESTION, one, "/help", one, one, "not read"), interactive=True)
    out, err = capsys.readouterr()
    assert out == "1 ECG: é\n" and err.count("(Ctrl-C again or Ctrl-D leaves)") == 3


def test_ctrl_c_ends_what_nobody_watches(conversation):
    conversation.session.lm.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        chat.talk(conversation, typed(QUESTION))


def test_a_very_long_question_is_refused_in_one_line(conversation, capsys):
    chat.talk(conversation, typed(QUESTION, "x" * 5000, QUESTION))
    out, err = capsys.readouterr()
    assert out == "1 ECG: é\n" * 2
    assert (
        err.startswith("too long: the model can read 4000 tokens, but this prompt has 5")
        and err.count("\n") == 1
    )
    assert "/clear" in err and conversation.log[1].error + "\n" == err
    with pytest.raises(Failure, match="too long"):
        chat.talk(conversation, typed("x" * 5000), strict=True)


def test_an_answer_stops_where_the_model_can_read_no_further(conversation):
    asked = len(conversation.session.prompt.build([conversation.ecgs[0].tokens], [("", None)])[0])
    turn = conversation.ask("x" * (4000 - asked - 3))
    assert turn.answer == "1 E" and len(turn.written) == 3


def test_out_of_memory_is_one_line_and_the_conversation_goes_on(conversation, capsys, monkeypatch):
    def stream(*_):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(conversation.session.lm, "stream", stream)
    chat.talk(conversation, typed(QUESTION, "/ecg"))
    assert capsys.readouterr().err.splitlines()[0] == (
        "the model cannot answer: out of memory; ask a shorter question"
    )


def test_an_answer_in_pieces_never_shows_half_a_character(conversation):
    pieces = []
    turn = conversation.ask(QUESTION, pieces.append)
    assert "".join(pieces) == turn.answer == "1 ECG: é"
    assert len(turn.written) == len(turn.answer.encode()) and "\ufffd" not in pieces


def test_a_model_trained_on_single_questions_is_asked_each_by_itself(conversation):
    conversation.session.about["base"] = "tiny"
    conversation.ask(QUESTION), conversation.ask("again?")
    assert conversation.session.lm.asked == [[QUESTION], ["again?"]]
    conversation.session.about["conversations"] = True
    conversation.ask("first?"), conversation.ask("second?")
    assert conversation.session.lm.asked[2:] == [["first?"], ["first?", "1 ECG: ésecond?"]]


# What is shown and written -----------------------------------------------------------------------------------


def test_the_panel(conversation, long_record, capsys):
    terminal.print_greeting(conversation.session.reader.read(long_record), conversation.session.about)
    err = capsys.readouterr().err
    for text in ("2 leads (II, V1), 250 Hz, 25 s", "60 per minute (mean over ", "0 to 10 s, segment 1 of 2",
                 "II, V1 at 100 Hz", "Note: \\x1b[31mred", "second", "not shown to the model", "not a medical device",
                 "stand-in"):  # fmt: skip
        assert text in err.replace("\n│             ", " ")
    assert "\x1b" not in err  # no terminal, and the header's own codes taken out
    assert max(map(len, err.splitlines())) <= 80


def test_commands_show_what_they_open_to_who_watches(conversation, long_record, capsys):
    chat.talk(conversation, typed(f"/ecg '{long_record}'", "/segment 2"), interactive=True)
    err = capsys.readouterr().err
    assert err.count("heart rate") == 2 and "segment 2 of 2" in err


def test_drawing_a_lead(conversation, long_record, capsys):
    chat.talk(conversation, typed(f"/ecg {long_record}", "/lead v1", "/lead II"))
    lines = capsys.readouterr().err.splitlines()[1:]
    up, down = lines[7:13], lines[:6]
    assert lines[1].split()[0] == "V1" and lines[8].split()[0] == "II"
    assert lines[6].split() == ["0", "s", "10", "s"]
    # ten waves, of which each reaches from the line at 0 mV to the other side
    for rows, line, tip in ((up, 5, 0), (down, 0, 5)):
        drawn = ["".join(" " if c == "\u2800" else "x" for c in row[9:]) for row in rows]
        assert " " not in drawn[line] and len(drawn[tip].split()) == 10
    assert up[0].startswith(" 1.00 mV") and down[-1].startswith("-1.00 mV")


@pytest.mark.parametrize(
    "signal", [np.zeros(1000), np.full(1000, np.nan), np.array([1.0]), np.linspace(0, 1, 7)]
)
def test_drawing_what_is_flat_missing_or_short(signal):
    rows = terminal.braille_plot(signal, 0, 10, "II", 60)
    assert len(rows) == 7 and {len(row) for row in rows[:6]} == {60}
    dots = sum(bin(ord(c) - 0x2800).count("1") for row in rows[:6] for c in row[9:])
    assert dots == 0 if np.isnan(signal).all() else dots >= 102


def test_drawing_shows_gaps_as_gaps():
    signal = np.sin(np.arange(1000) / 10)
    signal[400:600] = np.nan
    rows = [row[9:] for row in terminal.braille_plot(signal, 0, 10, "II", 109)[:6]]
    empty = [all(row[i] == "\u2800" for row in rows) for i in range(100)]
    assert all(empty[41:59]) and not any(empty[:40]) and not any(empty[61:])


def test_a_terminal_without_dots_is_told_so(conversation, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "stderr_console", lambda: SimpleNamespace(encoding="latin-1", width=80))
    chat.talk(conversation, typed("/lead II"))
    assert capsys.readouterr().err == "this terminal cannot show a drawing (latin-1)\n"


def test_save_writes_the_conversation_and_its_pictures(conversation, long_record, tmp_path, capsys):
    file = tmp_path / "my talk.md"
    conversation.session.lm.interrupt_at = 3
    chat.talk(conversation, typed(QUESTION), interactive=True)
    conversation.session.lm.interrupt_at = None
    chat.talk(conversation, typed(f"/ecg {long_record}", "which?", "x" * 5000, f"/save {file}"))
    assert capsys.readouterr().err.endswith(f"written: {file}\n")
    text = file.read_text()
    for wanted in (f"**{QUESTION}**\n\n1 E (stopped)\n", "**which?**\n\n2 ECG: é\n", "*Opened long.*",
                   "![long](my%20talk-ecg2.png)", "not a medical device", "25 s", "xxx"):  # fmt: skip
        assert (wanted in text) == (wanted != "xxx")
    for name in ("my talk-ecg.png", "my talk-ecg2.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_tokens_draws_those_of_lead_ii(conversation, tmp_path, capsys):
    chat.talk(conversation, typed(f"/tokens {tmp_path / 'tokens.png'}"))
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_cannot_be_written_is_one_line(conversation, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    chat.talk(
        conversation, typed(f"/tokens {tmp_path / 'file' / 'x.png'}", f"/save {tmp_path / 'file' / 'x.md'}")
    )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be written" in line for line in lines)


def test_completion(monkeypatch, tmp_path):
    readline = pytest.importorskip("readline")
    (tmp_path / "one.hea").touch(), (tmp_path / "only").mkdir()

    def offered(line):
        start = line.rindex(" ") + 1 if " " in line else 0
        monkeypatch.setattr(readline, "get_line_buffer", lambda: line)
        monkeypatch.setattr(readline, "get_begidx", lambda: start)
        numbers = iter(range(9))
        return list(iter(lambda: terminal.complete(line[start:], next(numbers)), None))

    assert offered("/se") == ["/segment"] and offered("What") == []
    assert offered(f"/ecg {tmp_path}/on") == [f"{tmp_path}/one.hea", f"{tmp_path}/only/"]


# Heart rate --------------------------------------------------------------------------------------------------


def test_the_heart_rate_agrees_with_the_truth_of_synthetic_records(small, conversation):
    checked = 0
    for path in sorted((small / "data").rglob("*.hea")):
        ecg = conversation.session.reader.read(path)
        truth, rate = float(ecg.recording.comment("heart rate")), ecg.measurement.rate_bpm
        assert terminal.panel_facts(ecg)["heart rate"].startswith(f"{rate:.0f} per minute")
        # some premature beats are missed, and there are never more beats than there are
        if ecg.recording.comment("condition") == "premature ventricular complexes":
            assert rate < truth + 3
        elif ecg.recording.comment("condition") != "atrial fibrillation":
            assert abs(rate - truth) < 3
            checked += 1
    assert checked >= 40


def test_the_heart_rate_of_real_recordings(real_data):
    # counted by eye in lead II; the second has complexes that point down, 0.4 mV high
    for path, rate in (("cinc2021/HR06002", 41), ("wfdb/s0010_re", 82)):
        assert abs(measure_stretch(readers.read_recording(real_data / path), 0, 10).rate_bpm - rate) < 2


def test_a_heart_rate_that_cannot_be_measured_is_not_made_up(conversation, long_record):
    for samples in (np.zeros(6250), np.full(6250, np.nan), np.r_[1, np.zeros(6249)]):
        ecg = conversation.session.reader.read(long_record)
        ecg.recording.signal[:] = samples
        assert terminal.panel_facts(ecg)["heart rate"].startswith("not measurable: ")


# Measured answers and conflicts -----------------------------------------------------------------------------


def test_a_measured_question_is_answered_without_the_model(conversation, record, capsys):
    rate = conversation.ecgs[0].measurement.rate_bpm
    chat.talk(conversation, typed("What is the heart rate?", QUESTION))
    out, err = capsys.readouterr()
    assert out.startswith(f"heart rate {rate:.0f} per minute") and err.splitlines()[0] == "(measured)"
    first, second = (turn for turn in conversation.log if isinstance(turn, Turn))
    (value,) = first.about()["measured"]
    assert (value["name"], value["value"], value["unit"]) == ("rate_bpm", round(rate), "per minute")
    assert conversation.session.lm.asked == [[QUESTION]] and conversation.turns == [(QUESTION, second.answer)]
    assert "measured" not in second.about() and "conflicts" not in second.about()


def test_a_measurement_is_of_the_segment_that_is_read(conversation, long_record):
    conversation.open(long_record)
    conversation.clear()
    first = conversation.ecgs[0].measurement
    again = conversation.segment(2).measurement
    assert first is not again and again is conversation.ecgs[0].measurement


def test_questions_about_several_ecgs_stay_the_models(conversation, long_record):
    conversation.open(long_record)
    assert conversation.ask("What is the heart rate?").measured is None


def test_an_answer_that_contradicts_the_measurement_is_shown_with_it(
    conversation, tmp_path, capsys, monkeypatch
):
    ecg = conversation.ecgs[0]
    ecg.measurement = Measurement(rate_bpm=72.0, rr_ms=833.0, rr_sd_ms=10.0)
    answer = conversation.session.lm.text_tokenizer.encode("sinus tachycardia", add_special_tokens=False)
    monkeypatch.setattr(conversation.session.lm, "stream", lambda *told: ([i] for i in answer))
    chat.talk(conversation, typed(QUESTION, "again?", f"/save {tmp_path / 'x.md'}"))
    out, err = capsys.readouterr()
    assert out.splitlines() == ["sinus tachycardia"] * 2
    assert (
        err.count("conflict: the model answers yes to sinus tachycardia, but heart rate 72 per minute was")
        == 1
    )
    about = conversation.log[0].about()["conflicts"]
    assert [one["finding"] for one in about] == ["sinus tachycardia"]
    assert about[0]["text"] in (tmp_path / "x.md").read_text()


def test_a_rule_may_need_earlier_answers_about_the_same_ecg():
    ecg = SimpleNamespace(
        measurement=Measurement(qrs_ms=150.0), recording=SimpleNamespace(all_comments=lambda key: [])
    )
    kinds = (*ALL_BLOCKS, "non-specific intraventricular conduction disturbance")
    log = [Turn(f"Is there {words}?", "no", ecgs=[ecg]) for words in kinds]
    assert not conflicts_of(log[0], log[:1]) and not conflicts_of(log[1], log[:2])
    listed = Turn(
        "What are the findings?", "none of those that I know", ecgs=[ecg], findings=dict.fromkeys(kinds, 0.1)
    )
    assert [one.finding for one in conflicts_of(listed, [listed])] == list(ALL_BLOCKS)
    assert [one.finding for one in conflicts_of(log[1], [log[2], log[0], log[1]])] == [ALL_BLOCKS[1]]
    other = Turn(log[1].question, "no", ecgs=[SimpleNamespace(**vars(ecg))])
    assert not conflicts_of(other, [*log, other])


def test_nothing_of_a_file_or_a_model_reaches_the_terminal_as_a_command(
    conversation, record, tmp_path, capsys
):
    name = tmp_path / "a\x1b[31m[bold]\u202e.hea"
    name.write_text(record.read_text() + "# \x1b]0;title\x07 \x9b2J [red]\n")
    shutil.copy(record.with_suffix(".dat"), tmp_path)
    conversation.session.about |= {"folder": "m\x1b[2J[/]", "notice": "n\x1b[2J[/x]", "base": "b\x07"}
    chat.talk(
        conversation,
        typed(f"/ecg {name}", "/ecg", "what\x1b[2J?", f"/save {tmp_path}/x.md"),
        interactive=True,
    )
    terminal.print_greeting(conversation.ecgs[-1], conversation.session.about)
    with terminal.status("loading [/x]"):
        out, err = capsys.readouterr()
    assert not set(out + err) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "\\x1b" in err and "[bold]" in err and "[/x]" in err
    assert "\x1b" not in (tmp_path / "x.md").read_text()


# The command, with a real model --------------------------------------------------------------------------------


def test_one_question(small, record, ecgbyte):
    args = ["chat", record.with_suffix(""), "-q", QUESTION, "--max-new", 5]
    plain = ecgbyte(*args, work=small / "ecgbyte-work")
    assert plain.exit_code == 0, plain.stderr
    result = json.loads(ecgbyte(*args, "--json", work=small / "ecgbyte-work").stdout)
    (turn,) = result["turns"]
    assert plain.stdout == turn["answer"] + "\n" and not turn["declined"]
    other = turn["runner_up"]
    unsure = "not sure: " if turn["sure"] is False else ""
    first, second = (percent(p) for p in (turn["probability"], other["probability"]))
    witness = turn["witness"]
    assert plain.stderr.startswith(f"({unsure}{first}; or {other['answer']}, {second})\n")
    assert ("without the ECG too" in plain.stderr) == (not witness["depends_on_ecg"])
    assert result["ecg_tokens"] > 0 and turn["question"] == QUESTION
    assert 0 < turn["tokens"] <= 5 and 0 < turn["first_token_seconds"] <= turn["seconds"]


def test_questions_from_standard_input(small, record, ecgbyte):
    lines = f"{QUESTION}\n\n/ecg none\nis there LEFT bundle branch block\nHow old is my dog?\n{'x' * 20_000}"
    result = ecgbyte("chat", record, "--json", "--max-new", 5, work=small / "ecgbyte-work", input=lines)
    turns = json.loads(result.stdout)["turns"]
    assert [turn["asked_as"] for turn in turns] == [
        QUESTION,
        "Is there left bundle branch block?",
        None,
        None,
    ]
    assert turns[1]["answer"] in ("yes", "no") and turns[1]["probability"] >= 0.5
    assert [turn["declined"] for turn in turns] == [False, False, True, True]
    assert (
        turns[2]["answer"].startswith("I was not trained on this question") and QUESTION in turns[3]["answer"]
    )
    assert turns[2]["probability"] is None and turns[2]["sure"] is None
    assert "none cannot be used" in result.stderr and result.exit_code == 0


def test_the_probability_is_that_of_the_whole_answer(small, record):
    """The product over what was written and the token that ends it, from one plain forward pass."""
    import torch

    conversation = opened(small / "ecgbyte-work", record, 200)
    without_certainty(conversation.session)  # of a model that has no list of answers to choose from
    turn = conversation.ask(QUESTION)
    lm, ids = conversation.session.lm, np.concatenate([turn.prompt, turn.written]).astype(np.int64)
    with torch.no_grad():
        logits = lm.base(inputs_embeds=lm.embed(torch.from_numpy(ids)[None])).logits[
            0, len(turn.prompt) - 1 :
        ]
    sure = logits.log_softmax(-1).max(-1).values[: len(turn.written) + (len(turn.written) < 200)]
    assert turn.probability == pytest.approx(float(sure.sum().exp()), rel=1e-3) == turn.about()["probability"]


def test_an_answer_equals_that_of_generate(small, ecgbyte):
    answers = (small / "ecgbyte-work" / "answers" / "answers.jsonl").read_text().splitlines()
    for line in map(json.loads, answers):
        (path,) = (small / "data").rglob(f"{line['record']}.hea")
        result = ecgbyte("chat", path, "-q", line["question"], "--max-new", 8, work=small / "ecgbyte-work")
        assert result.stdout.strip() == line["answer"]


@pytest.mark.parametrize("room", [60, 90])
def test_prompts_are_trimmed_as_generate_trims_them(small, record, tmp_path, ecgbyte, room):
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("answers"))
    path = work / "model" / "ecgbyte.json"
    about = json.loads(path.read_text())
    whole = opened(work, record, 4).ask(QUESTION)
    assert whole.lost == 0
    text = len(whole.prompt) - np.sum(whole.prompt >= 259 + 2)
    path.write_text(json.dumps(about | {"prompt_tokens": int(text) + room}))
    conversation = opened(work, record, 4)
    turn = conversation.ask(QUESTION)
    assert len(turn.prompt) == text + room and turn.lost == len(whole.prompt) - text - room
    assert turn.about()["trimmed"] == turn.lost
    assert ecgbyte("generate", "--limit", 4, "--max-new", 4, "--no-controls", work=work).exit_code == 0
    for line in map(json.loads, (work / "answers" / "answers.jsonl").read_text().splitlines()):
        (found,) = (small / "data").rglob(f"{line['record']}.hea")
        asked = ecgbyte("chat", found, "-q", line["question"], "--max-new", 4, work=work)
        assert asked.stdout.strip() == line["answer"]
        assert "ECG tokens were left out" in asked.stderr or line["question"] != QUESTION


def test_a_model_folder_says_what_a_conversation_has_to_know(small):
    about = json.loads((small / "ecgbyte-work" / "model" / "ecgbyte.json").read_text())
    assert (about["segmenter"], about["conversations"], about["most_ecgs"]) == ("longest", False, 1)


def test_answers_with_context_equal_those_of_the_whole_prompt(small, record):
    conversation = opened(small / "ecgbyte-work", record, 12)
    conversation.session.about["conversations"] = True
    without_certainty(conversation.session)
    for question in (QUESTION, "Is there left bundle branch block?", QUESTION):
        turn = conversation.ask(question)
        assert (
            turn.written
            == conversation.session.lm.answer([turn.prompt], conversation.session.prompt.end_ids, 12)[0]
        )
    assert len(conversation.turns) == 3


def test_attention_draws_what_explains_the_last_answer(
    small, record, long_record, tmp_path, monkeypatch, capsys, coarse_integral
):
    from ecgbyte_cli.inference import attribution
    from ecgbyte_cli.render import figures

    conversation = opened(small / "ecgbyte-work", record, 6)
    drawn = []
    whole = figures.plot_attribution
    monkeypatch.setattr(figures, "plot_attribution", lambda *args: drawn.append(args) or whole(*args))
    file = tmp_path / "attention.png"
    chat.talk(conversation, typed(f"/attention {file}"))
    assert capsys.readouterr().err == "there is no answer yet: ask something first\n"
    # a question by itself, as `explain` has it; the recording opened since is none of its matter
    chat.talk(conversation, typed(QUESTION, f"/ecg {long_record}", f"/attention {file}"))
    assert file.read_bytes().startswith(b"\x89PNG")
    signal, *_, density, words, values, title, start = drawn[0]
    reader, (turn,) = conversation.session.reader, [t for t in conversation.log if isinstance(t, Turn)]
    letters = reader.tokenizer.letters(signal)
    explainer = attribution.Explainer(conversation.session.lm, conversation.session.prompt, reader.tokenizer)
    assert np.allclose(density, explainer.density(letters, QUESTION, turn.answer, "integrated"))
    assert "".join(words).endswith(QUESTION + "\\n") and turn.answer in title
    assert len(words) == len(values) and start == 0
    # several recordings and what was said before, with a model that reads both
    conversation.session.about |= {"conversations": True, "most_ecgs": 2}
    chat.talk(conversation, typed("first?", "/segment 2", "second?", "third?", f"/attention {file}"))
    _, _, _, density, words, _, title, start = drawn[1]
    assert start == 10 and title.startswith("long: third?")
    assert "second?" in "".join(words) and "first?" not in "".join(words)
    assert density.shape == signal.shape and abs(density.sum() - 1) < 1e-6


def test_a_recording_that_does_not_say_its_rate(small, record, tmp_path, ecgbyte):
    recording = readers.read_recording(record)
    np.savetxt(
        tmp_path / "x.csv", recording.signal.T, "%.3f", ",", header=",".join(recording.leads), comments=""
    )
    args = ["-q", QUESTION, "--max-new", 8]
    work = small / "ecgbyte-work"
    same = ecgbyte("chat", tmp_path / "x.csv", *args, "--input-fs", recording.fs, work=work)
    assert same.stdout == ecgbyte("chat", record, *args, work=work).stdout
    unknown = ecgbyte("chat", tmp_path / "x.csv", *args, work=work)
    assert unknown.exit_code == 1 and "--input-fs" in unknown.stderr


def test_what_cannot_be_read_is_one_line(small, record, tmp_path, ecgbyte):
    work = small / "ecgbyte-work"
    missing = ecgbyte("chat", tmp_path / "none.hea", "-q", "x", work=work)
    no_model = ecgbyte("chat", record, "-q", "x", "--model", tmp_path / "empty", work=work)
    two_leads = tmp_path / "two"
    wfdb.wrsamp("two", 250, ["mV"] * 2, ["I", "V6"], np.zeros((2500, 2)), fmt=["16"] * 2, write_dir=str(tmp_path),
                adc_gain=[1000.0] * 2, baseline=[0] * 2)  # fmt: skip
    lacking = ecgbyte("chat", two_leads, "-q", "x", work=work)
    shutil.copytree(work, tmp_path / "other")
    tokenizer = tmp_path / "other" / "model" / "ecg_tokenizer.json"
    changed = json.loads(tokenizer.read_text())
    changed["merges"] = changed["merges"][:-1]
    tokenizer.write_text(json.dumps(changed))
    mismatch = ecgbyte("chat", record, "-q", "x", work=tmp_path / "other")
    for result, said in [
        (missing, "none.hea"),
        (no_model, "`ecgbyte finetune`, or see `make quickstart`"),
        (lacking, "two cannot be used: leads missing: II, V1"),
        (mismatch, "not the tokenizer"),
    ]:
        assert result.exit_code == 1 and result.stdout == ""
        assert said in result.stderr and len(result.stderr.splitlines()) == 1


def test_on_a_terminal(small, record, tmp_path):
    """The whole command in a pseudo-terminal: greeting, an answer, Ctrl-C, history, Ctrl-D."""
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work" / "model", work / "model")
    main, terminal = pty.openpty()
    program = [
        sys.executable,
        "-m",
        "ecgbyte_cli",
        "--work",
        str(work),
        "chat",
        str(record),
        "--max-new",
        "8",
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        program, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(terminal)
    seen = ""

    def expect(text, seconds=300):
        nonlocal seen
        end = time.monotonic() + seconds
        os.set_blocking(main, False)
        while text not in seen:
            assert time.monotonic() < end, seen
            try:
                seen += os.read(main, 65536).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)
        seen = seen.partition(text)[2]

    try:
        expect(record.stem), expect("not a medical device"), expect("Ctrl-D leaves"), expect("> ")
        os.write(main, b"/ecg\n")
        expect("segment 1 of 1, "), expect("> ")
        os.write(main, b"half a line\x03")
        expect("(Ctrl-C again or Ctrl-D leaves)"), expect("> ")
        os.write(main, b"\x1b[A\n")  # the line before, again
        expect("segment 1 of 1, "), expect("> ")
        os.write(main, b"\x04")
        assert process.wait(120) == 0
    finally:
        process.poll() is None and process.send_signal(signal.SIGKILL)
        os.close(main)
    assert (work / "chat_history").read_text().splitlines()[-1] == "/ecg"
