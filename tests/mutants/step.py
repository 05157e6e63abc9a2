"""Mutants of the computation of a step of a GAN, of the shown network, and of the order of the values."""

from tests.mutants.mutant import Mutant

PAIR, LOSSES, GUARD = "degan/learners/gan_pair.py", "degan/learners/losses.py", "degan/learners/guard.py"
NETWORKS, CLASSIFIER = "degan/learners/networks.py", "degan/learners/classifier.py"
OPTIMISERS = "degan/learners/optimisers.py"
CLASSIFIED = "tests/degan/learners/test_classifier.py::test_"
STEP = "tests/degan/learners/test_step.py::test_training_is_that_of_plain_torch"
RESUMED = "tests/degan/artifacts/test_checkpoints.py::test_training_goes_on_bit_for_bit"
AVERAGE = "tests/degan/learners/test_step.py::test_the_average_takes_what_its_decay_leaves_of_a_step"
SEEDS = "tests/degan/artifacts/test_shown_network.py::test_every_worker_draws_latents_and_mixing_weights_of_its_own"
ORDER = "tests/degan/learners/test_pair_order.py::test_"
LOCAL = "tests/degan/modes/test_local.py::test_"
RATES = '{"generator": optimiser.generator_lr, "discriminator": optimiser.discriminator_lr}'
SWAPPED = '{"generator": optimiser.discriminator_lr, "discriminator": optimiser.generator_lr}'
FROZEN = """        self.discriminator.freeze(True)
        try:
            loss = losses.generator_loss(self.settings.loss, self.discriminator.module(fake))
"""

MUTANTS = (
    Mutant("D's labels are swapped", PAIR, "network(real), network(fake))", "network(fake), network(real))", STEP),
    Mutant("D is not frozen in G's pass", PAIR, FROZEN, FROZEN.partition("\n")[2], STEP),
    Mutant("the rates are swapped", PAIR, RATES, SWAPPED, STEP),
    Mutant(
        "Adam's betas are torch's own", OPTIMISERS, "values, rate, settings.betas", "values, rate, (0.9, 0.999)", STEP
    ),
    Mutant("a loaded count of steps is lost", OPTIMISERS, "self._step.fill_(steps)", "pass", RESUMED),
    Mutant("R1 without its half", PAIR, "loss + 0.5 * settings.reg", "loss + settings.reg", STEP),
    Mutant(
        "the weight of the gradient penalty is ignored",
        PAIR,
        "settings.regularisation.gradient_penalty * penalty",
        "10.0 * penalty",
        STEP,
    ),
    Mutant(
        "the penalty draws a weight a value, and not one a sample",
        LOSSES,
        "weights_shape = (real.shape[0],) + (1,) * (real.dim() - 1)",
        "weights_shape = real.shape",
        STEP,
    ),
    Mutant("ema_decay is ignored", NETWORKS, "min(self._optimiser.ema_decay,", "min(0.999,", AVERAGE),
    Mutant(
        "the average leaves running statistics out",
        NETWORKS,
        "        average.buffers.lerp_(first.buffers, 1 - decay)\n",
        "",
        f"{AVERAGE} {STEP}",
    ),
    Mutant(
        "samples are of the generator itself",
        PAIR,
        "module = self.ema.module.eval()",
        "module = self.generator.module.eval()",
        "tests/degan/artifacts/test_shown_network.py::test_samples_are_those_of_the_average_in_its_evaluation_mode",
    ),
    Mutant(
        "a saved run shows the generator itself",
        "degan/artifacts/saved.py",
        'models.build(settings.model, shape), "ema."',
        'models.build(settings.model, shape), "generator."',
        "tests/degan/artifacts/test_shown_network.py::test_a_run_measures_draws_and_saves_the_average",
    ),
    Mutant(
        "all workers draw the same latents",
        PAIR,
        'spawn_seed(settings.seed, "latents", worker)',
        'spawn_seed(settings.seed, "latents")',
        SEEDS,
    ),
    Mutant(
        "a settled exchange keeps its own statistics",
        "degan/modes/partial_exchange.py",
        "self._learner.load_statistics(self._exchange.average(self._learner.statistics()))",
        "self._exchange.average(self._learner.statistics())",
        "tests/degan/learners/test_step.py::test_a_synchronous_exchange_is_plain_torch_on_the_mean",
    ),
    Mutant(
        "D's statistics travel before G's",
        NETWORKS,
        "flat.buffers.numel() for name, flat in self._trained.items()}",
        "flat.buffers.numel() for name, flat in reversed(self._trained.items())}",
        f"{ORDER}a_model_is_weights_statistics_and_moments_of_generator_and_discriminator",
    ),
    Mutant(
        "a state of before the first step leaves moments",
        NETWORKS,
        "if name in counters and f",
        "if counters.get(name) and f",
        f"{ORDER}a_state_of_before_the_first_step_leaves_no_moments_of_ours",
    ),
    Mutant(
        "statistics that are not finite stay",
        GUARD,
        "        self._learner.load_statistics(context.statistics)\n",
        "",
        f"{LOCAL}statistics_are_kept_apart_and_set_back_each_in_its_place",
    ),
    Mutant(
        "the gate reaches nothing",
        "degan/modes/partial_exchange.py",
        "        norm_gate=settings.bus.norm_gate,\n",
        "",
        "tests/degan/learners/test_guard.py::test_the_gate_changes_nothing_without_an_attacker_and_leaves_an_attacker_out",
    ),
    Mutant(
        "G's pass keeps its graph",
        PAIR,
        "            loss.backward()\n        finally:",
        "            loss.backward(retain_graph=True)\n        finally:",
        STEP,
        harmless="what is computed stays the same; the graph is freed with the fakes, a line later",
    ),
    # --- the classifier ---
    Mutant(
        "a classifier forgets to clear its gradient",
        CLASSIFIER,
        "        self._flat.clear_gradient()\n",
        "",
        f"{CLASSIFIED}training_is_that_of_plain_torch",
    ),
    Mutant(
        "a classifier is measured in its training mode",
        CLASSIFIER,
        "self._flat.module.eval()",
        "self._flat.module.train()",
        f"{CLASSIFIED}logits_are_of_the_evaluation_mode_and_training_goes_on",
    ),
    Mutant(
        "a classifier does not go on training after it was measured",
        CLASSIFIER,
        "            module.train()\n",
        "            pass\n",
        f"{CLASSIFIED}logits_are_of_the_evaluation_mode_and_training_goes_on",
    ),
    Mutant(
        "a classifier takes a GAN's rate",
        CLASSIFIER,
        "{NETWORK: optimiser.lr}",
        "{NETWORK: optimiser.generator_lr}",
        "tests/degan/learners/test_settings_classifier.py::test_each_setting_of_a_classifier_has_its_effect",
    ),
    Mutant(
        "accuracy is the share of what is wrong",
        "degan/metrics/accuracy.py",
        "found.argmax(dim=1) == batch.labels",
        "found.argmax(dim=1) != batch.labels",
        "tests/degan/metrics/test_accuracy.py::test_the_metrics_by_hand",
    ),
    Mutant(
        "the checkpoint of the lowest accuracy is the best",
        "degan/metrics/evaluate.py",
        "1 - m.value for m in metrics",
        "m.value for m in metrics",
        "tests/degan/metrics/test_accuracy.py::test_the_best_is_the_lowest_score",
    ),
    Mutant(
        "labels come in the order of the data set",
        "degan/data/base.py",
        "self.labels[np.asarray(indices, dtype=np.int64)]",
        "self.labels[: len(indices)]",
        "tests/degan/data/test_data.py::test_a_batch_has_the_labels_of_its_samples",
    ),
    Mutant(
        "pieces of a chain are applied from the last to the first",
        "degan/learners/chain.py",
        "for piece in pieces:",
        "for piece in reversed(pieces):",
        "tests/degan/learners/test_chain.py::test_pieces_are_applied_in_their_order_with_the_same_context",
    ),
)
