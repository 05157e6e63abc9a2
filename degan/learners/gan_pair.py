"""The GAN pair: a generator and a discriminator, their optimisers, and the generator's moving average.

`GanPair` owns the weights; `gradients`, `apply` and `average` are the door through which training goes, so
what happens between them (nothing, or an exchange with peers) is the mode's business. The vector is the
generator's parameters followed by the discriminator's, each flattened in module order; both networks and
their gradients live in one such vector each, so that an exchange on the CPU copies nothing.
"""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import torch

from config.settings.experiment import Experiment
from degan import models
from degan.learners import losses
from degan.learners.flat import Flat, count, to_numpy

State = dict[str, torch.Tensor]

# What a step updates at once: both networks, or one after the other.
Section = tuple[int, int]


def spawn_seed(seed: int, *path: int | str) -> int:
    """A seed for one purpose, e.g. `spawn_seed(1, "latents", worker)`; 63 bits."""
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class GanPair:
    """A generator and a discriminator in training.

    Weights begin the same on every worker (they depend on the seed alone); latents differ (they depend
    on the worker as well).

    Args:
        settings: the experiment.
        sample_shape: (channels, height, width) or (2,).
        worker: our number; seeds the latents.
        device: where to compute.
    """

    def __init__(self, settings: Experiment, sample_shape: tuple[int, ...], worker: int, device: torch.device):
        self.settings, self.sample_shape, self.device = settings, tuple(sample_shape), device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spawn_seed(settings.seed, "weights"))
            generator, discriminator = models.build(settings.model, self.sample_shape)
        # The average starts as the generator itself. It is copied before the views are made.
        average = copy.deepcopy(generator)
        sizes = [count(generator), count(discriminator)]
        self._values, self._gradient = (torch.zeros(sum(sizes), device=device) for _ in range(2))
        self.generator, self.discriminator = (
            Flat(module.to(device), values, gradient)
            for module, values, gradient in zip(
                (generator, discriminator), self._values.split(sizes), self._gradient.split(sizes), strict=True
            )
        )
        self.ema = Flat(average.to(device).eval().requires_grad_(True))
        self.latent = settings.model.latent
        self._optimisers = self._make_optimisers()
        self._latents = torch.Generator().manual_seed(spawn_seed(settings.seed, "latents", worker))
        self._mixing = torch.Generator(device=device).manual_seed(spawn_seed(settings.seed, "mixing", worker))
        self._applied = 0
        self._fake: torch.Tensor | None = None

    def _make_optimisers(self) -> list[torch.optim.Optimizer]:
        optimiser, made = self.settings.optimiser, []
        rates = (self.generator, optimiser.generator_lr), (self.discriminator, optimiser.discriminator_lr)
        for flat, rate in rates:
            if optimiser.algorithm == "sgd":
                made.append(torch.optim.SGD([flat.values], lr=rate))
            else:
                made.append(torch.optim.Adam([flat.values], lr=rate, betas=optimiser.betas))
        return made

    # --- the vector ---------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of values in the vector: all trainable parameters."""
        return self.generator.size + self.discriminator.size

    def sections(self, updates: str) -> list[Section]:
        """What one step updates, in order: `simultaneous` all at once, `alternating` D and then G."""
        whole, border = self.size, self.generator.size
        return [(0, whole)] if updates == "simultaneous" else [(border, whole), (0, border)]

    # --- one step -----------------------------------------------------------------------------

    def gradients(self, section: Section, real: torch.Tensor | None) -> tuple[np.ndarray, dict[str, float]]:
        """The gradient of one section at the current parameters.

        Simultaneous updates take both networks' gradients at the same parameters and the same fakes. In
        alternating updates the generator is judged by the discriminator that has just been updated, on the
        fakes that it has just seen.

        Args:
            section: one of `sections(updates)`.
            real: float32 (batch, *sample_shape) in [-1, 1] on any device; None for the generator's section,
                which goes on with the fakes of the discriminator's.

        Returns:
            float32 (section's size,), and the losses by name. On the CPU it is the gradient itself, not a copy:
            it is the caller's until the next call.
        """
        has_generator, has_discriminator = section[0] == 0, section[1] == self.size
        found = {}
        if has_discriminator:
            real = real.to(self.device, non_blocking=True)
            self._fake = self.generator.module(self._draw(real.shape[0]))
            found["d_loss"] = self._discriminator_gradient(real, self._fake.detach())
        if has_generator:
            found["g_loss"] = self._generator_gradient(self._fake)
            self._fake = None
        return to_numpy(self._gradient[section[0] : section[1]]), found

    def apply(self, section: Section, gradient: np.ndarray) -> None:
        """One step of the optimisers with a gradient of a section, float32 (section's size,)."""
        mine = self._gradient[section[0] : section[1]]
        theirs = torch.from_numpy(gradient)
        # What `gradients` gave out and got back changed is in its place already.
        if theirs.data_ptr() != mine.data_ptr():
            mine.copy_(theirs)
        for optimiser, wanted in zip(self._optimisers, (section[0] == 0, section[1] == self.size), strict=True):
            if wanted:
                optimiser.step()

    def parameters(self, section: Section) -> np.ndarray:
        """The weights of a section, float32 (section's size,); on the CPU the weights themselves, not a copy."""
        return to_numpy(self._values[section[0] : section[1]])

    def load_parameters(self, section: Section, values: np.ndarray) -> None:
        """Put weights of a section in their place, float32 (section's size,)."""
        mine, theirs = self._values[section[0] : section[1]], torch.from_numpy(values)
        if theirs.data_ptr() != mine.data_ptr():
            mine.copy_(theirs)

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

    @torch.no_grad()
    def average(self, section: Section, steps: int = 1) -> None:
        """After a section is what it is to be: the moving average of G, if G is in it.

        Weights and running statistics, with the decay warmed up over the first steps.

        Args:
            steps: how many steps of an optimiser led here; they decay as much as one by one.
        """
        if section[0]:
            return
        decay = 1.0
        for _ in range(steps):
            self._applied += 1
            decay *= min(self.settings.optimiser.ema_decay, (1 + self._applied) / (10 + self._applied))
        self.ema.values.data.lerp_(self.generator.values.data, 1 - decay)
        self.ema.buffers.lerp_(self.generator.buffers, 1 - decay)

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

        D's parameters stay; its running statistics take the samples in, as in every step of G.
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
        """G's gradient, for `apply`: those at its fakes, from `make_fakes`, propagated back through it."""
        self.generator.clear_gradient()
        torch.autograd.backward(fakes, [torch.from_numpy(g).to(self.device) for g in gradients])
        return to_numpy(self.generator.gradient)

    def network(self, name: str, has_moments: bool = True) -> np.ndarray:
        """`generator` or `discriminator`: weights, running statistics, Adam's moments if wanted; a copy."""
        return to_numpy(torch.cat([tensor.reshape(-1) for tensor in self._of_network(name, has_moments)]))

    def network_counters(self, name: str) -> dict[str, int]:
        """The counters that belong to a network; that of the average is G's."""
        wanted = (name, "applied") if name == "generator" else (name,)
        return {key: count for key, count in self.counters().items() if key.partition(".")[0] in wanted}

    def load_network(self, name: str, values: np.ndarray, counters: dict[str, int], has_moments: bool = True) -> None:
        """The inverse of `network` and `network_counters`; without moments ours stay."""
        _fill(self._of_network(name, has_moments), values)
        self._applied = counters.get("applied", self._applied)
        if has_moments:
            self.set_steps(counters[name], name)
        for key, buffer in self._whole_buffers():
            buffer.fill_(counters.get(key, int(buffer)))

    def _of_network(self, name: str, has_moments: bool) -> list[torch.Tensor]:
        flat = getattr(self, name)
        return [flat.values.data, flat.buffers, *(self._moments(name) if has_moments else [])]

    # --- what comes out -----------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, latents: torch.Tensor) -> torch.Tensor:
        """The moving-average generator's samples, (n, *sample_shape) in [-1, 1], for latents (n, latent)."""
        module = self.ema.module.eval()
        batches = [module(batch.to(self.device)) for batch in latents.split(256)]
        return torch.cat(batches).cpu()

    # --- state --------------------------------------------------------------------------------

    def networks(self) -> State:
        """Both networks and the average as `generator.*`, `discriminator.*`, `ema.*` tensors, copied to the CPU."""
        return {
            f"{prefix}.{name}": tensor.detach().cpu().clone()
            for prefix, flat in self._all()
            for name, tensor in flat.module.state_dict().items()
        }

    def load_networks(self, tensors: State) -> None:
        """The inverse of `networks`.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        for prefix, flat in self._all():
            own = {n.removeprefix(f"{prefix}."): t for n, t in tensors.items() if n.startswith(f"{prefix}.")}
            try:
                flat.module.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(" ".join(str(error).split())) from None

    def statistics(self) -> np.ndarray:
        """BatchNorm's running statistics of G, D and the average, float32 (buffers,)."""
        return to_numpy(torch.cat([flat.buffers for flat in (self.generator, self.discriminator, self.ema)]))

    def load_statistics(self, values: np.ndarray) -> None:
        """The inverse of `statistics`."""
        offset, tensor = 0, torch.from_numpy(values)
        for flat in (self.generator, self.discriminator, self.ema):
            flat.buffers.copy_(tensor[offset : offset + flat.buffers.numel()])
            offset += flat.buffers.numel()

    def model(self, has_moments: bool = False) -> np.ndarray:
        """All weights, then the running statistics of G and D, then the optimisers' moments if wanted; a copy."""
        return to_numpy(torch.cat([tensor.reshape(-1) for tensor in self._of_model(has_moments)]))

    def load_model(self, values: np.ndarray, has_moments: bool = False) -> None:
        """The inverse of `model`."""
        _fill(self._of_model(has_moments), values)

    def _of_model(self, has_moments: bool) -> list[torch.Tensor]:
        moments = self._moments() if has_moments else []
        return [self._values, self.generator.buffers, self.discriminator.buffers, *moments]

    def _moments(self, only: str = "") -> list[torch.Tensor]:
        """Adam's, of both networks or one, made where it has not taken a step yet; SGD has none."""
        found = []
        for name, flat, optimiser in self._named():
            if self.settings.optimiser.algorithm == "adam" and only in ("", name):
                if flat.values not in optimiser.state:
                    moments = {name: torch.zeros_like(flat.values.data) for name in ("exp_avg", "exp_avg_sq")}
                    optimiser.state[flat.values] = {"step": torch.tensor(0.0), **moments}
                found += [optimiser.state[flat.values][name] for name in ("exp_avg", "exp_avg_sq")]
        return found

    def set_steps(self, steps: int, only: str = "") -> None:
        """How many steps Adam's moments stand for, of both networks or one."""
        for name, moments in ((name, optimiser.state.get(flat.values, {})) for name, flat, optimiser in self._named()):
            if "step" in moments and only in ("", name):
                moments["step"] = torch.tensor(float(steps))

    def reset_optimisers(self) -> None:
        """As if no step had been taken."""
        self._optimisers = self._make_optimisers()

    def smooth(self) -> np.ndarray:
        """G's moving average: its weights, then its running statistics; a copy."""
        return to_numpy(torch.cat([self.ema.values.data, self.ema.buffers]))

    def load_smooth(self, values: np.ndarray) -> None:
        """The inverse of `smooth`."""
        found = torch.from_numpy(values)
        self.ema.values.data.copy_(found[: self.ema.size])
        self.ema.buffers.copy_(found[self.ema.size :])

    def vectors(self) -> dict[str, np.ndarray]:
        """All that training depends on and that workers share, as flat float32 vectors by name."""
        found = {"ema": self.ema.values, "statistics": torch.from_numpy(self.statistics())}
        for name, flat, adam in self._named():
            moments = adam.state.get(flat.values, {})
            found[name] = flat.values
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{name}.{moment}"] = moments.get(moment, torch.zeros_like(flat.values))
        return {name: to_numpy(tensor).copy() for name, tensor in found.items()}

    def counters(self) -> dict[str, int]:
        """The step counts of the optimisers, the average and BatchNorm."""
        counts = {"applied": self._applied}
        for name, flat, adam in self._named():
            counts[name] = int(adam.state.get(flat.values, {}).get("step", 0))
        return counts | {name: int(buffer) for name, buffer in self._whole_buffers()}

    def load_vectors(self, vectors: dict[str, np.ndarray], counters: dict[str, int]) -> None:
        """The inverse of `vectors` and `counters`.

        Raises:
            ValueError: a vector is missing or of another size.
        """
        mine = self.vectors()
        for name, array in mine.items():
            if name not in vectors or vectors[name].size != array.size:
                raise ValueError(f"the state has no {name} of {array.size} values")
        tensors = {name: torch.from_numpy(np.array(vectors[name], dtype=np.float32)) for name in mine}
        self.ema.values.data.copy_(tensors["ema"])
        self.load_statistics(tensors["statistics"].numpy())
        self._applied = int(counters["applied"])
        for name, buffer in self._whole_buffers():
            buffer.fill_(int(counters[name]))
        for name, flat, adam in self._named():
            flat.values.data.copy_(tensors[name])
            if counters[name]:
                adam.state[flat.values] = {
                    "step": torch.tensor(float(counters[name])),
                    "exp_avg": tensors[f"{name}.exp_avg"].to(self.device),
                    "exp_avg_sq": tensors[f"{name}.exp_avg_sq"].to(self.device),
                }
            else:
                adam.state.pop(flat.values, None)

    def random_state(self) -> State:
        """Every random generator of ours, as uint8 tensors by name; torch's global one feeds dropout."""
        return {
            "latents": self._latents.get_state(),
            "mixing": self._mixing.get_state(),
            "global": torch.random.get_rng_state(),
        }

    def load_random_state(self, state: State) -> None:
        self._latents.set_state(state["latents"])
        self._mixing.set_state(state["mixing"])
        torch.random.set_rng_state(state["global"])

    def _whole_buffers(self):
        for prefix, flat in self._all():
            for name, buffer in flat.module.named_buffers():
                if not buffer.is_floating_point():
                    yield f"{prefix}.{name}", buffer

    def _all(self):
        return (("generator", self.generator), ("discriminator", self.discriminator), ("ema", self.ema))

    def _named(self):
        return (
            ("generator", self.generator, self._optimisers[0]),
            ("discriminator", self.discriminator, self._optimisers[1]),
        )


def _fill(tensors: list[torch.Tensor], values: np.ndarray) -> None:
    """Write one vector into tensors, one after the other."""
    for tensor, part in zip(tensors, torch.from_numpy(values).split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
