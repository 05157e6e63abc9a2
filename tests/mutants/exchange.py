"""Bugs of the exchange: sharers of a mean, parts that leave, the size of an outbox, and applied rounds."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

EXCHANGE, INBOX, MODE = "peers/exchange/exchange.py", "peers/exchange/inbox.py", "degan/modes/partial_exchange.py"
GRADIENTS, PARAMETERS = "peers/exchange/gradients.py", "peers/exchange/parameters.py"
RULE, INCARNATIONS = "tests/peers/exchange/test_gradient_rule.py", "tests/peers/exchange/test_gradient_incarnations.py"
WEIGHTS, WEIGHTS_INCARNATIONS = (
    "tests/peers/exchange/test_parameter_rule.py",
    "tests/peers/exchange/test_parameter_incarnations.py",
)
JOINTS = "tests/peers/exchange/test_exchange_joints.py"

MUTANTS = (
    Mutant(
        "own delayed: the mean is over n - 1",
        GRADIENTS,
        "share = np.float32(1 / max(1, len(terms)) if self._is_mean else 1)",
        "share = np.float32(1 / max(1, len(terms) - 1) if self._is_mean else 1)",
        f"{RULE}::test_with_own_delayed_everyone_gets_the_rounds_of_slack_rounds_ago",
    ),
    Mutant(
        "after a change of parts at the last step the last part never leaves",
        GRADIENTS,
        "return parts - (self._newest - self._schedule.since >= parts)",
        "return parts - 1",
        f"{JOINTS}::test_everything_leaves_wherever_in_a_run_the_parts_change",
    ),
    Mutant(
        "references that differ are counted and never made alike",
        PARAMETERS,
        "                self._broken.add(part)\n",
        "",
        f"{WEIGHTS_INCARNATIONS}::test_references_that_differ_are_seen_and_made_alike",
    ),
    Mutant(
        "without a bound a difference of weights is shared among n - 1",
        PARAMETERS,
        "/ np.float32(1 + max(1, sharers))",
        "/ np.float32(max(1, sharers))",
        f"{WEIGHTS}::test_without_a_bound_each_difference_is_shared_among_all",
    ),
    Mutant(
        "without a bound a mean of gradients is over n - 1",
        GRADIENTS,
        "values /= np.float32(1 + sharers)",
        "values /= np.float32(sharers)",
        f"{RULE}::test_each_round_is_the_own_gradient_and_the_received_lumps",
    ),
    Mutant(
        "weights whose sum overflows become infinite",
        PARAMETERS,
        "if average is None or longest * len(terms) > HUGE and not is_finite(average):",
        "if average is None:",
        f"{WEIGHTS_INCARNATIONS}::test_weights_whose_sum_overflows_stay_unchanged",
    ),
    Mutant(
        "a round that a cursor covers is applied once more",
        INBOX,
        "        if received.round <= newest:\n",
        "        if received.round < newest:\n",
        "tests/peers/session/test_threads.py::test_after_a_cursor_covered_rounds_are_replayed_and_missing_ones_counted",
    ),
    Mutant(
        "the clock is noted before the contribution",
        INBOX,
        "        self._accumulator.add(received)\n",
        "        self._gate.note(received.sender, received.round)\n        self._accumulator.add(received)\n",
        f"{JOINTS}::test_a_noted_clock_has_its_contribution_and_its_proposal",
    ),
    Mutant(
        "an outbox keeps too few rounds for a worker that has read nothing",
        MODE,
        "return 2 * mode.slack + 3 + parts",
        "return mode.slack + 3 + parts",
        f"{JOINTS}::test_a_worker_that_reads_nothing_for_as_long_as_possible_loses_nothing",
    ),
    Mutant(
        "an outbox has no room for the parts after the last step",
        MODE,
        "return 2 * mode.slack + 3 + parts",
        "return 2 * mode.slack + 3",
        f"{JOINTS}::test_a_worker_that_reads_nothing_for_as_long_as_possible_loses_nothing",
    ),
    Mutant(
        "staleness is always 0",
        EXCHANGE,
        "self._staleness.append(max(0, self._round - item.round))",
        "self._staleness.append(0)",
        f"{JOINTS}::test_staleness_is_in_steps_and_since_the_last_look",
    ),
    Mutant(
        "a correction since a part left happens once more",
        PARAMETERS,
        "            change -= shift[0]\n",
        "",
        f"{WEIGHTS}::test_the_weights_are_the_last_average_and_the_own_changes_since",
    ),
    Mutant(
        "a peer dropped while a checkpoint waits shares its mean",
        EXCHANGE,
        "                sharers = self.gate.wait(round, slack=0)\n",
        "                self.gate.wait(round, slack=0)\n",
        f"{INCARNATIONS}::test_a_peer_dropped_while_a_checkpoint_awaits_it_shares_nothing",
    ),
    Mutant(
        "own delayed: our own gradient decides whether a step is applied",
        MODE,
        "(is_fresh or _has_any(combined))",
        "(is_usable or _has_any(combined))",
        "tests/degan/modes/test_partial_exchange_mode.py::test_gradients_step_by_step",
    ),
    Mutant(
        "an array is lent to the sender under any bound",
        GRADIENTS,
        "is_lent = self._lag == 0 and part.size",
        "is_lent = self._lag is not None and part.size",
        f"{RULE}::test_each_round_is_the_own_gradient_and_the_received_lumps",
        harmless="the round then waits for its own publication, as under slack 0: slower, and the same values",
    ),
)
