"""Random variations of letters or signals for training, as if the same heart had been recorded again.

A variation of letters is a gain, an offset of each lead, and sometimes a missing lead. No noise is added: even a fifth
of a letter breaks up tokens, and a model trained on the fragments reads real recordings worse. A variation of a signal
is what recorders and their users differ in too: where the electrodes lie, high-pass, low-pass, the moment of sampling,
wander, muscle noise, missing stretches.
The random generator decides all of it, so that a resumed training sees the same.
"""

from collections.abc import Sequence

import numpy as np

from ecgbyte_kernels import jit

GAIN = 0.25  # largest change of the logarithm of the gain of letters
OFFSET = 0.5  # standard deviation of a lead's offset, in letters
DROP = 0.05  # how often a lead is missing
# Recorders keep their gain within 5 % (IEC 60601-2-25), and criteria such as those of hypertrophy depend on voltages
SIGNAL_GAIN = 0.05  # largest change of the logarithm of the gain of a signal
LEAD_GAIN = 0.03  # and of the gain of each of its leads
FLAT = 0.03  # mV: a lead that varies less was not recorded, and its electrode is not moved
CHEST = ("V1", "V2", "V3", "V4", "V5", "V6")
# each limb lead as a sum of I and II (Einthoven, Goldberger)
LIMB = {"I": (1, 0), "II": (0, 1), "III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)}
MOVED = 0.25  # largest part of the way that a chest electrode lies nearer to one of its neighbours
TURNED = np.radians(10)  # largest turn of the limb leads in the frontal plane
HIGH_PASS = (0.05, 0.67)  # Hz: the range of recorders' filters, each on in half of the cases
LOW_PASS = (25.0, 45.0)  # Hz
WANDER, NOISE = 0.1, 0.012  # mV: largest amplitude of the wander, largest standard deviation of the noise
SOMETIMES = 0.3  # how often there is wander, and how often noise
STRETCH = 0.05  # how often a stretch of one lead is missing


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


def varied_signal(
    signal: np.ndarray, fs: float, leads: Sequence[str], random: np.random.Generator, strength: float = 1.0
) -> np.ndarray:
    """Vary one segment as recorders and recordings vary.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV.
    fs : float
        Sampling rate in Hz.
    leads : sequence of str
        Names of the leads. The electrodes of those that are known are moved.
    random : numpy.random.Generator
        A new one for each sample and epoch.
    strength : float
        1 is the usual strength; 0 changes nothing.

    Returns
    -------
    numpy.ndarray
        float32, (leads, samples), mV.
    """
    count, samples = signal.shape
    gain = np.full(count, random.uniform(-SIGNAL_GAIN, SIGNAL_GAIN)) + random.uniform(
        -LEAD_GAIN, LEAD_GAIN, count
    )
    gain[random.random(count) < strength * DROP] = -np.inf  # as an electrode that came off
    shift = strength * random.random()
    corner, cutoff = random.uniform(*HIGH_PASS), random.uniform(*LOW_PASS)
    filtered = random.random(2) < 0.5 * min(strength, 1.0)
    out = np.empty((count, samples), np.float32)
    _recorded_again(
        np.ascontiguousarray(_electrodes_moved(signal, leads, random, min(strength, 1.0)), np.float32),
        np.exp(strength * gain),
        min(shift, 0.5),
        float(np.exp(-2 * np.pi * corner / fs)) if filtered[0] else 1.0,
        float(np.exp(-2 * np.pi * cutoff / fs)) if filtered[1] and 2 * cutoff < fs else 0.0,
        out,
    )
    if random.random() < strength * SOMETIMES:
        times = np.arange(samples) / fs
        waves = np.sin(2 * np.pi * (random.uniform(0.1, 0.6) * times + random.random((count, 1))))
        out += strength * WANDER * random.random((count, 1)) * waves
    if random.random() < strength * SOMETIMES:
        out += strength * NOISE * random.random() * random.standard_normal((count, samples))
    if random.random() < strength * STRETCH:
        length = int(random.uniform(0.2, 1.5) * fs)
        start = int(random.integers(max(1, samples - length)))
        out[random.integers(count), start : start + length] = 0
    return out


def _electrodes_moved(
    signal: np.ndarray, leads: Sequence[str], random: np.random.Generator, strength: float
) -> np.ndarray:
    """Mix each chest lead with a neighbour, and turn the limb leads in the frontal plane (Einthoven's triangle)."""
    at = {lead: row for row, lead in enumerate(leads) if np.ptp(signal[row]) > FLAT}
    out = signal.copy()
    for number, way in enumerate(strength * random.uniform(-MOVED, MOVED, len(CHEST))):
        neighbour = number + (1 if way > 0 else -1)
        if 0 <= neighbour < len(CHEST) and CHEST[number] in at and CHEST[neighbour] in at:
            own, other = signal[at[CHEST[number]]], signal[at[CHEST[neighbour]]]
            out[at[CHEST[number]]] = own + abs(way) * (other - own)
    angle = strength * random.uniform(-TURNED, TURNED)
    if "I" in at and "II" in at:
        one, two = signal[at["I"]], signal[at["II"]]
        down = (2 * two - one) / np.sqrt(3)
        change = (
            one * (np.cos(angle) - 1) - down * np.sin(angle),
            two * (np.cos(angle) - 1) + (np.sqrt(3) * one - down) * np.sin(angle) / 2,
        )
        for lead in LIMB.keys() & at.keys():
            out[at[lead]] = signal[at[lead]] + LIMB[lead][0] * change[0] + LIMB[lead][1] * change[1]
    return out


@jit
def _recorded_again(
    signal: np.ndarray, gain: np.ndarray, shift: float, slow: float, fast: float, out: np.ndarray
) -> None:
    leads, samples = signal.shape
    # Lagrange's cubic through four samples, at a fraction of a sample
    before = -shift * (shift - 1) * (shift - 2) / 6
    here = (shift + 1) * (shift - 1) * (shift - 2) / 2
    after = -(shift + 1) * shift * (shift - 2) / 2
    beyond = (shift + 1) * shift * (shift - 1) / 6
    for lead in range(leads):
        row = signal[lead]
        for i in range(samples):
            value = before * row[max(i - 1, 0)] + here * row[i]
            value += after * row[min(i + 1, samples - 1)] + beyond * row[min(i + 2, samples - 1)]
            out[lead, i] = value * gain[lead]
        if slow < 1.0:  # a high-pass of first order, as recorders have
            level = out[lead, 0]
            for i in range(samples):
                level = slow * level + (1.0 - slow) * out[lead, i]
                out[lead, i] -= level
        if fast > 0.0:  # a low-pass of first order, forwards and backwards
            level = out[lead, 0]
            for i in range(samples):
                level = fast * level + (1.0 - fast) * out[lead, i]
                out[lead, i] = level
            for i in range(samples - 1, -1, -1):
                level = fast * level + (1.0 - fast) * out[lead, i]
                out[lead, i] = level
