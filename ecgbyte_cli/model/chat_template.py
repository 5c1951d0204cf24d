"""Render chat templates in a process of their own, with limits of time and memory.

A template comes with a base model, from anywhere, and is a program: two nested loops may take hours. The process reads
and answers one JSON object per line, and a template that takes too long ends that process alone. No template sees the
clock: a conversation is the same text every day.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from ecgbyte_cli.failure import Failure

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

# limits of a rendering: CPU seconds, bytes of memory, characters of its text
SECONDS, MEMORY, LETTERS = 5, 2**29, 2**22
DATE = "2024-07-26"  # for templates that need a date; Llama 3.1's template falls back to it


class TemplateError(ValueError):
    """The template raised an error, as some do for a system message."""


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source : str
        In Jinja's language.
    words : dict
        The special tokens that it may name: `bos_token`, ….
    date : str
        YYYY-MM-DD: the only date that it sees.
    name : str
        Of the model that it came with, for messages.
    """

    def __init__(self, source: str, words: dict, date: str, name: str):
        self.first = {"source": source, "words": words, "date": date, "seconds": SECONDS}
        self.name, self.lock = name, threading.Lock()
        self.process: subprocess.Popen | None = None

    def render(self, messages: list[dict]) -> str:
        """The text of a conversation.

        Raises
        ------
        TemplateError
            If the template raises an error.
        Failure
            If it takes more than its limits.
        """
        with self.lock:
            if self.process is None:
                self.process = _start_process()
                weakref.finalize(self, _end, self.process)
                _send(self.process, self.first)
            _send(self.process, messages)
            assert self.process.stdout
            answer = self.process.stdout.readline()
            if not answer:
                _end(self.process)
                self.process = None
                raise Failure(
                    f"the chat template of {self.name} takes more than {self.first['seconds']} s or {MEMORY >> 20} MB: "
                    "use a model with another one"
                )
        answer = json.loads(answer)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer["text"]


def _start_process() -> "subprocess.Popen[bytes]":
    # a session of its own: Ctrl-C is for this process, and that one ends when its input does
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ecgbyte_cli.model.chat_template"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _send(process: "subprocess.Popen[bytes]", value: object) -> None:
    assert process.stdin
    try:
        process.stdin.write(json.dumps(value).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has ended: it gives no answer either
        pass


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with contextlib.suppress(OSError):  # unsent input
            pipe.close()


def _serve() -> None:
    """Render the conversations on standard input, one per line: the main function of the process."""
    import resource

    first = json.loads(sys.stdin.readline())
    environment, template = _environment(first["date"]), None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, wherever it is
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, first["seconds"])
        try:
            template = template or environment.from_string(first["source"])
            text = template.render(
                messages=json.loads(line),
                tools=None,
                documents=None,
                add_generation_prompt=False,
                **first["words"],
            )
            if len(text) > LETTERS:
                raise ValueError(f"a text of {len(text)} letters")
            answer = {"text": text}
        except Exception as error:  # a template can raise anything: the other side reports it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialize a value as Transformers' filter `tojson` does."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment(date: str) -> "ImmutableSandboxedEnvironment":
    """Return Jinja as Transformers sets it up for chat templates, but for the clock."""
    from datetime import datetime

    from jinja2 import exceptions, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(ext.Extension):
        """Marks the answers; it does not change the text."""

        tags = {"generation"}

        def parse(self, parser: "Parser") -> "Node":
            line = next(parser.stream).lineno
            return nodes.Scope(
                parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
            )

    class Names(Namespace):
        """A namespace without private names, which would lead out of the sandbox."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *positional = args
            values = dict(*positional, **kwargs)
            for name in values:
                Names.check(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            Names.check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name: object) -> None:
            if str(name).startswith("_"):
                raise exceptions.SecurityError(f"the name {name!r}")

    def raise_exception(message: str) -> None:
        raise exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": datetime.fromisoformat(date).strftime,
        "namespace": Names,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return environment


if __name__ == "__main__":
    _serve()
