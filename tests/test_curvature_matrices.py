"""Products with Gauss-Newton, Fisher and scaled matrices, and by central differences."""

import numpy as np
import pytest
import torch
from curvature_cases import case, dense_ggn, dense_hessian, everything, jacobian, mlp, problem_of
from torch import nn

import landscape
from landscape import random
from landscape.curvature import krylov, operators
from landscape.curvature.operators import Operator
from landscape.curvature.products.differences import DifferenceProduct
from landscape.errors import AsymmetryWarning, InputError
from landscape.problem.problem import Problem

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


def sharply_bent(dtype):
    """Smooth, but bent far within eps^(1/3) (1 + ||w||), as language models do: small layers, normalized."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU()),
        nn.Linear(16, 3),
    )
    with torch.no_grad():
        for i in (0, 3):
            model[i].weight.mul_(0.02)
            model[i].bias.zero_()
    x = torch.randn(30, 6)
    return Problem(model.to(dtype), nn.CrossEntropyLoss(), [(x.to(dtype), torch.arange(30) % 3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_step_follows_the_loss_and_its_rounding(dtype):
    problem, exact = sharply_bent(dtype), landscape.top_eigenvalues(sharply_bent(torch.float64), k=1, tol=1e-6)
    found = landscape.top_eigenvalues(problem, k=1, hvp="differences")
    stated = found.provenance["hvp_relative_error"]
    assert found.converged
    assert stated < {torch.float32: 3e-3, torch.float64: 1e-6}[dtype]
    assert abs(found.values[0] - exact.values[0]) <= found.error_bounds[0] + 5 * stated * exact.values[0]
    # The step that a smooth loss of length one would take leaves a multiple of that error.
    usual = torch.finfo(dtype).eps ** (1 / 3) * (1 + float(torch.linalg.vector_norm(problem.weights)))
    assert found.provenance["step"] < usual / 2


def test_differences_are_refused_below_what_the_dtype_holds():
    problem = sharply_bent(torch.bfloat16)
    with pytest.raises(InputError, match=r"^central differences in bfloat16 leave a relative error of .*use float64$"):
        landscape.top_eigenvalues(problem, k=1, hvp="differences")


def test_what_is_not_symmetric_is_told_by_its_cause():
    kinked = DifferenceProduct(case("mlp", (60,)))
    kinked.step = 0.3
    with pytest.warns(AsymmetryWarning, match=r"kinks within the step \(relu\)"):
        found = krylov.lanczos(
            Operator("differences", kinked.product, kinked.gradient(), cause=kinked.cause),
            2,
            generator=random.stream(0, "kinks"),
        )
    assert not found.converged
    smooth = operators.hessian(sharply_bent(torch.float32), hvp="differences")
    assert "kinks" not in smooth.cause()
    assert "float32" in smooth.cause()
    assert "double backward" in operators.hessian(case("mlp")).cause()


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
