"""The recordings that the page shows: recordings in a folder, and uploads."""

import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.readers import wfdb_header
from ecgbyte_cli.readers.recording import split_row
from ecgbyte_cli.web.middleware import Refused

CACHE_BYTES = 2**28  # bytes of recently read recordings
MOST_FOLDERS = 500  # folders offered for selection
MOST_UPLOADS, MOST_FILES = 32, 64  # uploads, and files in one of them
LONGEST_NAME = 128
FORMAT_NAMES = {
    "": "a WFDB record", ".hea": "a WFDB record", ".edf": "EDF", ".bdf": "BDF", ".dcm": "DICOM", ".dicom": "DICOM",
    ".csv": "a CSV table", ".tsv": "a TSV table", ".npy": "a NumPy array", ".npz": "a NumPy archive", ".h5": "HDF5",
    ".hdf5": "HDF5", ".xml": "an XML file of a hospital system", ".scp": "SCP-ECG",
}  # fmt: skip


class RecordingList:
    """The recordings served, each with an id.

    Only recordings that `readers.find` finds can be opened, and only if all their files are in the folder: links inside
    the folder are followed, links out of it are rejected.

    Parameters
    ----------
    source : Path or None
        A folder or a recording; None serves uploads only.
    upload_bytes : int
        Largest upload. If all uploads exceed four times this size, the oldest are removed.
    read_options : dict
        `fs`, `lead_names` and `units` for files that do not state them (see `readers.read_recording`).
    """

    def __init__(self, source: Path | None, upload_bytes: int, read_options: dict | None = None):
        self.source, self.upload_bytes, self.read_options = source, upload_bytes, read_options or {}
        folder = source if source is None or source.is_dir() else source.parent
        self.root = None if folder is None else os.path.abspath(folder)
        self.found: dict[str, str] = {}  # id mapped to path, in natural order of the names
        self.names: dict[str, str] = {}  # path mapped to name
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.cache: OrderedDict[str, tuple[tuple, readers.Recording]] = OrderedDict()
        self.lock = threading.Lock()
        self.upload_folder = tempfile.TemporaryDirectory(prefix="ecgbyte-", ignore_cleanup_errors=True)
        self.look()

    def look(self) -> None:
        """Find the recordings in the folder."""
        if self.source is None or self.root is None:
            return
        paths, _ = readers.find(self.source)
        real = os.path.realpath(self.root)
        folders = {folder: _inside(folder, real) for folder in {os.path.dirname(path) for path in paths}}
        self.names = {
            path: self._name(path)
            for path in paths
            if folders[os.path.dirname(path)] and (not os.path.islink(path) or _inside(path, real))
        }
        ordered = sorted(self.names, key=lambda path: natural_key(self.names[path]))
        self.found = {id_of(path): path for path in ordered}

    def close(self) -> None:
        """Remove the uploads."""
        self.upload_folder.cleanup()

    def ids(self) -> list[str]:
        """Return the ids of all recordings, uploads first."""
        uploaded = [number for upload in reversed(self.uploads.values()) for number in upload.found]
        return [*uploaded, *self.found]

    def listed(self, words: str = "", folder: str = "") -> list[dict[str, str]]:
        """Return `id` and `name` of the recordings in a folder whose names contain all the words, uploads first.

        Parameters
        ----------
        words : str
        folder : str
            See `folders`; empty for all.
        """
        paths = [(i, path) for upload in reversed(self.uploads.values()) for i, path in upload.found.items()]
        paths += self.found.items()
        entries = [{"id": i, "name": self.name(path)} for i, path in paths]
        wanted, beginning = words.lower().split(), folder and folder + "/"
        return [
            entry
            for entry in entries
            if entry["name"].startswith(beginning) and all(word in entry["name"].lower() for word in wanted)
        ]

    def folders(self) -> list[dict[str, str | int]]:
        """Return `name` and `records` of the folders with recordings, and of their parent folders."""
        counts: dict[str, int] = {}
        for name in self.names.values():
            parts = name.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                place = "/".join(parts[:depth])
                counts[place] = counts.get(place, 0) + 1
        ordered = sorted(counts, key=natural_key)[:MOST_FOLDERS]
        return [{"name": place, "records": counts[place]} for place in ordered]

    def name(self, path: str) -> str:
        """Return the name of a recording: its path in the folder, or the file name of an upload."""
        return self.names.get(path) or self._name(path)

    def _name(self, path: str) -> str:
        uploaded = path.startswith(self.upload_folder.name + os.sep)
        name = os.path.basename(path) if uploaded or self.root is None else os.path.relpath(path, self.root)
        return printable(name.removesuffix(".hea"))

    def path(self, number: str) -> str:
        """Return the path of a recording by its id; check that all its files lie in the folder."""
        path = self.found.get(number)
        if path is not None and self.root is not None:
            files = wfdb_header.files_of(path) if path.endswith(".hea") else [split_row(path)[0]]
            if not all(_inside(file, os.path.realpath(self.root)) for file in files):
                raise Refused(
                    403, f"{self.name(path)}: rejected, because a link leads out of the served folder"
                )
            return path
        for upload in self.uploads.values():
            if number in upload.found:
                return upload.found[number]
        raise Refused(404, "no such recording")

    def at(self, path: str) -> str:
        """Return the id of a recording by its path, absolute or in the folder, with or without extension."""
        if self.root is None:
            raise Refused(403, "no folder is served: start `ecgbyte serve FOLDER`, or drop files")
        if "\0" in path or not path.strip():
            raise Refused(400, "no path")
        whole = os.path.normpath(os.path.join(self.root, path))
        if not (whole + os.sep).startswith(os.path.join(self.root, "")):
            raise Refused(403, f"{printable(path[:200])}: rejected, because it is outside the served folder")
        for candidate in (whole, whole + ".hea", os.path.splitext(whole)[0] + ".hea"):
            if id_of(candidate) in self.found:
                return id_of(candidate)
        others = [i for i, known in self.found.items() if os.path.splitext(known)[0] == whole]
        if not others:
            raise Refused(404, f"{printable(path[:200])}: no such recording in the served folder")
        return others[0]

    def recording(self, number: str) -> readers.Recording:
        """Read a recording, or return it from the cache."""
        path = self.path(number)
        with self.lock:
            stamp = _stamp(path)
            if self.cache.get(number, (None,))[0] != stamp:
                self.cache[number] = stamp, self._read(path)
            self.cache.move_to_end(number)
            while len(self.cache) > 1 and sum(r.signal.nbytes for _, r in self.cache.values()) > CACHE_BYTES:
                self.cache.popitem(last=False)
            return self.cache[number][1]

    def _read(self, path: str) -> readers.Recording:
        try:
            return readers.read_recording(path, **self.read_options, parts=True)
        except readers.Unusable as error:
            raise Refused(422, error.about(self.name(path))) from error

    async def drop(self, name: str, chunks: AsyncIterator[bytes], into: str | None) -> tuple[str, list[dict]]:
        """Save an uploaded file; return the id of its upload, and the recordings in the upload.

        Parameters
        ----------
        name : str
        chunks : async iterator of bytes
        into : str or None
            The id from an earlier call, for another file of the same recording; None starts a new upload.
        """
        if (
            not name.isprintable()
            or set(name) & set("/\\:")
            or name.startswith(".")
            or len(name) > LONGEST_NAME
        ):
            raise Refused(400, "not a file name")
        if into is None:
            folder = tempfile.mkdtemp(dir=self.upload_folder.name)
            into = os.path.basename(folder)
            self.uploads[into] = Upload(folder)
        if into not in self.uploads:
            raise Refused(404, "the other files of this upload are gone: drop all files together")
        upload = self.uploads[into]
        if len(upload.sizes) >= MOST_FILES:
            raise Refused(413, f"at most {MOST_FILES} files at once")
        upload.sizes[name] = await self._save(upload, name, chunks)
        self._evict()
        try:
            upload.found = {id_of(path): path for path in readers.find(upload.folder)[0]}
        except Failure:  # for example a signal file that arrives before its header
            upload.found = {}
        return into, [{"id": i, "name": self.name(path)} for i, path in upload.found.items()]

    def check(self, into: str) -> tuple[list[dict[str, str]], list[str]]:
        """Read the recordings of an upload; remove unreadable ones from the list.

        Returns
        -------
        (list of dict, list of str)
            `id` and `name` of each that can be read, and a message about each unreadable one.
        """
        upload = self.uploads.get(into)
        if upload is None:
            raise Refused(404, "no such upload")
        failed = []
        for number in list(upload.found):
            try:
                readers.read_recording(upload.found[number], **self.read_options, parts=True)
            except (readers.Unusable, Failure) as error:
                failed.append(plain_reason(self.name(upload.found.pop(number)), error.message))
        if not upload.found:
            self._remove(into)
        return [{"id": i, "name": self.name(path)} for i, path in upload.found.items()], failed

    def _remove(self, into: str) -> None:
        """Remove an upload."""
        shutil.rmtree(self.uploads.pop(into).folder, ignore_errors=True)

    async def _save(self, upload: "Upload", name: str, chunks: AsyncIterator[bytes]) -> int:
        """Write a file of an upload completely or not at all; return its size."""
        part = os.path.join(upload.folder, f".{len(upload.sizes)}.{os.urandom(4).hex()}")
        size = 0
        try:
            with open(part, "wb") as file:
                async for chunk in chunks:
                    size += file.write(chunk)
                    if size > self.upload_bytes:
                        raise Refused(413, f"too large: {self.upload_bytes} bytes at most")
            os.replace(part, os.path.join(upload.folder, name))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        return size

    def _evict(self) -> None:
        """Remove the oldest uploads if there are too many, or if they are too large."""
        while len(self.uploads) > MOST_UPLOADS or (
            len(self.uploads) > 1 and sum(u.size for u in self.uploads.values()) > 4 * self.upload_bytes
        ):
            self._remove(next(iter(self.uploads)))


@dataclass
class Upload:
    """Files uploaded together."""

    folder: str
    sizes: dict[str, int] = field(default_factory=dict)  # file name mapped to bytes
    found: dict[str, str] = field(default_factory=dict)  # recording id mapped to path

    @property
    def size(self) -> int:
        return sum(self.sizes.values())


@dataclass
class SharedReader(RecordingLoader):
    """A reader that caches recently read recordings, for conversations about the same ones."""

    CACHED: ClassVar[int] = 4
    cache: OrderedDict[str, tuple[tuple, ECG]] = field(default_factory=OrderedDict, init=False)
    lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def read(self, path: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording, or return a copy from the cache."""
        with self.lock:
            key, stamp = os.fspath(path), _stamp(path)
            if self.cache.get(key, (None,))[0] != stamp:
                self.cache[key] = stamp, super().read(path)
            self.cache.move_to_end(key)
            while len(self.cache) > self.CACHED:
                self.cache.popitem(last=False)
            return replace(self.cache[key][1])


def plain_reason(name: str, reason: str) -> str:
    """Return a sentence that says why an uploaded file cannot be read, without internal details."""
    form = FORMAT_NAMES.get(os.path.splitext(name)[1].lower(), "a recording")
    if reason.startswith("cannot be read"):  # the wording of the library that failed
        reason = "the file is damaged, or in another format"
    return f"{name} cannot be read as {form}: {reason}."


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts names as people do: 2 before 10."""
    return [
        (0, int(part), part) if part.isdecimal() and len(part) < 20 else (1, 0, part)
        for part in re.split(r"([0-9]+)", name.casefold())
        if part
    ]


def id_of(path: str) -> str:
    """Return the id of a recording: a hash of its path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _inside(path: str, real: str) -> bool:
    return (os.path.realpath(path) + os.sep).startswith(os.path.join(real, ""))


def _stamp(path: str | os.PathLike) -> tuple[int, ...]:
    """Return size and modification time of a file; an empty tuple if it cannot be read."""
    try:
        status = os.stat(split_row(os.fspath(path))[0])
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns
