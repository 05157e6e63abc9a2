"""Small classifiers, their batches, and the same training in plain torch."""

from __future__ import annotations

import copy

import torch

import config
from degan.data.base import Batch
from degan.learners.classifier import Classifier
from tests.learner_views import tensors_of

CPU, SHAPE, CLASSES, BATCH = torch.device("cpu"), (1, 8, 8), 5, 6
KINDS = {
    "gn_lenet": {"name": "gn_lenet", "image_size": 8},
    "resnet-group": {"name": "resnet", "width": 8, "image_size": 8},
    "resnet-batch": {"name": "resnet", "width": 8, "norm": "batch", "image_size": 8},
    "mlp": {"name": "mlp", "hidden": 7, "image_size": 8},
}


def experiment(kind="mlp", peers=1, mode=None, optimiser=None, seed=3, run=None):
    return config.build(
        {
            "name": "classified",
            "seed": seed,
            "peers": peers,
            "data": {"name": "digits", "batch_size": BATCH},
            "classifier": KINDS[kind],
            "optimiser": {"lr": 0.01, "betas": [0.3, 0.8]} | (optimiser or {}),
            "mode": {"name": "local"} | (mode or {}),
            "bus": {"lease_s": 20, "finish_timeout_s": 20},
            "run": run or {},
        }
    )


def new_classifier(settings) -> Classifier:
    return Classifier(settings, SHAPE, CLASSES, CPU)


def stream(worker: int, size: int = BATCH):
    """A worker's endless batches; the bright pixels depend on the label."""
    generator = torch.Generator().manual_seed(70 + worker)

    def next_batch() -> Batch:
        labels = torch.randint(CLASSES, (size,), generator=generator)
        samples = torch.rand(size, *SHAPE, generator=generator) - 0.5 + labels[:, None, None, None] / CLASSES
        return Batch(samples, labels)

    return next_batch


class Plain:
    """The network of a classifier with torch's own optimiser, and a cross entropy that is written out."""

    def __init__(self, settings):
        self.network = copy.deepcopy(new_classifier(settings).modules["classifier"])
        # The tensors of the copy are no views of one vector any more.
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            tensor.data = tensor.data.clone()
        for parameter in self.network.parameters():
            parameter.grad = None
        optimiser = settings.optimiser
        if optimiser.algorithm == "sgd":
            self.optimiser = torch.optim.SGD(self.network.parameters(), lr=optimiser.lr)
        else:
            self.optimiser = torch.optim.Adam(self.network.parameters(), lr=optimiser.lr, betas=optimiser.betas)

    def step(self, batch: Batch) -> tuple[float, float]:
        """One step; returns the loss, and the share of right answers."""
        logits = self.network(batch.samples)
        wanted = logits[torch.arange(len(logits)), batch.labels]
        loss = (torch.log(torch.exp(logits).sum(dim=1)) - wanted).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, batch.labels, strict=True))
        return float(loss.detach()), right / len(logits)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"classifier.{name}": tensor for name, tensor in self.network.state_dict().items()}


def assert_follows(learner: Classifier, plain: Plain, began: dict[str, torch.Tensor]) -> None:
    """Every tensor has moved as far, and in the same direction, as that of plain torch."""
    found, expected = tensors_of(learner), plain.tensors()
    assert found.keys() == expected.keys() == began.keys()
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
            continue
        moved = (value - began[name]).norm()
        assert moved > 1e-4, name
        assert (found[name] - value).norm() <= 5e-3 * moved, name
