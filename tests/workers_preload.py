"""Imported once by the process from which `tests.workers` forks: everything that a worker loads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sklearn.datasets  # noqa: F401
import torch

# The first optimiser of a process loads it, which takes three seconds of computing.
import torch._dynamo

import degan.modes.local
import degan.modes.partial_exchange
import degan.worker.__main__
import degan.worker.loop
import degan.worker.objects  # noqa: F401

torch.set_num_threads(1)
