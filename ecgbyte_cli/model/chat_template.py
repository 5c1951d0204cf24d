"""Chat templates, rendered in a process of their own under limits of time and memory.

A template comes with a base model, from anywhere, and is a program: two nested loops of it may take hours. Its
process reads a JSON object a line and answers with one; what takes too long ends that process, not this one. No
template sees the clock: the same conversation is the same text on every day.
"""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref

from ecgbyte_cli.failure import Failure

# limits of a rendering: seconds of a processor (a busy machine does not count), bytes, letters of its text
SECONDS, MEMORY, LETTERS = 5, 2**29, 2**22
DATE = "2024-07-26"  # what a template that asks for the date is told; Llama 3.1's own has it where there is no clock


class TemplateError(ValueError):
    """The template ended with an error of its own: some do so at a system message."""


class ChatTemplate:
    """A chat template.

    Parameters
    ----------
    source : str
        In Jinja's language.
    words : dict
        The special tokens that it may name: `bos_token`, ….
    date : str
        YYYY-MM-DD: the only date that it is told.
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
            answer = self.process.stdout.readline()  # type: ignore[union-attr]
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


def _start_process():
    # a session of its own: Ctrl-C is for this process, and that one ends when its input does
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "ecgbyte_cli.model.chat_template"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _send(process, value):
    try:
        process.stdin.write(json.dumps(value).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has ended: it gives no answer either
        pass


def _end(process):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not sent
            pipe.close()


def _serve():
    """Render what standard input says, a line at a time: what the process does."""
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
        except Exception as error:  # whatever a template can do: it is said on the other side
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


def _environment(date):
    """Jinja as Transformers sets it up for chat templates, but for the clock."""
    from datetime import datetime

    from jinja2 import exceptions, ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(ext.Extension):
        """Marks what the model writes; it changes nothing of the text."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return nodes.Scope(
                parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line
            )

    class Names(Namespace):
        """A namespace without private names, which would lead out of the sandbox."""

        def __init__(*args, **kwargs):
            self, *given = args
            values = dict(*given, **kwargs)
            for name in values:
                Names.check(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name, value):
            Names.check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name):
            if str(name).startswith("_"):
                raise exceptions.SecurityError(f"the name {name!r}")

    def raise_exception(message):
        raise exceptions.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": datetime.fromisoformat(date).strftime,
        "namespace": Names,
        "dict": lambda *args, **kwargs: dict(*args, **kwargs),
    }
    return environment


if __name__ == "__main__":
    _serve()
