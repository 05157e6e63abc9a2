"""Data sets as arrays of samples, their split between workers, and each worker's endless batches.

`prepare` once, `load` a part, `split` its labels between the workers, iterate with a `Shard`:

    prepare(settings.data, image_size)
    source = load(settings.data, image_size, "train")
    parts = split(settings.data.split, source.labels, settings.workers, settings.seed)
    shard = Shard(source, parts[worker], settings.seed, worker, settings.data.batch_size)
    samples, labels = shard.next_batch()           # float32 (batch, *sample_shape) in [-1, 1]; int64 (batch,)
"""

from degan.data.base import Source
from degan.data.shard import Shard
from degan.data.sources import load, prepare
from degan.data.splits import class_counts, split

__all__ = ["Shard", "Source", "class_counts", "load", "prepare", "split"]
