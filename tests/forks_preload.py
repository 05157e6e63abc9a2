"""Imported once by the server of `tests.forks`: the libraries that a worker loads, and nothing of ours."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import safetensors.torch  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch

torch.set_num_threads(1)
