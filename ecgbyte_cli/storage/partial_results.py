"""Numbered files with the finished parts of a stage, so that an interrupted run resumes with the missing parts.

A part holds a sequence of arrays, each as its length in bytes, its CRC-32, and a .npy file; a length of 0 ends it.
Its name holds a hash of the settings, so that parts of other settings or data are never mixed.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import atomic_write

FRAME = struct.Struct("<QI")  # length and CRC-32 of the array that follows
END = FRAME.pack(0, 0)


class PartialResults:
    """The parts of a stage's work.

    Parameters
    ----------
    folder : Path
        Folder of the parts; `remove` removes it after joining.
    settings : dict
        All settings that the parts depend on.
    overwrite : bool
        Whether to remove parts with other settings.
    elsewhere : str
        Alternative to overwriting, for the message.

    Raises
    ------
    Failure
        If there are parts of other settings, and `overwrite` is false.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        elsewhere: str = "use another --work folder",
    ):
        self.folder = folder
        self.settings_hash = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        if any(not path.name.endswith(f".{self.settings_hash}.part") for path in folder.glob("*.part")):
            if not overwrite:
                raise Failure(
                    f"{folder} holds an interrupted run with other settings: add --overwrite, or {elsewhere}"
                )
            self.remove()

    def path(self, number: int) -> Path:
        """Return the path of a part."""
        return self.folder / f"{number:07d}.{self.settings_hash}.part"

    def missing(self, count: int) -> list[int]:
        """Return the numbers below `count` of the parts that do not exist yet."""
        # list the folder, because shared storage may cache that a name was missing
        existing = {path.name for path in self.folder.glob("*.part")}
        return [number for number in range(count) if self.path(number).name not in existing]

    @contextmanager
    def new(self, number: int) -> Iterator[Callable[[np.ndarray], None]]:
        """Yield a function that appends an array to a new part."""
        with atomic_write(self.path(number)) as beside, open(beside, "wb") as file:

            def write(array: np.ndarray) -> None:
                array = np.ascontiguousarray(array)
                buffer = io.BytesIO()
                np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(array))
                header, data = buffer.getvalue(), array.reshape(-1).view(np.uint8).data
                file.write(FRAME.pack(len(header) + len(data), zlib.crc32(data, zlib.crc32(header))))
                file.write(header)
                file.write(data)

            yield write
            file.write(END)

    def read(self, number: int, which: slice = slice(None)) -> Iterator[np.ndarray]:
        """Yield the arrays of a part selected by the slice `which`, with one in memory at a time.

        Raises
        ------
        Failure
            If the part is damaged.
        """
        path = self.path(number)
        try:
            with open(path, "rb") as file:
                for place in self._places(file)[which]:
                    file.seek(place)
                    length, crc = FRAME.unpack(file.read(FRAME.size))
                    content = bytearray(length)  # a bytearray makes the array writable
                    file.readinto(content)
                    if zlib.crc32(content) != crc:
                        raise ValueError("wrong checksum")
                    yield _array(content)
        except (OSError, ValueError, struct.error) as error:
            raise Failure(
                f"{path} is damaged ({error}): remove it, and run the same command again"
            ) from error

    def _places(self, file: BinaryIO) -> list[int]:
        """Return the position of each array's frame."""
        size, places, at = os.fstat(file.fileno()).st_size, list[int](), 0
        while at < size - len(END):
            places.append(at)
            file.seek(at)
            at += FRAME.size + FRAME.unpack(file.read(FRAME.size))[0]
        file.seek(at)
        if at != size - len(END) or file.read() != END:
            raise ValueError("cut short")
        return places

    def remove(self) -> None:
        """Remove all parts. The folder is renamed first, so that no run sees an incomplete folder."""
        away = self.folder.with_name(f".{self.folder.name}.{os.urandom(6).hex()}.old")
        self.folder.rename(away)
        shutil.rmtree(away)


def _array(content: bytearray) -> np.ndarray:
    """Return the array in the bytes of a .npy file, without copying them."""
    start = 10 + int.from_bytes(content[8:10], "little")
    header = io.BytesIO(content[:start])
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)
