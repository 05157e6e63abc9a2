"""Arrays that are used again: never one that somebody still has, never too many, never of another size."""

from __future__ import annotations

import numpy as np

from peers.vectors.buffers import Spares


def test_what_was_given_is_taken_once():
    spares, array = Spares(), np.ones(4, np.float32)
    spares.give(array)
    assert spares.take(3).size == 3 and spares.take(5).size == 5
    first, second = spares.take(4), spares.take(4)
    assert first is array and second is not array and second.size == 4
    assert second.dtype == np.float32


def test_a_piece_of_somebody_elses_array_is_not_kept():
    spares, array = Spares(), np.ones(8, np.float32)
    spares.give(array[:4])
    assert not np.shares_memory(spares.take(4), array)


def test_the_oldest_goes_first():
    spares = Spares(2)
    arrays = [np.full(4, number, np.float32) for number in range(3)]
    for array in arrays:
        spares.give(array)
    found = [spares.take(4) for _ in range(3)]
    assert found[0] is arrays[1] and found[1] is arrays[2]
    assert all(found[2] is not array for array in arrays)
