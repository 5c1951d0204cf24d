"""ecgbyte chat: talk about a recording."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, model_option, recording_options, site_option
from ecgbyte_cli.cli.output import note, print_result, wants_json
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference import conversation_report
from ecgbyte_cli.inference.conversation import Conversation
from ecgbyte_cli.inference.session import MAX_NEW, Session
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.render.terminal import (
    COMMANDS,
    WordWrap,
    line_editor,
    panel_facts,
    print_greeting,
    print_lead,
    print_panel,
    quiet_typing,
    status,
    stderr_console,
)
from ecgbyte_cli.storage.files import atomic_write
from ecgbyte_cli.storage.workdir import WorkDir


@dataclass(frozen=True)
class ChatOptions:
    """Options of `ecgbyte chat`.

    Attributes
    ----------
    question : tuple of str
        Questions to ask; without any, the user types them.
    model, base : Path or None
        Model folder (None: the work folder's model, or the included one), and where its base model is now, if it has
        moved.
    device : str or None
        See `devices.choose_device`.
    site : Path or None
        Site file, from `ecgbyte findings --calibrate`.
    max_new : int
        Longest answer, in tokens.
    input_fs, lead_names, units
        Sampling rate in Hz, lead names separated by commas, and unit for files that do not state them; None uses the
        settings of `symbolize`.
    keep_identity : bool
        Whether to show the name, number and birth date in a hospital file.
    """

    question: tuple[str, ...] = ()
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    site: Path | None = None
    max_new: int = MAX_NEW
    input_fs: float | None = None
    lead_names: str | None = None
    units: str | None = None
    keep_identity: bool = False


@click.command(
    cls=Stage,
    short_help="Ask a model about a recording.",
    epilog='Example: ecgbyte chat data/synth00001.hea -q "What is the rhythm?"',
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "-q", "--question", multiple=True, help="Ask this question and exit. Repeat the option to ask several."
)
@model_option
@loading_options
@site_option
@click.option(
    "--max-new",
    type=click.IntRange(1),
    default=ChatOptions.max_new,
    show_default=True,
    help="Longest answer, in tokens.",
)
@recording_options
@click.option(
    "--keep-identity", is_flag=True, help="Show the name, number and birth date stored in a hospital file."
)
@click.pass_obj
def command(work: WorkDir, record: Path, **options: Any) -> dict:
    """Ask a trained model about a recording.

    The recording is preprocessed with the model's own settings: its sampling rate, leads, letters and merges.
    Without -q the questions come from the terminal, or from standard input, one per line; /help lists the commands.
    Answers go to standard output, everything else to standard error. Research use only: not a medical device.
    """
    return chat(work, record, ChatOptions(**options))


def chat(work: WorkDir, record: Path, options: ChatOptions) -> dict:
    """Read a recording, load a model, and answer questions; without questions the user types them.

    Parameters
    ----------
    work : WorkDir
    record : Path
        A recording, with or without its extension.
    options : ChatOptions

    Returns
    -------
    dict
        record, ecg_tokens and turns (see `Turn.about`).

    Raises
    ------
    Failure
        If there is no model, the recording cannot be read or lacks leads that the model needs, or one of the
        questions cannot be answered.
    """
    questions = options.question
    interactive = not questions and sys.stdin.isatty()
    session = Session.open(
        *(options.model, work, options.base, options.device),
        max_new=options.max_new,
        fs=options.input_fs,
        lead_names=options.lead_names,
        units=options.units,
        keep_identity=options.keep_identity,
        site=options.site,
    )
    session.check_base()
    conversation = begin(session, record, interactive)
    if interactive:
        note("Ask about the recording. /help lists the commands; /quit or Ctrl-D leaves.")
        with line_editor(work.chat_history) as read:
            talk(conversation, read, interactive=True)
    else:
        talk(conversation, iter(questions or sys.stdin).__next__, strict=bool(questions))
    return {
        "record": str(record),
        "ecg_tokens": sum(len(ecg.tokens) for ecg in conversation.ecgs),
        "calibrated_on": session.certainty and session.certainty.calibrated_on,
        "turns": [turn.about() for turn in conversation.log if isinstance(turn, Turn)],
    }


def begin(session: Session, record: Path, interactive: bool) -> Conversation:
    """Read a recording, load the model, and return a conversation; keys typed meanwhile appear at the prompt."""
    with quiet_typing():
        ecg = session.read(record)  # fast; loading the model takes longer
        if interactive:
            print_greeting(ecg, session.about)
        begun = time.perf_counter()
        with status(f"loading the model {session.about['folder']}"):
            session.load()
        if interactive:
            note(f"model loaded in {time.perf_counter() - begun:.1f} s")
        if session.certainty and session.certainty.calibrated_on:
            note(f"probabilities are calibrated on {session.certainty.calibrated_on}")
    return session.conversation([ecg])


def talk(
    conversation: Conversation, read: Callable[[], str], *, strict: bool = False, interactive: bool = False
) -> None:
    """Process lines, questions and commands, until there are no more.

    Parameters
    ----------
    conversation : Conversation
    read : callable
        Returns the next line, or raises StopIteration or EOFError. It may raise KeyboardInterrupt. The second one in
        a row ends the conversation; stopping an answer counts as the first.
    strict : bool
        Whether the first error ends the conversation.
    interactive : bool
        Whether a user types the lines at a terminal.
    """
    pressed = 0
    while True:
        try:
            line = read().strip()
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                obey(conversation, line, interactive)
            elif line:
                stopped = answer(conversation, line, interactive)
                if stopped and not interactive:
                    raise KeyboardInterrupt
                pressed = int(stopped)
                continue
            pressed = 0
        except (StopIteration, EOFError):
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            pressed += 1
            if pressed == 2:
                return
            note("(Ctrl-C again or Ctrl-D leaves)")
        except Failure as error:
            if strict:
                raise
            pressed = 0
            note(error.message)


def answer(conversation: Conversation, question: str, interactive: bool) -> bool:
    """Ask, and write the answer to standard output as it is generated; return whether it was stopped."""

    wrap = WordWrap(stderr_console().width - 1) if interactive else None

    def show(piece: str) -> None:
        text = printable(piece, "\n\t")
        click.echo(wrap.add(text) if wrap else text, nl=False, err=wants_json())

    def think(reasoning: str) -> None:
        click.echo(click.style(printable(reasoning, "\n\t"), dim=True), err=True)

    for line in conversation.unlike():
        note(line)
    turn = conversation.ask(question, show if interactive or not wants_json() else lambda piece: None, think)
    if wrap:
        click.echo(wrap.end(), err=wants_json())
    else:
        print_result()
    if turn.lost:
        note(f"(the prompt was longer than in training: {turn.lost} ECG tokens were left out)")
    if turn.stopped:
        note("(stopped)")
    elif not turn.answer:
        note("(no answer)")
    elif turn.certainty():
        note(f"({turn.certainty()})")
    for line in turn.notes():
        note(line)
    return turn.stopped


def obey(conversation: Conversation, line: str, interactive: bool) -> None:
    """Execute a command of the conversation."""
    word, *words = line.split(maxsplit=1)
    rest = words[0].strip("\"'") if words else ""
    if word == "/help":
        for usage, purpose in COMMANDS.items():
            note(f"{usage:21}{purpose}")
    elif word == "/ecg" and not rest:
        for ecg in conversation.ecgs:
            note(f"{ecg.recording.name}: {ecg.stretch()}, {len(ecg.tokens)} ECG tokens")
    elif word == "/ecg":
        ecg = conversation.open(os.path.expanduser(rest))
        if interactive:
            print_panel(ecg)
        note(f"{len(conversation.ecgs)} recordings are open; questions are about all of them, in this order")
        if len(conversation.ecgs) > conversation.session.about.get("most_ecgs", 1):
            note(
                "the model reads one ECG at a time: each one is asked separately; /clear keeps only this one"
            )
    elif word == "/segment":
        if not rest.isdecimal():
            raise Failure("which segment? /segment 2")
        ecg = conversation.segment(int(rest))
        if interactive:
            print_panel(ecg)
        note(f"{ecg.recording.name}: {ecg.stretch()}; earlier turns are forgotten")
    elif word == "/lead":
        if not rest:
            raise Failure("which lead? /lead V1")
        print_lead(conversation.ecgs[-1], rest)
    elif word == "/tokens":
        draw_tokens(conversation, wanted_file(rest, ".png", word))
    elif word == "/attention":
        draw_attention(conversation, wanted_file(rest, ".png", word))
    elif word == "/witness":
        show_witness(conversation)
    elif word == "/save":
        save(conversation, wanted_file(rest, ".md", word))
    elif word == "/clear":
        conversation.clear()
        note(f"starting afresh with {conversation.ecgs[0].recording.name}")
    else:
        raise Failure(f"unknown command {word}: /help lists them")


def show_witness(conversation: Conversation) -> None:
    """Show the last answer, and the answers without the ECG and with a flat line."""
    with status("asking without the ECG"):
        asked = conversation.ask_without_ecg()
    note(asked[0][1].question)
    for name, turn in asked:
        sure = f" ({turn.certainty()})" if turn.certainty() else ""
        note(f"{name + ':':18}{turn.answer or '(no answer)'}{sure}")


def wanted_file(name: str, extension: str, word: str) -> Path:
    """Return the path of a file to write, if its name has the right extension."""
    path = Path(name).expanduser()
    if path.suffix.lower() != extension:
        raise Failure(f"which file? {word} FILE{extension}")
    return path


def draw_tokens(conversation: Conversation, path: Path) -> None:
    """Write a picture of the tokens of the last opened ECG."""
    from ecgbyte_cli.render import figures

    ecg, tokenizer = conversation.ecgs[-1], conversation.session.tokenizer
    leads = tokenizer.signal["leads"]
    row = leads.index("II") if "II" in leads else 0
    start, signal = ecg.segments[ecg.number]
    spans = tokenizer.spans(ecg.tokens)
    token, _, begin, end = spans[spans[:, 1] == row].T
    decoded = tokenizer.to_mv(*tokenizer.quantize(signal))
    title = f"{ecg.recording.name}, {start:g} to {ecg.seconds[1]:g} s"
    figure = figures.plot_tokens(
        signal[row], decoded[row], tokenizer.signal["fs"], leads[row], ecg.tokens[token], begin, end, title
    )
    keep(path, lambda: figures.save_figure(figure, path))


def draw_attention(conversation: Conversation, path: Path, method: str = "integrated") -> None:
    """Write a picture of the attribution of the last answer, on the last opened of the ECGs that it is about."""
    from ecgbyte_cli.render import figures

    with status("attributing the answer"):
        turn, ecg, density, words, values, _ = conversation_report.attribute_answer(conversation, method)
    title = f"{ecg.recording.name}: {turn.question} {turn.answer}   ({method}; research use only)"
    signal, about = ecg.segments[ecg.number][1], ecg.signal
    figure = figures.plot_attribution(
        signal, about["fs"], about["leads"], density, words, values, title, ecg.seconds[0]
    )
    keep(path, lambda: figures.save_figure(figure, path))


def save(conversation: Conversation, path: Path) -> None:
    """Write the conversation as Markdown, with a picture of each ECG next to it."""
    from ecgbyte_cli.render import figures

    drawn = []
    for i, ecg in enumerate(conversation.ecgs):
        recording = ecg.recording
        names = [readers.lead_name(name) or name for name in recording.leads]
        picture = path.with_name(f"{path.stem}-ecg{i + 1 if i else ''}.png")
        figure = figures.plot_sheet(recording.signal, recording.fs, names, recording.name, ecg.seconds[0])
        drawn.append((picture, figure))
    text = conversation_report.conversation_markdown(
        conversation, [picture.name for picture, _ in drawn], panel_facts
    )

    def write() -> None:
        for picture, figure in drawn:
            figures.save_figure(figure, picture)
        with atomic_write(path) as beside:
            beside.write_text(text, encoding="utf-8")

    keep(path, write)


def keep(path: Path, write: Callable[[], object]) -> None:
    """Write a file that the user named, and note it; an error is one line."""
    try:
        write()
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    note(f"written: {path}")
