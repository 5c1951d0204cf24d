"""ecgbyte serve: a page to see ECGs and their tokens, and to ask about them."""

import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, model_option
from ecgbyte_cli.cli.output import note, print_result, wants_json
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.render.terminal import status
from ecgbyte_cli.storage.workdir import WorkDir

BACKLOG, MOST_CONNECTIONS = 128, 256


@click.command(
    cls=Stage,
    short_help="Show ECGs on a page, and answer there.",
    epilog="Example: ecgbyte serve data/ --open",
)
@click.argument("source", metavar="[RECORD or FOLDER]", required=False, type=click.Path(path_type=Path))
@model_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Where others reach it, a token in the page's address is needed.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    metavar="NAME",
    multiple=True,
    help="Answer under this name too: that of a proxy in front, with a port or without. Repeat it for several. A token "
    "is needed then.",
)
@base_option
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--max-new", type=click.IntRange(1), default=256, show_default=True, help="Longest answer in tokens."
)
@click.option(
    "--upload-mb",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Largest file to drop on the page.",
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
@click.pass_obj
def command(work: WorkDir, source: Path | None, **options: Any) -> dict:
    """Serve a page, on this machine, that shows ECGs and answers questions about them.

    It shows the recordings of the folder, and files dropped on it: the sheet, the tokens on it, calipers, and
    what an answer drew on. Everything is loaded from this machine. Ctrl-C ends it. Research use only: no
    medical device.
    """
    return serve(work, source, **options)


def serve(
    work: WorkDir,
    source: Path | None = None,
    *,
    model: Path | None = None,
    base: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    allow_hosts: Sequence[str] = (),
    open_page: bool = False,
    max_new: int = 256,
    upload_mb: int = 64,
    input_fs: float | None = None,
    lead_names: str | None = None,
    units: str | None = None,
) -> dict:
    """Serve the page until Ctrl-C.

    Parameters
    ----------
    work : WorkDir
    source : Path or None
        A folder of recordings, or one; None shows what is dropped alone.
    model : Path or None
        Model folder; None is the work folder's, or the one that comes with the package.
    host, port
        What to listen at; port 0 takes a free one.
    allow_hosts : sequence of str
        Further names under which the page is asked for, such as a proxy's; with any, a token is needed.
    open_page : bool
        Whether to open the page in the browser.
    max_new : int
        Longest answer in tokens.
    upload_mb : int
        Largest file that may be dropped.
    base, input_fs, lead_names, units
        As `chat` has them.

    Returns
    -------
    dict
        address, records (how many), model (its folder or None), seconds.

    Raises
    ------
    Failure
        If starlette or uvicorn are not installed, the address is taken, or recordings or model cannot be read.
    """
    try:
        import uvicorn

        from ecgbyte_cli.web import app, middleware, recordings
    except ImportError as error:
        raise Failure(f"{error.name} is not installed: pip install ecgbyte[web]") from error
    try:
        allowed = [middleware.allowed_host(text) for text in allow_hosts]
    except ValueError as error:
        raise click.UsageError(f"--allow-host takes {error}") from error
    names = lead_names and [name.strip() for name in lead_names.split(",")]
    told: dict[str, Any] = {"fs": input_fs, "lead_names": names, "units": units}
    told = {**work.reading(), **{key: value for key, value in told.items() if value is not None}}
    served = recordings.RecordingList(source, upload_mb * 2**20, told)
    try:
        listening = listen(host, port)
        token = secrets.token_urlsafe(16) if allowed or not middleware.is_loopback(host) else None
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
        shown = f"{address}?token={token}" if token else address
        if token:
            reached = ", ".join([address, *(name for name, _ in allowed)])
            note(f"others may reach {reached}: whoever knows its token sees the recordings served")
        if allowed:
            note(f"through a proxy, put ?token={token} behind the proxy's own address")
        loaded, reader = load(work, model, base, max_new, told)

        def started():
            (note if wants_json() else print_result)(f"{shown}   (Ctrl-C ends it)")
            if open_page:
                threading.Thread(target=webbrowser.open, args=(shown,), daemon=True).start()

        config = uvicorn.Config(
            app.build_app(app.Service(served, loaded, reader), host, token, started, allowed),
            http=middleware.BoundedProtocol,
            ws="none",
            log_level="critical",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
        begun = time.perf_counter()
        try:
            with listening:
                uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # the way to end it
            note("ended")
    finally:
        served.close()
    return {
        "address": address,
        "records": len(served.found),
        "model": loaded and loaded.about["folder"],
        "seconds": time.perf_counter() - begun,
    }


def listen(host, port):
    """A socket that listens."""
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=kind, backlog=BACKLOG)
    except OSError as error:
        raise Failure(
            f"cannot listen at {host}, port {port}: {error.strerror}; --port names another"
        ) from error


def load(work, model, base, max_new, told):
    """The model (None where there is none) and the reader whose tokens are shown (None without a tokenizer)."""
    from ecgbyte_cli.inference import certainty
    from ecgbyte_cli.model import folder_checks
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer
    from ecgbyte_cli.web.app import Model
    from ecgbyte_cli.web.recordings import SharedReader

    if model is None and not find_spec("torch"):
        note("the page shows ECGs alone: what a model needs is not installed (pip install ecgbyte[llm])")
        if not work.ecg_tokenizer.exists():
            return None, None
        return None, SharedReader(ECGTokenizer.from_file(work.ecg_tokenizer), "longest", **told)
    folder = folder_checks.choose_model_folder(work, model)
    with status(f"loading the model {folder_checks.display_name(folder)}"):
        from ecgbyte_cli.model import model_folder

        lm, text_tokenizer, tokenizer, about = model_folder.load_model(folder, base=base)
    reader = SharedReader(tokenizer, about.get("segmenter", "longest"), **told)
    known = certainty.read_certainty(folder, tokenizer.vocab_size)
    return Model(
        lm, text_tokenizer, reader, {**about, "folder": folder_checks.display_name(folder)}, max_new, known
    ), reader
