"""The GAN losses of discriminator and generator, and the two penalties on the gradient.

All losses take logits (batch,) as the discriminator returns them, reduce by the mean and return a
scalar that can be differentiated. `real` and `fake` may differ in batch size in the losses. The
penalties are separate terms, which the caller weighs and adds. R1 fits every loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

NAMES = ("non_saturating", "least_squares", "hinge", "wasserstein_gp")


def discriminator_loss(name: str, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """The loss of the discriminator, a scalar.

    Args:
        name: `non_saturating`: mean softplus(-real) + mean softplus(fake); cross-entropy on the logits.
            `least_squares`: half the mean of (real - 1)^2, plus half the mean of fake^2.
            `hinge`: mean max(0, 1 - real) + mean max(0, 1 + fake).
            `wasserstein_gp`: mean fake - mean real, without its penalty (`gradient_penalty`).
        real_logits: (batch of reals,), of data.
        fake_logits: (batch of fakes,), of generated samples.

    Raises:
        ValueError: an unknown name.

    Source: Goodfellow et al. 2014 (arXiv:1406.2661), equation 1; Mao et al. 2017 (arXiv:1611.04076),
    equation 9 (a = 0, b = c = 1); Lim & Ye 2017 (arXiv:1705.02894) and Miyato et al. 2018
    (arXiv:1802.05957), equation 16; Gulrajani et al. 2017 (arXiv:1704.00028), equation 3.
    """
    if name == "non_saturating":
        return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()
    if name == "least_squares":
        return 0.5 * (real_logits - 1).square().mean() + 0.5 * fake_logits.square().mean()
    if name == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    if name == "wasserstein_gp":
        return fake_logits.mean() - real_logits.mean()
    raise _unknown(name)


def generator_loss(name: str, fake_logits: torch.Tensor) -> torch.Tensor:
    """The loss of the generator, a scalar.

    Args:
        name: `non_saturating`: mean softplus(-fake). `least_squares`: half the mean of (fake - 1)^2.
            `hinge` and `wasserstein_gp`: -mean fake.
        fake_logits: (batch,), of generated samples, with their graph.

    Raises:
        ValueError: an unknown name.

    Source: Goodfellow et al. 2014, end of section 3 (maximise log D(G(z))); the others as in
    `discriminator_loss` (Miyato et al. 2018: equation 17).
    """
    if name == "non_saturating":
        return F.softplus(-fake_logits).mean()
    if name == "least_squares":
        return 0.5 * (fake_logits - 1).square().mean()
    if name in ("hinge", "wasserstein_gp"):
        return -fake_logits.mean()
    raise _unknown(name)


def gradient_penalty(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Mean of (|gradient of D| - 1)^2 at random points between reals and fakes; multiply it by lambda (10).

    The norm is per sample, over all its values. The paper advises against BatchNorm in the
    discriminator with this penalty: BatchNorm makes one sample's logit depend on the others.

    Args:
        real, fake: (batch, *sample_shape), one fake a real; no gradient flows into them.
        generator: draws the mixing weights, uniform in [0, 1); may be on another device.

    Raises:
        ValueError: `real` and `fake` differ in shape.

    Source: Gulrajani et al. 2017 (arXiv:1704.00028), algorithm 1 and section 4.
    """
    if real.shape != fake.shape:
        raise ValueError(f"gradient_penalty: reals {tuple(real.shape)} and fakes {tuple(fake.shape)} must pair up")
    weights_shape = (real.shape[0],) + (1,) * (real.dim() - 1)
    weights = torch.rand(weights_shape, generator=generator, device=generator.device).to(real)
    between = torch.lerp(fake.detach(), real.detach(), weights)
    return (_gradients(discriminator, between).norm(dim=1) - 1).square().mean()


def r1_penalty(discriminator: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Mean squared norm of the gradient of D at the data; multiply it by gamma / 2.

    Fits every loss. The penalty takes one more forward pass of the discriminator in its current mode: in
    training mode BatchNorm sees these samples once more.

    Args:
        real: (batch, *sample_shape); no gradient flows into it.

    Source: Mescheder et al. 2018 (arXiv:1801.04406), equation 9.
    """
    return _gradients(discriminator, real).square().sum(dim=1).mean()


def _gradients(discriminator: nn.Module, samples: torch.Tensor) -> torch.Tensor:
    """d logit / d sample, (batch, values of a sample), itself differentiable in the parameters."""
    samples = samples.detach().requires_grad_(True)
    # A logit depends on its own sample, so the sum's gradient holds every sample's own gradient.
    (gradients,) = torch.autograd.grad(discriminator(samples).sum(), samples, create_graph=True)
    return gradients.flatten(1)


def _unknown(name: str) -> ValueError:
    return ValueError(f"unknown loss {name!r}; known: {', '.join(NAMES)}")
