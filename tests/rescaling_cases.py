"""Networks at weights that are nowhere special, and the check of their rescalings against torch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from landscape.invariance.rescaling import find
from landscape.problem.evaluator import copied
from landscape.random import stream


def settle(model, seed=0):
    """Weights, scales and running statistics that are nowhere special (BatchNorm is born with mean 0, variance 1)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if name in ("running_var",) or (isinstance(module, nn.modules.batchnorm._NormBase) and name == "weight"):
                tensor.data.uniform_(0.3, 1.7, generator=generator)
            elif tensor.is_floating_point() and tensor.dim() < 2:
                tensor.data.uniform_(-0.5, 0.5, generator=generator)
    return model.double()


def images(*shape, n=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def check(model, x, dimension, low=0.2, high=5.0):
    """The dimension, and an evaluation by torch's own functional_call at three random members of the group."""
    symmetries = find(model, x)
    assert not symmetries.rejected, symmetries.rejected
    assert symmetries.dimension == dimension
    assert symmetries.residual <= 1e-12
    model = copied(model).eval()
    w, layout = symmetries.parameters.read(model), symmetries.parameters
    with torch.no_grad():
        before = model(x)
        for seed in range(3):
            tau = symmetries.sample(stream(seed, "test"), low, high)
            moved = symmetries.apply(w, tau)
            state = dict(zip(layout.names, layout.unflatten(moved.weights), strict=True)) | moved.buffers
            after = torch.func.functional_call(model, state, (x,))
            # 1e-12 of the largest output: the products of factors between .2 and 5 round at every layer.
            assert_close(after, before, rtol=0, atol=1e-12 * before.abs().max().item())
            if dimension:
                assert (moved.weights - w).abs().max() > 1e-3 * w.abs().max()
    return symmetries


class Gated(nn.Module):
    """relu(a) b: the factors of the two branches multiply (two free factors a hidden unit)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.c(F.relu(self.a(x)) * self.b(x))


class Functional(nn.Module):
    """Two layers of four units around a function of torch."""

    def __init__(self, function, between=4, width=4):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(3, width), nn.Linear(between, 2), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))
