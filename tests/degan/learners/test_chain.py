"""The chain between a learner and the wire: neutral without pieces; its pieces are applied in order."""

from __future__ import annotations

import numpy as np
import pytest

from degan.learners.chain import Context, attack, chain
from degan.learners.guard import NonFiniteGuard
from peers.chaos.attacks import Attack
from tests.classifiers import experiment, new_classifier

CONTEXT = Context(np.zeros(0, np.float32))


def test_a_chain_without_pieces_gives_the_very_update():
    update = np.float32([1, -2])
    assert chain()(update, CONTEXT) is update
    assert chain(*attack(None))(update, CONTEXT) is update


def test_the_guard_alone_changes_nothing_that_can_be_used():
    update = np.float32([1, -2])
    assert chain(NonFiniteGuard(new_classifier(experiment()), print))(update, CONTEXT) is update


def test_pieces_are_applied_in_their_order_with_the_same_context():
    seen = []

    def piece(factor, more):
        def changed(update, context):
            seen.append(context)
            return factor * update + more

        return changed

    found = chain(piece(2, 1), piece(10, 3))(np.float32([1]), CONTEXT)
    assert found == [33] and len(seen) == 2 and all(context is CONTEXT for context in seen)


@pytest.mark.parametrize(("value", "sent"), [(1.0, -1.0), (np.nan, 0.0)])
def test_an_attack_changes_what_the_guard_has_let_through(value, sent):
    guard = NonFiniteGuard(new_classifier(experiment()), lambda line: None)
    found = chain(guard, *attack(Attack("sign_flip")))(np.float32([[value, value]]), guard.context())
    np.testing.assert_array_equal(found, np.float32([[sent, sent]]))
    assert guard.counts == ({} if value == 1 else {"own_not_finite": 1})
