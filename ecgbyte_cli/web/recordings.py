"""The recordings that are served: those of one folder, and those that were dropped on the page."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference.conversation import ECG, RecordingLoader
from ecgbyte_cli.readers import wfdb_header
from ecgbyte_cli.readers.recording import split_row
from ecgbyte_cli.web.middleware import Refused

KEPT_BYTES = 2**28  # of recordings, to show them again
MOST_DROPS, MOST_FILES = 32, 64  # drops that are kept, and files in one of them
LONGEST_NAME = 128


class RecordingList:
    """The recordings served, each under an id.

    Only what `readers.find` finds in the folder can be opened, and of that only what lies in the folder with all
    its files: a link is followed where it stays inside, and refused where it leads out.

    Parameters
    ----------
    source : Path or None
        A folder or a recording; None serves what is dropped alone.
    upload_bytes : int
        Of a file that is dropped; all of them together may have four times as many, then the oldest go.
    told : dict
        `fs`, `lead_names` and `units` of recordings that do not say them (see `readers.read_recording`).
    """

    def __init__(self, source: Path | None, upload_bytes: int, told: dict | None = None):
        self.source, self.upload_bytes, self.told = source, upload_bytes, told or {}
        folder = source if source is None or source.is_dir() else source.parent
        self.root = None if folder is None else os.path.abspath(folder)
        self.found: dict[str, str] = {}
        self.drops: OrderedDict[str, Upload] = OrderedDict()
        self.kept: OrderedDict[str, tuple[tuple, readers.Recording]] = OrderedDict()
        self.lock = threading.Lock()
        self.place = tempfile.TemporaryDirectory(prefix="ecgbyte-", ignore_cleanup_errors=True)
        self.look()

    def look(self) -> None:
        """Find what there is."""
        if self.source is None or self.root is None:
            return
        paths, _ = readers.find(self.source)
        real = os.path.realpath(self.root)
        folders = {folder: _inside(folder, real) for folder in {os.path.dirname(path) for path in paths}}
        self.found = {
            id_of(path): path
            for path in paths
            if folders[os.path.dirname(path)] and (not os.path.islink(path) or _inside(path, real))
        }

    def close(self) -> None:
        """Remove what was dropped."""
        self.place.cleanup()

    def listed(self, words: str = "") -> list[dict]:
        """The recordings whose names hold all the words: `id` and `name`, those that were dropped first."""
        every = [(i, path) for drop in reversed(self.drops.values()) for i, path in drop.found.items()]
        every += self.found.items()
        named = [{"id": i, "name": self.name(path)} for i, path in every]
        return [one for one in named if all(word in one["name"].lower() for word in words.lower().split())]

    def name(self, path: str) -> str:
        """What a recording is called: its path in the folder, or the file's name."""
        dropped = path.startswith(self.place.name + os.sep)
        name = os.path.basename(path) if dropped or self.root is None else os.path.relpath(path, self.root)
        return printable(name.removesuffix(".hea"))

    def path(self, number: str) -> str:
        """The path of a recording by its id, all of whose files lie where they may."""
        path = self.found.get(number)
        if path is not None and self.root is not None:
            files = wfdb_header.files_of(path) if path.endswith(".hea") else [split_row(path)[0]]
            if not all(_inside(file, os.path.realpath(self.root)) for file in files):
                raise Refused(403, f"{self.name(path)}: refused, as a link leads out of the folder served")
            return path
        for drop in self.drops.values():
            if number in drop.found:
                return drop.found[number]
        raise Refused(404, "no such recording")

    def at(self, path: str) -> str:
        """The id of a recording by its path, absolute or in the folder served, with or without its extension."""
        if self.root is None:
            raise Refused(403, "no folder is served: start `ecgbyte serve FOLDER`, or drop files")
        if "\0" in path or not path.strip():
            raise Refused(400, "no path")
        whole = os.path.normpath(os.path.join(self.root, path))
        if not (whole + os.sep).startswith(os.path.join(self.root, "")):
            raise Refused(403, f"{printable(path[:200])}: refused, as it is outside the folder served")
        for tried in (whole, whole + ".hea", os.path.splitext(whole)[0] + ".hea"):
            if id_of(tried) in self.found:
                return id_of(tried)
        others = [i for i, known in self.found.items() if os.path.splitext(known)[0] == whole]
        if not others:
            raise Refused(404, f"{printable(path[:200])}: no such recording in the folder served")
        return others[0]

    def recording(self, number: str) -> readers.Recording:
        """Read a recording, or take it as it was read last."""
        path = self.path(number)
        with self.lock:
            stamp = _stamp(path)
            if self.kept.get(number, (None,))[0] != stamp:
                self.kept[number] = stamp, self._read(path)
            self.kept.move_to_end(number)
            while len(self.kept) > 1 and sum(r.signal.nbytes for _, r in self.kept.values()) > KEPT_BYTES:
                self.kept.popitem(last=False)
            return self.kept[number][1]

    def _read(self, path):
        try:
            return readers.read_recording(path, **self.told)
        except readers.Unusable as error:
            raise Refused(422, f"{self.name(path)} cannot be read: {error.message}") from error

    async def drop(self, name: str, chunks: AsyncIterator[bytes], into: str | None) -> tuple[str, list[dict]]:
        """Take a file that was dropped; return what it lies in with others, and the recordings there.

        Parameters
        ----------
        name : str
        chunks : async iterator of bytes
        into : str or None
            What an earlier call returned, for files of one recording; None begins anew.
        """
        if (
            not name.isprintable()
            or set(name) & set("/\\:")
            or name.startswith(".")
            or len(name) > LONGEST_NAME
        ):
            raise Refused(400, "no name for a file")
        if into is None:
            folder = tempfile.mkdtemp(dir=self.place.name)
            into = os.path.basename(folder)
            self.drops[into] = Upload(folder)
        if into not in self.drops:
            raise Refused(404, "what was dropped with it is gone: drop all files together")
        drop = self.drops[into]
        if len(drop.sizes) >= MOST_FILES:
            raise Refused(413, f"no more than {MOST_FILES} files at once")
        part, size = os.path.join(drop.folder, f".{len(drop.sizes)}.{os.urandom(4).hex()}"), 0
        try:
            with open(part, "wb") as file:
                async for chunk in chunks:
                    size += file.write(chunk)
                    if size > self.upload_bytes:
                        raise Refused(413, f"too large: {self.upload_bytes} bytes at most")
            os.replace(part, os.path.join(drop.folder, name))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        drop.sizes[name] = size
        while len(self.drops) > MOST_DROPS or (
            len(self.drops) > 1 and sum(d.size for d in self.drops.values()) > 4 * self.upload_bytes
        ):
            shutil.rmtree(self.drops.popitem(last=False)[1].folder, ignore_errors=True)
        try:
            drop.found = {id_of(path): path for path in readers.find(drop.folder)[0]}
        except Failure:  # such as a signal file that comes before its header
            drop.found = {}
        return into, [{"id": i, "name": self.name(path)} for i, path in drop.found.items()]


@dataclass
class Upload:
    """Files that were dropped together."""

    folder: str
    sizes: dict[str, int] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


class SharedReader(RecordingLoader):
    """A reader that keeps the recordings it read last, for many conversations about the same ones."""

    KEPT = 4

    def read(self, path: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording, or take it as it was read last."""
        kept: OrderedDict[str, tuple[tuple, ECG]] = self.__dict__.setdefault("kept", OrderedDict())
        lock: threading.Lock = self.__dict__.setdefault("lock", threading.Lock())
        with lock:
            key, stamp = os.fspath(path), _stamp(path)
            if kept.get(key, (None,))[0] != stamp:
                kept[key] = stamp, super().read(path)
            kept.move_to_end(key)
            while len(kept) > self.KEPT:
                kept.popitem(last=False)
            return replace(kept[key][1])


def id_of(path: str) -> str:
    """The id of a recording."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _inside(path, real):
    return (os.path.realpath(path) + os.sep).startswith(os.path.join(real, ""))


def _stamp(path):
    try:
        found = os.stat(split_row(os.fspath(path))[0])
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns
