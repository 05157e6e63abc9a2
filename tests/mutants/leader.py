"""Mutants of the modes with a leader: federated rounds, MD-GAN, and the needs of both."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

LEADER_BASED, FEDERATED, DISCRIMINATORS = (
    f"degan/modes/{name}.py" for name in ("leader/leader_based", "federated", "multi_discriminator")
)
BY_HAND = "tests/degan/modes/test_federated_by_hand.py::test_"
PARTS = "tests/degan/modes/test_leader_based.py::test_"
MD_BY_HAND = "tests/degan/modes/test_multi_discriminator_by_hand.py::test_"

MUTANTS = (
    # --- federated rounds ---
    Mutant(
        "the quorum is rounded down: one of three answers is the model",
        "degan/federation/cohorts.py",
        "return math.ceil(round(",
        "return math.floor(round(",
        f"{BY_HAND}a_void_round_leaves_model_average_and_steps_as_they_were",
    ),
    Mutant(
        "the moving average takes a round as one step",
        FEDERATED,
        "self._learner.average((0, self._learner.size), self._mode.local_steps)",
        "self._learner.average((0, self._learner.size))",
        f"{BY_HAND}rounds_are_the_weighted_mean_of_plain_adam_steps",
    ),
    Mutant(
        "a worker outside of a cohort goes on with its own count of Adam's steps",
        FEDERATED,
        "        self._steps_taken = steps\n",
        "",
        f"{BY_HAND}a_worker_outside_the_cohort_goes_on_where_the_model_is",
    ),
    Mutant(
        "with half precision the model never changes",
        FEDERATED,
        "return self._rounded(total)",
        "return self._rounded(total) if self._codec.is_exact else self._model",
        f"{BY_HAND}with_half_precision_the_model_is_rounded_whole_in_every_round_and_still_learns",
    ),
    Mutant(
        "only the first chunk of the model is rounded",
        FEDERATED,
        "for start in range(0, model.size, step):",
        "for start in range(0, min(step, model.size), step):",
        f"{BY_HAND}with_half_precision_the_model_is_rounded_whole_in_every_round_and_still_learns",
    ),
    Mutant(
        "divergence is from those that answered, not from everybody",
        FEDERATED,
        "self._histograms(sorted(self._peer_infos)) if",
        "self._histograms(workers) if",
        f"{BY_HAND}answers_weigh_by_their_divergence_from_everybodys_histogram",
    ),
    Mutant(
        "only the leader takes the moving average",
        FEDERATED,
        "        if self._rounds.leadership.may_lead(self._me):\n            self._hold_model()",
        "        if self._leader == self._me:\n            self._hold_model()",
        f"{PARTS}the_next_leader_goes_on_from_the_model_that_was_announced_last",
    ),
    Mutant(
        "the model of the newest cut is taken away with the others",
        "peers/rounds/versions.py",
        "            if kept.version != self._synchronised:\n",
        "            if True:\n",
        f"{PARTS}states_are_kept_as_long_as_somebody_may_fetch_them",
    ),
    # --- both modes ---
    Mutant(
        "workers that still catch up are asked",
        LEADER_BASED,
        "self._rounds.messages.caught_up() | mine",
        "self._rounds.messages.live() | mine",
        f"{PARTS}a_worker_that_catches_up_is_not_asked_and_its_new_incarnation_claims_anew_what_it_holds",
    ),
    Mutant(
        "void rounds are forgotten by the next leader",
        LEADER_BASED,
        '"void": self._void_rounds}',
        '"void": 0}',
        f"{PARTS}deadlines_and_void_rounds_are_shared_and_each_step_names_its_leader",
    ),
    Mutant(
        "an answer to an earlier term counts",
        "peers/rounds/rounds.py",
        'y.extras.get("term", term) == term}',
        'y.extras.get("term", term) <= term}',
        "tests/peers/rounds/test_gathers.py::test_an_answer_that_names_another_term_is_none",
    ),
    Mutant(
        "a deadline may fall under its floor",
        "peers/rounds/deadline.py",
        "return min(self._ceiling_s, max(self._floor_s, median + 3 * spread))",
        "return min(self._ceiling_s, median + 3 * spread)",
        "tests/peers/rounds/test_rounds.py::test_a_deadline_is_the_median_and_three_deviations_between_floor_and_ceiling",
    ),
    Mutant(
        "a new incarnation finishes a message of the one before",
        "peers/session/decode.py",
        "self._streams[sender, is_direct] = _Stream(",
        "self._streams.setdefault((sender, is_direct), _Stream(Assembler(self._layout, self._buffers)))\n"
        "                _Stream(",
        "tests/peers/rounds/test_messages.py::test_a_new_incarnation_finishes_no_message_of_the_one_before",
    ),
    # --- MD-GAN ---
    Mutant(
        "D learns from the batch of its feedback",
        DISCRIMINATORS,
        "fakes[(place + 1) % self._batches], fakes[place % self._batches]",
        "fakes[place % self._batches], fakes[place % self._batches]",
        f"{MD_BY_HAND}the_generator_follows_the_mean_over_those_that_answered",
    ),
    Mutant(
        "feedbacks are divided by all that were asked",
        DISCRIMINATORS,
        "/ np.float32(len(answers)) for some",
        "/ np.float32(len(workers)) for some",
        f"{MD_BY_HAND}the_generator_follows_the_mean_over_those_that_answered",
    ),
    Mutant(
        "an epoch is one of the largest shard",
        DISCRIMINATORS,
        "sum(samples) / len(samples) / self._shape[0]",
        "max(samples) / self._shape[0]",
        f"{MD_BY_HAND}discriminators_change_hands_every_so_many_epochs_of_the_mean_shard",
    ),
    Mutant(
        "a state of G is put one round late",
        DISCRIMINATORS,
        "if step % self._mode.state_every == 0:",
        "if step % self._mode.state_every == 1:",
        f"{MD_BY_HAND}the_next_leader_goes_on_from_the_newest_state_of_the_generator",
    ),
)
