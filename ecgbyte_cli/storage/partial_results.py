"""What a stage has done so far, in numbered files: an interrupted run goes on with those that are missing.

A part holds arrays one after the other, each as its length in bytes, its CRC-32, and a .npy file; a length of 0
ends it. Its name tells which settings it was made with, so that parts of other settings or data are never taken for it.
"""

import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from contextlib import contextmanager

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import atomic_write

FRAME = struct.Struct("<QI")  # length and CRC-32 of what follows
END = FRAME.pack(0, 0)


class PartialResults:
    """The parts of a stage's work.

    Parameters
    ----------
    folder : Path
        Of the parts; `remove` takes it away when they have been put together.
    settings : dict
        What the parts depend on.
    overwrite : bool
        Whether parts made with other settings may be removed.
    elsewhere : str
        What to do instead, for the message.

    Raises
    ------
    Failure
        If there are parts made with other settings, and `overwrite` is false.
    """

    def __init__(self, folder, settings, overwrite=False, elsewhere="use another --work folder"):
        self.folder = folder
        self.made_with = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        if any(not path.name.endswith(f".{self.made_with}.part") for path in folder.glob("*.part")):
            if not overwrite:
                raise Failure(
                    f"{folder} holds an interrupted run with other settings: add --overwrite, or {elsewhere}"
                )
            self.remove()

    def path(self, number):
        """The file of a part."""
        return self.folder / f"{number:07d}.{self.made_with}.part"

    def missing(self, count):
        """The numbers below `count` of the parts that are still to be made."""
        # one look at the folder: on shared storage a name that was asked for in vain may be remembered as missing
        there = {path.name for path in self.folder.glob("*.part")}
        return [number for number in range(count) if self.path(number).name not in there]

    @contextmanager
    def new(self, number):
        """Yield a function that writes the next array of a part; the part takes its place at the end."""
        with atomic_write(self.path(number)) as beside, open(beside, "wb") as file:

            def write(array):
                array = np.ascontiguousarray(array)
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
                header, data = header.getvalue(), array.reshape(-1).view(np.uint8).data
                file.write(FRAME.pack(len(header) + len(data), zlib.crc32(data, zlib.crc32(header))))
                file.write(header)
                file.write(data)

            yield write
            file.write(END)

    def read(self, number, which=slice(None)):
        """Yield the arrays of a part that the slice `which` picks, one in memory at a time.

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
                    content = bytearray(length)  # so that the array can be written to
                    file.readinto(content)
                    if zlib.crc32(content) != crc:
                        raise ValueError("wrong checksum")
                    yield _array(content)
        except (OSError, ValueError, struct.error) as error:
            raise Failure(
                f"{path} is damaged ({error}): remove it, and run the same command again"
            ) from error

    def _places(self, file):
        """Where each array's frame begins."""
        size, places, at = os.fstat(file.fileno()).st_size, [], 0
        while at < size - len(END):
            places.append(at)
            file.seek(at)
            at += FRAME.size + FRAME.unpack(file.read(FRAME.size))[0]
        file.seek(at)
        if at != size - len(END) or file.read() != END:
            raise ValueError("cut short")
        return places

    def remove(self):
        """Remove all parts; under another name first, so that none is taken for a whole set meanwhile."""
        away = self.folder.with_name(f".{self.folder.name}.{os.urandom(6).hex()}.old")
        self.folder.rename(away)
        shutil.rmtree(away)


def _array(content):
    """The array that the bytes of a .npy file hold, which are not copied."""
    start = 10 + int.from_bytes(content[8:10], "little")
    header = io.BytesIO(content[:start])
    np.lib.format.read_magic(header)
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)
