"""The splits are disjoint, complete and the same for all workers, and refuse impossible requests clearly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from config.settings.data import Classes, Dirichlet, Fegan, Iid, Mixed, Shards
from degan.data import class_counts, split
from degan.data.splits import _ration
from degan.errors import DataError

KINDS = st.one_of(
    st.just(Iid()),
    st.builds(Shards, per_worker=st.integers(1, 4)),
    st.builds(Dirichlet, alpha=st.floats(0.2, 100.0), min_samples=st.integers(1, 3)),
    st.builds(Mixed, even=st.floats(0.0, 1.0)),
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
    for kind in (Iid(), Shards(), Dirichlet(), Classes(groups=[list(range(10))]), Fegan(), Mixed()):
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
    # Each of ten cuts of a hundred is one class, whatever the order of the files.
    for labels in (TEN, np.random.default_rng(0).permutation(TEN)):
        counts = class_counts(labels, split(Shards(per_worker=2), labels, 5, 1), 10)
        assert np.all((counts > 0).sum(axis=1) == 2)
        assert np.all(counts.sum(axis=1) == 200)


@pytest.mark.parametrize(
    "kind", [Dirichlet(alpha=5.0), Fegan(magic_num=60), Classes(groups=[list(range(10))]), Mixed(even=0.9), Iid()]
)
def test_a_workers_samples_of_a_class_are_drawn(kind):
    """The order of files often has a meaning, so a worker's share is no run of files."""
    for part in split(kind, TEN, 4, 1):
        runs = [held for name in range(10) if len(held := part[TEN[part] == name]) > 4]
        assert runs and all(held[-1] - held[0] >= len(held) for held in runs)


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


@settings(max_examples=200, deadline=None)
@given(
    magic_num=st.none() | st.integers(1, 200),
    ramp=st.integers(1, 20),
    min_samples=st.integers(1, 4),
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=150).map(np.array),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_fegan_parts_are_disjoint_and_as_poor_in_classes_as_their_number_demands(
    magic_num, ramp, min_samples, labels, workers, seed
):
    kind = Fegan(magic_num=magic_num, ramp=ramp, min_samples=min_samples)
    try:
        parts = split(kind, labels, workers, seed)
    except DataError:
        assume(False)
    joined = np.concatenate(parts)
    assert len(np.unique(joined)) == len(joined)
    assert all(len(part) >= min_samples and np.all(np.diff(part) > 0) for part in parts)
    counts = class_counts(labels, parts, 4)
    there = np.bincount(labels, minlength=4)
    present = np.count_nonzero(there)
    most = max(1, len(labels) // (2 * present)) if magic_num is None else magic_num
    assert counts.max() <= most
    held = np.count_nonzero(counts, axis=1)
    promised = np.array([min(present, int(ramp * worker / workers) + 1) for worker in range(workers)])
    promised[0] = present
    assert np.all(held <= promised)
    if there[there > 0].min() >= workers:
        assert np.array_equal(held, promised)
    again = split(kind, labels.copy(), workers, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_fegan_on_the_bundled_digits_with_eight_workers():
    labels = np.repeat(np.arange(10), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    counts = class_counts(labels, split(Fegan(ramp=10), labels, 8, 1), 10)
    # int(10 r / 8) + 1 for r = 1..7; worker 0 has all. magic_num is 1797 // 20 = 89.
    assert np.count_nonzero(counts, axis=1).tolist() == [10, 2, 3, 4, 6, 7, 8, 9]
    assert counts.max() <= 89
    as_released = class_counts(labels, split(Fegan(), labels, 8, 1), 10)
    assert np.count_nonzero(as_released) == 80, "with ramp 200, so few workers all have ten classes"
    assert as_released.std() > 5, "but in unlike numbers"


def test_with_fegan_worker_0_has_at_most_7500_samples():
    labels = np.repeat(np.arange(10), 6000)
    alone = split(Fegan(magic_num=6000), labels, 1, 1)[0]
    assert len(alone) == 7500
    assert len(np.unique(labels[alone])) == 10
    assert len(split(Fegan(magic_num=100), labels, 1, 1)[0]) <= 1000


def test_a_class_that_runs_out_is_rationed():
    # Workers get their whole request; else 1 each and the rest in proportion; else 1 each for the largest requests.
    wanted = np.array([0, 9, 3, 1])
    assert _ration(wanted, 13).tolist() == [0, 9, 3, 1]
    # 3 go out first, 5 are left for requests of 8, 2 and 0 more: 4 and 1.
    assert _ration(wanted, 8).tolist() == [0, 5, 2, 1]
    # 4 are left for 8 and 2 more: 3.2 and 0.8, of which 0.8 is rounded up.
    assert _ration(wanted, 7).tolist() == [0, 4, 2, 1]
    assert _ration(wanted, 3).tolist() == [0, 1, 1, 1]
    assert _ration(wanted, 2).tolist() == [0, 1, 1, 0]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12).map(np.array), st.integers(1, 10**6))
def test_a_ration_is_whole_and_never_more_than_wanted(wanted, supply):
    given_out = _ration(wanted, supply)
    assert given_out.sum() == min(supply, wanted.sum())
    assert np.all((given_out >= 0) & (given_out <= wanted))
    if np.count_nonzero(wanted) <= supply:
        assert np.all(given_out >= np.minimum(wanted, 1))


def test_mixed_is_iid_at_one_end_and_label_order_at_the_other():
    labels = np.random.default_rng(0).permutation(TEN)
    for one, other in zip(split(Mixed(even=1.0), labels, 7, 3), split(Iid(), labels, 7, 3), strict=True):
        assert np.array_equal(one, other)
    counts = class_counts(labels, split(Mixed(even=0.0), labels, 5, 3), 10)
    assert np.array_equal(counts, np.repeat(np.eye(5, dtype=int) * 100, 2, axis=1))


def test_mixed_deals_out_its_fraction_evenly():
    # 400 even samples, 80 a worker; of the 600 others, 120 a worker in label order.
    counts = class_counts(TEN, split(Mixed(even=0.4), TEN, 5, 1), 10)
    assert counts.sum(axis=1).tolist() == [200] * 5
    assert np.all(counts > 0), "of the even part everybody has some of everything"
    assert [int(row.argmax()) // 2 for row in counts] == [0, 1, 2, 3, 4]
    sizes = [len(part) for part in split(Mixed(even=0.4), TEN[:-2], 7, 3)]
    assert sorted(sizes) == [142] * 3 + [143] * 4


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
        (Fegan(min_samples=300), 4, "min_samples=300 for each of 4 workers needs more than the 1000 samples"),
        (Fegan(magic_num=9, ramp=1), 4, "with 1 classes and magic_num=9 never has min_samples=10; raise magic_num"),
        (
            Fegan(magic_num=30, min_samples=240),
            4,
            "in 1000 draws with magic_num=30 .* min_samples=240; raise magic_num",
        ),
        (Dirichlet(alpha=0.01, min_samples=240), 4, "in 1000 draws with alpha=0.01 .* min_samples=240; raise alpha"),
    ],
)
def test_an_impossible_split_is_one_clear_line(kind, workers, words):
    with pytest.raises(DataError, match=words) as caught:
        split(kind, TEN, workers, 1)
    assert "\n" not in str(caught.value)


def test_a_class_number_without_samples_is_named_with_those_there_are():
    with pytest.raises(DataError, match="names class 1, but the data has classes 0, 2"):
        split(Classes(groups=[[1]]), np.array([0, 2, 0, 2]), 1, 1)
