import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import naive
from ecgbyte_cli.signal import quantizers
from ecgbyte_kernels import quantize as q

pytestmark = pytest.mark.kernels

PAPER = {"name": "paper", "levels": 26, "lo": -1.5, "hi": 1.25}
MULAW = {"name": "mulaw", "levels": 26, "mu": 20.0, "limit": 5.0}
signals = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-8, 8, width=32))


@given(signals, st.integers(2, 256))
@settings(max_examples=60, deadline=None)
def test_paper_is_the_formula(signal, levels):
    quantizer = PAPER | {"levels": levels}
    letters, lo, hi = quantizers.quantize(signal, quantizer)
    assert letters.dtype == np.uint8 and (lo, hi) == (-1.5, 1.25)
    assert np.array_equal(letters, naive.letters_by_steps(signal, -1.5, 1.25, levels))


def test_a_value_a_hair_below_an_edge_has_the_letter_below():
    """Single precision would round it onto the edge, as Python's arithmetic without JIT does."""
    letters, _, _ = quantizers.quantize(np.array([-(2.0**-52)], np.float32), PAPER | {"levels": 33})
    assert letters.tolist() == [17]


@given(signals)
@settings(max_examples=60, deadline=None)
def test_minmax_takes_each_segments_own_range(signal):
    letters, lo, hi = quantizers.quantize(signal, {"name": "minmax", "levels": 26})
    assert lo == signal.min() and hi == signal.max()
    back = quantizers.dequantize(letters, {"name": "minmax", "levels": 26}, lo, hi)
    assert np.abs(back - signal).max() <= (hi - lo) / 52 * 1.0001 + 1e-6


def test_a_flat_segment_survives_minmax():
    letters, lo, hi = quantizers.quantize(np.full((2, 5), 0.3, np.float32), {"name": "minmax", "levels": 26})
    assert not letters.any()
    assert np.allclose(quantizers.dequantize(letters, {"name": "minmax", "levels": 26}, lo, hi), 0.3)


ELM = {"name": "minmax", "levels": 26, "margin": 1e-6}
# values of a converter lie on the edges of levels, where the margin decides
stepped = hnp.arrays(np.float32, st.integers(1, 60), elements=st.integers(-600, 600).map(lambda i: i / 200))
narrow = hnp.arrays(np.float32, st.integers(1, 60), elements=st.integers(0, 60).map(lambda i: i * 1e-6))


@given(st.one_of(signals, stepped, narrow), st.integers(2, 256))
@settings(max_examples=150, deadline=None)
def test_minmax_with_a_margin_is_elms_formula_to_the_bit(signal, levels):
    quantizer = ELM | {"levels": levels}
    letters, lo, hi = quantizers.quantize(signal, quantizer)
    assert letters.dtype == np.uint8 and (lo, hi) == (signal.min(), signal.max())
    assert np.array_equal(letters, naive.letters_by_own_range(signal, levels, 1e-6))
    back = quantizers.dequantize(letters, quantizer, lo, hi)
    assert np.abs(back - signal).max() <= (hi - lo + 1e-6) / levels / 2 * 1.0001 + 1e-6


def test_the_margin_decides_on_an_edge():
    """26 levels of 62.5 uV: a value on an edge has the letter above, and with the margin the letter below."""
    signal = np.arange(27, dtype=np.float32) * np.float32(0.0625)
    plain = quantizers.quantize(signal, {"name": "minmax", "levels": 26})[0]
    assert plain.tolist() == [*range(26), 25]
    assert quantizers.quantize(signal, ELM)[0].tolist() == [0, *range(26)]


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_flat_segment_survives_elms_formula(value):
    letters, lo, hi = quantizers.quantize(np.full((2, 5), value, np.float32), ELM)
    assert not letters.any() and np.allclose(quantizers.dequantize(letters, ELM, lo, hi), value, atol=1e-6)


@given(signals, st.sampled_from([20.0, 255.0]))
@settings(max_examples=60, deadline=None)
def test_mulaw_is_equal_steps_of_the_companded_value(signal, mu):
    quantizer = MULAW | {"mu": mu}
    letters, lo, hi = quantizers.quantize(signal, quantizer)
    assert (lo, hi) == (-5, 5)
    x = np.clip(signal.astype(float), -5, 5)
    companded = np.sign(x) * np.log1p(mu * np.abs(x) / 5) / np.log1p(mu)
    place = (companded + 1) * 13
    expected = np.clip(np.floor(place), 0, 25)
    sure = np.abs(place - np.round(place)) > 1e-6  # a value on an edge may round to either side
    assert np.array_equal(letters[sure], expected[sure])
    assert np.abs(letters - expected).max() <= 1


def test_decoding_gives_the_middle_of_the_level_and_comes_back_to_the_same_letter():
    letters = np.arange(26, dtype=np.uint8)
    middles = -1.5 + 2.75 * (np.arange(26) + 0.5) / 26
    assert np.allclose(quantizers.dequantize(letters, PAPER), middles)
    assert quantizers.dequantize(letters, PAPER).dtype == np.float32
    for quantizer in (PAPER, MULAW):
        assert np.array_equal(
            quantizers.quantize(quantizers.dequantize(letters, quantizer), quantizer)[0], letters
        )


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=finite))
@settings(max_examples=80, deadline=None)
def test_bits_are_counted_in_the_order_of_values(values):
    counts = np.zeros(65536, np.int64)
    q.count_upper(values, counts)
    assert counts.sum() == values.size
    below = np.cumsum(counts) - counts
    ordered = np.sort(values)
    for rank in range(values.size):
        upper = np.searchsorted(below, rank, "right") - 1
        lower = np.zeros(65536, np.int64)
        q.count_lower(values, upper, lower)
        place = np.searchsorted(np.cumsum(lower), rank - below[upper], "right")
        assert q.value_of(upper, place) == ordered[rank]


@given(hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-5, 5)), st.floats(0, 100))
@settings(max_examples=60, deadline=None)
def test_ranks_are_numpys(values, percent):
    a, b, part = q.ranks_of(percent, values.size)
    ordered = np.sort(values)
    assert np.isclose(ordered[a] + (ordered[b] - ordered[a]) * part, np.percentile(values, percent))


def test_lloyd_levels_are_centroids_of_the_nearest_values():
    rng = np.random.default_rng(5)
    values = rng.laplace(0, 0.3, 20_000).astype(np.float32)
    counts = np.zeros(65536, np.int64)
    q.count_upper(values[:2000], counts)  # few, so that the plain-Python run stays short
    edges, centroids = q.fit_lloyd(counts, 26)
    assert np.all(np.diff(edges) > 0) and np.all(np.diff(centroids) > 0)
    assert np.allclose(edges[1:-1], (centroids[:-1] + centroids[1:]) / 2)
    quantizer = {"name": "lloyd", "levels": 26, "edges": edges.tolist(), "centroids": centroids.tolist()}
    letters, lo, hi = quantizers.quantize(values[:2000], quantizer)
    assert lo == edges[0] and hi == edges[-1]
    assert np.array_equal(letters, np.searchsorted(edges[1:-1], values[:2000], "right"))
    for letter in range(26):  # the counters blur a value by 0.4 % at most
        mine = values[:2000][letters == letter].astype(float)
        assert abs(mine.mean() - centroids[letter]) <= 0.01 * max(np.abs(mine).max(), 0.01)

    def error(quantizer):
        letters = quantizers.quantize(values[:2000], quantizer)[0]
        return np.mean((quantizers.dequantize(letters, quantizer) - values[:2000]) ** 2)

    assert error(quantizer) < 0.8 * error(PAPER | {"lo": float(values.min()), "hi": float(values.max())})
    assert error(quantizer) < 0.8 * error(MULAW)


def test_lloyd_needs_as_many_values_as_levels():
    counts = np.zeros(65536, np.int64)
    q.count_upper(np.zeros(9, np.float32), counts)
    with pytest.raises(ValueError, match="too few"):
        q.fit_lloyd(counts, 2)


@pytest.mark.parametrize(
    "quantizer",
    [
        PAPER | {"levels": 1},
        PAPER | {"levels": 257},
        PAPER | {"lo": 2.0},
        PAPER | {"hi": float("nan")},
        PAPER | {"name": "other"},
    ],
)
def test_a_quantizer_that_makes_no_sense_is_refused(quantizer):
    with pytest.raises(ValueError):
        quantizers.quantize(np.zeros(3, np.float32), quantizer)


def test_minmax_cannot_be_decoded_without_its_range():
    with pytest.raises(ValueError, match="range"):
        quantizers.dequantize(np.zeros(3, np.uint8), {"name": "minmax", "levels": 26})


TRELLIS = {"name": "trellis", "levels": 43, "mu": 2.0, "limit": 16.0, "penalty": 0.25}


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 6), elements=st.floats(-2, 2, width=32)),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.5, 1.5]),
)
def test_trellis_letters_cost_least_of_all(signal, levels, penalty):
    quantizer = {"name": "trellis", "levels": levels, "mu": 2.0, "limit": 2.0, "penalty": penalty}
    letters, lo, hi = quantizers.quantize(signal, quantizer)
    size = np.sqrt(np.mean(signal.astype(float) ** 2))
    assert hi == -lo == pytest.approx(2 * size)
    centres = quantizers.values_of_levels(quantizer, lo, hi)
    cost = penalty * np.diff(centres).min() ** 2
    for row, mine in zip(signal.astype(float), letters, strict=True):
        least = naive.least_cost_of_letters(row, centres, cost)
        assert naive.cost_of_letters(row, mine, centres, cost) == pytest.approx(least, abs=1e-9)


def test_trellis_is_of_the_segments_own_size_and_stays_in_the_levels():
    t = np.arange(500) / 250
    signal = (np.sin(2 * np.pi * t) + 3 * np.exp(-(((t % 1) - 0.5) ** 2) / 2e-4)).astype(np.float32)[None]
    letters, lo, hi = quantizers.quantize(signal, TRELLIS)
    ten_times, lo10, hi10 = quantizers.quantize(10 * signal, TRELLIS)
    assert np.array_equal(letters, ten_times) and (lo10, hi10) == pytest.approx((10 * lo, 10 * hi))
    back = quantizers.dequantize(letters, TRELLIS, lo, hi)
    edges = np.concatenate([[-np.inf], hi / 16 * q.companded_edges(43, 2.0, 16.0)[1:-1], [np.inf]])
    assert (back >= edges[letters] - 1e-6).all() and (back <= edges[letters + 1] + 1e-6).all()
    # the corners of the steps are off: nearer to the signal than the middles are
    middles = quantizers.values_of_levels(TRELLIS, lo, hi)[letters]
    assert np.mean((back - signal) ** 2) < np.mean((middles - signal) ** 2)
    # but steep peaks keep their height
    peak = np.array([[22, 22, 25, 35, 27, 22, 22, 21, 22]], np.uint8)
    kept = np.isclose(
        quantizers.values_of_levels(TRELLIS, lo, hi)[peak], quantizers.dequantize(peak, TRELLIS, lo, hi)
    )
    assert kept.tolist() == [[True] * 6 + [False, False, True]]
    # without a penalty the letters change more often
    free, _, _ = quantizers.quantize(signal, TRELLIS | {"penalty": 0.0})
    assert (np.diff(letters) != 0).sum() < (np.diff(free) != 0).sum()


def test_a_flat_segment_survives_trellis():
    letters, lo, hi = quantizers.quantize(np.zeros((2, 5), np.float32), TRELLIS)
    assert lo == hi == 0 and (quantizers.dequantize(letters, TRELLIS, lo, hi) == 0).all()
