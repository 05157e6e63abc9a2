"""The order of values in messages and checkpoints, against the networks' own tensors in an order written down here.

Another degan may read these vectors: a worker of another release, a run with an older checkpoint. So the names below
are lists, and do not come from the pair's modules.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from degan.artifacts import learner_state
from degan.learners.gan_pair import GanPair
from tests.degan.learners.test_step import experiment, new_pair
from tests.learner_views import (
    average_of,
    counters_of,
    load_model,
    load_network,
    model_of,
    network_of,
    tensors_of,
    vectors_of,
)
from tests.plain_gan import LATENT, seed_of

GENERATOR = (
    *("body.0.weight", "body.1.weight", "body.1.bias", "body.3.weight", "body.4.weight", "body.4.bias"),
    *("body.6.weight", "body.7.weight", "body.7.bias", "body.9.weight", "body.9.bias"),
)
GENERATOR_BUFFERS = tuple(f"body.{place}.{name}" for place in (1, 4, 7) for name in ("running_mean", "running_var"))
DISCRIMINATOR = (
    *("body.0.weight", "body.0.bias", "body.2.weight", "body.3.weight", "body.3.bias"),
    *("body.5.weight", "body.6.weight", "body.6.bias", "body.8.weight", "body.8.bias"),
)
DISCRIMINATOR_BUFFERS = tuple(f"body.{place}.{name}" for place in (3, 6) for name in ("running_mean", "running_var"))
COUNTED = {
    "generator": ("body.1", "body.4", "body.7"),
    "discriminator": ("body.3", "body.6"),
    "ema": ("body.1", "body.4", "body.7"),
}
BETAS = (0.3, 0.8)


def tensors(pair: GanPair, name: str) -> dict[str, torch.Tensor]:
    module = getattr(pair, name).module
    return dict(module.named_parameters()) | dict(module.named_buffers())


class Filled:
    """A pair with known values, each written into the tensor of its name."""

    def __init__(self, seed=0, algorithm="adam", worker=0):
        self.pair = new_pair(experiment(model="dcgan", algorithm=algorithm), worker)
        rng = np.random.default_rng(seed)
        self.values = {}
        for network in ("generator", "discriminator", "ema"):
            for name, tensor in tensors(self.pair, network).items():
                if tensor.is_floating_point():
                    values = rng.uniform(0.5, 1.5, tensor.shape).astype(np.float32)
                    tensor.data.copy_(torch.from_numpy(values))
                    self.values[network, name] = values
        for network, places in COUNTED.items():
            for count, place in enumerate(places, start=10 * len(network) + seed):
                tensors(self.pair, network)[f"{place}.num_batches_tracked"].fill_(count)
        self.gradient = rng.standard_normal(self.pair.size).astype(np.float32)

    def join(self, *pieces):
        return np.concatenate([self.values[network, name].ravel() for network, names in pieces for name in names])

    def weights(self, network):
        return self.join((network, DISCRIMINATOR if network == "discriminator" else GENERATOR))

    def buffers(self, network):
        return self.join((network, DISCRIMINATOR_BUFFERS if network == "discriminator" else GENERATOR_BUFFERS))

    def apply(self, times, more=0):
        """Take steps with one gradient, some more of D, and restore the weights; the moments are known then."""
        border, whole = self.pair.generator.size, self.pair.size
        for begin in [0] * times + [border] * more:
            self.pair.apply((begin, whole), self.gradient[begin:])
        for network, names in (("generator", GENERATOR), ("discriminator", DISCRIMINATOR)):
            for name in names:
                tensors(self.pair, network)[name].data.copy_(torch.from_numpy(self.values[network, name]))

    def moments(self, network, times):
        border = self.pair.generator.size
        mine = self.gradient[:border] if network == "generator" else self.gradient[border:]
        mean, square = np.zeros_like(mine), np.zeros_like(mine)
        for _ in range(times):
            mean = BETAS[0] * mean + (1 - BETAS[0]) * mine
            square = BETAS[1] * square + (1 - BETAS[1]) * mine**2
        return mean.astype(np.float32), square.astype(np.float32)


def assert_equal(found, *expected):
    expected = np.concatenate(expected)
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


# --- exported vectors -----------------------------------------------------------------------------


def test_the_vector_is_the_generators_parameters_and_then_the_discriminators():
    filled = Filled()
    pair, generator, discriminator = filled.pair, filled.weights("generator"), filled.weights("discriminator")
    border = generator.size
    assert pair.size == border + discriminator.size
    assert pair.sections("simultaneous") == [(0, pair.size)]
    assert pair.sections("alternating") == [(border, pair.size), (0, border)]
    assert_equal(pair.parameters((0, pair.size)), generator, discriminator)
    assert_equal(pair.parameters((border, pair.size)), discriminator)
    assert_equal(pair.parameters((3, border + 2)), generator[3:], discriminator[:2])


@pytest.mark.parametrize("steps", [0, 2])
def test_a_model_is_weights_statistics_and_moments_of_generator_and_discriminator(steps):
    filled = Filled()
    filled.apply(steps)
    pair, both = filled.pair, ("generator", "discriminator")
    weights, buffers = [filled.weights(n) for n in both], [filled.buffers(n) for n in both]
    moments = [moment for name in both for moment in filled.moments(name, steps)]
    assert_equal(model_of(pair), *weights, *buffers)
    assert_equal(model_of(pair, has_moments=True), *weights, *buffers, *moments)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_a_network_is_its_weights_statistics_and_moments(name):
    filled = Filled()
    filled.apply(2)
    assert_equal(network_of(filled.pair, name), filled.weights(name), filled.buffers(name), *filled.moments(name, 2))
    assert_equal(network_of(filled.pair, name, False), filled.weights(name), filled.buffers(name))


def test_statistics_are_those_of_generator_discriminator_and_average():
    filled = Filled()
    assert_equal(filled.pair.statistics(), *[filled.buffers(n) for n in ("generator", "discriminator", "ema")])
    assert_equal(average_of(filled.pair), filled.weights("ema"), filled.buffers("ema"))


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_vectors_are_named_and_hold_the_values_of_their_name(algorithm):
    filled = Filled(algorithm=algorithm)
    filled.apply(3)
    vectors, steps = vectors_of(filled.pair), 3 if algorithm == "adam" else 0
    both, expected = ("generator", "discriminator"), {}
    expected |= {name: filled.weights(name) for name in both}
    expected |= {f"{name}.buffers": filled.buffers(name) for name in both}
    for name in both if algorithm == "adam" else ():
        expected[f"{name}.exp_avg"], expected[f"{name}.exp_avg_sq"] = filled.moments(name, steps)
    expected |= {"ema": filled.weights("ema"), "ema.buffers": filled.buffers("ema")}
    assert list(vectors) == list(expected) == list(filled.pair.sizes)
    assert {name: values.size for name, values in vectors.items()} == filled.pair.sizes
    for name, values in expected.items():
        assert_equal(vectors[name], values)
    if algorithm == "sgd":
        assert_equal(model_of(filled.pair, has_moments=True), model_of(filled.pair))


def test_counters_are_steps_and_batches_by_name():
    filled = Filled(seed=4)
    filled.apply(3)
    pair = filled.pair
    pair.apply((pair.generator.size, pair.size), filled.gradient[pair.generator.size :])
    pair.average((0, pair.generator.size), 5)
    batches = {
        f"{network}.{place}.num_batches_tracked": count
        for network, places in COUNTED.items()
        for count, place in enumerate(places, start=10 * len(network) + 4)
    }
    assert counters_of(pair) == {"applied": 5, "generator": 3, "discriminator": 4} | batches
    mine = {name: count for name, count in batches.items() if name.startswith("generator.")}
    assert counters_of(pair, "generator") == {"generator": 3} | mine
    mine = {name: count for name, count in batches.items() if name.startswith("discriminator.")}
    assert counters_of(pair, "discriminator") == {"discriminator": 4} | mine


def test_networks_are_every_tensor_by_its_name():
    filled = Filled()
    found = tensors_of(filled.pair)
    names = {
        *(("generator", name) for name in (*GENERATOR, *GENERATOR_BUFFERS)),
        *(("discriminator", name) for name in (*DISCRIMINATOR, *DISCRIMINATOR_BUFFERS)),
        *(("ema", name) for name in (*GENERATOR, *GENERATOR_BUFFERS)),
    }
    assert names == set(filled.values)
    counted = {f"{network}.{place}.num_batches_tracked" for network in COUNTED for place in COUNTED[network]}
    assert set(found) == {f"{network}.{name}" for network, name in names} | counted
    for network, name in names:
        np.testing.assert_array_equal(found[f"{network}.{name}"].numpy(), filled.values[network, name])


def test_exported_vectors_stay_as_they_were_when_training_goes_on():
    filled = Filled()
    filled.apply(1)
    pair = filled.pair
    given = [
        *(model_of(pair), model_of(pair, True), network_of(pair, "generator"), network_of(pair, "discriminator")),
        *(
            pair.statistics(),
            average_of(pair),
            *vectors_of(pair).values(),
            *(t.numpy() for t in tensors_of(pair).values()),
        ),
    ]
    copies = [array.copy() for array in given]
    pair.apply((0, pair.size), filled.gradient)
    pair.average((0, pair.size))
    for network in ("generator", "discriminator", "ema"):
        getattr(pair, network).buffers.add_(1)
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


# --- loaded vectors -------------------------------------------------------------------------------


def assert_holds(pair, filled, networks):
    """Every tensor of these networks, and no other, is that of `filled`."""
    for (network, name), values in filled.values.items():
        own = tensors(pair, network)[name].detach().numpy()
        assert np.array_equal(own, values) == (network in networks), (network, name)


def after_a_step(filled, steps, network):
    """The weights by Adam after these steps for the moments, and one more step."""
    mean, square = filled.moments(network, steps + 1)
    weights = filled.weights(network)
    rate = {"generator": 0.004, "discriminator": 0.011}[network]
    mean, square = mean / (1 - BETAS[0] ** (steps + 1)), square / (1 - BETAS[1] ** (steps + 1))
    return weights - rate * mean / (np.sqrt(square) + 1e-8)


def assert_steps_like(pair, filled, steps, network):
    """The moments and their count are in place: the next step with the gradient of `filled` is known."""
    border = pair.generator.size
    section = (0, border) if network == "generator" else (border, pair.size)
    pair.apply(section, filled.gradient[section[0] : section[1]].copy())
    np.testing.assert_allclose(
        pair.parameters(section) - filled.weights(network),
        after_a_step(filled, steps, network) - filled.weights(network),
        rtol=1e-3,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["generator", "discriminator"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_network_takes_its_place_with_moments_and_counters(name, before):
    source, taker = Filled(seed=1), Filled(seed=2)
    source.apply(3)
    source.pair.average((0, source.pair.size), 7)
    # The average has moved, and its values are not compared.
    source.values = {key: values for key, values in source.values.items() if key[0] != "ema"}
    taker.apply(before)
    values, counters = network_of(source.pair, name), counters_of(source.pair, name)
    if name == "generator":
        counters["applied"] = counters_of(source.pair)["applied"]
    load_network(taker.pair, name, values, counters)
    values.fill(0)
    assert_holds(taker.pair, source, (name,))
    other = "discriminator" if name == "generator" else "generator"
    expected = {key: count for key, count in counters.items() if key != "applied"}
    assert {key: counters_of(taker.pair)[key] for key in expected} == expected
    assert counters_of(taker.pair)[other] == before
    assert counters_of(taker.pair)["applied"] == (7 if name == "generator" else 0)
    for key, count in counters_of(Filled(seed=2).pair).items():
        if "num_batches" in key and not key.startswith(f"{name}."):
            assert counters_of(taker.pair)[key] == count, key
    assert_steps_like(taker.pair, source, 3, name)
    assert_steps_like(taker.pair, Filled(seed=2), before, other)


def test_a_network_without_moments_leaves_ours():
    source, taker = Filled(seed=1), Filled(seed=2)
    taker.apply(2)
    values = network_of(source.pair, "discriminator", False)
    load_network(taker.pair, "discriminator", values, counters_of(source.pair, "discriminator"), has_moments=False)
    assert_holds(taker.pair, source, ("discriminator",))
    assert counters_of(taker.pair)["discriminator"] == 2
    np.testing.assert_allclose(
        vectors_of(taker.pair)["discriminator.exp_avg"], taker.moments("discriminator", 2)[0], 1e-5
    )
    assert counters_of(taker.pair)["discriminator.body.3.num_batches_tracked"] == 131


@pytest.mark.parametrize("has_moments", [False, True])
def test_a_model_takes_its_place(has_moments):
    source, taker = Filled(seed=1), Filled(seed=2)
    source.apply(2)
    values = model_of(source.pair, has_moments)
    load_model(taker.pair, values, has_moments, dict.fromkeys(("generator", "discriminator"), 2) if has_moments else {})
    values.fill(0)
    assert_holds(taker.pair, source, ("generator", "discriminator"))
    if has_moments:
        assert {counters_of(taker.pair)[name] for name in ("generator", "discriminator")} == {2}
        # A count without its moments does not change.
        taker.pair.load({}, {"generator": 1})
        assert counters_of(taker.pair)["generator"] == 2
        for name in ("generator", "discriminator"):
            assert_steps_like(taker.pair, source, 2, name)
    taker.pair.reset_optimisers()
    assert [counters_of(taker.pair)[name] for name in ("generator", "discriminator")] == [0, 0]
    load_model(taker.pair, model_of(source.pair))
    for name in ("generator", "discriminator"):
        assert_steps_like(taker.pair, source, 0, name)


def test_statistics_and_average_take_their_places():
    source, taker = Filled(seed=1), Filled(seed=2)
    taker.pair.load_statistics(source.pair.statistics())
    for (network, name), values in source.values.items():
        own = tensors(taker.pair, network)[name].detach().numpy()
        assert np.array_equal(own, values) == ("running" in name), (network, name)
    taker = Filled(seed=2)
    taker.pair.load(*source.pair.state(["ema", "ema.buffers"]))
    assert_holds(taker.pair, source, ("ema",))
    taker = Filled(seed=2)
    border, whole = taker.pair.generator.size, taker.pair.size
    taker.pair.load_parameters((border, whole), source.weights("discriminator"))
    assert_equal(taker.pair.parameters((0, whole)), taker.weights("generator"), source.weights("discriminator"))


def test_the_whole_state_takes_its_place():
    source, taker = Filled(seed=1), Filled(seed=2)
    source.apply(3, more=2)
    vectors, counters = vectors_of(source.pair), counters_of(source.pair) | {"applied": 9}
    taker.pair.load(vectors, counters)
    for values in vectors.values():
        values.fill(0)
    assert_holds(taker.pair, source, ("generator", "discriminator", "ema"))
    assert counters_of(taker.pair) == counters
    for name, steps in (("generator", 3), ("discriminator", 5)):
        assert_steps_like(taker.pair, source, steps, name)


def test_a_state_of_before_the_first_step_leaves_no_moments_of_ours():
    source, taker = Filled(seed=1), Filled(seed=2)
    taker.apply(2)
    taker.pair.load(*source.pair.state())
    assert counters_of(taker.pair) == counters_of(source.pair)
    for name in ("generator", "discriminator"):
        assert_steps_like(taker.pair, source, 0, name)


def test_a_vector_or_a_counter_of_another_learner_is_refused_and_nothing_is_taken_over():
    pair, other = Filled().pair, Filled(seed=2).pair
    before, counters = pair.state()
    for name, size in pair.sizes.items():
        wrong = vectors_of(other)
        wrong[name] = wrong[name][:-1]
        with pytest.raises(ValueError, match=f"expected {name} of {size} values, got {size - 1}"):
            pair.load(wrong, counters_of(other))
    with pytest.raises(ValueError, match="expected head of 0 values, got 3"):
        pair.load({"head": np.zeros(3, np.float32)}, {})
    with pytest.raises(ValueError, match="there is no counter head"):
        pair.load(vectors_of(other), counters_of(other) | {"head": 1})
    assert counters_of(pair) == counters
    for name, values in vectors_of(pair).items():
        np.testing.assert_array_equal(values, before[name])


def test_vectors_that_are_not_given_stay():
    source, taker = Filled(seed=1), Filled(seed=2)
    before, counters = taker.pair.state()
    vectors, counted = source.pair.state(["discriminator.buffers"])
    taker.pair.load(vectors, counted)
    after, now = taker.pair.state()
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"discriminator.buffers"}
    assert {name for name in counters if counters[name] != now[name]} == {
        f"discriminator.{place}.num_batches_tracked" for place in COUNTED["discriminator"]
    }


def test_networks_take_their_places_by_name():
    source, taker = Filled(seed=1), Filled(seed=2)
    networks = tensors_of(source.pair)
    optimiser, counted = learner_state.optimiser_tensors(source.pair), learner_state.counters(source.pair)
    learner_state.load(taker.pair, networks, optimiser, counted)
    assert_holds(taker.pair, source, ("generator", "discriminator", "ema"))
    assert counters_of(taker.pair) == counters_of(source.pair)
    for name in ("generator.body.9.bias", "discriminator.body.0.weight", "ema.body.4.running_mean"):
        with pytest.raises(ValueError, match=name.partition(".")[2]):
            left = {key: tensor for key, tensor in networks.items() if key != name}
            learner_state.load(taker.pair, left, optimiser, counted)
        with pytest.raises(ValueError, match=name.partition(".")[2]):
            learner_state.load(taker.pair, networks | {name: torch.zeros(3, 3)}, optimiser, counted)


def test_saved_moments_that_are_missing_or_of_another_size_are_refused():
    pair = Filled().pair
    saved = learner_state.model_tensors(pair), learner_state.optimiser_tensors(pair), learner_state.counters(pair)
    for name in ("generator.exp_avg", "discriminator.exp_avg_sq"):
        for optimiser in (
            {key: tensor for key, tensor in saved[1].items() if key != name},
            saved[1] | {name: torch.zeros(3)},
        ):
            with pytest.raises(ValueError, match=f"the state has no {name} of"):
                learner_state.load(pair, saved[0], optimiser, saved[2])
    with pytest.raises(KeyError, match="applied"):
        learner_state.load(pair, *saved[:2], {key: n for key, n in saved[2].items() if key != "applied"})


def test_random_generators_are_named_and_take_their_places():
    one, other = Filled(worker=1).pair, Filled(worker=2).pair
    assert set(one.random_state()) == {"latents", "mixing", "global"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        state = one.random_state()
        expected = torch.rand(3)
        torch.manual_seed(78)
        other.load_random_state(state)
        assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(other.random_state()[name], state[name]) for name in ("latents", "mixing"))
    for name in ("latents", "mixing"):
        seeded = torch.Generator().manual_seed(seed_of(3, name, 1))
        assert torch.equal(state[name], seeded.get_state())
    module = other.generator.module.eval()
    seeded = torch.Generator().manual_seed(seed_of(3, "latents", 1))
    for _ in range(2):
        assert torch.equal(other.make_fakes(1, 5)[0], module(torch.randn(5, LATENT, generator=seeded)))
