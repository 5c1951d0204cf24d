"""What the tests of the page and of its server share: a server in a thread, and a stand-in model that is slow.

python tests/serving.py FOLDER ecg_tokenizer.json      # the stand-in model, until it is killed; prints the address
"""

import contextlib
import http.client
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import uvicorn
from browsing import WAIT

from ecgbyte_cli.inference.session import LoadedModel, Session
from ecgbyte_cli.model import model_folder, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import serve
from ecgbyte_cli.web import app, middleware, recordings


class StandIn:
    """A model that writes `text`, a byte at a time, and waits before each."""

    offset, layout = 259, Layout(259)
    base = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=16384))

    def __init__(self, text_tokenizer, text, pause=0.0):
        self.text_tokenizer, self.text, self.pause = text_tokenizer, text, pause

    def stream(self, prompts, end_ids, max_new=64, cache=None, pick=None, **_):
        for i in self.text_tokenizer.encode(self.text, add_special_tokens=False)[:max_new]:
            time.sleep(self.pause)
            yield [i]


def stand_in(tokenizer, text, pause=0.0):
    """A session with a stand-in model."""
    _, text_tokenizer = tiny.build_tiny()
    about = {"base": "stand-in", "folder": "model", "notice": model_folder.NOTICE, "segmenter": "longest"}
    about["most_ecgs"] = 2
    reader = recordings.SharedReader(ECGTokenizer.from_file(tokenizer), "longest")
    lm = StandIn(text_tokenizer, text, pause)
    loaded = LoadedModel(lm, text_tokenizer, Prompt(text_tokenizer, lm.layout), None)
    return Session(Path("model"), about, reader, max_new=2000, loaded=loaded)


def service(source, model=None, reader=None, upload_bytes=2**20):
    """A `Service` for a folder, with a model or without one."""
    served = recordings.RecordingList(source and Path(source), upload_bytes)
    return app.Service(served, model, model.reader if model else reader)


@contextlib.contextmanager
def running(of, host="127.0.0.1", token=None, allowed=()):
    """Serve in a thread, and yield the address."""
    listening = serve.listen(host, 0)
    config = uvicorn.Config(
        app.build_app(of, host, token, allowed=allowed),
        http=middleware.BoundedProtocol,
        ws="none",
        log_level="critical",
        access_log=False,
        limit_concurrency=256,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until = time.monotonic() + WAIT
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until, "the server does not start"
            time.sleep(0.01)
        yield f"http://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(WAIT)
        listening.close()


@contextlib.contextmanager
def proxied(address, path):
    """A proxy that gives a server a path: it takes it off, and hands Host and Origin on. Yields its port."""
    behind = address.partition("://")[2]

    class Handler(BaseHTTPRequestHandler):
        def handed_on(self):
            if not self.path.startswith(path):
                return self.send_error(404)  # what is not below the path is another's
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(behind, timeout=30)
            connection.request(self.command, self.path.removeprefix(path[:-1]), body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = handed_on  # noqa: N815 (the names of http.server)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


if __name__ == "__main__":
    folder, tokenizer = sys.argv[1:]
    with running(service(folder, stand_in(tokenizer, "a long answer " * 100, 0.1))) as address:
        print(address, flush=True)
        time.sleep(600)
