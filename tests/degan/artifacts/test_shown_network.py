"""The network that is shown, saved and measured; workers have the same initial weights and different noise."""

from __future__ import annotations

import copy

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import config
from degan.artifacts.checkpoints import Checkpoints
from degan.artifacts.pictures import grid
from degan.artifacts.saved import Saved
from degan.learners.gan_pair import GanPair
from degan.metrics.evaluate import Metric
from degan.modes.local import Local
from degan.seeds import spawn_seed
from degan.worker.loop import Loop
from degan.worker.setup import Setup
from degan.worker.signals import Signals
from tests.degan.learners.test_step import experiment, new_pair, reals
from tests.learner_views import tensors_of
from tests.plain_gan import LATENT, copy_weights, dcgan, mlp, seed_of

SEED = 3


def by_hand(module: nn.Module, latents: torch.Tensor, networks=dcgan) -> torch.Tensor:
    """The samples of a generator's weights and running statistics, in a plain network in evaluation mode."""
    network, _ = networks()
    copy_weights(module, network)
    with torch.no_grad():
        return network.eval()(latents)


def latents_of(purpose: str, *counts: int) -> torch.Tensor:
    """The latents of a purpose, drawn in portions of these sizes."""
    generator = torch.Generator().manual_seed(seed_of(SEED, purpose))
    return torch.cat([torch.randn(count, LATENT, generator=generator) for count in counts])


def trained(model="dcgan", steps=2):
    settings = experiment(model=model, ema_decay=0.5)
    pair, data = new_pair(settings), reals(settings)
    mode = Local(settings, 0, pair)
    for step in range(1, steps + 1):
        mode.step(step, lambda: next(data), is_sync_point=False)
    return pair


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "count"), [("dcgan", 7), ("mlp", 600)])
def test_samples_are_those_of_the_average_in_its_evaluation_mode(model, count):
    pair, latents = trained(model), torch.randn(count, LATENT, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(tensors_of(pair))
    # The former mode of the module does not count.
    pair.ema.module.train()
    found = pair.sample(latents)
    networks = mlp if model == "mlp" else dcgan
    assert found.shape == (count, *pair.sample_shape) and not found.requires_grad
    torch.testing.assert_close(found, by_hand(pair.ema.module, latents, networks))
    assert not torch.allclose(found, by_hand(pair.generator.module, latents, networks), atol=1e-3)
    after = tensors_of(pair)
    assert all(torch.equal(before[name], after[name]) for name in before), "looking changes nothing"


class Gauge:
    """A stand-in for the evaluator: keeps the samples, three and then two of them."""

    def __init__(self):
        self.seen = []

    def evaluate(self, sample):
        self.seen.append(torch.cat([sample(3), sample(2)]))
        return [Metric("fid5_classifier", float(len(self.seen)), 0.1)]


def test_a_run_measures_draws_and_saves_the_average(tmp_path):
    settings = config.build(
        {
            "name": "shown",
            "seed": SEED,
            "device": "cpu",
            "data": {"name": "digits", "batch_size": 6},
            "model": {"name": "dcgan", "latent": LATENT, "width": 2},
            "optimiser": {"generator_lr": 0.01, "ema_decay": 0.5},
            "mode": {"name": "local"},
            "run": {"steps": 3, "evaluate_every": 1, "snapshot_every": 1, "checkpoint_every": 2},
        }
    )
    setup, lines = Setup.build(settings, 0), []
    setup.evaluator = gauge = Gauge()
    moments, step = [copy.deepcopy(setup.learner.ema.module)], Local.step

    class Noted(Local):
        def step(self, *rest):
            found = step(self, *rest)
            moments.append(copy.deepcopy(setup.learner.ema.module))
            return found

    (tmp_path / "w0").mkdir()
    checkpoints = Checkpoints(tmp_path / "w0" / "checkpoints", keep=3)
    mode = Noted(settings, 0, setup.learner, lines.append)
    assert Loop(setup, mode, tmp_path, checkpoints, [], Signals(), lines.append).run() == 3
    # Every evaluation, before the first step and after each, has the same latents.
    assert len(gauge.seen) == len(moments) == 4
    for number, (seen, average) in enumerate(zip(gauge.seen, moments, strict=True)):
        torch.testing.assert_close(seen, by_hand(average, latents_of("evaluation", 3, 2)))
        picture = grid(by_hand(average, latents_of("grid", 64)), 8)
        for folder in (tmp_path, tmp_path / "w0"):
            drawn = np.asarray(Image.open(folder / f"fakes-{number:06d}.png").convert("RGB"))
            assert np.abs(drawn.astype(int) - picture.astype(int)).max() <= 1
    # The checkpoints that generate and evaluate read.
    assert checkpoints.steps() == [2, 3]
    saved = Saved.load(tmp_path, None)
    assert (saved.worker, saved.step, saved.sample_shape) == (0, 3, (1, 32, 32))
    latents = torch.randn(300, LATENT, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(
        saved.sample(300, torch.Generator().manual_seed(9)), by_hand(moments[3], latents), atol=1e-5, rtol=1e-4
    )
    assert Saved.load(tmp_path, 0, best=True).step == 2


# --- differences between workers -------------------------------------------------------------------


def test_seeds_are_those_of_every_release():
    """A repeated run depends on the seeds; here they come from the definition, and two of them are numbers."""
    for path in ((1, "weights"), (1, "latents", 0), (2**62, "evaluation"), (3, "split", 2, "x")):
        assert spawn_seed(*path) == seed_of(*path)
    assert spawn_seed(1, "weights") == 2891528143651911317 and spawn_seed(1, "latents", 0) == 5633299702140774346


def test_all_workers_begin_with_the_same_weights_and_the_average_is_the_generator():
    settings = experiment(model="dcgan")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = tensors_of(new_pair(settings, 0))
        torch.manual_seed(2)
        before = torch.random.get_rng_state()
        other = tensors_of(new_pair(settings, 5))
        assert torch.equal(torch.random.get_rng_state(), before), "nobody else's draws change"
    assert all(torch.equal(first[name], other[name]) for name in first)
    for name in first:
        if name.startswith("generator."):
            assert torch.equal(first[name], first[name.replace("generator.", "ema.")]), name
    changed = tensors_of(
        GanPair(
            config.build(config.parse(config.dump(settings).replace("seed: 3", "seed: 4"))),
            (1, 32, 32),
            0,
            torch.device("cpu"),
        )
    )
    assert not torch.equal(first["generator.body.0.weight"], changed["generator.body.0.weight"])
    assert not torch.equal(first["discriminator.body.0.weight"], changed["discriminator.body.0.weight"])


def test_initial_weights_are_drawn_from_the_seed_of_weights():
    """Weights are drawn layer by layer, the generator's first, and then uniformly as in degan.models.mlp."""
    found = tensors_of(new_pair(experiment()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(SEED, "weights"))
        layers = {
            f"{network}.body.{place}": nn.Linear(inputs, outputs)
            for network, sizes in (("generator", (LATENT, 8, 8, 64)), ("discriminator", (64, 8, 8, 1)))
            for place, inputs, outputs in zip((0, 2, 4), sizes, sizes[1:], strict=False)
        }
        for name, layer in layers.items():
            bound = layer.in_features**-0.5
            for kind in ("weight", "bias"):
                expected = torch.empty_like(getattr(layer, kind)).uniform_(-bound, bound)
                torch.testing.assert_close(found[f"{name}.{kind}"], expected, rtol=1e-6, atol=1e-7)
    assert set(found) == {
        *(f"{name}.{kind}" for name in layers for kind in ("weight", "bias")),
        *(f"ema.body.{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")),
    }


def test_every_worker_draws_latents_and_mixing_weights_of_its_own():
    settings = experiment("wasserstein_gp")
    states = [new_pair(settings, worker).random_state() for worker in range(3)]
    for worker, state in enumerate(states):
        for name in ("latents", "mixing"):
            expected = torch.Generator().manual_seed(seed_of(SEED, name, worker)).get_state()
            assert torch.equal(state[name], expected), (worker, name)
    fakes = [new_pair(settings, worker).make_fakes(1, 4)[0] for worker in range(3)]
    assert not torch.equal(fakes[0], fakes[1]) and not torch.equal(fakes[1], fakes[2])


def test_dropout_of_every_worker_draws_from_a_seed_of_its_own():
    settings = config.build(
        {
            "name": "seeds",
            "seed": SEED,
            "peers": 2,
            "device": "cpu",
            "data": {"name": "digits", "batch_size": 6},
            "model": {"name": "mlp", "latent": LATENT, "hidden": 8, "image_size": 8},
            "mode": {"name": "local"},
        }
    )
    with torch.random.fork_rng(devices=[]):
        for worker in range(2):
            setup = Setup.build(settings, worker)
            assert torch.initial_seed() == seed_of(SEED, "global", worker)
            seeded = torch.Generator().manual_seed(seed_of(SEED, "latents", worker))
            assert torch.equal(setup.learner.random_state()["latents"], seeded.get_state())


def test_every_picture_is_of_the_same_latents_and_every_evaluation_too():
    def asked(worker=0, seed=3):
        pair = new_pair(msgspec.structs.replace(experiment(), seed=seed), worker)
        pair.sample, found = lambda latents: found.append(latents) or latents, []
        for _ in range(2):
            pair.show(6)
            pair.measure(lambda sample: [sample(4), sample(4)])
        return found

    one, other, third = asked(), asked(worker=5), asked(seed=4)
    assert [latents.shape for latents in one] == [(6, 4), (4, 4), (4, 4)] * 2
    for first, again, theirs in zip(one[:3], one[3:], other[:3], strict=True):
        assert torch.equal(first, again) and torch.equal(first, theirs)
    assert not torch.equal(one[0][:4], one[1]) and not torch.equal(one[1], one[2])
    assert not any(torch.equal(first, theirs) for first, theirs in zip(one[:3], third[:3], strict=True))
