"""Methods on a CUDA device: no step waits for the device, and the result is that of the CPU."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from method_cases import TrainingSet, context
from oracle_network import examples, network
from torch import nn

from landscape.problem.batches import Batch
from trainers import METHODS, Task

OPTIONS = {"saf": {"lag": 1, "start": 0.0}, "mesa": {"start": 0.0}, "looksam": {"k": 2}, "k-sam": {"k": 3}}


class Resident(TrainingSet):
    """The examples on a device."""

    def __init__(self, device):
        self.device = device

    def batch(self, indices):
        return super().batch(indices.cpu()).map(lambda t: to(t, self.device))


def to(tensor, device):
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)


@contextlib.contextmanager
def no_waiting(device):
    """Within the context a synchronization with the device is an error."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(name, device, steps=5):
    """Weights after a few steps in float32; masks are refreshed at the first steps of epochs, which may wait."""
    model = network("batch").to(device, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, foreach=True)
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer)
    method = METHODS[name](**OPTIONS.get(name, {}))
    x, y = (to(t, device) for t in examples())

    def where(t):
        epoch = t if name == "saf" else 0
        return dataclasses.replace(context(t, epoch=epoch), training_set=Resident(device))

    state = method.init(task, where(0))
    rows = torch.arange(8, device=device)
    for t in range(steps):
        batch = Batch((x[rows],), {}, y[rows], 8)
        with no_waiting(device) if t else contextlib.nullcontext():  # the first step may build what later ones use
            step = task.step(batch, where(t), indices=rows)
            method.gradient(step, state)
            optimizer.step()
            method.after_step(step, state)
    return torch.cat([p.detach().cpu().reshape(-1) for p in model.parameters()])


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(METHODS))
def test_no_step_waits_for_the_device(name):
    on_device, on_cpu = trained(name, "cuda"), trained(name, "cpu")
    if name == "random-perturbation":  # its noise is drawn on the device
        assert torch.isfinite(on_device).all()
    else:
        # float32 sums in another order, five steps
        torch.testing.assert_close(on_device, on_cpu, rtol=1e-3, atol=1e-4)
