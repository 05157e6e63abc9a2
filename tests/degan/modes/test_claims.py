"""The claims of peers in small maps, at the border of the possible values."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from degan.modes.leader.claims import answer_extras, mean_losses, plain_peer_info, whole
from peers.errors import MessageError

LARGEST = 2**48 - 1
NO_COUNTS = (-1, 2**48, 1.0, True, "1", None, [1])


def message(**extras: float) -> SimpleNamespace:
    return SimpleNamespace(extras=extras)


def announcement(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(fields=fields)


def test_a_count_is_taken_or_refused_by_its_name():
    assert [whole({"steps": value, "more": 7}, "steps") for value in (0, 1, LARGEST)] == [0, 1, LARGEST]
    for fields in ({"more": 7}, *({"steps": value} for value in NO_COUNTS)):
        with pytest.raises(MessageError, match="a round without a steps"):
            whole(fields, "steps")


def test_only_possible_claims_of_a_worker_are_kept():
    fine = {"samples": LARGEST, "histogram": [0, LARGEST]}
    assert plain_peer_info(fine | {"more": 1}) == fine and plain_peer_info({}) == {}
    assert plain_peer_info({"histogram": []}) == {"histogram": []}
    assert plain_peer_info({"histogram": [1] * 2**16}) == {"histogram": [1] * 2**16}
    for peer_info in (
        *({"samples": value} for value in NO_COUNTS),
        *({"histogram": [1, value]} for value in NO_COUNTS),
    ):
        assert plain_peer_info(peer_info) == {}
    for histogram in ([1] * (2**16 + 1), (1, 2), "12", {"0": 1}, None):
        assert plain_peer_info({"samples": 3, "histogram": histogram}) == {"samples": 3}


def test_the_losses_of_those_that_answered_are_averaged_where_they_have_both():
    messages = {
        1: message(d_loss=1.0, g_loss=10.0, term=3.0),
        2: message(d_loss=4.0),
        4: message(d_loss=2.0, g_loss=40.0),
    }
    both = ("d_loss", "g_loss")
    assert mean_losses(messages, both) == {"d_loss": 1.5, "g_loss": 25.0}
    assert mean_losses({}, both) == mean_losses({2: message(d_loss=4.0)}, both) == {}
    assert (
        mean_losses(messages, ("g_loss",)) == {"g_loss": 25.0} and mean_losses(messages, ("c_loss", "accuracy")) == {}
    )


def test_an_answer_has_the_losses_that_are_numbers_and_the_term_of_the_announcement():
    losses = {"d_loss": 1.5, "g_loss": math.nan, "more": math.inf}
    assert answer_extras(announcement(term=7), losses) == {"term": 7.0, "d_loss": 1.5}
    assert answer_extras(announcement(), {}) == {"term": -1.0}
