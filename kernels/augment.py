"""Random variations of letters for training, as if the same heart had been recorded again.

A variation is a gain, an offset of each lead, and sometimes a missing lead. The random generator decides all of it, so
that a resumed training sees the same. No noise is added: even a fifth of a letter breaks up tokens, and a model trained
on the fragments reads real recordings worse.
"""

import numpy as np

from ecgbyte_kernels import jit

GAIN = 0.25  # largest change of the logarithm of the gain
OFFSET = 0.5  # standard deviation of a lead's offset, in letters
DROP = 0.05  # how often a lead is missing


def varied(
    letters: np.ndarray, levels: int, random: np.random.Generator, strength: float = 1.0
) -> np.ndarray:
    """Vary the letters of one segment.

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, (leads, samples).
    levels : int
        Number of letters; the result is clipped.
    random : numpy.random.Generator
        A new one for each sample and epoch.
    strength : float
        1 is the usual strength; 0 changes nothing.

    Returns
    -------
    numpy.ndarray
        uint8, (leads, samples): with gain and offset around each lead's median letter.
    """
    leads = len(letters)
    centre = np.median(letters, axis=1)
    gain = float(np.exp(strength * random.uniform(-GAIN, GAIN)))
    offset = strength * OFFSET * random.standard_normal(leads)
    dropped = random.random(leads) < strength * DROP
    out = np.empty(letters.shape, np.uint8)
    _varied(np.ascontiguousarray(letters), levels, gain, centre, offset, dropped, out)
    return out


@jit
def _varied(
    letters: np.ndarray,
    levels: int,
    gain: float,
    centre: np.ndarray,
    offset: np.ndarray,
    dropped: np.ndarray,
    out: np.ndarray,
) -> None:
    leads, samples = letters.shape
    for lead in range(leads):
        if dropped[lead]:
            out[lead] = np.uint8(centre[lead])  # as an electrode that came off
            continue
        # (letter - centre) * gain + centre + offset
        base = centre[lead] * (1.0 - gain) + offset[lead]
        for i in range(samples):
            value = np.floor(letters[lead, i] * gain + base + 0.5)
            out[lead, i] = np.uint8(min(max(value, 0.0), levels - 1.0))
