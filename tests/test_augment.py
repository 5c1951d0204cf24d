"""Letters varied for training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from ecgbyte_kernels import augment as kernels

pytestmark = pytest.mark.kernels


def letters(leads=3, samples=200, levels=26, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (leads, samples)).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 256), st.floats(0, 3))
def test_is_the_formula(seed, levels, strength):
    given_letters = letters(levels=levels, seed=seed)
    ours = kernels.varied(given_letters, levels, np.random.default_rng(seed), strength)
    theirs = naive.varied(given_letters, levels, np.random.default_rng(seed), strength)
    assert ours.dtype == np.uint8 and np.array_equal(ours, theirs)
    assert ours.max() < levels


def test_the_same_numbers_give_the_same_and_others_do_not():
    one, again, other = (kernels.varied(letters(), 26, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_without_strength_nothing_changes():
    assert np.array_equal(kernels.varied(letters(), 26, np.random.default_rng(3), strength=0.0), letters())


def test_leads_are_missing_now_and_then_and_then_flat():
    flat = 0
    for seed in range(400):
        made = kernels.varied(letters(samples=50), 26, np.random.default_rng(seed))
        flat += (made == made[:, :1]).all(axis=1).sum()
    assert 0.03 < flat / 1200 < 0.07
