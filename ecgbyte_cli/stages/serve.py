"""ecgbyte serve: serve a web page that shows ECGs and answers questions about them."""

import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, model_option, recording_options, site_option
from ecgbyte_cli.cli.output import note, print_result, wants_json
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.session import MAX_NEW, Session, reading_options
from ecgbyte_cli.render.terminal import status
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.workdir import WorkDir

if TYPE_CHECKING:
    from starlette.applications import Starlette

BACKLOG, MOST_CONNECTIONS = 128, 256


@dataclass(frozen=True)
class ServeOptions:
    """Options of `ecgbyte serve`.

    Attributes
    ----------
    model, base : Path or None
        Model folder (None: the work folder's model, or the included one), and where its base model is now, if it has
        moved.
    device : str or None
        See `devices.choose_device`.
    site : Path or None
        Site file, from `ecgbyte findings --calibrate`.
    host, port
        Address and port to listen on; port 0 uses a free port.
    allow_hosts : sequence of str
        More host names of the page, such as a proxy's; any name makes a token necessary.
    open_page : bool
        Whether to open the page in the browser.
    max_new : int
        Longest answer, in tokens.
    upload_mb : int
        Largest file that can be dropped on the page, in MB.
    input_fs, lead_names, units
        Sampling rate in Hz, lead names separated by commas, and unit for files that do not state them; None uses the
        settings of `symbolize`.
    """

    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    site: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8765
    allow_hosts: Sequence[str] = ()
    open_page: bool = False
    max_new: int = MAX_NEW
    upload_mb: int = 64
    input_fs: float | None = None
    lead_names: str | None = None
    units: str | None = None


@click.command(
    cls=Stage,
    short_help="Show ECGs and answer questions on a web page.",
    epilog="Example: ecgbyte serve data/ --open",
)
@click.argument("source", metavar="[RECORD or FOLDER]", required=False, type=click.Path(path_type=Path))
@model_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=ServeOptions.port,
    show_default=True,
    help="Port to listen on; 0 uses a free port.",
)
@click.option(
    "--host",
    default=ServeOptions.host,
    show_default=True,
    help="Address to listen on. If others can reach it, the page's address contains a token.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    metavar="NAME",
    multiple=True,
    help="Answer under this host name too: the name of a proxy, with or without a port. Repeat the option for several. "
    "The page's address then contains a token.",
)
@loading_options
@site_option
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--max-new",
    type=click.IntRange(1),
    default=ServeOptions.max_new,
    show_default=True,
    help="Longest answer, in tokens.",
)
@click.option(
    "--upload-mb",
    type=click.IntRange(1),
    default=ServeOptions.upload_mb,
    show_default=True,
    help="Largest file that can be dropped on the page, in MB.",
)
@recording_options
@click.pass_obj
def command(work: WorkDir, source: Path | None, **options: Any) -> dict:
    """Serve a web page on this machine that shows ECGs and answers questions about them.

    The page shows the recordings of the folder, and files dropped on it: the sheet with its tokens, calipers, and the
    attribution of an answer. Everything is loaded from this machine. Ctrl-C ends it. Research use only: not a medical
    device.
    """
    return serve(work, source, ServeOptions(**options))


def serve(work: WorkDir, source: Path | None, options: ServeOptions) -> dict:
    """Serve the page until Ctrl-C.

    Parameters
    ----------
    work : WorkDir
    source : Path or None
        A folder of recordings, or one recording; None shows only files dropped on the page.
    options : ServeOptions

    Returns
    -------
    dict
        address, records (count), model (its folder or None), seconds.

    Raises
    ------
    Failure
        If starlette or uvicorn are not installed, the address is in use, or recordings or model cannot be read.
    """
    try:
        import uvicorn  # noqa: F401  (whether it is installed)

        from ecgbyte_cli.web import app, middleware, recordings
    except ImportError as error:
        raise Failure(f"{error.name} is not installed: pip install ecgbyte[web]") from error
    try:
        allowed = [middleware.allowed_host(text) for text in options.allow_hosts]
    except ValueError as error:
        raise click.UsageError(f"--allow-host takes {error}") from error
    reading = reading_options(work, options.input_fs, options.lead_names, options.units)
    served = recordings.RecordingList(source, options.upload_mb * 2**20, reading)
    try:
        listening = listen(options.host, options.port)
        guarded = allowed or not middleware.is_loopback(options.host)
        token = secrets.token_urlsafe(16) if guarded else None
        address = page_address(options.host, listening)
        note_token(address, token, [name for name, _ in allowed])
        session, reader = open_model(work, options)

        def started() -> None:
            shown = f"{address}?token={token}" if token else address
            (note if wants_json() else print_result)(f"{shown}   (Ctrl-C ends it)")
            if options.open_page:
                threading.Thread(target=webbrowser.open, args=(shown,), daemon=True).start()

        service, begun = app.Service(served, session, reader), time.perf_counter()
        run(app.build_app(service, options.host, token, started, allowed), listening)
    finally:
        served.close()
    return {
        "address": address,
        "records": len(served.found),
        "model": session and session.about["folder"],
        "seconds": time.perf_counter() - begun,
    }


def run(application: "Starlette", listening: socket.socket) -> None:
    """Run the server until Ctrl-C."""
    import uvicorn

    from ecgbyte_cli.web.middleware import BoundedProtocol

    config = uvicorn.Config(
        application,
        http=BoundedProtocol,
        ws="none",
        log_level="critical",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    try:
        with listening:
            uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # the usual way to stop
        note("ended")


def page_address(host: str, listening: socket.socket) -> str:
    """Return the address of the page."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"


def note_token(address: str, token: str | None, names: list[str]) -> None:
    """Note who can reach a page that needs a token; `names` are the proxies' names."""
    if token:
        reached = ", ".join([address, *names])
        note(f"others may reach {reached}: everyone who knows the token sees the recordings")
    if names:
        note(f"through a proxy, append ?token={token} to the proxy's address")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket."""
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=kind, backlog=BACKLOG)
    except OSError as error:
        raise Failure(
            f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port"
        ) from error
    # otherwise a response body waits up to 40 ms for the browser's delayed acknowledgement of its head
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def open_model(work: WorkDir, options: ServeOptions) -> tuple[Session | None, RecordingLoader | None]:
    """Load the model (None if PyTorch is missing), and return it with the reader of recordings."""
    from ecgbyte_cli.web.recordings import SharedReader

    fs, lead_names, units = options.input_fs, options.lead_names, options.units
    if options.model is None and not find_spec("torch"):
        note(
            "the page only shows ECGs, because the packages for models are not installed (pip install ecgbyte[llm])"
        )
        if not work.ecg_tokenizer.exists():
            return None, None
        tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
        return None, SharedReader(tokenizer, "longest", **reading_options(work, fs, lead_names, units))
    session = Session.open(
        *(options.model, work, options.base, options.device),
        max_new=options.max_new,
        loader=SharedReader,
        fs=fs,
        lead_names=lead_names,
        units=units,
        site=options.site,
    )
    with status(f"loading the model {session.about['folder']}"):
        session.load()
    return session, session.reader
