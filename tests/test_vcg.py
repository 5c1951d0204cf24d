import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ecgbyte_kernels.vcg import DOWER, LEADS, twelve_leads, vcg

pytestmark = pytest.mark.kernels


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), waves=st.integers(0, 6), samples=st.integers(0, 80), fs=st.floats(20, 200)
)
def test_vcg_is_the_sum_of_gaussians(seed, waves, samples, fs):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1, samples / fs + 1, waves)
    before, after = rng.uniform(0.003, 0.3, (2, waves))
    vectors = rng.normal(0, 1, (waves, 3))
    expected = naive.vcg(centres, before, after, vectors, fs, samples)
    # what is left out beyond five widths is less than 4e-6 of each wave
    assert vcg(centres, before, after, vectors, fs, samples) == pytest.approx(expected, abs=4e-6 * 5 * 6)


def test_vcg_peak_and_widths():
    heart = vcg([0.5], [0.1], [0.05], [[1.0, 0.0, -2.0]], 100, 100)
    assert heart[:, 50].tolist() == [1, 0, -2]
    assert heart[0, 40] == pytest.approx(np.exp(-0.5))
    assert heart[0, 55] == pytest.approx(np.exp(-0.5))
    assert heart[0, 90:].tolist() == [0] * 10


@pytest.mark.parametrize(
    "changes",
    [
        {"before": [0.0]},
        {"after": [-0.1]},
        {"fs": 0},
        {"samples": -1},
        {"centres": [np.nan]},
        {"vectors": [[1.0, np.inf, 0.0]]},
        {"vectors": [[1.0, 1.0]]},
        {"centres": [0.1, 0.2]},
    ],
)
def test_vcg_refuses(changes):
    wave = {"centres": [0.1], "before": [0.1], "after": [0.1], "vectors": [[1, 1, 1]], "fs": 10, "samples": 5}
    with pytest.raises(ValueError, match="wave|widths"):
        vcg(**{**wave, **changes})


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sources=st.integers(0, 5),
    samples=st.integers(0, 40),
    size=st.sampled_from([1, 30]),
)
def test_twelve_leads_is_a_matrix_product_and_four_formulas(seed, sources, samples, size):
    rng = np.random.default_rng(seed)
    # multiples of 1/8 mV and of 1/4: products and sums are exact, so that rounding is compared too
    signals = rng.integers(-8, 9, (sources, samples)) * size / 8
    matrix = rng.integers(-4, 5, (8, sources)) / 4
    noise = (rng.integers(-3, 4, (8, samples)) / 64).astype(np.float32)
    steps = twelve_leads(signals, matrix, noise, 500)
    expected = naive.twelve_leads(signals, matrix, noise, 500)
    assert (steps == expected).all()
    one, two, three, avr, avl, avf = steps[:, :6].astype(int).T
    assert (one + three == two).all()
    for derived, twice in ((avr, -one - two), (avl, one - three), (avf, two + three)):
        assert (np.abs(2 * derived - twice) <= 1).all()


def test_twelve_leads_clips_before_it_derives():
    steps = twelve_leads(np.array([[1e6]]), np.array([[-1.0], [1], *[[0.5]] * 6]), np.zeros((8, 1)), 1000)
    assert steps.dtype == np.int16
    assert steps[0].tolist() == [-16000, 16000, 32000, 0, -24000, 24000, *[16000] * 6]


def test_twelve_leads_refuses():
    with pytest.raises(ValueError, match="do not go together"):
        twelve_leads(np.zeros((3, 5)), DOWER, np.zeros((8, 6)), 1000)
    with pytest.raises(ValueError, match="do not go together"):
        twelve_leads(np.zeros((2, 5)), DOWER, np.zeros((8, 5)), 1000)


def test_the_matrix_is_the_one_that_the_inverse_dower_matrix_inverts():
    # Edenbrandt & Pahlm 1988: x, y, z from V1 … V6, I, II
    published = np.array(
        [
            [-0.172, -0.074, 0.122, 0.231, 0.239, 0.194, 0.156, -0.010],
            [0.057, -0.019, -0.106, -0.022, 0.041, 0.048, -0.227, 0.887],
            [-0.229, -0.310, -0.246, -0.063, 0.055, 0.108, 0.022, 0.102],
        ]
    )
    inverse = np.linalg.pinv(DOWER)
    assert np.roll(inverse, -2, axis=1) == pytest.approx(published, abs=0.002)
    assert LEADS == ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
