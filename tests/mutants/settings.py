"""Mutants of settings: unused, not compared, or with other borders; the needs of a worker, and its checks."""

from tests.mutants.mutant import Mutant

REACH = "tests/config/test_settings_reach.py::test_every_setting_arrives"
EXCHANGE = f"{REACH}[partial_exchange-all]"
ROBUST = f"{REACH}[partial_exchange-robust]"
FEDERATED = f"{REACH}[federated-all]"
MULTI = f"{REACH}[multi_discriminator-all]"
RANGES = "tests/config/test_settings_ranges.py"
BORDER = f"{RANGES}::test_a_value_at_the_border_is_taken_as_it_is"
AGREED = "tests/config/test_settings_agreed.py::test_every_setting_that_is_not_private_is_agreed_on"
INCARNATIONS = "tests/degan/worker/test_worker_incarnations.py"
DOCTOR = "tests/degan/worker/test_doctor_figures.py"
PARTIAL = "degan/modes/partial_exchange.py"
LEADER_BASED = "degan/modes/leader/leader_based.py"

MUTANTS = (
    Mutant("the norm gate is dropped on the way", PARTIAL, "        norm_gate=settings.bus.norm_gate,\n", "", EXCHANGE),
    Mutant("offences is dropped on the way", PARTIAL, "        offences=settings.bus.offences,\n", "", EXCHANGE),
    Mutant("min_peers is dropped on the way", PARTIAL, "        min_peers=settings.bus.min_peers,\n", "", EXCHANGE),
    Mutant(
        "the stall timeout is dropped on the way",
        PARTIAL,
        "        stall_timeout_s=settings.bus.stall_timeout_s,\n",
        "",
        EXCHANGE,
    ),
    Mutant(
        "topk's fraction is dropped on the way",
        PARTIAL,
        "build_codec(mode.codec, mode.topk_fraction, mode.rounding, torch_cast)",
        "build_codec(mode.codec, rounding=mode.rounding, cast=torch_cast)",
        EXCHANGE,
    ),
    Mutant("byzantine is dropped on the way", PARTIAL, "        byzantine=mode.byzantine,\n", "", ROBUST),
    Mutant(
        "a full Redis keeps the entries of a replay as if all workers needed them",
        "peers/exchange/outbox.py",
        "self._entries(options.keep_rounds), self._entries(least)",
        "self._entries(options.keep_rounds), self._entries(options.keep_rounds)",
        "tests/peers/exchange/test_rules.py::test_how_many_entries_an_outbox_keeps",
    ),
    Mutant(
        "a peer that is as far ahead as the bound allows is taken for one that has lost us",
        "peers/exchange/gate.py",
        "options.slack + 2 + most_parts",
        "options.slack + most_parts",
        "tests/peers/exchange/test_rules.py::test_how_far_a_peer_may_be_ahead",
    ),
    Mutant(
        "the leader's screen has its own gate and offences",
        LEADER_BASED,
        "Screen(bus.worker, settings.bus.norm_gate, settings.bus.offences, log=log)",
        "Screen(bus.worker, log=log)",
        FEDERATED,
    ),
    Mutant(
        "a leader's timeouts are swapped",
        LEADER_BASED,
        "            settings.bus.stall_timeout_s,\n            settings.bus.finish_timeout_s,",
        "            settings.bus.finish_timeout_s,\n            settings.bus.stall_timeout_s,",
        FEDERATED,
    ),
    Mutant(
        "feedbacks travel with the codec of batches",
        "degan/modes/multi_discriminator.py",
        "build_codec(mode.feedback_codec, cast=torch_cast)",
        "build_codec(mode.codec, cast=torch_cast)",
        MULTI,
    ),
    Mutant(
        "the codec need not be the same",
        "config/reader.py",
        '"run.log_every", "security.folder")',
        '"run.log_every", "security.folder", "mode.codec")',
        AGREED,
    ),
    Mutant(
        "the average may stand still",
        "config/settings/models.py",
        "    ema_decay: Fraction = 0.999",
        "    ema_decay: Weight = 0.999",
        f"{RANGES}::test_a_value_beyond_the_border_is_refused_by_its_key",
    ),
    Mutant(
        "all of a part is too much for topk",
        "config/settings/modes/partial_exchange.py",
        "Meta(gt=0, le=1)] = 0.01",
        "Meta(gt=0, lt=1)] = 0.01",
        BORDER,
    ),
    Mutant(
        "a default is another",
        "config/settings/bus.py",
        "    finish_timeout_s: Seconds = 60.0",
        "    finish_timeout_s: Seconds = 600.0",
        f"{RANGES}::test_every_default_is_as_written_here",
    ),
    Mutant(
        "the next incarnation takes over once more",
        "degan/worker/__main__.py",
        'code = _live(settings, number, out, signals, "latest")',
        'code = _live(settings, number, out, signals, "latest", False, arguments.takeover)',
        f"{INCARNATIONS}::test_a_worker_that_was_away_for_too_long_begins_another_incarnation_with_its_checkpoint",
    ),
    Mutant(
        "a node is held against one of its workers",
        "degan/worker/doctor.py",
        "needed_bytes=len(workers) * needs.redis_bytes",
        "needed_bytes=needs.redis_bytes",
        f"{DOCTOR}::test_the_needs_of_a_worker_are_those_of_its_mode",
    ),
    Mutant(
        "the outbox has room for other states than are sent",
        PARTIAL,
        "(settings.checkpoint_every, run.evaluate_every, run.snapshot_every)",
        "(settings.checkpoint_every, run.snapshot_every)",
        EXCHANGE,
    ),
    Mutant(
        "the wrong half precision is refused where Adam's moments travel",
        "config/settings/modes/federated.py",
        'if has_moments and self.codec == "float16"',
        'if has_moments and self.codec == "bfloat16"',
        "tests/config/test_settings_together.py::test_settings_that_do_not_fit_together",
    ),
)
