"""The optimisers are those of torch.optim, bit for bit, without torch's compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from config.settings.models import Optimiser
from degan.learners.optimisers import optimiser_of

ROOT = Path(__file__).resolve().parents[3]
RATES = st.floats(1e-6, 1.0)
BETAS = st.floats(0.0, 0.999)


def parameter(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values.copy()))


@given(
    algorithm=st.sampled_from(["adam", "sgd"]),
    rate=RATES,
    betas=st.tuples(BETAS, BETAS),
    size=st.integers(1, 70),
    steps=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e10]),
    seed=st.integers(0, 2**32 - 1),
)
def test_steps_equal_those_of_torch(algorithm, rate, betas, size, steps, scale, seed):
    random = np.random.default_rng(seed)
    start = random.standard_normal(size).astype(np.float32)
    mine, theirs = parameter(start), parameter(start)
    optimiser = optimiser_of(Optimiser(algorithm=algorithm, betas=betas), mine, rate)
    kinds = {"adam": lambda: torch.optim.Adam([theirs], rate, betas), "sgd": lambda: torch.optim.SGD([theirs], rate)}
    reference = kinds[algorithm]()
    for _ in range(steps):
        gradient = torch.from_numpy((scale * random.standard_normal(size)).astype(np.float32))
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimiser.step()
        reference.step()
    assert mine.detach().numpy().tobytes() == theirs.detach().numpy().tobytes()
    state = reference.state[theirs]
    assert optimiser.steps == int(state.get("step", 0))
    for name, vector in optimiser.moments.items():
        assert vector.numpy().tobytes() == state[name].numpy().tobytes()


@pytest.mark.parametrize(("algorithm", "names"), [("adam", ["exp_avg", "exp_avg_sq"]), ("sgd", [])])
def test_moments_are_zeros_before_the_first_step(algorithm, names):
    optimiser = optimiser_of(Optimiser(algorithm=algorithm), parameter(np.ones(3, np.float32)), 0.1)
    assert optimiser.steps == 0 and list(optimiser.moments) == names
    assert all(not vector.any() for vector in optimiser.moments.values())


STEPS = """
import sys
import torch
from config.settings.models import Optimiser
from degan.learners.gan_pair import GanPair
from degan.learners.optimisers import optimiser_of
for algorithm in ("adam", "sgd"):
    values = torch.nn.Parameter(torch.ones(3))
    values.grad = torch.ones(3)
    optimiser_of(Optimiser(algorithm=algorithm), values, 0.1).step()
loaded = {"redis", "torch._dynamo"} & sys.modules.keys()
sys.exit(f"loaded: {loaded}" if loaded else 0)
"""


def test_a_step_loads_neither_the_compiler_nor_redis():
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=ROOT, timeout=100, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
