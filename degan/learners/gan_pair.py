"""The GAN pair: a generator and a discriminator, their optimisers, and the generator's moving average.

The vector is the generator's parameters followed by the discriminator's. The mode decides what happens between
`gradients` and `apply`: nothing, or an exchange with peers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from config.settings.experiment import Experiment
from degan import models
from degan.data.base import Batch
from degan.learners import losses
from degan.learners.flat import to_numpy
from degan.learners.networks import Networks
from degan.learners.protocols import Metrics, Section, State
from degan.seeds import spawn_seed


class GanPair(Networks):
    """A generator and a discriminator in training; see `degan.learners.protocols`.

    The initial weights are the same on every worker (they depend on the seed alone). Latents differ (they
    depend on the worker as well).

    Args:
        settings: the experiment.
        sample_shape: (channels, height, width) or (2,).
        worker: this worker's number; seeds the latents.
        device: the device of the computations.
    """

    losses = ("d_loss", "g_loss")

    def __init__(self, settings: Experiment, sample_shape: tuple[int, ...], worker: int, device: torch.device):
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spawn_seed(settings.seed, "weights"))
            generator, discriminator = models.build(settings.model, tuple(sample_shape))
        networks = {"generator": generator, "discriminator": discriminator}
        optimiser = settings.optimiser
        rates = {"generator": optimiser.generator_lr, "discriminator": optimiser.discriminator_lr}
        # The average starts as a copy of the generator, made before the generator's tensors become views.
        super().__init__(networks, rates, copy.deepcopy(generator), optimiser, sample_shape, device)
        self.generator, self.discriminator, self.ema = self._flats.values()
        self.latent = settings.model.latent
        self._latents = torch.Generator().manual_seed(spawn_seed(settings.seed, "latents", worker))
        self._mixing = torch.Generator(device=device).manual_seed(spawn_seed(settings.seed, "mixing", worker))
        self._fake: torch.Tensor | None = None

    def sections(self, updates: str) -> list[Section]:
        """The sections that one step updates, in order: `simultaneous` all at once, `alternating` D and then G."""
        whole, border = self.size, self.generator.size
        return [(0, whole)] if updates == "simultaneous" else [(border, whole), (0, border)]

    # --- one step -----------------------------------------------------------------------------

    def gradients(self, section: Section, batch: Batch | None) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of one section at the current parameters.

        Simultaneous updates take both networks' gradients at the same parameters and the same fakes. In
        alternating updates the generator's gradient is against the discriminator that has just been updated,
        on the same fakes as that discriminator's update.

        Args:
            section: one of `sections(updates)`.
            batch: samples float32 (batch, *sample_shape) in [-1, 1] on any device; the labels are not read. None for
                the generator's section, which uses the fakes of the discriminator's section.

        Returns:
            float32 (section's size,), and the losses by name. On the CPU the array is the gradient itself, not a
            copy; the caller may change it until the next call.
        """
        has_generator, has_discriminator = section[0] == 0, section[1] == self.size
        found = {}
        if has_discriminator:
            real = batch.samples.to(self.device, non_blocking=True)
            self._fake = self.generator.module(self._draw(real.shape[0]))
            found["d_loss"] = self._discriminator_gradient(real, self._fake.detach())
        if has_generator:
            found["g_loss"] = self._generator_gradient(self._fake)
            self._fake = None
        return to_numpy(self._gradient[section[0] : section[1]]), found

    def _draw(self, count: int) -> torch.Tensor:
        return torch.randn(count, self.latent, generator=self._latents).to(self.device)

    def _discriminator_gradient(self, real: torch.Tensor, fake: torch.Tensor) -> float:
        settings, network = self.settings, self.discriminator.module
        self.discriminator.clear_gradient()
        loss = losses.discriminator_loss(settings.loss, network(real), network(fake))
        if settings.loss == "wasserstein_gp" and settings.regularisation.gradient_penalty:
            penalty = losses.gradient_penalty(network, real, fake, self._mixing)
            loss = loss + settings.regularisation.gradient_penalty * penalty
        if settings.regularisation.r1_gamma:
            loss = loss + 0.5 * settings.regularisation.r1_gamma * losses.r1_penalty(network, real)
        loss.backward()
        return float(loss.detach())

    def _generator_gradient(self, fake: torch.Tensor) -> float:
        self.generator.clear_gradient()
        self.discriminator.freeze(True)
        try:
            loss = losses.generator_loss(self.settings.loss, self.discriminator.module(fake))
            loss.backward()
        finally:
            self.discriminator.freeze(False)
        return float(loss.detach())

    # --- a step whose two networks are on different workers -----------------------------------

    def make_fakes(self, batches: int, size: int) -> list[torch.Tensor]:
        """`batches` times `size` samples of G in its training mode, (size, *sample_shape), with their graphs."""
        return [self.generator.module(self._draw(size)) for _ in range(batches)]

    def discriminator_gradient(self, real: torch.Tensor, fake: np.ndarray) -> tuple[np.ndarray, float]:
        """D's gradient, for `apply`, on these reals and fakes, both (batch, *sample_shape); and the loss."""
        loss = self._discriminator_gradient(real.to(self.device), torch.from_numpy(fake).to(self.device))
        return to_numpy(self.discriminator.gradient), loss

    def feedback(self, fake: np.ndarray) -> tuple[np.ndarray, float]:
        """The gradient of G's loss at generated samples, float32 like `fake`, and the loss.

        D's parameters stay unchanged; the samples update D's running statistics, as in every step of G.
        """
        samples = torch.from_numpy(fake).to(self.device).requires_grad_(True)
        self.discriminator.freeze(True)
        try:
            loss = losses.generator_loss(self.settings.loss, self.discriminator.module(samples))
            (gradient,) = torch.autograd.grad(loss, samples)
        finally:
            self.discriminator.freeze(False)
        return to_numpy(gradient), float(loss.detach())

    def generator_gradient(self, fakes: list[torch.Tensor], gradients: list[np.ndarray]) -> np.ndarray:
        """G's gradient, for `apply`: the gradients at the fakes of `make_fakes`, propagated back through G."""
        self.generator.clear_gradient()
        torch.autograd.backward(fakes, [torch.from_numpy(g).to(self.device) for g in gradients])
        return to_numpy(self.generator.gradient)

    # --- the output ---------------------------------------------------------------------------

    def show(self, count: int) -> torch.Tensor:
        """Samples of the moving average for latents that stay the same for the whole run."""
        latents = torch.Generator().manual_seed(spawn_seed(self.settings.seed, "grid"))
        return self.sample(torch.randn(count, self.latent, generator=latents))

    def measure(self, evaluate: Callable[[Callable[[Any], torch.Tensor]], list[Metrics]]) -> list[Metrics]:
        """The metrics of samples of the moving average, for the same latents at each call."""
        latents = torch.Generator().manual_seed(spawn_seed(self.settings.seed, "evaluation"))
        return evaluate(lambda count: self.sample(torch.randn(count, self.latent, generator=latents)))

    @torch.no_grad()
    def sample(self, latents: torch.Tensor) -> torch.Tensor:
        """The moving-average generator's samples, (n, *sample_shape) in [-1, 1], for latents (n, latent)."""
        module = self.ema.module.eval()
        batches = [module(batch.to(self.device)) for batch in latents.split(256)]
        return torch.cat(batches).cpu()

    # --- random generators --------------------------------------------------------------------

    def random_state(self) -> State:
        """Every random generator of the pair, as uint8 tensors by name; torch's global generator feeds dropout."""
        return {
            "latents": self._latents.get_state(),
            "mixing": self._mixing.get_state(),
            "global": torch.random.get_rng_state(),
        }

    def load_random_state(self, state: State) -> None:
        self._latents.set_state(state["latents"])
        self._mixing.set_state(state["mixing"])
        torch.random.set_rng_state(state["global"])
