"""The electrical heart vector as a sum of Gaussians, and the twelve leads that it makes.

A heartbeat is written as a few Gaussian waves (P, Q, R, S, T, …) on each of three orthogonal axes: McSharry,
Clifford, Tarassenko & Smith, "A dynamical model for generating synthetic electrocardiogram signals", IEEE
Trans. Biomed. Eng. 50 (2003) 289-294, eq. (1), carried to the vectorcardiogram by Sameni, Clifford, Jutten &
Shamsollahi, "Multichannel ECG and noise modeling", EURASIP J. Adv. Signal Process. (2007) 043407, eq. (3).
Here the Gaussians are functions of time instead of the phase of the beat, and have a width of their own on
either side of the peak, because a T wave rises more slowly than it falls.
"""

import numpy as np

from ecgbyte_kernels import jit

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# The leads that a heart vector (x to the left, y to the feet, z to the back) makes: Dower's matrix, as used by
# Edenbrandt & Pahlm, "Vectorcardiogram synthesized from a 12-lead ECG: superiority of the inverse Dower
# matrix", J. Electrocardiol. 21 (1988) 361-367. Its pseudo-inverse is the "inverse Dower matrix" of the title,
# which goes the other way, from these eight leads to the vector.
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],  # I
        [0.235, 1.066, -0.132],  # II
        [-0.515, 0.157, -0.917],  # V1
        [0.044, 0.164, -1.387],  # V2
        [0.882, 0.098, -1.277],  # V3
        [1.213, 0.127, -0.601],  # V4
        [1.125, 0.127, -0.086],  # V5
        [0.831, 0.076, 0.230],  # V6
    ]
)

REACH = 5.0  # widths from the peak after which a Gaussian is left out: e^-12.5 of the peak


def vcg(centres, before, after, vectors, fs, samples):
    """Add up Gaussian waves on the three axes of the heart vector.

    Parameters
    ----------
    centres : array_like, shape (waves,)
        Time of each peak in s; sample k lies at k / fs. Waves may peak outside of the recording.
    before, after : array_like, shape (waves,)
        Width (standard deviation) before and after the peak, in s.
    vectors : array_like, shape (waves, 3)
        Height on x (to the left), y (to the feet) and z (to the back), in mV.
    fs : float
        Samples per second.
    samples : int
        Length of the result.

    Returns
    -------
    ndarray, float64, shape (3, samples)
        The heart vector in mV.

    Raises
    ------
    ValueError
        If the shapes do not agree, a width or `fs` is not positive, or a number is not finite.
    """
    centres = np.ascontiguousarray(centres, np.float64)
    before = np.ascontiguousarray(before, np.float64)
    after = np.ascontiguousarray(after, np.float64)
    vectors = np.ascontiguousarray(vectors, np.float64)
    waves = len(centres) if centres.ndim == 1 else -1
    if before.shape != (waves,) or after.shape != (waves,) or vectors.shape != (waves, 3):
        raise ValueError(
            f"one centre, width before, width after and vector per wave, not shapes {centres.shape}, "
            f"{before.shape}, {after.shape}, {vectors.shape}"
        )
    if not all(np.isfinite(a).all() for a in (centres, before, after, vectors)):
        raise ValueError("waves must be finite numbers")
    if not (fs > 0 and samples >= 0 and (before > 0).all() and (after > 0).all()):
        raise ValueError("widths and fs must be positive, samples not negative")
    out = np.zeros((3, samples))
    _vcg(centres, before, after, vectors, float(fs), out)
    return out


@jit
def _vcg(centres, before, after, vectors, fs, out):
    samples = out.shape[1]
    for w in range(len(centres)):
        centre = centres[w]
        first = max(0.0, np.ceil((centre - REACH * before[w]) * fs))
        last = min(samples - 1.0, np.floor((centre + REACH * after[w]) * fs))
        for k in range(int(first), int(last) + 1):
            # vector · exp(-(t - centre)² / 2 width²)
            d = k / fs - centre
            d /= before[w] if d < 0 else after[w]
            height = np.exp(-0.5 * d * d)
            out[0, k] += vectors[w, 0] * height
            out[1, k] += vectors[w, 1] * height
            out[2, k] += vectors[w, 2] * height


def twelve_leads(sources, matrix, noise, gain):
    """Mix sources into eight leads, make integers of them, and derive the other four leads.

    III = II - I (Einthoven), aVR = -(I + II) / 2, aVL = I - II / 2 and aVF = II - I / 2 (Goldberger) are
    computed on the integers that are written, so that I + III = II holds exactly in the file, and the
    augmented leads are off by half a step at most (halves are rounded down).

    Parameters
    ----------
    sources : array_like, shape (sources, samples)
        Heart vector in mV, then whatever else the electrodes pick up.
    matrix : array_like, shape (8, sources)
        What I, II, V1 … V6 see of each source: `DOWER` for the heart vector.
    noise : array_like, shape (8, samples)
        Noise of each of these leads, in mV.
    gain : float
        Steps per mV.

    Returns
    -------
    ndarray, int16, shape (samples, 12)
        All leads in the order of `LEADS`, a row per sample as WFDB's format 16 wants it. I, II, V1 … V6 are
        clipped to ±16000 steps, so that III fits too.

    Raises
    ------
    ValueError
        If the shapes do not agree.
    """
    sources = np.ascontiguousarray(sources, np.float64)
    matrix = np.ascontiguousarray(matrix, np.float64)
    noise = np.ascontiguousarray(noise, np.float32)
    if sources.ndim != 2 or matrix.shape != (8, len(sources)) or noise.shape != (8, sources.shape[1]):
        raise ValueError(
            f"sources {sources.shape}, matrix {matrix.shape} and noise {noise.shape} do not go together: "
            "(sources, samples), (8, sources), (8, samples)"
        )
    out = np.empty((sources.shape[1], 12), np.int16)
    _twelve_leads(sources, matrix, noise, float(gain), out)
    return out


@jit
def _twelve_leads(sources, matrix, noise, gain, out):
    for k in range(sources.shape[1]):
        for lead in range(8):
            mv = float(noise[lead, k])
            for s in range(sources.shape[0]):
                mv += matrix[lead, s] * sources[s, k]
            steps = int(max(-16000.0, min(16000.0, np.rint(mv * gain))))
            out[k, lead if lead < 2 else lead + 4] = steps
        one, two = int(out[k, 0]), int(out[k, 1])
        out[k, 2] = two - one
        out[k, 3] = (-one - two) // 2
        out[k, 4] = (2 * one - two) // 2
        out[k, 5] = (2 * two - one) // 2
