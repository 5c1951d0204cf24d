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


def signal(leads=3, samples=400):
    return np.random.default_rng(5).normal(0, 0.5, (leads, samples)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.5), st.sampled_from([1.0, 0.99, 0.95]), st.sampled_from([0.0, 0.1, 0.3]))
def test_a_signal_is_recorded_again_by_the_formula(shift, slow, fast):
    given_signal, gain, ours = signal(samples=60), np.array([0.5, 1.0, 2.0]), np.empty((3, 60), np.float32)
    kernels._recorded_again(given_signal, gain, shift, slow, fast, ours)
    assert np.allclose(ours, naive.recorded_again(given_signal, gain, shift, slow, fast), atol=1e-4)


def test_a_varied_signal_depends_on_the_numbers_alone_and_not_on_them_without_strength():
    leads = ("I", "II", "V1")
    one, again, other = (
        kernels.varied_signal(signal(), 100, leads, np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert one.dtype == np.float32 and np.array_equal(one, again) and not np.array_equal(one, other)
    assert np.array_equal(
        kernels.varied_signal(signal(), 100, leads, np.random.default_rng(3), 0.0), signal()
    )


def test_a_varied_signal_keeps_its_size_and_its_leads():
    """Gains within 8 %, filters, wander and noise of a recorder: the shape stays, in nearly all leads."""
    t = np.arange(1000) / 100
    beats = np.stack([np.exp(-(((t % 0.8) - 0.4) ** 2) / 0.002), -np.exp(-(((t % 0.8) - 0.4) ** 2) / 0.002)])
    alike, flat = [], 0
    for seed in range(200):
        made = kernels.varied_signal(beats.astype(np.float32), 100, (), np.random.default_rng(seed))
        for ours, before in zip(made, beats, strict=True):
            if np.ptp(ours) < 0.3:
                flat += 1
                continue
            alike.append(np.corrcoef(ours, before)[0, 1])
            assert 0.85 < np.ptp(ours) < 1.3
    assert np.mean(alike) > 0.95 and 0.02 < flat / 400 < 0.09


class Draws:
    """A generator whose uniform draws are given, one for each call."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def uniform(self, low, high, size=None):
        return self.draws.pop(0)


def test_electrodes_move_towards_their_neighbours():
    leads = ("V3", "V1", "V2")
    given_signal = signal(3, 50)
    v3, v1, v2 = given_signal
    made = kernels._electrodes_moved(
        given_signal, leads, Draws(np.array([-0.2, -0.1, 0.25, 0, 0, 0]), 0.0), 1.0
    )
    assert np.array_equal(made[1], v1)  # nothing lies before V1
    assert np.allclose(made[2], 0.9 * v2 + 0.1 * v1)
    assert np.array_equal(made[0], v3)  # V4 was not recorded
    given_signal[2] *= 0.001  # V2 came off: noise alone
    made = kernels._electrodes_moved(
        given_signal, leads, Draws(np.array([0.2, -0.1, -0.25, 0, 0, 0]), 0.0), 1.0
    )
    assert np.array_equal(made, given_signal)  # it is neither moved nor mixed in


def test_limb_leads_turn_together():
    """A heart's axis that turns by an angle is seen by all limb leads as Einthoven's triangle says."""
    angle, axis = np.radians(10), np.radians(np.array([0.0, 30, 60, 90, 150, 270]))
    seen = {
        "I": 0,
        "II": 60,
        "III": 120,
        "aVR": -150,
        "aVL": -30,
        "aVF": 90,
    }  # degrees at which each lead looks

    def leads_at(axis):
        augmented = {"aVR", "aVL", "aVF"}  # Goldberger's leads are smaller by half the root of three
        return np.stack(
            [
                np.cos(axis - np.radians(at)) * (np.sqrt(3) / 2 if lead in augmented else 1)
                for lead, at in seen.items()
            ]
        )

    made = kernels._electrodes_moved(leads_at(axis), tuple(seen), Draws(np.zeros(6), angle), 1.0)
    assert np.allclose(made, leads_at(axis + angle))
