"""Mutants of the data that trains and evaluates: shards, parts, references, the shown average, checkpoints."""

from tests.mutants.mutant import Mutant

SETUP, EVALUATE, SAVED, CHECKPOINTS = (
    "degan/worker/setup.py",
    "degan/metrics/evaluate.py",
    "degan/artifacts/saved.py",
    "degan/artifacts/checkpoints.py",
)
SHARED_OUT = "tests/degan/data/test_training_data.py::test_the_workers_share_out_the_training_part"
REFERENCE = "tests/degan/metrics/test_evaluator.py::test_samples_and_the_floor_are_measured_against_the_test_part"
GENERATED = "tests/degan/artifacts/test_saved.py::test_generated_images_are_the_averages_of_that_checkpoint"

MUTANTS = (
    Mutant(
        "every worker trains on shard 0", SETUP, "Shard(source, parts[worker],", "Shard(source, parts[0],", SHARED_OUT
    ),
    Mutant("workers train on the test part", SETUP, 'image_size, "train")', 'image_size, "test")', SHARED_OUT),
    Mutant(
        "workers with the same data train in the same order",
        SETUP,
        "parts[worker], settings.seed, worker, settings",
        "parts[worker], settings.seed, 0, settings",
        "tests/degan/data/test_training_data.py::test_with_own_data_a_worker_has_all_it_finds_and_knows_only_itself",
    ),
    Mutant(
        "own data is cut all the same",
        "degan/data/splits.py",
        "return [np.arange(len(labels))] * workers",
        "return np.array_split(np.arange(len(labels)), workers)",
        "tests/degan/data/test_training_data.py::test_with_own_data_a_worker_has_all_it_finds_and_knows_only_itself",
    ),
    Mutant(
        "every epoch has the same order",
        "degan/data/shard.py",
        "[self._seed, self._worker, epoch, _PURPOSE]",
        "[self._seed, self._worker, 0, _PURPOSE]",
        "tests/degan/data/test_training_data.py::test_every_epoch_every_worker_and_every_seed_has_an_order_of_its_own",
    ),
    Mutant(
        "labels are not those of their digits",
        "degan/data/sources.py",
        "digits.target[chosen], [",
        "digits.target[: len(chosen)], [",
        "tests/degan/data/test_parts.py::test_the_digits_parts_are_the_bundled_ones_with_their_labels",
    ),
    Mutant(
        "torchvision's test part is the training part",
        "degan/data/torchvision_sets.py",
        'train=part == "train"',
        "train=True",
        "tests/degan/data/test_parts.py::test_idx_files_give_each_part_its_own_images_and_labels",
    ),
    Mutant(
        "what a folder holds out is trained on as well",
        "degan/data/folder.py",
        "[path for path in paths if path not in chosen[name]]",
        "list(paths)",
        "tests/degan/data/test_parts.py::test_of_an_undivided_folder_the_smallest_hashes_of_each_class_are_held_out",
    ),
    Mutant("the metrics' test part is the training part", EVALUATE, 'size, "test")', 'size, "train")', REFERENCE),
    Mutant(
        "FID against training samples",
        EVALUATE,
        "evidence.generated.gaussian, evidence.reference.gaussian",
        "evidence.generated.gaussian, evidence.real.gaussian",
        REFERENCE,
    ),
    Mutant(
        "the floor of the first training samples",
        EVALUATE,
        "np.random.default_rng(_FLOOR_SEED).permutation(len(train))[: self._count]",
        "np.arange(len(train))[: self._count]",
        f"{REFERENCE} tests/degan/metrics/test_metrics.py::test_real_samples_score_near_the_floor_and_cover_everything",
    ),
    Mutant(
        "the classifier learns from the test part",
        EVALUATE,
        "classifier.obtain(train)",
        "classifier.obtain(test)",
        "tests/degan/metrics/test_evaluator.py::test_the_classifier_learns_from_the_training_part_and_only_that",
    ),
    Mutant(
        "the classifier looks in training mode",
        "degan/metrics/classifier.py",
        "classifier.eval().requires_grad_(False)",
        "classifier.requires_grad_(False)",
        "tests/degan/metrics/test_classifier.py::test_every_sample_is_seen_by_itself",
    ),
    Mutant(
        "generate shows the raw generator",
        SAVED,
        'models.build(settings.model, shape), "ema."',
        'models.build(settings.model, shape), "generator."',
        GENERATED,
    ),
    Mutant("generate in training mode", SAVED, "network.eval(), shape", "network, shape", GENERATED),
    Mutant("the best checkpoint is the worst", CHECKPOINTS, "return min(scores,", "return max(scores,", GENERATED),
    Mutant(
        "the best of the steps that are lived again stays",
        CHECKPOINTS,
        "if later > step:",
        "if later > step and later != self.best_step():",
        "tests/degan/artifacts/test_checkpoints.py::test_with_the_best_forgotten_the_best_of_the_others_stays",
    ),
)
