"""Traces and diagonals: exact ones against dense matrices, estimates within their own error."""

import numpy as np
import pytest
import torch
from curvature_cases import case, dense_ggn, dense_hessian, everything, jacobian, mlp
from torch import nn

import landscape
from landscape import random
from landscape.curvature import operators, stochastic
from landscape.curvature.exact.output_curvature import OutputCurvature
from landscape.curvature.exact.trace import ggn_squares
from landscape.errors import InputError
from landscape.problem.problem import Problem

X = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(7, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
Y = torch.arange(9) % 3


def problem_of(model, x=X, loss=None, **kwargs):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    cut = len(x) // 3
    batches = [(x[:cut], Y[:cut]), (x[cut:], Y[cut : len(x)])]
    return Problem(model.double(), loss or nn.CrossEntropyLoss(), batches, **kwargs)


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
    assert (automatic.exact, automatic.matrix, automatic.method) == (False, "hessian", "hutch++")
    # 300 products are more than three times d of these networks: Hutch++ is then exact but for rounding.
    assert automatic.value == pytest.approx(hessian, abs=max(4 * automatic.stderr, 1e-8))


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
    found = landscape.trace(problem, probes=200)
    assert not found.exact
    assert found.value == pytest.approx(float(dense.trace()), abs=4 * found.stderr + 1e-8)


def test_the_softmax_root_is_a_square_root():
    problem = case("mlp")
    batch = problem.batches.whole()
    outputs = problem.outputs()
    curvature = OutputCurvature(problem.rebatched(batch.size), outputs, batch)
    (root,) = curvature.roots()
    product = torch.einsum("cni,cnj->nij", root.columns, root.columns)
    torch.testing.assert_close(product, curvature.matrix())


# -- estimates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_estimates_lie_within_four_standard_errors(method, name):
    problem = case(name)
    dense = dense_hessian(problem)
    found = landscape.trace(problem, method=method, probes=60, seed=5)
    assert not found.exact
    assert found.hvps == 60
    assert abs(found.value - float(dense.trace())) <= 4 * found.stderr
    layers = np.array([float(d.sum()) for d in problem.parameters.unflatten(dense.diagonal())])
    assert np.all(np.abs(found.layer_values - layers) <= 4 * found.layer_stderr + 1e-12)
    assert found.layer_values.sum() == pytest.approx(found.value)


def test_the_standard_error_is_the_scatter_of_repetitions():
    a = torch.randn(80, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a @ a.T / 80 + torch.diag(torch.linspace(5, 0, 80, dtype=torch.float64))
    like = torch.empty(80, dtype=torch.float64)
    for sketch in (False, True):
        runs = [
            stochastic.trace(lambda v: a @ v, like, probes=30, sketch=sketch, generator=random.stream(i, "t"))
            for i in range(200)
        ]
        values = np.array([r.value for r in runs])
        scatter, stated = values.std(ddof=1), np.sqrt(np.mean([r.stderr**2 for r in runs]))
        # 200 repetitions know a standard deviation to 5%; four of these.
        assert scatter == pytest.approx(stated, rel=0.2)
        assert abs(values.mean() - float(a.trace())) <= 4 * scatter / np.sqrt(200)


def test_hutchpp_beats_hutchinson_on_a_decaying_spectrum():
    values = 2.0 ** -torch.arange(100, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    a = q @ torch.diag(values) @ q.T
    like = torch.empty(100, dtype=torch.float64)
    errors = {
        sketch: np.mean(
            [
                abs(
                    stochastic.trace(
                        lambda v: a @ v, like, probes=30, sketch=sketch, generator=random.stream(i, "t")
                    ).value
                    - float(values.sum())
                )
                for i in range(20)
            ]
        )
        for sketch in (False, True)
    }
    assert errors[True] < 0.05 * errors[False]


def test_a_target_stops_early():
    problem = case("mlp")
    loose = landscape.trace(problem, method="hutchinson", probes=400, target=0.2)
    assert loose.hvps < 400
    assert loose.stderr <= 0.2 * abs(loose.value)


def test_a_sketch_that_does_not_fit_leaves_more_to_the_probes(monkeypatch):
    a = torch.diag(torch.linspace(1, 3, 40, dtype=torch.float64))
    monkeypatch.setattr(stochastic, "free_memory", lambda device: 4 * 2 * 40 * 8 * 3.0)  # three vectors of each set
    products = [0]

    def matvec(v):
        products[0] += 1
        return a @ v

    found = stochastic.trace(matvec, torch.empty(40, dtype=torch.float64), probes=60, generator=random.stream(0, "t"))
    assert found.products == products[0] == 60
    assert abs(found.value - float(a.trace())) <= 4 * found.stderr
    assert found.stderr > 0


@pytest.mark.parametrize("sketch", [False, True])
def test_the_diagonal_is_estimated_too(sketch):
    a = torch.diag(torch.linspace(-1, 3, 40, dtype=torch.float64))
    a[0, 1] = a[1, 0] = 0.5
    found = stochastic.trace(
        lambda v: a @ v,
        torch.empty(40, dtype=torch.float64),
        probes=60,
        sketch=sketch,
        diagonal=True,
        generator=random.stream(0, "t"),
    )
    # Rademacher probes leave the off-diagonal row sums: 0.5 / sqrt(probes) in two entries, nothing elsewhere.
    tolerance = 4 * 0.5 / np.sqrt(22 if sketch else 60)
    assert (found.diagonal - a.diagonal()).abs().max() < tolerance
    assert float(found.diagonal.sum()) == pytest.approx(found.value)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"method": "exakt"}, "did you mean 'exact'"),
        ({"probes": 3}, "at least 4 probes"),
        ({"target": 0.0}, "target must be"),
        ({"parameters": "nothing"}, "no trainable parameter matches 'nothing'"),
        ({"scaling": "elementwis"}, "did you mean 'elementwise'"),
    ],
)
def test_wrong_arguments(kwargs, text):
    with pytest.raises(InputError, match=text):
        landscape.trace(case("mlp"), **kwargs)


def test_summary_and_file(tmp_path):
    found = landscape.trace(case("mlp"))
    entry = found.summary()
    assert entry["value"] == found.value
    assert entry["stderr"] == 0
    assert entry["layers"]["2.bias"] == found.layer_values[3]
    found.save(tmp_path / "t.h5")
    assert landscape.load(tmp_path / "t.h5").layers == found.layers


def test_the_diagonal_of_the_hessian():
    problem = case("cnn")
    found = landscape.hessian_diagonal(problem)
    assert (found.exact, found.matrix, found.hvps) == (True, "hessian", 0)
    torch.testing.assert_close(found.values, dense_hessian(problem).diagonal(), rtol=1e-8, atol=1e-12)
    smooth = problem_of(mlp(nn.Tanh))
    assert landscape.hessian_diagonal(smooth, method="exact").matrix == "ggn"
    estimate = landscape.hessian_diagonal(smooth, probes=330)  # more than 3 d: Hutch++ knows it to rounding
    assert (estimate.exact, estimate.matrix, estimate.hvps <= 330) == (False, "hessian", True)
    torch.testing.assert_close(estimate.values, dense_hessian(smooth).diagonal(), rtol=1e-6, atol=1e-8)
    with pytest.raises(InputError, match="did you mean 'exact'"):
        landscape.hessian_diagonal(problem, method="exakt")


# -- other matrices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit"])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_gauss_newton_and_fisher_products(name, chunk_size):
    problem = case(name)
    ggn, v = dense_ggn(problem), random.normal(problem.weights, random.stream(0, "v"))
    for matrix in ("ggn", "fisher"):
        operator = operators.build(problem, matrix, chunk_size=chunk_size)
        for _ in range(2):
            torch.testing.assert_close(operator @ v, ggn @ v, rtol=1e-8, atol=1e-12)
    _, y = everything(problem)
    scores = torch.softmax(problem.outputs(), 1) - nn.functional.one_hot(y, 3)
    gradients = torch.einsum("nca,nc->na", jacobian(problem), scores)
    torch.testing.assert_close(
        operators.build(problem, "empirical-fisher", chunk_size=chunk_size) @ v,
        gradients.T @ (gradients @ v) / problem.examples,
        rtol=1e-8,
        atol=1e-12,
    )


def test_the_monte_carlo_fisher_converges_and_does_not_depend_on_chunks():
    problem = case("mlp")
    v = random.normal(problem.weights, random.stream(0, "v"))
    exact = dense_ggn(problem) @ v
    few = operators.build(problem, "mc-fisher", samples=2, seed=3) @ v
    assert torch.linalg.vector_norm(few - exact) > 0.05 * torch.linalg.vector_norm(exact)
    torch.testing.assert_close(
        operators.build(problem, "mc-fisher", samples=2, seed=3, chunk_size=5, memory=0) @ v, few
    )
    many = operators.build(problem, "mc-fisher", samples=20000) @ v
    # Relative error about 1/sqrt(samples) times the spread of the scores: 1 / sqrt(20000) = 0.7%.
    assert torch.linalg.vector_norm(many - exact) < 0.04 * torch.linalg.vector_norm(exact)


def test_monte_carlo_fisher_of_squared_error():
    problem = case("mlp", loss=lambda o, t: ((o - nn.functional.one_hot(t, 3)) ** 2).mean())
    v = random.normal(problem.weights, random.stream(0, "v"))
    exact = operators.build(problem, "fisher") @ v
    many = operators.build(problem, "mc-fisher", samples=20000) @ v
    assert torch.linalg.vector_norm(many - exact) < 0.04 * torch.linalg.vector_norm(exact)


def test_no_exact_fisher_where_the_curvature_depends_on_the_targets():
    problem = case("mlp", loss=lambda o, t: torch.log1p((o - nn.functional.one_hot(t, 3)) ** 2).sum(1))
    with pytest.raises(InputError, match="depends on the targets"):
        operators.build(problem, "fisher") @ problem.weights


def test_unknown_matrix():
    with pytest.raises(InputError, match="did you mean 'fisher'"):
        operators.build(case("mlp"), "fischer")


def test_eigenvalues_of_the_scaled_hessian():
    problem = case("mlp")
    t = problem.weights.abs()
    exact = torch.linalg.eigvalsh(t[:, None] * dense_hessian(problem) * t).flip(0)
    found = landscape.MEASURES["adaptive_hessian"](problem, k=3, tol=1e-9)
    torch.testing.assert_close(torch.from_numpy(found.values), exact[:3], rtol=1e-8, atol=1e-12)
    block = landscape.top_eigenvalues(problem, k=2, tol=1e-9, scaling="elementwise", parameters="2")
    own = torch.cat([torch.arange(s.start, s.stop) for s in problem.parameters if s.name.startswith("2.")])
    exact = torch.linalg.eigvalsh((t[:, None] * dense_hessian(problem) * t)[own][:, own]).flip(0)
    torch.testing.assert_close(torch.from_numpy(block.values), exact[:2], rtol=1e-8, atol=1e-12)


def test_the_scaled_hessian_does_not_see_a_rescaling():
    problem = case("mlp")
    before = landscape.MEASURES["adaptive_hessian"](problem, tol=1e-10).values
    plain = landscape.top_eigenvalues(problem, k=1, tol=1e-10).values
    with torch.no_grad():
        problem.model[0].weight[2] *= 3
        problem.model[0].bias[2] *= 3
        problem.model[2].weight[:, 2] /= 3
    moved = Problem(problem.model, nn.CrossEntropyLoss(), [everything(problem)])
    np.testing.assert_allclose(landscape.MEASURES["adaptive_hessian"](moved, tol=1e-10).values, before, rtol=1e-9)
    assert abs(landscape.top_eigenvalues(moved, k=1, tol=1e-10).values[0] / plain[0] - 1) > 1e-3


# -- central differences ---------------------------------------------------------------------------------------------


def test_central_differences_estimate_their_own_error():
    problem = problem_of(mlp(nn.Tanh))
    v = random.normal(problem.weights, random.stream(0, "v"))
    exact = dense_hessian(problem) @ v
    operator = operators.hessian(problem, hvp="differences")
    relative = float(torch.linalg.vector_norm(operator @ v - exact) / torch.linalg.vector_norm(exact))
    stated = operator.facts()["hvp_relative_error"]
    assert relative < 1e-7
    assert stated / 20 < relative < 20 * stated


def test_differences_serve_where_double_backward_fails():
    class Pairwise(nn.Module):
        def forward(self, x):
            return torch.cdist(x, torch.eye(3, dtype=x.dtype))

    problem = problem_of(nn.Sequential(nn.Linear(6, 3), Pairwise()))
    with pytest.raises(InputError, match="differences"):
        landscape.top_eigenvalues(problem, k=1)
    found = landscape.top_eigenvalues(problem, k=2, tol=1e-6, hvp="differences")
    gradients = [problem.gradient(problem.weights + s * 1e-5 * e) for e in torch.eye(21).double() for s in (1, -1)]
    dense = torch.stack([(a - b) / 2e-5 for a, b in zip(gradients[::2], gradients[1::2], strict=True)])
    np.testing.assert_allclose(found.values, torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)[:2], rtol=1e-7)
    assert found.provenance["hvp"] == "differences"


# -- another library -------------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_curvlinops_agrees_on_the_ggn():
    curvlinops = pytest.importorskip("curvlinops")
    problem = case("cnn")
    data = [(b.args[0], b.target) for b in problem.batches]
    problem.model.eval()
    theirs = curvlinops.GGNLinearOperator(problem.model, nn.CrossEntropyLoss(), list(problem.model.parameters()), data)
    v = random.normal(problem.weights, random.stream(0, "v"))
    torch.testing.assert_close(operators.build(problem, "ggn") @ v, theirs @ v)


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
