"""What a stage has done so far, in numbered files: an interrupted run goes on with those that are missing."""

import json
import shutil

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.workdir import read_json, whole, write_json


class Parts:
    """The parts of a stage's work.

    Parameters
    ----------
    folder : Path
        Of the parts; `remove` takes it away when they have been put together.
    settings : dict
        What the parts depend on.
    overwrite : bool
        Whether parts made with other settings may be removed.

    Raises
    ------
    Failure
        If there are parts made with other settings, and `overwrite` is false.
    """

    def __init__(self, folder, settings, overwrite=False):
        self.folder = folder
        place = folder / "settings.json"
        if place.exists() and read_json(place) != json.loads(json.dumps(settings)):
            if not overwrite:
                raise Failure(
                    f"{folder} holds an interrupted run with other settings: "
                    "add --overwrite, or use another --work folder"
                )
            self.remove()
        for leftover in folder.parent.glob(".*.part"):  # of a killed run
            leftover.unlink(missing_ok=True)
        if not place.exists():
            write_json(place, settings)

    def path(self, number):
        """The file of a part."""
        return self.folder / f"{number:07d}.part"

    def missing(self, count):
        """The numbers below `count` of the parts that are still to be made."""
        return [number for number in range(count) if not self.path(number).exists()]

    def write(self, number, *arrays):
        """Write a part, whole or not at all."""
        with whole(self.path(number)) as beside, open(beside, "wb") as file:
            for array in arrays:
                np.save(file, array, allow_pickle=False)

    def read(self, number, count):
        """The first `count` arrays of a part."""
        with open(self.path(number), "rb") as file:
            return [np.load(file, allow_pickle=False) for _ in range(count)]

    def remove(self):
        """Remove all parts."""
        shutil.rmtree(self.folder)
