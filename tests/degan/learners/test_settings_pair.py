"""The effect of each setting of the networks, of their training and of the data's split, by hand.

A setting of these blocks without a row fails the test; those of modes, bus and run are in `test_settings_reach`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import config
from degan.data.splits import split
from degan.errors import DataError
from degan.learners import losses
from degan.learners.gan_pair import GanPair
from degan.learners.optimisers import Descent
from tests.learner_views import unlabelled
from tests.leaves import leaves, plain

TINY = {"name": "mlp", "latent": 2, "hidden": 3, "image_size": 4}
SHAPE = (1, 4, 4)
BORDER = 2 * 3 + 3 + 3 * 3 + 3 + 3 * 16 + 16


def pair_of(path: str, *value: Any, **more: Any) -> GanPair:
    """A pair in which one setting has this value."""
    settings = config.build(plain(path, *value, **more))
    side = settings.model.image_size
    return GanPair(settings, (1, side, side), 0, torch.device("cpu"))


# --- networks ----------------------------------------------------------------------------------


def linear(module: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]


def shown(pair: GanPair) -> tuple[int, ...]:
    """The shape of G's samples, which D takes."""
    with torch.no_grad():
        made = pair.generator.module(torch.zeros(2, pair.latent))
        assert pair.discriminator.module(made).shape == (2,)
    return tuple(made.shape[1:])


def norms(pair: GanPair) -> set[float]:
    both = (*pair.generator.module.modules(), *pair.discriminator.module.modules())
    return {module.eps for module in both if isinstance(module, nn.BatchNorm2d)}


def maps(module: nn.Module) -> list[tuple[int, int]]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return [(m.in_channels, m.out_channels) for m in module.modules() if isinstance(m, kinds)]


NETWORKS: dict[str, tuple[Any, Callable[[GanPair], Any], Any]] = {
    "model[mlp].latent": (5, lambda p: (p.latent, linear(p.generator.module)[0]), (5, (5, 256))),
    "model[mlp].hidden": (
        *(7, lambda p: (linear(p.generator.module), linear(p.discriminator.module))),
        ([(64, 7), (7, 7), (7, 784)], [(784, 7), (7, 7), (7, 1)]),
    ),
    "model[mlp].image_size": (9, shown, (1, 9, 9)),
    "model[dcgan].latent": (5, lambda p: (p.latent, maps(p.generator.module)[0]), (5, (5, 128))),
    "model[dcgan].width": (
        *(3, lambda p: (maps(p.generator.module), maps(p.discriminator.module))),
        ([(64, 12), (12, 6), (6, 3), (3, 1)], [(1, 3), (3, 6), (6, 12), (12, 1)]),
    ),
    "model[dcgan].image_size": (64, shown, (1, 64, 64)),
    "model[lsgan].latent": (5, lambda p: (p.latent, linear(p.generator.module)), (5, [(5, 128 * 8 * 8)])),
    "model[lsgan].image_size": (64, shown, (1, 64, 64)),
    "model[lsgan].norm_eps": (0.25, lambda p: norms(p) - {1e-5}, {0.25}),
    "model[degan].latent": (5, lambda p: (p.latent, linear(p.generator.module)[0]), (5, (5, 512 * 7 * 7))),
    "model[degan].image_size": (28, shown, (1, 28, 28)),
}


@pytest.mark.parametrize("path", NETWORKS)
def test_each_setting_of_the_networks_has_its_effect(path):
    value, found, expected = NETWORKS[path]
    assert found(pair_of(path, value)) == expected


# --- training ----------------------------------------------------------------------------------


def optimisers(pair: GanPair) -> list[Descent]:
    """The optimisers of G and D."""
    return list(pair._optimisers.values())


def averaged(pair: GanPair) -> float:
    """The value of the average after a step, from an average of zeros and a G of ones."""
    pair.generator.values.data.fill_(1.0)
    pair.ema.values.data.fill_(0.0)
    pair.average((0, pair.size))
    (value,) = set(pair.ema.values.data.tolist())
    return round(value, 6)


TRAINING: dict[str, tuple[Any, Callable[[GanPair], Any], Any]] = {
    "optimiser.algorithm": ("sgd", lambda p: [type(o) for o in optimisers(p)], [Descent] * 2),
    "optimiser.generator_lr": (0.25, lambda p: [o.rate for o in optimisers(p)], [0.25, 2e-4]),
    "optimiser.discriminator_lr": (0.25, lambda p: [o.rate for o in optimisers(p)], [2e-4, 0.25]),
    "optimiser.betas": ([0.25, 0.75], lambda p: [o.betas for o in optimisers(p)], [(0.25, 0.75)] * 2),
    # The decay is below the first value of the warm-up, two elevenths.
    "optimiser.ema_decay": (0.125, averaged, 0.875),
}


@pytest.mark.parametrize("path", TRAINING)
def test_each_setting_of_the_training_has_its_effect(path):
    value, found, expected = TRAINING[path]
    assert found(pair_of(path, value, model=TINY)) == expected


def test_both_algorithms_take_their_rates():
    for algorithm in ("adam", "sgd"):
        optimiser = {"algorithm": algorithm, "generator_lr": 0.5, "discriminator_lr": 0.25}
        pair = pair_of("optimiser.ema_decay", 0.5, model=TINY, optimiser=optimiser)
        assert [optimiser.rate for optimiser in optimisers(pair)] == [0.5, 0.25]
        # A reset keeps the rates.
        pair.reset_optimisers()
        assert [optimiser.rate for optimiser in optimisers(pair)] == [0.5, 0.25]


LOSS = {"loss": (), "regularisation.r1_gamma": (), "regularisation.gradient_penalty": ()}


@pytest.mark.parametrize(
    ("loss", "gamma", "weight", "expected"),
    [
        ("hinge", 0.0, 7.0, 100.0),
        ("hinge", 3.0, 7.0, 100.0 + 1.5 * 1000.0),
        ("wasserstein_gp", 0.0, 7.0, 100.0 + 7 * 10.0),
        ("wasserstein_gp", 3.0, 7.0, 100.0 + 7 * 10.0 + 1.5 * 1000.0),
        ("wasserstein_gp", 0.0, 0.0, 100.0),
    ],
)
def test_the_loss_and_its_penalties_have_their_weights(monkeypatch, loss, gamma, weight, expected):
    """The discriminator has a loss of 100, a gradient penalty of 10 and a squared norm of 1,000."""
    named = []

    def constant(value: float) -> Callable[..., torch.Tensor]:
        def found(*arguments: Any) -> torch.Tensor:
            named.append(arguments[0])
            return torch.full((), value, requires_grad=True)

        return found

    made = (("discriminator_loss", 100.0), ("generator_loss", 5.0), ("gradient_penalty", 10.0), ("r1_penalty", 1000.0))
    for name, value in made:
        monkeypatch.setattr(losses, name, constant(value))
    penalties = {"r1_gamma": gamma, "gradient_penalty": weight}
    pair = pair_of("loss", loss, model=TINY, regularisation=penalties)
    _, found = pair.gradients((0, pair.size), unlabelled(torch.zeros(2, *SHAPE)))
    assert found == {"d_loss": expected, "g_loss": 5.0}
    assert [name for name in named if isinstance(name, str)] == [loss, loss]
    assert pair.discriminator_gradient(torch.zeros(2, *SHAPE), np.zeros((2, *SHAPE), np.float32))[1] == expected


# --- the split ---------------------------------------------------------------------------------

WORKERS, LABELS = 5, np.arange(210) % 10


def parts_of(kind: str, **more: Any) -> list[np.ndarray]:
    path = f"data.split[{kind}].x"
    data = plain(path)
    data["data"]["split"] |= more
    return split(config.build(data).data.split, LABELS, WORKERS, 7)


def by_class(parts: list[np.ndarray]) -> np.ndarray:
    """The number of samples of each worker and class: (workers, classes)."""
    return np.stack([np.bincount(LABELS[part], minlength=10) for part in parts])


def even_split() -> bool:
    counts = by_class(parts_of("dirichlet", alpha=1e5))
    return bool((abs(counts - 21 / 5) < 2).all())


def cuts() -> set[int]:
    """The numbers of cuts, of 15 with 14 samples each, that have samples of one worker."""
    place = np.empty(210, np.int64)
    place[np.argsort(LABELS, kind="stable")] = np.arange(210)
    return {len(set(place[part] // 14)) for part in parts_of("shards", per_worker=3)}


def contiguous() -> bool:
    parts = parts_of("mixed", even=0.0)
    return [sorted(LABELS[part].tolist()) for part in parts] == [sorted(LABELS)[42 * w : 42 * w + 42] for w in range(5)]


def refusal(kind: str, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        parts_of(kind, **more)
    return str(caught.value)


SPLITS: dict[str, tuple[Callable[[], Any], Any]] = {
    "data.split[classes].groups": (
        lambda: [sorted(set(LABELS[part].tolist())) for part in parts_of("classes", groups=[[0, 4], [9]])],
        [[0, 4], [9], [0, 4], [9], [0, 4]],
    ),
    "data.split[dirichlet].alpha": (even_split, True),
    "data.split[dirichlet].min_samples": (lambda: "60" in refusal("dirichlet", min_samples=60), True),
    "data.split[shards].per_worker": (cuts, {3}),
    "data.split[fegan].magic_num": (lambda: by_class(parts_of("fegan", magic_num=2, min_samples=3)).max(), 2),
    "data.split[fegan].ramp": (
        lambda: (by_class(parts_of("fegan", ramp=10, min_samples=3)) > 0).sum(axis=1).tolist(),
        [10, 3, 5, 7, 9],
    ),
    "data.split[fegan].min_samples": (lambda: "60" in refusal("fegan", min_samples=60), True),
    "data.split[mixed].even": (contiguous, True),
}


@pytest.mark.parametrize("path", SPLITS)
def test_each_setting_of_the_split_has_its_effect(path):
    found, expected = SPLITS[path]
    assert found() == expected


def test_every_setting_of_these_blocks_has_its_row():
    blocks = ("model", "loss", "regularisation", "optimiser", "data.split")
    mine = {path for path in leaves() if path.startswith(blocks) and path != "optimiser.lr"}
    assert NETWORKS.keys() | TRAINING.keys() | LOSS.keys() | SPLITS.keys() == mine
