"""The weights at the end of a run, as digests and a few values, and how they are held against those of before.

torch promises the same bits only on the same kind of processor. So beside the weights stands the digest of a probe:
a training step by step in plain torch that uses no code of degan. Where the probe gives the same bits, the weights must
too. Elsewhere they must agree to a few per cent of the way that training moved them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn
from torch.nn import functional as F

FILE = Path(__file__).parent / "weights.json"
SAMPLES = 16
# Of the mean way that training moved a value, in the mean over the values looked at.
TOLERANCE = 0.05
NETWORKS = ("generator", "discriminator", "ema")


def probe() -> str:
    """The digest of a perceptron GAN's weights after ten steps of plain torch, shaped like the smoke experiments."""
    random = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        generator = nn.Sequential(
            nn.Linear(16, 64), nn.LeakyReLU(0.2), nn.Linear(64, 256), nn.BatchNorm1d(256), nn.Tanh()
        )
        discriminator = nn.Sequential(nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    average = [p.detach().clone() for p in generator.parameters()]
    optimisers = [torch.optim.Adam(m.parameters(), lr=2e-4, betas=(0.5, 0.999)) for m in (generator, discriminator)]
    for batch in (8, 16) * 5:
        real = torch.rand(batch, 256, generator=random) * 2 - 1
        fake = generator(torch.randn(batch, 16, generator=random))
        for optimiser in optimisers:
            optimiser.zero_grad()
        (F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake.detach())).mean()).backward()
        optimisers[1].step()
        F.softplus(-discriminator(fake)).mean().backward()
        optimisers[0].step()
        for mine, theirs in zip(average, generator.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 0.1).copy_(mine.half().float())
    digest = hashlib.sha256(torch.backends.cpu.get_cpu_capability().encode())
    for tensor in [*average, *generator.parameters(), *discriminator.parameters()]:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def read(run: Path, worker: int) -> dict[str, np.ndarray]:
    """The networks in a worker's newest checkpoint, each as one vector of its tensors in the order of their names."""
    newest = max((run / f"w{worker}" / "checkpoints").iterdir())
    return as_vectors(load_file(newest / "model.safetensors"))


def as_vectors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The networks among named tensors, each as one vector of its tensors in the order of their names."""
    return {
        network: np.concatenate([tensors[n].reshape(-1) for n in sorted(tensors) if n.startswith(f"{network}.")])
        for network in NETWORKS
    }


def facts(weights: dict[str, np.ndarray], initial: dict[str, np.ndarray]) -> dict[str, dict]:
    """The facts of the weights: for each network a digest, some values, and how far training moved those."""
    found = {}
    for network, values in weights.items():
        places = np.linspace(0, values.size - 1, SAMPLES).astype(int)
        moved = float(np.abs(values[places] - initial[network][places]).mean())
        digest = hashlib.sha256(values.tobytes()).hexdigest()
        found[network] = {"sha256": digest, "values": [float(f"{v:.9g}") for v in values[places]], "moved": moved}
    return found


def write(found: dict) -> None:
    """Write the facts, a line for each case, so that a change shows its case."""
    lines = ",\n".join(
        f" {json.dumps(part)}: {{\n"
        + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in cases.items())
        + "\n }"
        for part, cases in found.items()
    )
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def kept() -> dict:
    """The kept facts: of `runs` by case and worker, of `generated` pictures by folder, and the `probe`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def differences(found: dict[str, dict], expected: dict[str, dict], is_exact: bool) -> list[str]:
    """The networks that are not as they were, each with how far away it is; empty if all are."""
    wrong = []
    for network, before in expected.items():
        now = found[network]
        away = float(np.abs(np.array(now["values"]) - np.array(before["values"])).mean())
        if now["sha256"] != before["sha256"] if is_exact else not away <= TOLERANCE * before["moved"]:
            wrong.append(f"{network}: {away:.2e} away on average, where training moved it by {before['moved']:.2e}")
    return wrong


def picture_facts(images: np.ndarray) -> dict:
    """The facts of pictures, uint8 of any shape: a digest and some values."""
    places = np.linspace(0, images.size - 1, SAMPLES).astype(int)
    return {"sha256": hashlib.sha256(images.tobytes()).hexdigest(), "values": images.reshape(-1)[places].tolist()}


def are_same_pictures(found: dict, expected: dict, is_exact: bool) -> bool:
    """Whether pictures are as they were; within one grey level where the machine computes other bits."""
    if is_exact:
        return found == expected
    return all(abs(now - before) <= 1 for now, before in zip(found["values"], expected["values"], strict=True))
