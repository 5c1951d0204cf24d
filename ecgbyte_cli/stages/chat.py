"""ecgbyte chat: talk about a recording."""

import os
import sys
from pathlib import Path

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, model_option
from ecgbyte_cli.cli.output import note, print_result, wants_json
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference import conversation_report
from ecgbyte_cli.inference.conversation import Conversation, RecordingLoader, Turn
from ecgbyte_cli.render.terminal import (
    COMMANDS,
    line_editor,
    panel_facts,
    print_greeting,
    print_lead,
    print_panel,
    status,
)
from ecgbyte_cli.storage.files import atomic_write


@click.command(
    cls=Stage,
    short_help="Talk about one recording.",
    epilog='Example: ecgbyte chat data/synth00001.hea -q "What is the rhythm?"',
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("-q", "--question", multiple=True, help="Ask this and leave; may be given several times.")
@model_option
@base_option
@click.option(
    "--max-new", type=click.IntRange(1), default=256, show_default=True, help="Longest answer in tokens."
)
@click.option(
    "--input-fs",
    type=click.FloatRange(0, min_open=True),
    default=None,
    show_default="as symbolize was told",
    help="Sampling rate of a file that does not say it (CSV, TSV, NumPy), in Hz.",
)
@click.option(
    "--lead-names",
    default=None,
    show_default="as symbolize was told, or the 12 in their usual order",
    help="Names of the leads in a file that does not say them (NumPy, HDF5), commas between.",
)
@click.option(
    "--units",
    type=click.Choice(["uV", "mV", "V"]),
    default=None,
    show_default="as symbolize was told, or mV",
    help="Unit of a file that does not say it (CSV, NumPy, HDF5).",
)
@click.option(
    "--keep-identity", is_flag=True, help="Show name, number and birth date that a hospital file holds."
)
@click.pass_obj
def command(work, record, question, **options):
    """Ask a trained model about a recording.

    The recording is preprocessed with the model's own settings: its sampling rate, leads, letters and merges.
    Without -q the questions come from the terminal, or from standard input, a line each; /help there lists
    the commands. Answers go to standard output, all else to standard error. Research use only: no medical
    device.
    """
    interactive = not question and sys.stdin.isatty()
    conversation = open_chat(work, record, **options, show=print_greeting if interactive else None)
    if interactive:
        note("Ask about the recording. /help lists the commands; /quit or Ctrl-D leaves.")
        with line_editor(work.chat_history) as read:
            talk(conversation, read, interactive=True)
    else:
        talk(conversation, iter(question or sys.stdin).__next__, strict=bool(question))
    return {
        "record": str(record),
        "ecg_tokens": sum(len(ecg.tokens) for ecg in conversation.ecgs),
        "turns": [turn.about() for turn in conversation.log if isinstance(turn, Turn)],
    }


def open_chat(
    work,
    record,
    *,
    model=None,
    base=None,
    max_new=256,
    input_fs=None,
    lead_names=None,
    units=None,
    keep_identity=False,
    show=None,
):
    """Read a recording and load a model.

    Parameters
    ----------
    work : WorkDir
    record : Path
        A recording, with or without its extension.
    model : Path or None
        Model folder; None is the work folder's.
    base : Path or None
        Where its base model is, if that has moved.
    max_new : int
        Longest answer in tokens.
    input_fs : float or None
        Sampling rate in Hz of recordings that do not say it; None is what `symbolize` was told.
    lead_names : str or None
        Names, with commas between, of the leads of recordings that do not say them; None as above.
    units : str or None
        Unit of recordings that do not say it; None as above.
    keep_identity : bool
        Whether to show what a hospital file says of whose it is.
    show : callable or None
        Called with the ECG and what ecgbyte.json says, before the model is loaded.

    Returns
    -------
    Conversation

    Raises
    ------
    Failure
        If there is no model, or the recording cannot be read or lacks leads that the model needs.
    """
    from ecgbyte_cli.inference import certainty
    from ecgbyte_cli.model import folder_checks
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

    model = folder_checks.choose_model_folder(work, model)
    # the recording first: it is read in a moment, and the model is not
    about = {**folder_checks.read_about(model), "folder": folder_checks.display_name(model)}
    folder_checks.base_model_of(model, about, base)
    told = {"fs": input_fs, "lead_names": lead_names and [name.strip() for name in lead_names.split(",")]}
    told = {**work.reading(), **{key: v for key, v in (told | {"units": units}).items() if v is not None}}
    told["keep_identity"] = keep_identity
    reader = RecordingLoader(ECGTokenizer.from_file(model / "ecg_tokenizer.json"), about["segmenter"], **told)
    ecg = reader.read(record)
    if show:
        show(ecg, about)

    with status(f"loading the model {about['folder']}"):
        from ecgbyte_cli.model import model_folder

        lm, text_tokenizer, tokenizer, _ = model_folder.load_model(model, base=base)
    known = certainty.read_certainty(model, tokenizer.vocab_size)
    return Conversation(lm, text_tokenizer, reader, about, [ecg], max_new, known)


def talk(conversation, read, *, strict=False, interactive=False):
    """Carry out lines, questions and commands, until they end.

    Parameters
    ----------
    conversation : Conversation
    read : callable
        Returns the next line, or raises StopIteration or EOFError. It may raise KeyboardInterrupt: the
        second one in a row, a stopped answer included, leaves.
    strict : bool
        Whether the first error ends it.
    interactive : bool
        Whether someone is watching.
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


def answer(conversation, question, interactive):
    """Ask, and write the answer to standard output as it comes; return whether it was stopped."""

    def show(piece):
        click.echo(printable(piece, "\n\t"), nl=False, err=wants_json())

    def think(reasoning):
        click.echo(click.style(printable(reasoning, "\n\t"), dim=True), err=True)

    for line in conversation.unlike():
        note(line)
    turn = conversation.ask(question, show if interactive or not wants_json() else lambda piece: None, think)
    if interactive:
        click.echo(err=wants_json())
    else:
        print_result()
    if turn.lost:
        note(f"(the prompt was longer than in training: {turn.lost} ECG tokens had no room)")
    if turn.stopped:
        note("(stopped)")
    elif not turn.answer:
        note("(no answer)")
    elif turn.certainty():
        note(f"({turn.certainty()})")
    for conflict in turn.conflicts:
        note(conflict.text)
    return turn.stopped


def obey(conversation, line, interactive):
    """Carry out a command of the conversation."""
    word, *rest = line.split(maxsplit=1)
    rest = rest[0].strip("\"'") if rest else ""
    if word == "/help":
        for usage, what in COMMANDS.items():
            note(f"{usage:21}{what}")
    elif word == "/ecg" and not rest:
        for ecg in conversation.ecgs:
            note(f"{ecg.recording.name}: {ecg.stretch()}, {len(ecg.tokens)} ECG tokens")
    elif word == "/ecg":
        ecg = conversation.open(os.path.expanduser(rest))
        if interactive:
            print_panel(ecg)
        note(f"{len(conversation.ecgs)} recordings are open; questions are about all of them, in this order")
        if len(conversation.ecgs) > conversation.about.get("most_ecgs", 1):
            note("the model was not trained on questions about so many: /clear keeps this one alone")
    elif word == "/segment":
        if not rest.isdecimal():
            raise Failure("which segment? /segment 2")
        ecg = conversation.segment(int(rest))
        if interactive:
            print_panel(ecg)
        note(f"{ecg.recording.name}: {ecg.stretch()}; what was said before is forgotten")
    elif word == "/lead":
        if not rest:
            raise Failure("which lead? /lead V1")
        print_lead(conversation.ecgs[-1], rest)
    elif word == "/tokens":
        draw_tokens(conversation, wanted_file(rest, ".png", word))
    elif word == "/attention":
        draw_attention(conversation, wanted_file(rest, ".png", word))
    elif word == "/save":
        save(conversation, wanted_file(rest, ".md", word))
    elif word == "/clear":
        conversation.clear()
        note(f"starting afresh with {conversation.ecgs[0].recording.name}")
    else:
        raise Failure(f"unknown command {word}: /help lists them")


def wanted_file(name, extension, word):
    """The path of a file that is to be written, if its name has the right extension."""
    path = Path(name).expanduser()
    if path.suffix.lower() != extension:
        raise Failure(f"which file? {word} FILE{extension}")
    return path


def draw_tokens(conversation, path):
    """Write the picture of the tokens of the ECG opened last."""
    from ecgbyte_cli.render import figures

    ecg, tokenizer = conversation.ecgs[-1], conversation.reader.tokenizer
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


def draw_attention(conversation, path, method="integrated"):
    """Write the picture of what the last answer drew on, of the ECGs that it is about the one opened last."""
    from ecgbyte_cli.render import figures

    with status("asking what the answer drew on"):
        turn, ecg, density, words, values = conversation_report.attribute_answer(conversation, method)
    title = f"{ecg.recording.name}: {turn.question} {turn.answer}   ({method}; research use only)"
    signal, about = ecg.segments[ecg.number][1], ecg.signal
    figure = figures.plot_attribution(
        signal, about["fs"], about["leads"], density, words, values, title, ecg.seconds[0]
    )
    keep(path, lambda: figures.save_figure(figure, path))


def save(conversation, path):
    """Write the conversation as Markdown, and a picture of each ECG beside it."""
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

    def write():
        for picture, figure in drawn:
            figures.save_figure(figure, picture)
        with atomic_write(path) as beside:
            beside.write_text(text, encoding="utf-8")

    keep(path, write)


def keep(path, write):
    """Write a file that the user named, and say so; what stands in the way is one line."""
    try:
        write()
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from error
    note(f"written: {path}")
