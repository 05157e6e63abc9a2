"""The splits: disjoint, complete, the same for everyone, and clear about what cannot be shared out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from config.settings import Classes, Dirichlet, Iid, Shards
from degan.data import class_counts, split
from degan.errors import DataError

KINDS = st.one_of(
    st.just(Iid()),
    st.builds(Shards, per_worker=st.integers(1, 4)),
    st.builds(Dirichlet, alpha=st.floats(0.2, 100.0), min_samples=st.integers(1, 3)),
    st.builds(Classes, groups=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3)),
)
LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=150).map(lambda labels: np.array(labels, dtype=np.int64))
TEN = np.repeat(np.arange(10), 100)


@settings(max_examples=200, deadline=None)
@given(kind=KINDS, labels=LABELS, workers=st.integers(1, 6), seed=st.integers(0, 2**40))
def test_parts_are_disjoint_and_together_everything_that_is_listed(kind, labels, workers, seed):
    try:
        parts = split(kind, labels, workers, seed)
    except DataError:
        assume(False)
    joined = np.concatenate(parts)
    assert len(parts) == workers
    assert len(np.unique(joined)) == len(joined)
    listed = np.ones(len(labels), dtype=bool)
    if isinstance(kind, Classes):
        held = [kind.groups[worker % len(kind.groups)] for worker in range(workers)]
        listed = np.isin(labels, [name for group in held for name in group])
        for part, group in zip(parts, held, strict=True):
            assert set(labels[part]) <= set(group)
    assert np.array_equal(np.sort(joined), np.flatnonzero(listed))
    least = kind.min_samples if isinstance(kind, Dirichlet) else 1
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= least
        assert np.all(np.diff(part) > 0)
    again = split(kind, labels.copy(), workers, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))
    counts = class_counts(labels, parts, 4)
    assert counts.shape == (workers, 4)
    assert counts.dtype == np.int64
    assert np.array_equal(counts.sum(axis=1), [len(part) for part in parts])
    assert np.array_equal(counts.sum(axis=0), np.bincount(labels[listed], minlength=4))


def test_another_seed_gives_another_split():
    for kind in (Iid(), Shards(), Dirichlet(), Classes(groups=[list(range(10))])):
        one, other = split(kind, TEN, 4, 1), split(kind, TEN, 4, 2)
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_parts_differ_in_size_by_at_most_one():
    assert sorted(len(part) for part in split(Iid(), TEN[:-2], 7, 3)) == [142] * 3 + [143] * 4


def test_even_and_odd_digits_as_in_the_degan_paper():
    kind = Classes(groups=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])
    counts = class_counts(TEN, split(kind, TEN, 4, 1), 10)
    even, odd = np.tile([50, 0], 5), np.tile([0, 50], 5)
    assert np.array_equal(counts, [even, odd, even, odd])


def test_a_class_in_two_groups_is_shared_out_once():
    counts = class_counts(TEN, split(Classes(groups=[[0, 1], [1, 2]]), TEN, 2, 1), 10)
    assert counts[:, :3].tolist() == [[100, 50, 0], [0, 50, 100]]


def test_a_share_that_does_not_divide_goes_to_different_workers():
    labels = np.repeat(np.arange(4), 3)
    counts = class_counts(labels, split(Classes(groups=[[0, 1, 2, 3]]), labels, 2, 1), 4)
    assert counts.sum(axis=1).tolist() == [6, 6]


def test_shards_are_contiguous_cuts_of_the_labels_in_order():
    parts = split(Shards(per_worker=2), np.random.default_rng(0).permutation(TEN), 5, 1)
    counts = class_counts(TEN, parts, 10)
    assert all(len(part) == 200 for part in parts)
    sorted_counts = class_counts(TEN, split(Shards(per_worker=2), TEN, 5, 1), 10)
    assert np.all((sorted_counts > 0).sum(axis=1) == 2)
    assert np.all(counts.sum(axis=1) == 200)


def test_a_small_alpha_is_more_uneven_than_a_large_one():
    def unevenness(alpha):
        return class_counts(TEN, split(Dirichlet(alpha=alpha), TEN, 4, 1), 10).std(axis=0).mean()

    assert unevenness(1000.0) < 5 < 25 < unevenness(0.1)


def test_dirichlet_matches_the_moments_of_its_distribution():
    # A share from Dir(alpha) over n workers has variance (n - 1) / (n^2 (n alpha + 1)).
    alpha, workers = 1.0, 4
    counts = [class_counts(TEN, split(Dirichlet(alpha, 1), TEN, workers, seed), 10) for seed in range(150)]
    shares = np.stack(counts) / 100
    expected = (workers - 1) / (workers**2 * (workers * alpha + 1))
    assert shares.mean() == pytest.approx(1 / workers)
    assert shares.var() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "workers", "words"),
    [
        (Classes(groups=[[0], [10]]), 2, r"groups\[1\] names class 10, but the data has classes 0 to 9"),
        (Classes(groups=[]), 2, "groups is empty"),
        (Classes(groups=[[0], []]), 2, r"groups\[1\] is empty"),
        (Iid(), 1001, "1000 samples cannot be shared out between 1001 workers"),
        (Classes(groups=[[0]]), 101, "leaves worker .* without samples; use fewer workers"),
        (Shards(per_worker=300), 4, "1200 cuts of only 1000 samples"),
        (Dirichlet(min_samples=300), 4, "needs more than the 1000 samples"),
        (Dirichlet(alpha=0.01, min_samples=240), 4, "in 1000 draws with alpha=0.01 .* min_samples=240; raise alpha"),
    ],
)
def test_what_cannot_be_shared_out_is_one_clear_line(kind, workers, words):
    with pytest.raises(DataError, match=words) as caught:
        split(kind, TEN, workers, 1)
    assert "\n" not in str(caught.value)


def test_a_class_number_without_samples_is_named_with_those_there_are():
    with pytest.raises(DataError, match="names class 1, but the data has classes 0, 2"):
        split(Classes(groups=[[1]]), np.array([0, 2, 0, 2]), 1, 1)
