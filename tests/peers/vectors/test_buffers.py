"""The buffer pool gives an array again: never one that is still held, never too many, never of another size."""

from __future__ import annotations

import numpy as np

from peers.vectors.buffers import BufferPool


def test_a_given_array_is_taken_once():
    buffers, array = BufferPool(), np.ones(4, np.float32)
    buffers.give(array)
    assert buffers.take(3).size == 3 and buffers.take(5).size == 5
    first, second = buffers.take(4), buffers.take(4)
    assert first is array and second is not array and second.size == 4
    assert second.dtype == np.float32


def test_a_piece_of_somebody_elses_array_is_not_kept():
    buffers, array = BufferPool(), np.ones(8, np.float32)
    buffers.give(array[:4])
    assert not np.shares_memory(buffers.take(4), array)


def test_the_oldest_goes_first():
    buffers = BufferPool(2)
    arrays = [np.full(4, number, np.float32) for number in range(3)]
    for array in arrays:
        buffers.give(array)
    found = [buffers.take(4) for _ in range(3)]
    assert found[0] is arrays[1] and found[1] is arrays[2]
    assert all(found[2] is not array for array in arrays)
