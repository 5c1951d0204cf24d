"""ecgbyte chat: talk about one recording."""

import sys
import time
from pathlib import Path

import click

from ecgbyte_cli import preprocess, records
from ecgbyte_cli.console import Failure, Stage, note, say, wants_json


@click.command(
    cls=Stage,
    short_help="Talk about one recording.",
    epilog='Example: ecgbyte chat data/synth00001.hea -q "What is the rhythm?"',
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("-q", "--question", multiple=True, help="Ask this and leave; may be given several times.")
@click.option("--model", type=click.Path(path_type=Path), help="Model folder.  [default: the work folder's]")
@click.option(
    "--max-new", type=click.IntRange(1), default=256, show_default=True, help="Longest answer in tokens."
)
@click.pass_obj
def command(work, record, question, model, max_new):
    """Ask a trained model about a recording.

    The recording is preprocessed with the model's own settings: its sampling rate, leads, letters and merges.
    Without -q the questions come from the terminal, or from standard input, a line each. Research use only:
    no medical device.
    """
    conversation = open_chat(work, record, model=model, max_new=max_new)
    interactive = not question and sys.stdin.isatty()
    if interactive:
        note(conversation.banner())
    turns = []
    for text in question or typed(interactive):
        start, words = time.perf_counter(), []
        for words_so_far in conversation.ask(text):
            words.append(words_so_far)
            if not wants_json():
                click.echo(words_so_far, nl=False)
        say()
        turns.append({"question": text, "answer": "".join(words), "seconds": time.perf_counter() - start})
    return {"record": str(record), "ecg_tokens": len(conversation.ecg), "turns": turns}


def typed(interactive):
    """Yield the lines that the user types, until the end of input or a second Ctrl-C."""
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            note("")
            return
        if not interactive and not line:
            return
        if line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield line.strip()


def open_chat(work, record, *, model=None, max_new=256):
    """Load a model and a recording.

    Parameters
    ----------
    work : WorkDir
    record : Path
        A recording, with or without its extension.
    model : Path or None
        Model folder; None is the work folder's.
    max_new : int
        Longest answer in tokens.

    Returns
    -------
    Conversation

    Raises
    ------
    Failure
        If there is no model, or the recording cannot be read or lacks leads that the model needs.
    """
    from ecgbyte_cli.tokenizer import ECGTokenizer

    model = Path(model or work.model)
    if not (model / "ecgbyte.json").exists():
        raise Failure(
            f"{model} holds no model: train one with `ecgbyte finetune`, or get one with `make quickstart`; "
            "--model names a folder"
        )
    # the recording first: it is read in a moment, and the model is not
    signal = ECGTokenizer.from_file(model / "ecg_tokenizer.json").signal
    recording = records.read(record)
    segments = preprocess.segments(recording, signal)

    from ecgbyte_cli import ecg_lm

    with ecg_lm.quiet():
        parts = ecg_lm.load(model)
    return Conversation(recording, segments, *parts, max_new=max_new)


class Conversation:
    """Questions and answers about the first segment of a recording.

    Parameters
    ----------
    recording : records.Recording
    segments : list of (float, float32 array)
        Start in seconds and signal in mV of each segment.
    lm, text_tokenizer, ecg_tokenizer, about
        What `ecg_lm.load` returns.
    max_new : int
        Longest answer in tokens.
    """

    def __init__(self, recording, segments, lm, text_tokenizer, ecg_tokenizer, about, max_new=256):
        from ecgbyte_cli.prompt import Prompt

        self.recording, self.lm, self.about, self.max_new = recording, lm, about, max_new
        self.prompt = Prompt(text_tokenizer, lm.offset)
        self.ecg_tokenizer = ecg_tokenizer
        self.start, signal = segments[0]
        self.ecg = ecg_tokenizer.encode(signal)

    def banner(self):
        """Who is talked to about what, and how to leave."""
        from ecgbyte_cli.ecg_lm import NOTICE

        signal = self.ecg_tokenizer.signal
        duration = self.recording.signal.shape[1] / self.recording.fs
        end = self.start + signal["segment_seconds"]
        return (
            f"{self.recording.name}: {len(self.recording.leads)} leads, {self.recording.fs:g} Hz, {duration:g} s\n"
            f"read: {', '.join(signal['leads'])} at {signal['fs']:g} Hz, {self.start:g} to {end:g} s, "
            f"{len(self.ecg)} ECG tokens\n"
            f"model: {self.about['base']}\n{NOTICE}\n"
            "Ask about the recording. /quit or Ctrl-D leaves, Ctrl-C stops an answer."
        )

    def ask(self, question):
        """Yield the answer to a question piece by piece, as it is written."""
        ids, _ = self.prompt.build([self.ecg], [(question, None)])
        written, shown = [], ""
        try:
            for (i,) in self.lm.stream([ids], self.prompt.end_ids, self.max_new):
                written.append(i)
                text = self.prompt.text(written)
                # a character of several bytes is not whole before its last one
                if not text.endswith("\ufffd"):
                    yield text[len(shown) :]
                    shown = text
        except KeyboardInterrupt:
            note(" (stopped)")
