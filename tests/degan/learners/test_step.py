"""The GAN step against plain torch written by hand: every loss, both updates, penalties, rates, averages.

Each comparison is relative to how far the training has moved the tensor, so a factor of a thousandth too much fails.
"""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import numpy as np
import pytest
import torch

import config
from degan.learners.gan_pair import GanPair
from degan.modes.federated import Federated
from degan.modes.local import Local
from degan.modes.partial_exchange import PartialExchange
from tests.fleets import in_threads, memory_buses
from tests.learner_views import counters_of, unlabelled, vectors_of
from tests.plain_gan import DCGAN, MLP, PlainGan, flat, loss_of_generator

CPU = torch.device("cpu")
BATCH, STEPS = 6, 3
LOSSES = ("non_saturating", "least_squares", "hinge", "wasserstein_gp")
UPDATES = ("simultaneous", "alternating")
# No number is its default, and no two are equal.
OPTIMISER = {"generator_lr": 0.004, "discriminator_lr": 0.011, "betas": (0.3, 0.8), "ema_decay": 0.22}
# Plain descent has to move the weights by more than float32 rounds them.
DESCENT = {"algorithm": "sgd", "generator_lr": 1.3, "discriminator_lr": 0.4}
MODELS = {
    "mlp": ({"name": "mlp", "latent": 4, "hidden": 8, "image_size": 8}, MLP),
    "dcgan": ({"name": "dcgan", "latent": 4, "width": 2}, DCGAN),
}


def experiment(loss="non_saturating", model="mlp", r1=0.0, gp=3.0, peers=1, mode=None, bus=None, **optimiser):
    return config.build(
        {
            "name": "step",
            "seed": 3,
            "peers": peers,
            "data": {"name": "mnist", "batch_size": BATCH},
            "model": MODELS[model][0],
            "loss": loss,
            "regularisation": {"r1_gamma": r1, "gradient_penalty": gp},
            "optimiser": OPTIMISER | optimiser,
            "mode": {"name": "local"} | (mode or {}),
            "bus": bus or {},
            "run": {"steps": STEPS, "evaluate_every": 0, "snapshot_every": 0},
        }
    )


def new_pair(settings, worker=0):
    shape = MLP if settings.model.__struct_config__.tag == "mlp" else DCGAN
    return GanPair(settings, shape, worker, CPU)


def reals(settings, worker=0):
    """Endless batches; their mean is far from that of the first fakes."""
    generator, shape = torch.Generator().manual_seed(50 + worker), new_pair(settings).sample_shape
    while True:
        yield unlabelled(torch.rand(BATCH, *shape, generator=generator) * 0.8 + 0.2)


def tensors(networks):
    return {
        f"{network}.{place}.{name.rpartition('.')[2]}": value.detach().clone()
        for network, module in networks.items()
        for place, (name, value) in enumerate(itertools.chain(module.named_parameters(), module.named_buffers()))
    }


def of_pair(pair):
    networks = {"generator": pair.generator, "discriminator": pair.discriminator, "ema": pair.ema}
    return tensors({name: flat.module for name, flat in networks.items()})


# The last bias of D, which shifts every logit, stands still where real and fake logits count alike.
STILL = "discriminator.5.bias", "discriminator.9.bias"


def assert_follows(found, expected, began, tolerance=1e-3):
    """Every tensor has moved as far, and in the same direction, as the expected one."""
    assert found.keys() == expected.keys() == began.keys()
    for name, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value), name
            continue
        moved = (value - began[name]).norm()
        still = name in STILL and moved < 1e-6
        assert moved > 1e-5 or still, name
        assert (found[name] - value).norm() <= (1e-6 if still else tolerance * moved), name


# With the critics' losses the gradient of D's last bias is zero but for rounding, of which Adam would make steps.
CASES = [
    *[(loss, updates, "mlp", "adam", 0.0, 3.0) for loss in LOSSES[:2] for updates in UPDATES],
    *[(loss, updates, "mlp", "sgd", 0.7, 3.0) for loss in LOSSES for updates in UPDATES],
    ("non_saturating", "alternating", "dcgan", "adam", 0.7, 3.0),
    ("hinge", "simultaneous", "dcgan", "sgd", 0.0, 3.0),
    ("wasserstein_gp", "alternating", "dcgan", "sgd", 0.7, 3.0),
    ("wasserstein_gp", "simultaneous", "mlp", "sgd", 0.0, 0.0),
]


@pytest.mark.parametrize(("loss", "updates", "model", "algorithm", "r1", "gp"), CASES)
def test_training_is_that_of_plain_torch(loss, updates, model, algorithm, r1, gp):
    settings = experiment(loss, model, r1, gp, mode={"updates": updates}, **(DESCENT if algorithm == "sgd" else {}))
    pair = new_pair(settings, worker=2)
    plain, began, data = PlainGan(settings, pair, worker=2), of_pair(pair), reals(settings)
    mode = Local(settings, 2, pair)
    for step in range(1, STEPS + 1):
        real = next(data)
        found = mode.step(step, lambda real=real: unlabelled(real.samples.clone()), is_sync_point=False)
        assert found == pytest.approx(plain.step(real.samples, updates), rel=1e-4)
        assert list(found) == ["d_loss", "g_loss"]
        assert_follows(of_pair(pair), tensors(plain.networks()), began)
    # The optimisers' moments are compared too: where they differ, later steps do.
    if algorithm == "adam":
        for name, trained in (("generator", plain.generator), ("discriminator", plain.discriminator)):
            assert counters_of(pair)[name] == STEPS
            for place, moment in enumerate(("exp_avg", "exp_avg_sq")):
                expected = flat(moments[place] for moments in trained.moments).numpy()
                np.testing.assert_allclose(
                    vectors_of(pair)[f"{name}.{moment}"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
                )
    # The penalty draws mixing weights; without a penalty nothing is drawn.
    assert torch.equal(pair.random_state()["mixing"], plain.mixing.get_state())
    assert torch.equal(pair.random_state()["latents"], plain.latents.get_state())


@pytest.mark.parametrize("updates", UPDATES)
@pytest.mark.parametrize("model", MODELS)
def test_a_gradient_is_the_generators_and_then_the_discriminators_in_module_order(model, updates):
    settings = experiment("least_squares", model, r1=0.7)
    pair = new_pair(settings)
    plain, real = PlainGan(settings, pair), next(reals(settings))
    border = sum(p.numel() for p in plain.generator.network.parameters())
    whole = border + sum(p.numel() for p in plain.discriminator.network.parameters())
    sections = {"simultaneous": [(0, whole)], "alternating": [(border, whole), (0, border)]}[updates]
    assert pair.sections(updates) == sections and pair.size == whole
    fake = plain.draw(BATCH)
    for_discriminator, d_loss = plain.gradient_of_discriminator(real.samples, fake)
    for_generator, g_loss = plain.gradient_of_generator(fake)
    found, losses = np.zeros(whole, np.float32), {}
    for begin, end in sections:
        # The generator's section needs no reals.
        gradient, some = pair.gradients((begin, end), real if end == whole else None)
        assert gradient.shape == (end - begin,) and gradient.dtype == np.float32
        found[begin:end] = gradient
        losses |= some
    expected = flat([*for_generator, *for_discriminator]).numpy()
    for part in (slice(0, border), slice(border, whole)):
        scale = np.abs(expected[part]).max()
        np.testing.assert_allclose(found[part], expected[part], rtol=1e-3, atol=1e-5 * scale)
    assert losses == pytest.approx({"d_loss": d_loss, "g_loss": g_loss}, rel=1e-5)


@pytest.mark.parametrize("updates", UPDATES)
def test_a_step_leaves_no_graph_behind(updates):
    """The fakes of a step and their graph take no memory after the step."""
    settings, made = experiment(mode={"updates": updates}), []
    pair = new_pair(settings)
    pair.generator.module.register_forward_hook(lambda module, given, fakes: made.append(weakref.ref(fakes)))
    Local(settings, 0, pair).step(1, lambda: next(reals(settings)), is_sync_point=False)
    gc.collect()
    assert len(made) == 1 and made[0]() is None


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_each_section_steps_its_own_network_at_its_own_rate(algorithm):
    """The gradients are in memory of their own, as from an exchange; D takes three steps and G one."""
    settings = experiment(algorithm=algorithm)
    pair = new_pair(settings)
    plain, began = PlainGan(settings, pair), of_pair(pair)
    border, whole = pair.generator.size, pair.size
    rng = np.random.default_rng(0)
    for section, trained in (
        ((border, whole), [plain.discriminator]),
        ((0, whole), [plain.generator, plain.discriminator]),
        ((border, whole), [plain.discriminator]),
    ):
        gradient = rng.standard_normal(section[1] - section[0]).astype(np.float32)
        before = gradient.copy()
        pair.apply(section, gradient)
        np.testing.assert_array_equal(gradient, before)
        rest = torch.from_numpy(gradient)
        for one in trained:
            parameters = list(one.network.parameters())
            sizes = [parameter.numel() for parameter in parameters]
            pieces, rest = rest[: sum(sizes)].split(sizes), rest[sum(sizes) :]
            one.apply([p.view(q.shape) for p, q in zip(pieces, parameters, strict=True)])
    networks = {name: net for name, net in plain.networks().items() if name != "ema"}
    found = {name: value for name, value in of_pair(pair).items() if not name.startswith("ema")}
    assert_follows(found, tensors(networks), {name: began[name] for name in found}, 1e-4)


# --- the moving average ---------------------------------------------------------------------------


def fill(module, value):
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(value)


def decay_of(decay, steps):
    """The product of min(decay, (1 + t) / (10 + t)) over these steps."""
    return float(np.prod([min(decay, (1 + t) / (10 + t)) for t in steps]))


@pytest.mark.parametrize("decay", [0.999, 0.3, 0.0])
def test_the_average_takes_what_its_decay_leaves_of_a_step(decay):
    """An average of 0 moves towards a generator of ones; the product of the decays is the remainder of the 0."""
    pair = new_pair(experiment(model="dcgan", ema_decay=decay))
    fill(pair.generator.module, 1)
    fill(pair.ema.module, 0)
    border, whole = pair.generator.size, pair.size
    taken = 0
    for section, steps, counts in (
        ((0, border), 1, 1),
        ((0, whole), 1, 1),
        ((border, whole), 7, 0),
        ((0, whole), 5, 5),
    ):
        pair.average(section, *([steps] if steps > 1 else []))
        taken += counts
        expected = 1 - decay_of(decay, range(1, taken + 1))
        for name, tensor in (*pair.ema.module.named_parameters(), *pair.ema.module.named_buffers()):
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor.detach(), torch.full_like(tensor, expected), msg=name)
            else:
                assert tensor == 0
        assert counters_of(pair)["applied"] == taken
    assert all((value == 1).all() for value in pair.generator.module.parameters())


# --- a step whose two networks are on different workers --------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_in_pieces_is_that_of_plain_torch(loss):
    settings = experiment(loss, "dcgan", r1=0.7)
    pair = new_pair(settings, worker=1)
    plain, data = PlainGan(settings, pair, worker=1), reals(settings)
    fakes = pair.make_fakes(2, BATCH)
    drawn = [plain.draw(BATCH) for _ in range(2)]
    assert len(fakes) == 2
    for fake, own in zip(fakes, drawn, strict=True):
        torch.testing.assert_close(fake.detach(), own.detach())
    real = next(data).samples
    gradient, d_loss = pair.discriminator_gradient(real, fakes[1].detach().numpy())
    for_discriminator, expected_loss = plain.gradient_of_discriminator(real, drawn[1])
    expected = flat(for_discriminator).numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert d_loss == pytest.approx(expected_loss, rel=1e-5)

    kept = gradient.copy()
    feedbacks = []
    for fake, own in zip(fakes, drawn, strict=True):
        feedback, g_loss = pair.feedback(fake.detach().numpy())
        leaf = own.detach().clone().requires_grad_(True)
        loss_of_g = loss_of_generator(loss, plain.discriminator.network(leaf))
        (wanted,) = torch.autograd.grad(loss_of_g, leaf)
        assert feedback.shape == (BATCH, *DCGAN) and g_loss == pytest.approx(loss_of_g.item(), rel=1e-5)
        np.testing.assert_allclose(feedback, wanted.numpy(), rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
        feedbacks.append(feedback)
    # Feedbacks leave the gradient of D's own step alone, and D's parameters stay trainable.
    np.testing.assert_array_equal(gradient, kept)
    assert all(parameter.requires_grad for parameter in pair.discriminator.module.parameters())

    for _ in range(2):  # The gradient of an earlier step does not count.
        fakes, drawn = pair.make_fakes(2, BATCH), [plain.draw(BATCH) for _ in range(2)]
        found = pair.generator_gradient(fakes, [feedbacks[0], 3 * feedbacks[1]])
        total = (drawn[0] * torch.from_numpy(feedbacks[0])).sum() + (
            drawn[1] * 3 * torch.from_numpy(feedbacks[1])
        ).sum()
        expected = flat(plain.generator.gradient_of(total)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    statistics = tensors({"discriminator": plain.discriminator.network})
    found = of_pair(pair)
    for name, value in statistics.items():
        torch.testing.assert_close(found[name], value, msg=name)


# --- several workers -------------------------------------------------------------------------------


def mean_into(plains, get, weights):
    """Write the weighted mean over the workers of the tensors of `get` into the tensors of every worker."""
    with torch.no_grad():
        for values in zip(*[get(plain) for plain in plains], strict=True):
            mean = sum(weight * value for weight, value in zip(weights, values, strict=True))
            for value in values:
                value.copy_(mean)


def train(modes, data, steps):
    def live(worker):
        assert modes[worker].begin([], {}, None) == 0
        for step in range(1, steps + 1):
            modes[worker].step(step, lambda: next(data[worker]), is_sync_point=step == steps)
        assert modes[worker].synchronise(steps)
        modes[worker].finish()

    try:
        in_threads([lambda w=w: live(w) for w in range(len(modes))])
    finally:
        for mode in modes:
            mode.close()


def floats(network):
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


def apply(plains, name, gradients):
    """Each worker steps with its gradient."""
    for plain, gradient in zip(plains, gradients, strict=True):
        getattr(plain, name).apply(gradient)


def mean_of(gradients):
    """The mean gradient of all workers, once for each worker."""
    return [[sum(values) / len(gradients) for values in zip(*gradients, strict=True)]] * len(gradients)


@pytest.mark.parametrize(
    ("exchange", "updates"),
    [("gradients", "simultaneous"), ("parameters", "simultaneous"), ("parameters", "alternating")],
)
def test_a_synchronous_exchange_is_plain_torch_on_the_mean(exchange, updates):
    """The mean is of the gradients, or of the weights after each worker's own step (two steps where they alternate).

    All workers end with the mean of the running statistics as well, those of the average included.
    """
    workers = 2
    block = {
        "name": "partial_exchange",
        "exchange": exchange,
        "parts": 1,
        "slack": 0,
        "codec": "raw",
        "updates": updates,
    }
    settings = experiment("least_squares", "dcgan", r1=0.7, peers=workers, mode=block)
    pairs = [new_pair(settings, worker) for worker in range(workers)]
    plains = [PlainGan(settings, pair, worker) for worker, pair in enumerate(pairs)]
    began, data = of_pair(pairs[0]), [reals(settings, worker) for worker in range(workers)]
    buses = memory_buses(workers)
    modes = [PartialExchange(settings, pairs[w], buses[w], {}, lambda line: None) for w in range(workers)]
    train(modes, [reals(settings, worker) for worker in range(workers)], STEPS)
    for _ in range(STEPS):
        fakes, now = [plain.draw(BATCH) for plain in plains], [next(batches) for batches in data]
        for_d = [plain.gradient_of_discriminator(now[w].samples, fakes[w])[0] for w, plain in enumerate(plains)]
        if updates == "alternating":
            apply(plains, "discriminator", for_d)
        for_g = [plain.gradient_of_generator(fake)[0] for plain, fake in zip(plains, fakes, strict=True)]
        if exchange == "gradients":
            for_d, for_g = mean_of(for_d), mean_of(for_g)
        if updates == "simultaneous":
            apply(plains, "discriminator", for_d)
        apply(plains, "generator", for_g)
        if exchange == "parameters":
            for name in ("discriminator", "generator"):
                mean_into(plains, lambda plain, name=name: list(plain.networks()[name].parameters()), [1 / workers] * 2)
        for plain in plains:
            plain.note_average()
    for name in ("generator", "discriminator", "ema"):
        mean_into(plains, lambda plain, name=name: floats(plain.networks()[name]), [1 / workers] * workers)
    for pair in pairs:
        assert_follows(of_pair(pair), tensors(plains[0].networks()), began)


def test_a_federated_round_is_the_weighted_mean_of_plain_trainings():
    """Weights and running statistics are averaged alike; the average takes a round as its two local steps."""
    workers, rounds, local_steps, samples = 2, 2, 2, (30, 10)
    block = {"name": "federated", "fraction": 1.0, "local_steps": local_steps, "weighting": "size", "codec": "raw"}
    block |= {"order": "generator_first", "optimiser_state": "keep"}
    settings = experiment("non_saturating", "dcgan", peers=workers, mode=block)
    pairs = [new_pair(settings, worker) for worker in range(workers)]
    plains = [PlainGan(settings, pair, worker) for worker, pair in enumerate(pairs)]
    began, data = of_pair(pairs[0]), [reals(settings, worker) for worker in range(workers)]
    modes = [
        Federated(settings, pair, bus, {}, {"samples": count, "histogram": [count]}, lambda line: None)
        for pair, bus, count in zip(pairs, memory_buses(workers), samples, strict=True)
    ]
    train(modes, [reals(settings, worker) for worker in range(workers)], rounds)
    average, averaged = copy.deepcopy(plains[0].average), 0
    weights = [count / sum(samples) for count in samples]
    for _ in range(rounds):
        for plain, batches in zip(plains, data, strict=True):
            for _ in range(local_steps):
                plain.step(next(batches).samples, "simultaneous")
        for name in ("generator", "discriminator"):
            for get in (lambda network: list(network.parameters()), floats):
                mean_into(plains, lambda plain, name=name, get=get: get(plain.networks()[name]), weights)
        decay = decay_of(OPTIMISER["ema_decay"], range(averaged + 1, averaged + 1 + local_steps))
        averaged += local_steps
        with torch.no_grad():
            for get in (lambda network: list(network.parameters()), floats):
                for own, value in zip(get(average), get(plains[0].generator.network), strict=True):
                    own.copy_(decay * own + (1 - decay) * value)
    expected = tensors(plains[0].networks() | {"ema": average})
    for pair in pairs:
        assert_follows(of_pair(pair), expected, began)
