"""The versions of a leader's model that can be fetched, by hand and for any order of rounds and sync points."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from peers.codecs.exact import CODECS
from peers.rounds.versions import Piece, Versions


class Store:
    """A stand-in for the rounds: the readable states, by name."""

    def __init__(self):
        self.names = {}

    def put(self, name, vectors, meta, codec):
        self.names[name] = ({key: vector.size for key, vector in vectors.items()}, codec.name)

    def forget(self, name, sizes, codec):
        assert self.names.pop(name) == (sizes, codec.name), "as it was put"


def piece(name, size=3, codec="raw"):
    return Piece(name, {"model": np.zeros(size, np.float32)}, codec=CODECS[codec])


def test_pieces_come_and_go_with_their_version():
    store = Store()
    versions = Versions(store, newest=1)
    assert versions.put(1, piece("m1", 5, "float16")) == 10 and 1 in versions and 2 not in versions
    assert versions.put(1, piece("s1")) == 12
    versions.keep(1)
    versions.put(2, piece("m2"), piece("o2"))
    versions.forget()
    assert sorted(store.names) == ["m1", "m2", "o2", "s1"], "that of the sync point and the newest"
    versions.put(3, piece("m3"))
    versions.keep(3)
    versions.forget()
    assert sorted(store.names) == ["m3"] and 1 not in versions


@given(st.integers(1, 3), st.lists(st.booleans(), max_size=12))
def test_the_newest_and_the_last_sync_point_are_readable_and_nothing_else(newest, are_sync_points):
    store, synchronised = Store(), None
    versions = Versions(store, newest)
    for round, is_sync_point in enumerate(are_sync_points):
        versions.put(round, piece(f"m{round}"))
        if is_sync_point:
            versions.keep(round)
            synchronised = round
        versions.forget()
        expected = {*range(max(0, round - newest + 1), round + 1)} | ({synchronised} - {None})
        assert set(store.names) == {f"m{kept}" for kept in expected}
