"""The electrical heart vector as a sum of Gaussians, and its projection on the twelve leads.

A heartbeat is written as a few Gaussian waves (P, Q, R, S, T, …) on each of three orthogonal axes: McSharry,
Clifford, Tarassenko & Smith, "A dynamical model for generating synthetic electrocardiogram signals", IEEE
Trans. Biomed. Eng. 50 (2003) 289-294, eq. (1), extended to the vectorcardiogram by Sameni, Clifford, Jutten &
Shamsollahi, "Multichannel ECG and noise modeling", EURASIP J. Adv. Signal Process. (2007) 043407, eq. (3).
Here the Gaussians are functions of time, not of the phase of the beat, and have a width on either side of the peak,
because a T wave rises more slowly than it falls.
"""

import numpy as np
import numpy.typing as npt

from ecgbyte_kernels import jit

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# From a heart vector (x to the left, y to the feet, z to the back) to the leads: Dower's matrix, as used by
# Edenbrandt & Pahlm, "Vectorcardiogram synthesized from a 12-lead ECG: superiority of the inverse Dower
# matrix", J. Electrocardiol. 21 (1988) 361-367. Its pseudo-inverse, the "inverse Dower matrix" of the title, leads
# from these eight leads to the vector.
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

REACH = 5.0  # widths from the peak beyond which a Gaussian, e^-12.5 of the peak, is left out


def vcg(
    centres: npt.ArrayLike,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    vectors: npt.ArrayLike,
    fs: float,
    samples: int,
) -> np.ndarray:
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
def _vcg(
    centres: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    vectors: np.ndarray,
    fs: float,
    out: np.ndarray,
) -> None:
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


def twelve_leads(
    sources: npt.ArrayLike, matrix: npt.ArrayLike, noise: npt.ArrayLike, gain: float
) -> np.ndarray:
    """Mix sources into eight leads, round them to integers, and derive the other four leads.

    III = II - I (Einthoven), aVR = -(I + II) / 2, aVL = I - II / 2 and aVF = II - I / 2 (Goldberger) are
    computed on these integers, so that I + III = II holds exactly in the file, and the augmented leads are off by at
    most half a step (halves are rounded down).

    Parameters
    ----------
    sources : array_like, shape (sources, samples)
        Heart vector in mV, then interference.
    matrix : array_like, shape (8, sources)
        Weight of each source in I, II, V1 … V6: `DOWER` for the heart vector.
    noise : array_like, shape (8, samples)
        Noise of each of these leads, in mV.
    gain : float
        Steps per mV.

    Returns
    -------
    ndarray, int16, shape (samples, 12)
        All leads in the order of `LEADS`, a row per sample as in WFDB's format 16. I, II, V1 … V6 are
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
def _twelve_leads(
    sources: np.ndarray, matrix: np.ndarray, noise: np.ndarray, gain: float, out: np.ndarray
) -> None:
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
