"""Draws by key: what they depend on, that they look random, and that they never change."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from skipway.data.keyed import Key, hashed, permutation

WHOLE = st.integers(0, 2**64 - 1)
INDEX = np.arange(20_000)


def reference(*parts: int) -> int:
    """The same hash in Python's whole numbers, after Steele et al. 2014, figure 16."""
    state = 0
    for part in parts:
        z = ((state ^ part) + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        state = z ^ (z >> 31)
    return state


# --- never changing ---------------------------------------------------------------------------


def test_first_output_of_splitmix64() -> None:
    assert hashed(0).tolist() == [0xE220A8397B1DCDAF]  # published for seed 0


@given(st.lists(WHOLE, min_size=1, max_size=6))
def test_hash_against_plain_arithmetic(parts: list[int]) -> None:
    assert hashed(*parts).tolist() == [reference(*parts)]


def test_golden_values() -> None:
    """A change here changes every run that was ever recorded."""
    assert hashed(1, 2, 3).tolist() == [15020427595393229491]
    assert Key(7, 3, 12345).uniform(3).tolist() == [
        0.8210498503528234,
        0.44802321359712305,
        0.5069420575308788,
    ]
    assert permutation(10, 0, 0).tolist() == [0, 9, 1, 6, 3, 5, 4, 2, 8, 7]
    assert permutation(10, 0, 1).tolist() == [8, 3, 0, 1, 5, 2, 7, 4, 9, 6]


# --- what a draw depends on -------------------------------------------------------------------


@given(
    st.integers(0, 2**63),
    st.integers(0, 10_000),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=20),
    st.integers(1, 8),
    st.data(),
)
def test_draws_do_not_depend_on_the_batch(
    seed: int, epoch: int, index: list[int], n: int, data: st.DataObject
) -> None:
    together = Key(seed, epoch, np.array(index)).uniform(n)
    assert together.shape == (len(index), n)
    for row, i in zip(together, index, strict=True):
        assert np.array_equal(Key(seed, epoch, i).uniform(n), row)
    order = np.array(data.draw(st.permutations(range(len(index)))))
    assert np.array_equal(Key(seed, epoch, np.array(index)[order]).uniform(n), together[order])
    cut = data.draw(st.integers(0, len(index)))
    parts = [
        Key(seed, epoch, np.array(part, int)).uniform(n) for part in (index[:cut], index[cut:])
    ]
    assert np.array_equal(np.concatenate(parts), together)


def test_more_draws_keep_those_before() -> None:
    assert np.array_equal(Key(1, 2, 3).uniform(43)[:3], Key(1, 2, 3).uniform(3))


def draws(i: int) -> np.ndarray:
    return Key(5, 6, i).uniform(4)


def test_workers_draw_the_same() -> None:
    expected = Key(5, 6, np.arange(8)).uniform(4)
    with ThreadPoolExecutor(3) as pool:
        assert np.array_equal(np.stack(list(pool.map(draws, range(8)))), expected)
    with ProcessPoolExecutor(2) as processes:
        assert np.array_equal(np.stack(list(processes.map(draws, range(8)))), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(Key(5, 6, 2))).uniform(4), expected[2])


def test_grids_of_indices() -> None:
    grid = np.arange(6).reshape(2, 3)
    assert np.array_equal(Key(1, 2, grid).uniform(4)[1, 2], Key(1, 2, 5).uniform(4))


def test_no_overflow_warnings(recwarn: pytest.WarningsRecorder) -> None:
    Key(2**63, 2**40, 2**50, 3).uniform(2)
    permutation(5, 2**63, 2**63)
    assert not recwarn.list


# --- looking random ---------------------------------------------------------------------------

COLUMNS = {
    "index": Key(0, 0, INDEX).uniform(1)[:, 0],
    "late index": Key(0, 0, INDEX + 10**9).uniform(1)[:, 0],
    "draw": Key(0, 0, 0).uniform(len(INDEX)),
    "epoch": np.concatenate([Key(0, e, 0).uniform(1) for e in range(4000)]),
    "seed": np.concatenate([Key(s, 0, 0).uniform(1) for s in range(4000)]),
    "repeat": np.concatenate([Key(0, 0, 0, r).uniform(1) for r in range(4000)]),
}
"""Draws along each part of the key, the rest held."""


def p_values(found: np.ndarray) -> list[float]:
    """That draws are uniform: as a whole, in 64 bins, and in the six lowest bits."""
    low = (found * 2**53).astype(np.int64) % 64
    return [
        stats.kstest(found, "uniform").pvalue,
        stats.chisquare(np.histogram(found, 64, (0, 1))[0]).pvalue,
        stats.chisquare(np.bincount(low, minlength=64)).pvalue,
    ]


@pytest.mark.parametrize("name", COLUMNS)
def test_uniform_along_each_part_of_the_key(name: str) -> None:
    found = COLUMNS[name]
    assert found.dtype == np.float64
    assert found.min() >= 0
    assert found.max() < 1
    # Eighteen values, each as likely to be small by chance: 0.1 % for all of them.
    assert min(p_values(found)) > 0.001 / 18


def test_many_keys_are_as_uniform_as_chance() -> None:
    """The tests' own p-values are uniform: draws neither miss the distribution nor fit too well."""
    index = np.arange(5000)
    found = np.array(
        [p_values(Key(k % 7, k, index + 5000 * k).uniform(1)[:, 0]) for k in range(200)]
    )
    for column in found.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("lag", [1, 2, 3, 16])
def test_neighbours_are_not_correlated(name: str, lag: int) -> None:
    found = COLUMNS[name]
    r = np.corrcoef(found[:-lag], found[lag:])[0, 1]
    assert abs(r) < 4 / np.sqrt(len(found))


NEIGHBOURS = {
    "epoch": Key(0, 1, INDEX),
    "far epoch": Key(0, 1000, INDEX),
    "seed": Key(1, 0, INDEX),
    "repeat": Key(0, 0, INDEX, 1),
    "index": Key(0, 0, INDEX + 1),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_neighbouring_keys_are_independent(name: str) -> None:
    """By counts of a 8 x 8 table of paired draws, which sees more than a correlation does."""
    here, there = Key(0, 0, INDEX).uniform(2), NEIGHBOURS[name].uniform(2)
    for i, j in itertools.product(range(2), repeat=2):
        table = np.histogram2d(here[:, i], there[:, j], 8, [(0, 1), (0, 1)])[0]
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_parts_of_the_key_are_not_exchangeable() -> None:
    """(seed, epoch) = (1, 2) must not draw what (2, 1) draws."""
    found = {tuple(Key(*key).uniform(2)) for key in itertools.product(range(4), repeat=4)}
    assert len(found) == 4**4


# --- orders -----------------------------------------------------------------------------------


@given(st.integers(0, 300), st.lists(WHOLE, min_size=1, max_size=3))
def test_permutation_holds_each_once(n: int, key: list[int]) -> None:
    order = permutation(n, *key)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, permutation(n, *key))


@settings(max_examples=25)
@given(st.integers(0, 2**62), st.integers(0, 1000))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    here = permutation(500, seed, epoch)
    for other in (permutation(500, seed, epoch + 1), permutation(500, seed + 1, epoch)):
        assert (here == other).sum() < 12  # one is expected to stay by chance (Poisson)


def test_permutations_of_four_are_equally_likely() -> None:
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for epoch in range(4800):
        counts[tuple(permutation(4, 0, epoch).tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_orders_of_epochs_are_not_correlated() -> None:
    orders = np.stack([permutation(2000, 3, epoch) for epoch in range(6)])
    r = np.corrcoef(np.vstack([orders, np.arange(2000)]))
    assert np.abs(r[~np.eye(len(r), dtype=bool)]).max() < 4 / np.sqrt(2000)
