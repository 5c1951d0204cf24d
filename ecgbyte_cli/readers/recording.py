"""One recording in millivolts: what every reader returns, and what all of them share.

Every file is taken for hostile: it is read or refused with a reason, and nothing is allocated on the word of
a header alone.
"""

import os
import re
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ecgbyte_cli.failure import Failure

MOST_SAMPLES = 2**25  # of all leads together; half an hour of 12 leads at 1000 Hz is 2**24.4
MOST_LEADS = 512
STANDARD = {
    lead.lower(): lead for lead in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))
}
MILLIVOLTS = {"uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}


class Unusable(Failure):
    """A recording that cannot be used: "reason" or "reason: detail", without the file's name."""


@dataclass
class Recording:
    """One recording.

    Attributes
    ----------
    signal : numpy.ndarray
        float32 (leads, samples), mV; NaN where the file has no valid sample.
    fs : float
        Sampling rate, Hz.
    leads : list of str
        Names as in the file.
    name : str
        The record's name, without extension.
    path : str
        What `read` was given.
    comments : list of str
    start : datetime or None
    """

    signal: np.ndarray
    fs: float
    leads: list[str]
    name: str
    path: str
    comments: list[str] = field(default_factory=list)
    start: datetime | None = None

    def comment(self, key: str) -> str | None:
        """The text behind "key:" in the comments, or None."""
        for line in self.comments:
            name, colon, text = line.partition(":")
            if colon and name.strip().lower() == key:
                return text.strip()
        return None


def lead_name(name: str) -> str:
    """A lead's name in its usual spelling.

    "avr", "ECG aVR" and "Lead aVR (Goldberger)" are aVR, "DI" is I; what is no standard lead stays.
    """
    bare = re.sub(r"^((lead|ecg|ekg)[\s_]+)*|\s*\(.*\)$", "", name.strip(), flags=re.IGNORECASE)
    key = bare.lower()
    return STANDARD.get(key[1:] if key in ("di", "dii", "diii") else key, bare)


def check_promise(leads, samples):
    """Refuse what would not fit into memory, before anything is allocated."""
    if leads > MOST_LEADS or leads * samples > MOST_SAMPLES:
        raise Unusable(f"too large: {leads} leads of {samples} samples are promised")


def need_fs(fs):
    if fs is None:
        raise Unusable("sampling rate unknown: give it with --input-fs")
    return float(fs)


def stem(path):
    return os.path.splitext(os.path.basename(path))[0]
