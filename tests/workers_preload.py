"""The modules that a worker loads, imported once by the process from which `tests.workers` forks."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sklearn.datasets  # noqa: F401
import torch

# The first optimiser of a process loads it, which takes three seconds of computing.
import torch._dynamo

torch.set_num_threads(1)
