"""The Hessian's products and extreme eigenvalues against closed forms and dense Hessians."""

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from curvature_cases import case, dense_hessian, dense_of, vector
from torch import nn

import landscape
from landscape.curvature import operators
from landscape.curvature.products.hessian_graph import HessianGraph

NAMES = ("mlp", "cnn", "vit")


# -- closed forms ----------------------------------------------------------------------------------------------------


def regression_data(n=20, features=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, dtype=torch.float64, generator=generator)


def test_linear_regression():
    x = regression_data()
    model = nn.Linear(4, 1, bias=False).double()
    problem = landscape.Problem(model, lambda o, t: ((o - t) ** 2).mean(), [(x[:13], x[:13, :1]), (x[13:], x[13:, :1])])
    exact = torch.linalg.eigvalsh(2 * x.mT @ x / 20).flip(0)
    found = landscape.top_eigenvalues(problem, k=4, tol=1e-10)
    torch.testing.assert_close(torch.from_numpy(found.values), exact)


def test_logistic_regression():
    x = regression_data()
    y = (torch.arange(20) % 2).double()
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    problem = landscape.Problem(model, nn.BCEWithLogitsLoss(), [(x, y)])
    with torch.no_grad():
        p = torch.sigmoid(model(x))
    inputs = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    exact = inputs.mT @ (inputs * (p * (1 - p))[:, None]) / 20
    torch.testing.assert_close(operators.hessian(problem).dense(), exact)


def test_softmax_regression():
    x, classes = regression_data(), 3
    model = nn.Linear(4, classes).double()
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(x, torch.arange(20) % 3)])
    with torch.no_grad():
        p = torch.softmax(model(x), dim=1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    inputs = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    exact = torch.einsum("nij,na,nb->iajb", middle, inputs, inputs) / 20  # (class, input) by (class, input)
    order = torch.cat([(torch.arange(3)[:, None] * 5 + torch.arange(4)).reshape(-1), torch.arange(3) * 5 + 4])
    exact = exact.reshape(15, 15)[order][:, order]  # weights first, then biases, as the layout has them
    torch.testing.assert_close(operators.hessian(problem).dense(), exact)
    found = landscape.top_eigenvalues(problem, k=5, tol=1e-9)
    torch.testing.assert_close(torch.from_numpy(found.values), torch.linalg.eigvalsh(exact).flip(0)[:5])


# -- dense Hessians --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_dense_hessian(name):
    problem = case(name)
    dense, v = dense_of(name), vector(problem)
    operator = operators.hessian(problem)
    for _ in range(2):  # the second product runs over the kept graph
        torch.testing.assert_close(operator @ v, dense @ v, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(problem.hvp(v), dense @ v, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_extreme_eigenvalues_are_those_of_the_dense_hessian(name, which):
    problem = case(name)
    exact = torch.linalg.eigvalsh(dense_of(name)).flip(0)
    k = 3
    expected = {
        "LA": exact[:k],
        "SA": exact[-k:],
        "LM": exact[exact.abs().argsort(descending=True)][:k],
        "BE": torch.cat([exact[:k], exact[-k:]]),
    }[which]
    found = landscape.top_eigenvalues(problem, k=k, tol=1e-7, which=which)
    assert found.converged
    torch.testing.assert_close(torch.from_numpy(found.values), expected, rtol=1e-8, atol=1e-12)
    assert np.all(np.abs(found.values - expected.numpy()) <= found.error_bounds + 1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_eigenvectors_satisfy_their_equation(name):
    problem = case(name)
    found = landscape.top_eigenvalues(problem, k=3, tol=1e-6)
    for value, v, bound in zip(found.values, found.vectors, found.error_bounds, strict=True):
        residual = torch.linalg.vector_norm(problem.hvp(v) - value * v)
        assert residual <= 1.01 * bound + 1e-14
        assert residual <= 1e-6 * value


def test_at_other_weights():
    problem = case("mlp")
    w = problem.weights + 0.1 * vector(problem)
    exact = torch.linalg.eigvalsh(dense_hessian(problem, w)).flip(0)[:3]
    torch.testing.assert_close(
        torch.from_numpy(landscape.top_eigenvalues(problem, w, k=3, tol=1e-8).values), exact, rtol=1e-8, atol=1e-12
    )


# -- chunks, kept graphs, blocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(24,), (11, 5, 8), (7, 7, 7, 3)])
@pytest.mark.parametrize("chunk_size", [None, 1, 5, 24, 100])
def test_the_division_into_batches_does_not_matter(sizes, chunk_size):
    reference, problem = case("mlp", (24,)), case("mlp", sizes)
    v = vector(problem)
    product = operators.hessian(problem, chunk_size=chunk_size) @ v
    torch.testing.assert_close(product, dense_hessian(reference) @ v, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("known", [True, False])
def test_batches_are_divided_where_the_denominator_is_known_and_stay_where_it_is_not(known):
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    module = nn.CrossEntropyLoss(weight=weight)
    problem = case("mlp", loss=module if known else lambda outputs, targets: module(outputs, targets))
    graph = HessianGraph(problem, chunk_size=4)
    v = vector(problem)
    torch.testing.assert_close(graph.product(v), problem.hvp(v))
    assert graph.graphs.problem.batches.sizes == ([4] * 6 if known else [11, 5, 8])


@pytest.mark.parametrize(("memory", "kept"), [(0, 0), (1e9, 5)])
def test_graphs_are_kept_as_memory_allows(memory, kept):
    problem = case("cnn")
    graph = HessianGraph(problem, chunk_size=5, memory=memory)
    v = vector(problem)
    with problem.counting() as cost:
        products = [graph.product(v) for _ in range(3)]
    assert len(graph.graphs) == kept
    # Once to build (and to find the gradient), and again at every product for what is not kept.
    assert cost["forward"] == pytest.approx(1 if kept else 4)
    assert cost["hvp"] == pytest.approx(3)
    torch.testing.assert_close(products[0], problem.hvp(v))
    torch.testing.assert_close(products[2], products[0])


def test_some_graphs_are_kept_when_not_all_fit():
    problem = case("cnn")
    one = HessianGraph(problem, chunk_size=5).graphs.footprint.bytes(5)
    graph = HessianGraph(problem, chunk_size=5, memory=2.5 * one)
    v = vector(problem)
    torch.testing.assert_close(graph.product(v), problem.hvp(v))
    assert len(graph.graphs) == 2
    assert graph.graphs.kept_bytes <= 2.5 * one


def test_the_graph_knows_loss_and_gradient():
    problem = case("mlp")
    graph = HessianGraph(problem)
    assert graph.loss == pytest.approx(float(problem.loss()), rel=1e-12)
    torch.testing.assert_close(graph.gradient, problem.gradient())


def test_the_footprint_grows_with_the_examples_as_measured():
    graph = HessianGraph(case("cnn", (40,)))
    # Input, two convolutions, norms and their derivatives: more than the 64 + 192 + 36 entries of the activations.
    assert graph.graphs.footprint.per_example > 8 * 292
    assert graph.graphs.footprint.largest == 8 * 192


def test_blocks_are_the_diagonal_blocks():
    problem = case("mlp")
    dense = dense_hessian(problem)
    own = torch.cat([torch.arange(s.start, s.stop) for s in problem.parameters if s.name.startswith("2.")])
    expected = dense[own][:, own]
    torch.testing.assert_close(operators.hessian(problem, parameters="2").dense(), expected)
    torch.testing.assert_close(operators.hessian(problem, problem.weights, parameters="2.*").dense(), expected)
    graph = HessianGraph(problem)
    torch.testing.assert_close(operators.block(graph, [2, 3]).dense(), expected)
    found = landscape.top_eigenvalues(problem, k=2, tol=1e-9, parameters="2")
    torch.testing.assert_close(torch.from_numpy(found.values), torch.linalg.eigvalsh(expected).flip(0)[:2])


def test_scaled_operator():
    problem = case("mlp")
    t = problem.weights.abs()
    dense = t[:, None] * dense_hessian(problem) * t
    torch.testing.assert_close(operators.scaled(operators.hessian(problem), t).dense(), dense, rtol=1e-8, atol=1e-12)


def test_scipy_sees_the_same_operator():
    from scipy.sparse.linalg import eigsh

    problem = case("mlp")
    values = eigsh(operators.hessian(problem).to_scipy(), k=3, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values)[::-1], landscape.top_eigenvalues(problem, k=3, tol=1e-9).values)


# -- the result ------------------------------------------------------------------------------------------------------


def test_summary_and_file(tmp_path):
    problem = case("mlp")
    found = landscape.top_eigenvalues(problem, k=2)
    entry = found.summary()
    assert entry["values"] == found.values.tolist()
    assert entry["error_bounds"] == found.error_bounds.tolist()
    assert entry["hvps"] == found.hvps == found.cost["hvp"]
    assert entry["k"] == 2
    assert "vectors" not in entry
    found.save(tmp_path / "a.h5")
    again = landscape.load(tmp_path / "a.h5")
    np.testing.assert_array_equal(again.values, found.values)
    np.testing.assert_array_equal(again.vectors, found.vectors.numpy())
    assert again.provenance["kept_graphs"] == 1


def test_same_seed_same_value_and_the_model_is_untouched():
    problem = case("cnn")
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    problem.model.train()
    first, second = (landscape.top_eigenvalues(problem, k=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.values, second.values)
    other = landscape.top_eigenvalues(problem, k=2, seed=4)
    assert not np.array_equal(first.values, other.values)
    assert problem.model.training
    for key, value in problem.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in problem.model.parameters())


# -- another library -------------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_curvlinops_agrees():
    curvlinops = pytest.importorskip("curvlinops")
    problem = case("mlp", (11, 5, 8))
    data = [(b.args[0], b.target) for b in problem.batches]
    theirs = curvlinops.HessianLinearOperator(
        problem.model, nn.CrossEntropyLoss(), list(problem.model.parameters()), data
    )
    v = vector(problem)
    torch.testing.assert_close(operators.hessian(problem) @ v, theirs @ v)


@pytest.mark.gpu
def test_the_gpu_has_the_same_eigenvalues():
    problem = case("cnn")
    expected = landscape.top_eigenvalues(problem, k=3, tol=1e-8)
    batches = [(b.args[0].cuda(), b.target.cuda()) for b in problem.batches]
    there = landscape.Problem(problem.model.cuda(), nn.CrossEntropyLoss(), batches)
    found = landscape.top_eigenvalues(there, k=3, tol=1e-8)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-8)
    assert found.vectors.is_cuda
    assert landscape.trace(there).value == pytest.approx(landscape.trace(case("cnn")).value, rel=1e-8)


@pytest.mark.parametrize("kind", ["weighted classes in order", "rarely ignored"])
def test_a_mean_that_weighs_examples_keeps_its_batches(kind):
    """The first examples alone look like a plain mean."""
    torch.manual_seed(0)
    x, y = torch.randn(48, 4, dtype=torch.float64), torch.arange(48) // 16
    loss = nn.CrossEntropyLoss()
    if kind == "rarely ignored":
        y[40:44] = -100
    else:
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64))
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    problem = landscape.Problem(network, loss, [(x, y)])
    v = torch.randn_like(problem.weights)
    torch.testing.assert_close(operators.hessian(problem, chunk_size=8) @ v, problem.hvp(v))
