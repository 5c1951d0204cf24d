"""What a person at a terminal sees: words that stay whole, and typing that waits."""

import io
import os
import pty
import sys
import termios

import pytest

from ecgbyte_cli.cli import output
from ecgbyte_cli.render import terminal


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_in_pieces_is_broken_between_words(size):
    text = "none of these: first degree AV block\nheart rate 87 per minute " + "x" * 30
    wrap = terminal.WordWrap(20)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    shown = "".join(map(wrap.add, pieces)) + wrap.end()
    assert shown.split() == text.split()
    lines = shown.split("\n")
    assert all(len(line.rstrip()) <= 20 for line in lines[:-1]) and lines[-1] == "x" * 30
    assert "degree AV block" in lines  # its own line ends where the text ends it


def test_nothing_is_shown_of_an_unfinished_word():
    wrap = terminal.WordWrap(20)
    assert wrap.add("fibril") == "" and wrap.add("lation is") == "fibrillation " and wrap.end() == "is"


def test_a_note_is_broken_between_words_on_a_terminal_alone(monkeypatch, capsys):
    text = "a rather long note with [brackets] and a-hyphenated-word that goes on and on"
    output.note(text)
    assert capsys.readouterr().err == text + "\n"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    output.note(text)
    output.note("/help   two  blanks")
    lines = sys.stderr.getvalue().splitlines()
    assert max(map(len, lines)) <= 30 and " ".join(lines[:-1]).split() == text.split()
    assert lines[-1] == "/help   two  blanks"


def test_typing_is_not_echoed_while_a_model_loads(monkeypatch):
    main, side = pty.openpty()
    with os.fdopen(side, "r+b", buffering=0) as stream:
        monkeypatch.setattr(sys, "stdin", stream)

        def echoes():
            return bool(termios.tcgetattr(stream)[3] & termios.ECHO)

        assert echoes()
        with pytest.raises(KeyboardInterrupt), terminal.quiet_typing():
            assert not echoes()
            os.write(main, b"Afib?\n")
            raise KeyboardInterrupt
        assert echoes()
        assert stream.readline() == b"Afib?\n"  # it waits for the prompt
    os.close(main)


def test_without_a_terminal_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x"))
    with terminal.quiet_typing():
        assert sys.stdin.read() == "x"
