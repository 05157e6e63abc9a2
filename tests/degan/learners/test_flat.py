"""The door between modules and flat vectors: views of parameters, gradients and buffers in module order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from degan.learners.flat import Flat, count, to_numpy


def module():
    """A dense layer of six values, a frozen one, and a BatchNorm with two parameters and two float buffers of 2."""
    made = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3), nn.BatchNorm1d(2))
    made[1].requires_grad_(False)
    with torch.no_grad():
        made[0].weight.copy_(torch.tensor([[1.0, 2], [3, 4]]))
        made[0].bias.copy_(torch.tensor([5.0, 6]))
        made[1].weight.fill_(100)
        made[2].weight.copy_(torch.tensor([7.0, 8]))
        made[2].bias.copy_(torch.tensor([9.0, 10]))
        made[2].running_mean.copy_(torch.tensor([11.0, 12]))
        made[2].running_var.copy_(torch.tensor([13.0, 14]))
        made[2].num_batches_tracked.fill_(15)
    return made


@pytest.mark.parametrize("is_given", [False, True])
def test_parameters_gradients_and_float_buffers_are_views_in_module_order(is_given):
    net = module()
    memory = [torch.full((12,), 99.0), torch.full((12,), 99.0)] if is_given else []
    both = [piece[1:11] for piece in memory]
    assert count(net) == 10
    flat = Flat(net, *both)
    assert flat.size == 10 and flat.module is net
    assert flat.values.tolist() == list(range(1, 11)) and flat.gradient.tolist() == [0] * 10
    assert flat.buffers.tolist() == [11, 12, 13, 14] and flat.buffers.dtype == torch.float32
    for piece, own in zip(both, (flat.values, flat.gradient), strict=False):
        assert own.data_ptr() == piece.data_ptr()
    for piece in memory:
        assert piece[0] == piece[11] == 99
    # A write to the vector shows in the module, and the other way round.
    with torch.no_grad():
        flat.values[4] = -5
        net[2].bias[1] = -10
        flat.buffers[1] = -12
        net[2].running_var[0] = -13
    assert net[0].bias[0] == -5 and flat.values[9] == -10
    assert net[2].running_mean[1] == -12 and flat.buffers[2] == -13
    assert (net[1].weight == 100).all() and net[2].num_batches_tracked == 15
    # An optimiser of the one tensor moves the module by the module's gradients.
    net[0](torch.tensor([[1.0, 10]])).sum().backward()
    assert flat.gradient.tolist() == [1, 10, 1, 10, 1, 1, 0, 0, 0, 0]
    net[0](torch.tensor([[1.0, 10]])).sum().backward()
    assert flat.gradient.tolist() == [2, 20, 2, 20, 2, 2, 0, 0, 0, 0], "gradients gather"
    torch.optim.SGD([flat.values], lr=0.5).step()
    assert net[0].weight.tolist() == [[0, -8], [2, -6]] and net[0].bias.tolist() == [-6, 5]
    flat.clear_gradient()
    assert net[0].weight.grad.abs().sum() == 0
    net[0](torch.ones(1, 2)).sum().backward()
    assert flat.gradient[:6].tolist() == [1] * 6, "still views"


def test_a_frozen_module_passes_gradients_on_and_gathers_none():
    net = module()
    flat = Flat(net)
    flat.freeze(True)
    samples = torch.ones(1, 2, requires_grad=True)
    net[0](samples).sum().backward()
    assert samples.grad.tolist() == [[4, 6]] and flat.gradient.abs().sum() == 0
    flat.freeze(False)
    assert not net[1].weight.requires_grad, "what never trained does not begin to"
    net[0](samples).sum().backward()
    assert flat.gradient[:6].tolist() == [1] * 6


def test_a_module_without_float_buffers_has_none():
    assert Flat(nn.Linear(2, 1)).buffers.shape == (0,)


def test_on_the_cpu_an_array_is_the_tensor():
    tensor = torch.zeros(3, requires_grad=True)
    array = to_numpy(tensor)
    array[1] = 2
    assert isinstance(array, np.ndarray) and tensor.tolist() == [0, 2, 0]
