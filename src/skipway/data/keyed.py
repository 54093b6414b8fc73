"""Randomness by key: every draw is a function of (seed, epoch, index, repeat), not of a stream.

So the number of workers and a resume change no draw, and the batch size only what is drawn for a
whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: Array) -> Array:
    """The finaliser of splitmix64 (Steele et al. 2014): uint64 to uint64, one to one."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(*parts: int | Array) -> Array:
    """uint64 hash of whole numbers >= 0; arrays broadcast against one another."""
    state = np.zeros(1, np.uint64)  # one axis: NumPy warns of overflow in scalars only
    for part in parts:
        state = _mixed((state ^ np.asarray(part, np.uint64)) + _STEP)
    return state


@dataclass(frozen=True)
class Key:
    """What the draws of one image, or of an array of images, depend on."""

    seed: int
    epoch: int
    index: int | Array
    """Position in the data set."""
    repeat: int | Array = 0
    """Which copy of its image it is, where an epoch has several."""

    def uniform(self, n: int, start: int = 0) -> Array:
        """Draws start to start + n: float64 [*index.shape, n] in [0, 1)."""
        index = np.asarray(self.index, np.uint64)[..., None]
        draws = np.arange(start, start + n, dtype=np.uint64)
        repeat = np.asarray(self.repeat, np.uint64)[..., None]
        bits = hashed(self.seed, self.epoch, index, repeat, draws)
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def generator(self) -> np.random.Generator:
        """For draws of a whole batch: of the key of its first image."""
        index, repeat = (np.asarray(a, np.uint64).reshape(-1)[0] for a in (self.index, self.repeat))
        stream = np.random.Philox(hashed(self.seed, self.epoch, index))
        return np.random.Generator(stream.jumped(int(repeat)))


def permutation(n: int, *key: int) -> Array:
    """The order of 0..n-1 that belongs to the key: int64 [n]."""
    return np.argsort(hashed(*key, np.arange(n, dtype=np.uint64)), kind="stable")
