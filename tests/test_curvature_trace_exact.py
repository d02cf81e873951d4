"""The exact trace: the Hessian's for piecewise linear networks, elsewhere the Gauss-Newton matrix's."""

import numpy as np
import pytest
import torch
from curvature_cases import X, case, dense_ggn, dense_hessian, mlp, problem_of
from torch import nn

import landscape
from landscape.curvature import operators
from landscape.curvature.exact.output_curvature import OutputCurvature
from landscape.curvature.exact.trace import ggn_squares
from landscape.errors import InputError

IMAGES = torch.randn(7, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Twice(nn.Module):
    """One layer applied twice in depth."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu(self.inner(torch.relu(self.inner(x)))))


class Tied(nn.Module):
    """A weight that two layers share, and a raw parameter of a container."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.out(torch.relu(self.first(x)) * self.scale + torch.relu(self.second(x)))


class Functional(nn.Module):
    """A layer whose weight is used behind its back."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.relu(self.inner(x))
        return self.out(torch.relu(nn.functional.linear(hidden, self.inner.weight)))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu(x + self.second(nn.functional.relu(self.norm(self.first(x)), inplace=True))))


def sequence():
    return nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def convolutions(**kwargs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **kwargs), nn.PReLU(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def transposed():
    return nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3),
        nn.LeakyReLU(),
        nn.Flatten(2),
        nn.Conv1d(3, 2, 5, 3),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


PIECEWISE = {
    "relu": (mlp, X),
    "leaky": (lambda: mlp(nn.LeakyReLU), X),
    "prelu": (lambda: mlp(nn.PReLU), X),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)), X),
    "residual, in place": (Residual, X),
    "sequence": (sequence, X),
    "stride": (lambda: convolutions(stride=2, padding=1), IMAGES),
    "groups, dilation": (lambda: convolutions(groups=2, dilation=2), IMAGES),
    "circular": (lambda: convolutions(padding="same", padding_mode="circular", bias=False), IMAGES),
    "transposed": (transposed, IMAGES),
}


SMOOTH = {
    "tanh": (lambda: mlp(nn.Tanh), X, "tanh"),
    "gelu": (lambda: mlp(nn.GELU), X, "gelu"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)), X, "layernorm"),
    "twice in depth": (Twice, X, "same weight"),
    "weight behind its back": (Functional, X, "same weight"),
    "group norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.GroupNorm(2, 6), nn.Linear(6, 3)), X, "groupnorm"),
}


@pytest.mark.parametrize("name", PIECEWISE)
def test_the_exact_trace_is_the_hessians_for_piecewise_linear_networks(name):
    build, x = PIECEWISE[name]
    problem = problem_of(build(), x)
    diagonal = dense_hessian(problem).diagonal()
    found = landscape.trace(problem)
    assert found.exact
    assert found.matrix == "hessian"
    assert found.obstacle is None
    assert found.stderr == 0
    assert found.value == pytest.approx(float(diagonal.sum()), rel=1e-8)
    layers = [float(d.sum()) for d in problem.parameters.unflatten(diagonal)]
    np.testing.assert_allclose(found.layer_values, layers, rtol=1e-8, atol=1e-12)
    squares = ggn_squares(problem, diagonal=True, chunk_size=2)
    torch.testing.assert_close(problem.parameters.flatten(squares.tensors), diagonal, rtol=1e-8, atol=1e-12)
    assert squares.slow == ()


@pytest.mark.parametrize("name", SMOOTH)
def test_elsewhere_it_is_called_the_ggn_trace(name):
    build, x, reason = SMOOTH[name]
    problem = problem_of(build(), x)
    found = landscape.trace(problem, method="exact")
    assert found.exact
    assert found.matrix == "ggn"
    assert reason in found.obstacle
    assert found.value == pytest.approx(float(dense_ggn(problem).trace()), rel=1e-8)
    hessian = float(dense_hessian(problem).trace())
    assert abs(found.value - hessian) > 1e-4 * abs(hessian)
    automatic = landscape.trace(problem, probes=300)
    # 300 products are more than d of these networks: one with each unit vector is exact.
    assert (automatic.exact, automatic.matrix, automatic.method) == (False, "hessian", "unit vectors")
    assert (automatic.hvps, automatic.stderr) == (problem.dimension, 0)
    assert automatic.value == pytest.approx(hessian, rel=1e-8, abs=1e-10)


def test_weights_that_no_layer_owns_alone():
    problem = problem_of(Tied())
    squares = ggn_squares(problem, diagonal=True)
    assert set(squares.slow) == {"first.weight"}
    torch.testing.assert_close(
        problem.parameters.flatten(squares.tensors), dense_ggn(problem).diagonal(), rtol=1e-8, atol=1e-12
    )
    assert landscape.trace(problem).value == pytest.approx(float(dense_ggn(problem).trace()), rel=1e-8)


def test_attention_and_tokens():
    problem = case("vit")
    squares = ggn_squares(problem, diagonal=True)
    torch.testing.assert_close(
        problem.parameters.flatten(squares.tensors), dense_ggn(problem).diagonal(), rtol=1e-8, atol=1e-12
    )


def test_multihead_attention_calls_its_output_projection_behind_its_back():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            x = x.view(len(x), 3, 2)
            return self.out(self.attention(x, x, x, need_weights=False)[0].flatten(1))

    problem = problem_of(Attention())
    squares = ggn_squares(problem, diagonal=True)
    torch.testing.assert_close(
        problem.parameters.flatten(squares.tensors), dense_ggn(problem).diagonal(), rtol=1e-8, atol=1e-12
    )
    assert any("attention" in name for name in squares.slow)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1),
        lambda o, t: ((o - nn.functional.one_hot(t, 3)) ** 2).mean(),
        lambda o, t: torch.log1p((o - nn.functional.one_hot(t, 3)) ** 2).sum(1),  # not convex
        lambda o, t: torch.relu(1 - o * (2 * nn.functional.one_hot(t, 3) - 1)).square().sum(1),
    ],
    ids=["smoothing", "weights", "ignored", "squared", "not convex", "squared hinge"],
)
def test_any_loss_of_the_outputs(loss):
    problem = problem_of(mlp(), X, loss)
    exact = operators.hessian(problem).dense().diagonal()  # of the batches as they are
    found = landscape.trace(problem)
    assert found.exact
    assert found.value == pytest.approx(float(exact.sum()), rel=1e-8)


def test_one_output_and_scaling():
    model = nn.Sequential(mlp()[0], nn.ReLU(), nn.Linear(7, 1), nn.Flatten(0))
    problem = problem_of(model, loss=lambda o, t: nn.functional.binary_cross_entropy_with_logits(o, (t == 1).to(o)))
    dense = dense_hessian(problem)
    assert landscape.trace(problem).value == pytest.approx(float(dense.trace()), rel=1e-8)
    t = problem.weights.abs()
    assert landscape.trace(problem, scaling="elementwise").value == pytest.approx(
        float((t * dense.diagonal() * t).sum()), rel=1e-8
    )


def test_at_other_weights_and_of_a_part():
    problem = case("mlp")
    w = problem.weights + 0.1
    assert landscape.trace(problem, w).value == pytest.approx(float(dense_hessian(problem, w).trace()), rel=1e-8)
    dense = dense_hessian(problem).diagonal()
    own = sum(float(dense[s.start : s.stop].sum()) for s in problem.parameters if s.name.startswith("2."))
    assert landscape.trace(problem, parameters="2").value == pytest.approx(own, rel=1e-8)


def test_batch_statistics_have_no_exact_trace():
    problem = case("cnn", (6, 6), batch_norm="batch")
    with pytest.raises(InputError, match="depend on other examples"):
        landscape.trace(problem, method="exact")
    dense = operators.hessian(problem).dense()
    found = landscape.trace(problem, probes=100)
    assert not found.exact
    assert found.value == pytest.approx(float(dense.trace()), abs=4 * found.stderr + 1e-8)


@pytest.mark.parametrize("rows", [True, False])
def test_batch_statistics_show_in_the_weights_of_their_own_layer(rows):
    """Nothing before the layer is asked about, so no gradient tells that its examples influence each other."""
    torch.manual_seed(0)
    if rows:
        model = nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.BatchNorm1d(6, track_running_stats=False))
    else:
        norm = nn.BatchNorm2d(3, track_running_stats=False)
        model = nn.Sequential(nn.Conv2d(2, 3, 7), norm, nn.Flatten(), nn.Linear(12, 6))
    batch = (IMAGES, torch.arange(7) % 6)
    with pytest.warns(landscape.NonDeterministicWarning, match="keeps no running statistics"):
        part = landscape.Problem(model.double(), nn.CrossEntropyLoss(), [batch], parameters="2.*" if rows else "1.*")
    with pytest.raises(InputError, match="depend on other examples"):
        landscape.trace(part, method="exact")
    found = landscape.trace(part)
    assert not found.exact
    assert found.value == pytest.approx(float(dense_hessian(part).trace()), rel=1e-8)
    diagonal = landscape.hessian_diagonal(part)
    torch.testing.assert_close(diagonal.values, dense_hessian(part).diagonal())


def test_the_softmax_root_is_a_square_root():
    problem = case("mlp")
    batch = problem.batches.whole()
    outputs = problem.outputs()
    curvature = OutputCurvature(problem.rebatched(batch.size), outputs, batch)
    (root,) = curvature.roots()
    product = torch.einsum("cni,cnj->nij", root.columns, root.columns)
    torch.testing.assert_close(product, curvature.matrix())


class PastItsLayer(nn.Module):
    """A single example goes past the layer, through its weights alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x) if len(x) > 1 else nn.functional.linear(x, self.first.weight, self.first.bias)
        return self.second(torch.relu(h))


def test_a_batch_that_goes_past_a_layer_is_not_left_out():
    torch.manual_seed(0)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    problem = landscape.Problem(PastItsLayer().double(), nn.CrossEntropyLoss(), [(x, y)])
    together, apart = (landscape.trace(problem, method="exact", chunk_size=size) for size in (5, 4))
    torch.testing.assert_close(torch.tensor(apart.layer_values), torch.tensor(together.layer_values))
