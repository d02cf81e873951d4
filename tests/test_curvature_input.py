"""Models that need care and wrong input: refused by name where derivatives would be wrong."""

import math

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from curvature_cases import case, mlp, vector
from torch import nn

import landscape
from landscape.curvature import operators
from landscape.errors import InputError

# -- models that need care -------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.out = kind(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.out(self.inner(x.view(len(x), 3, 2))[0][:, -1])


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = torch.utils.checkpoint.checkpoint(self._middle, self.first(x), use_reentrant=self.reentrant)
        return self.out(torch.tanh(x))

    def _middle(self, x):
        return torch.tanh(self.inner(x))


@pytest.mark.parametrize("build", [lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU), lambda: Checkpointed(False)])
def test_recurrent_and_checkpointed_models(build):
    x = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = landscape.Problem(
        build().double(), nn.CrossEntropyLoss(), [(x[:4], torch.arange(4) % 3), (x[4:], torch.arange(5) % 3)]
    )
    v = vector(problem)
    h = 1e-5
    quotient = (problem.gradient(problem.weights + h * v) - problem.gradient(problem.weights - h * v)) / (2 * h)
    operator = operators.hessian(problem)
    for _ in range(2):
        # Central differences: h^2 and rounding over h leave 1e-9.
        torch.testing.assert_close(operator @ v, quotient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("work", [lambda p: p.gradient(), lambda p: landscape.top_eigenvalues(p, k=1)])
@pytest.mark.parametrize("first", [nn.Linear(6, 5), nn.Flatten()])  # after the latter torch says nothing by itself
def test_reentrant_checkpoints_are_refused_where_derivatives_would_be_lost(first, work):
    model, plain = Checkpointed(True).double(), Checkpointed(False).double()
    model.first = plain.first = first.double()
    model.inner = plain.inner = nn.Linear(5 if isinstance(first, nn.Linear) else 6, 5).double()
    model.out = plain.out
    x, before = torch.randn(9, 6, dtype=torch.float64), torch.utils.checkpoint.CheckpointFunction
    problem, same = (landscape.Problem(m, nn.CrossEntropyLoss(), [(x, torch.arange(9) % 3)]) for m in (model, plain))
    with pytest.raises(InputError, match="use_reentrant=False"):
        work(problem)
    assert torch.utils.checkpoint.CheckpointFunction is before
    torch.testing.assert_close(problem.loss(), same.loss())  # values need no derivative


# -- wrong input -----------------------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Custom(nn.Module):
    def forward(self, x):
        return Once.apply(x) ** 2


class Pairwise(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x[:3])


@pytest.mark.parametrize(
    ("layer", "name"), [(Custom(), "Once, .* once_differentiable"), (Pairwise(), "_cdist_backward")]
)
def test_an_operation_without_second_derivative_is_named(layer, name):
    model = nn.Sequential(nn.Linear(6, 3), layer).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.arange(8) % 3)])
    if name.startswith("Once"):  # autograd itself would return a wrong product here
        with pytest.raises(InputError, match="Once"):
            problem.hvp(problem.weights)
    with pytest.raises(InputError, match=rf"no second derivative: .*{name}.*differences"):
        landscape.top_eigenvalues(problem, k=1)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_batch(bad):
    problem = case("mlp")
    problem.batches.kept[1].args[0][2] = bad
    with pytest.raises(InputError, match=r"nan on batch 1 \(examples 11 to 15\)"):
        landscape.top_eigenvalues(problem, k=1)


def test_a_constant_loss():
    problem = case("mlp", loss=lambda o, t: torch.zeros(len(o), dtype=o.dtype))
    with pytest.raises(InputError, match="does not depend"):
        landscape.top_eigenvalues(problem, k=1)


def test_a_loss_linear_in_the_weights_has_no_curvature():
    model = nn.Linear(4, 3).double()
    problem = landscape.Problem(model, lambda o, t: o.sum(dim=1), [(torch.ones(5, 4), torch.zeros(5))])
    found = landscape.top_eigenvalues(problem, k=2)
    np.testing.assert_array_equal(found.values, 0)
    assert found.converged


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"k": 0}, "k must be between 1 and the number of parameters d = 107, received 0"),
        ({"k": 108}, "received 108"),
        ({"tol": -1.0}, "tol must be > 0"),
        ({"which": "largest"}, "which must be one of"),
        ({"parameters": "2.wight"}, "nearest names are 2.weight"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_wrong_arguments(kwargs, text):
    with pytest.raises(InputError, match=text):
        landscape.top_eigenvalues(case("mlp"), **kwargs)


def test_no_trainable_parameter():
    model = mlp().requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        landscape.Problem(model, nn.CrossEntropyLoss(), [(torch.randn(2, 6), torch.tensor([0, 1]))])
