"""Letters varied at random, as the same heart might have been recorded another time: for training.

A variation is a gain, an offset of each lead, noise below a letter, and sometimes a lead that is missing. All of it
follows from the random numbers given, so that a training that goes on after a stop sees the same.
"""

import numpy as np

from ecgbyte_kernels import jit

GAIN = 0.25  # largest change of the gain, as a part of it
OFFSET = 0.5  # standard deviation of a lead's offset, in letters
DITHER = 0.2  # width of the noise that is added before rounding, in letters: more would cut tokens to pieces
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
        Number of letters; what would lie beyond is clipped.
    random : numpy.random.Generator
        Decides everything; made anew for each sample and epoch.
    strength : float
        1 is the usual; 0 changes nothing.

    Returns
    -------
    numpy.ndarray
        uint8, (leads, samples): with gain and offset around each lead's median letter, and noise.
    """
    leads = len(letters)
    centre = np.median(letters, axis=1)
    gain = float(np.exp(strength * random.uniform(-GAIN, GAIN)))
    offset = strength * OFFSET * random.standard_normal(leads)
    dropped = random.random(leads) < strength * DROP
    noise = int(random.integers(2**63))
    out = np.empty(letters.shape, np.uint8)
    _varied(
        np.ascontiguousarray(letters), levels, gain, centre, offset, strength * DITHER, dropped, noise, out
    )
    return out


@jit
def _varied(letters, levels, gain, centre, offset, dither, dropped, noise, out):
    leads, samples = letters.shape
    for lead in range(leads):
        if dropped[lead]:
            out[lead] = np.uint8(centre[lead])  # as an electrode that came off
            continue
        # (letter - centre) * gain + centre + offset + dither * (u - 1/2), u uniform in 0 .. 1
        base = centre[lead] * (1.0 - gain) + offset[lead]
        for i in range(samples):
            u = _uniform(noise, lead * samples + i)
            value = np.floor(letters[lead, i] * gain + base + dither * (u - 0.5) + 0.5)
            out[lead, i] = np.uint8(min(max(value, 0.0), levels - 1.0))


@jit
def _uniform(seed, number):
    """The number-th of a seed's numbers in 0 .. 1: splitmix64 (Steele et al., OOPSLA 2014), which needs no state."""
    z = np.uint64(seed) + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0
