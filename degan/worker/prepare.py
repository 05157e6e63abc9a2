"""`python -m degan.worker.prepare --config FILE`: run once before the workers, to prepare the data and the metrics.

The command downloads the data set if the settings ask for that. It trains the classifier of the metrics into the
cache.
"""

from __future__ import annotations

import argparse
import sys

import config
from config import UsageError


def main(argv: list[str]) -> int:
    """Prepare an experiment; returns 0, or 2 with one line when a person has to fix something."""
    parser = argparse.ArgumentParser(prog="python -m degan.worker.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    try:
        settings = config.load(arguments.config)
        from degan.data.sources import prepare
        from degan.metrics import classifier

        prepare(settings.data, settings.image_size)
        source = check_data(settings)
        if settings.run.evaluate_every and settings.classifier is None:
            classifier.obtain(source)
    except UsageError as error:
        print(f"degan: {error}", file=sys.stderr)
        return 2
    return 0


def check_data(settings: config.Experiment):
    """The training data, after a check that each worker has a shard and that the networks fit the data.

    Raises:
        UsageError: one of the workers could not train with this data.
    """
    from degan import models
    from degan.data.shard import Shard
    from degan.data.sources import load
    from degan.data.splits import split
    from degan.models import classifiers

    source = load(settings.data, settings.image_size, "train")
    parts = split(settings.data.split, source.labels, settings.workers, settings.seed)
    for worker, indices in enumerate(parts):
        Shard(source, indices, settings.seed, worker, settings.data.batch_size)
    if settings.classifier is None:
        models.build(settings.model, source.sample_shape)
    else:
        classifiers.build(settings.classifier, source.sample_shape, len(source.classes))
    return source


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
