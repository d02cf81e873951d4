"""Nothing is called converged that leaves out an eigenvalue: repeated, clustered, of low rank, below rounding."""

import numpy as np
import pytest
import torch
from curvature_cases import dense_hessian
from scipy.special import erfinv
from torch import nn

import landscape
from audit.draws import audited
from audit.shrink import shrunk
from audit.subjects import spectrum
from audit.subjects.spectrum import extremes
from landscape import random
from landscape.curvature import krylov, missed
from landscape.curvature.factorization import Factorization
from landscape.curvature.operators import Operator
from landscape.curvature.wanted import Request
from landscape.measures import negative_curvature


class Quadratic(nn.Module):
    """L = sum_i lambda_i w_i^2 / 2."""

    def __init__(self, eigenvalues, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(eigenvalues), dtype=dtype))
        self.register_buffer("eigenvalues", torch.as_tensor(eigenvalues, dtype=dtype))

    def forward(self, x):
        return (0.5 * (self.eigenvalues * self.w**2).sum()).expand(len(x)) + 0 * x[:, 0]


def quadratic(eigenvalues, dtype=torch.float64):
    batch = (torch.zeros(4, 1, dtype=dtype), torch.zeros(4, dtype=dtype))
    return landscape.Problem(Quadratic(eigenvalues, dtype), lambda o, t: o.mean(), [batch], check=False)


def diagonal_lanczos(values, k, **options):
    return krylov.lanczos(Operator("diagonal", lambda v: values * v, values), k, **options)


def outcomes(seeds):
    """Of these draws: the wrong ones, and how many did not converge."""
    verdicts = audited("spectrum", seeds, shrink=False)
    return [v for v in verdicts if v["outcome"] == "wrong"], sum(v["outcome"] == "refused" for v in verdicts)


def test_adversarial_spectra_are_never_wrong():
    wrong, not_converged = outcomes(list(range(120)))
    assert not wrong
    assert not_converged <= 1


@pytest.mark.slow
def test_two_thousand_adversarial_spectra_are_never_wrong():
    wrong, not_converged = outcomes(list(range(2000)))
    assert not wrong
    assert not_converged <= 20


def test_the_audit_notices_missed_copies(monkeypatch):
    monkeypatch.setattr(missed.Search, "completed", lambda self, pairs, others, thorough: pairs)
    wrong, _ = outcomes(list(range(60)))
    assert {v["kind"] for v in wrong} >= {"repeated", "low rank", "geometric"}
    small = shrunk(spectrum, spectrum.again(wrong[0]["choice"]))
    assert small.outcome == "wrong"
    assert small.choice["scale"] == 1.0
    assert small.choice["k"] <= wrong[0]["choice"]["k"]


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("eigenvalues", [[5.0, 5, 5, 1, 1, 0], [7.0] * 3 + [3.0] * 4 + [1.0] * 33])
def test_every_copy_of_a_repeated_eigenvalue(eigenvalues, verify):
    found = landscape.top_eigenvalues(quadratic(eigenvalues), k=4, verify=verify)
    assert found.converged
    np.testing.assert_allclose(found.values, eigenvalues[:4], rtol=1e-3)
    assert found.verified is (True if verify else None)
    residuals = torch.linalg.vector_norm(
        found.vectors * (torch.tensor(eigenvalues) - torch.from_numpy(found.values)[:, None]), dim=1
    )
    assert np.all(residuals.numpy() <= found.error_bounds)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(4).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_every_wanted_end_is_looked_at(which):
    values = np.concatenate([np.linspace(-1, 1, 40), [6.0, 6.0, -8.0, -8.0]])
    a = torch.diag(torch.from_numpy(values))
    found = diagonal_lanczos(a.diagonal(), 2, which=which, tol=1e-4, generator=random.stream(0, "ends"))
    assert found.converged
    np.testing.assert_allclose(found.values, extremes(np.sort(values), 2, which), rtol=1e-6)


def _regression():
    torch.manual_seed(0)
    line, data = nn.Linear(20, 1, bias=False).double(), (torch.randn(3, 20).double(), torch.randn(3, 1).double())
    return landscape.Problem(line, nn.MSELoss(), [data])


def _chain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    return landscape.Problem(model, nn.MSELoss(), [(torch.randn(1, 6).double(), torch.full((1, 1), 9.0).double())])


ASKED = [(_regression, "SA", 4), (_regression, "BE", 2), (_chain, "LM", 3), (_chain, "SA", 3)]


@pytest.mark.parametrize(("build", "which", "k"), ASKED + [(_chain, "LA", k) for k in (2, 3, 4, 5)])
def test_an_exhausted_krylov_space_is_no_evidence(build, which, k):
    problem = build()
    exact = np.linalg.eigvalsh(dense_hessian(problem).numpy())
    found = landscape.top_eigenvalues(problem, k=k, which=which)
    assert found.converged
    np.testing.assert_allclose(np.sort(found.values), np.sort(extremes(exact, k, which)), atol=1e-6 * exact[-1])


def test_a_layer_shows_every_copy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Softplus(), nn.Linear(8, 2)).double()
    problem = landscape.Problem(model, nn.MSELoss(), [(torch.randn(24, 3).double(), torch.randn(24, 2).double())])
    dense = dense_hessian(problem)
    layers = landscape.layer_eigenvalues(problem, k=3, tol=1e-6)
    assert layers.converged
    assert np.all(layers.missed_probability <= missed.CHANCE)
    for values, block in zip(layers.values, (dense[:32, :32], dense[32:, 32:]), strict=True):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(block.numpy())[::-1][:3], rtol=1e-6)
    assert layers.values[1, 0] == pytest.approx(layers.values[1, 1], rel=1e-6)


def test_negative_curvature_and_adaptive_eigenvalues_are_looked_at():
    ends = landscape.extreme_eigenvalues(_regression())
    assert ends.converged
    assert abs(ends.lambda_min) < 1e-10
    assert ends.missed_probability <= missed.CHANCE
    adaptive = landscape.adaptive_top_eigenvalues(quadratic([5.0, 5, 5, 1, 1, 0]), k=3)  # w = 1
    np.testing.assert_allclose(adaptive.values, [5, 5, 5], rtol=1e-3)
    assert adaptive.converged


def test_below_rounding_a_bound_is_met_only_as_far_as_the_result_says():
    spectrum = [1e5, 0.6, 0.5, 0.3] + [0.01 * i for i in range(26)]
    found = landscape.top_eigenvalues(quadratic(spectrum, torch.float32), k=3)
    assert found.rounding == pytest.approx(20 * torch.finfo(torch.float32).eps * 1e5, rel=1e-3)
    assert found.converged
    assert np.all(found.error_bounds <= np.maximum(1e-3 * np.abs(found.values), found.rounding) * 1.001)
    assert np.all(np.abs(found.values - spectrum[:3]) <= found.error_bounds)
    torch.manual_seed(0)
    data = (torch.randn(2, 3).double(), torch.randn(2, 1).double())
    rank2 = landscape.Problem(nn.Linear(3, 1).double(), nn.MSELoss(), [data])
    for matrix in ("hessian", "ggn"):
        found = landscape.top_eigenvalues(rank2, k=4, matrix=matrix)
        assert found.converged
        assert np.all(found.error_bounds <= np.maximum(1e-3 * np.abs(found.values), found.rounding) * 1.001)
        np.testing.assert_allclose(found.values[2:], 0, atol=found.rounding)


def test_the_probability_rests_on_a_bound_that_holds_in_every_draw():
    """What a start vector holds of an eigenvector that the steps did not separate is at most what they say."""
    d, x = 200, 3.0
    values = torch.cat([torch.linspace(0, 1, d - 1), torch.tensor([x])]).double()
    overlooked = []
    for seed in range(300):
        state = Factorization(lambda v: values * v, values, random.stream(seed, "frequency"))
        component = abs(float(state.basis[0][-1]))
        for _ in range(3):
            state.step()
        largest = state.ritz()[0][-1]
        # Were all d eigenvalues as far inside as the Ritz values say, x would be hidden by this component or less.
        chance = state.chance(x)
        assert component <= erfinv(chance) * np.sqrt(2 / d) * (1 + 1e-9)
        overlooked.append((largest < 0.99 * x, chance))
    # Where a copy stays unseen, the probability admits it.
    assert min(chance for unseen, chance in overlooked if unseen) > 1e-3


def test_a_short_look_is_enough_for_a_large_matrix():
    d = 4000
    values = torch.cat([torch.linspace(0, 0.1, d - 6), torch.tensor([2.0, 3, 4, 5, 6, 7])]).double()
    plain = diagonal_lanczos(values, 5, generator=random.stream(0, "large"))
    thorough = diagonal_lanczos(values, 5, generator=random.stream(0, "large"), verify=True)
    assert plain.converged
    assert 0 < thorough.missed_probability <= missed.CHANCE < plain.missed_probability <= 0.2
    assert thorough.products > plain.products
    doubled = values.clone()
    doubled[-7] = 7.0
    found = diagonal_lanczos(doubled, 5, generator=random.stream(0, "large"))
    np.testing.assert_allclose(found.values, [7, 7, 6, 5, 4], rtol=1e-6)
    assert found.missed_probability <= missed.CHANCE


def test_few_different_eigenvalues_are_looked_for_thoroughly():
    """Seven different ones: the process ends before its space is exhausted, with residuals a billionth of |lambda|."""
    values = torch.cat([torch.tensor([-1.0, 0, 0, 0.5, 0.9, 0.9, 1.01]), torch.ones(693)]).double()
    for seed in range(5):
        found = diagonal_lanczos(values, 3, which="SA", generator=random.stream(seed, "few"))
        assert found.converged
        assert found.missed_probability <= missed.CHANCE
        np.testing.assert_allclose(found.values, [0, 0, -1], atol=1e-6)


def test_what_every_step_rounds_does_not_count_for_every_pair():
    """At a dense lower end in float32: the roundings of 140 steps together are above what a pair is allowed."""
    d, converged = 600, 0
    for seed in range(3):
        q = torch.linalg.qr(torch.randn(d, d, generator=random.stream(seed, "basis"), dtype=torch.float64))[0]
        a = (q * torch.linspace(0.001, 1, d, dtype=torch.float64)) @ q.mT
        a = ((a + a.mT) / 2).float()
        operator = Operator("matrix", lambda v, a=a: a @ v, a[0])
        found = krylov.lanczos(operator, 1, which="SA", generator=random.stream(seed, "dense"))
        converged += found.converged
        assert abs(found.values[0] - torch.linalg.eigvalsh(a.double())[0]) <= found.residuals[0]
    assert converged == 3


@pytest.mark.parametrize(("which", "ends"), [("SA", [0]), ("BE", [-1, 0]), ("LA", [-1])])
def test_what_is_called_converged_was_looked_for_where_eigenvalues_are_dense(which, ends):
    """Four products see nothing at a dense lower end: they left probabilities of 0.99."""
    for seed in range(3):
        r = np.random.default_rng(seed)
        bulk = [np.abs(r.normal(size=1591)) * 0.1, -np.abs(r.normal(size=400)) * 0.02, r.uniform(1, 20, 9)]
        values = torch.from_numpy(np.sort(np.concatenate(bulk)))
        found = diagonal_lanczos(values, 1, which=which, generator=random.stream(seed, "dense"))
        assert found.converged
        assert found.missed_probability <= 0.2
        np.testing.assert_allclose(found.values, values[ends], rtol=1e-3)


def test_a_search_that_has_no_products_left_has_not_converged():
    values = torch.from_numpy(np.sort(np.random.default_rng(0).normal(size=2000)))

    def smallest(**limits):
        stream = random.stream(0, "cut")
        return diagonal_lanczos(values, 1, which="SA", generator=stream, **limits)

    whole = smallest()
    cut = smallest(max_products=whole.products - 1)
    assert whole.converged
    assert not cut.converged
    assert cut.missed_probability > 0.2


def test_the_look_excludes_what_stands_out_from_one_rounding():
    """In float32 lambda_2 is 1e-4 of lambda_1: 20 roundings times sqrt(d) would leave 1.5 times itself unproved."""
    d = 4000
    request = Request(2, "LA", 1e-3, "value", torch.finfo(torch.float32).eps, 100, 100)
    (fence,) = request.fences(np.array([1.0, 1e-4]), 1.0, d)
    assert 1e-4 < fence.level < fence.excluded < 1.1e-4
    # What a random start vector holds of it, lambda / sqrt(d), is a rounding of the largest product.
    assert (fence.excluded - 1e-4) / np.sqrt(d) == pytest.approx(2.0**-23)


def test_the_ratio_of_a_negative_curvature_alone_is_infinite():
    assert negative_curvature._ratio(-2.0, 0.0) == np.inf
    assert negative_curvature._ratio(-2.0, 8.0) == 0.25
    assert landscape.extreme_eigenvalues(quadratic([0.0, 0, 0])).ratio == 0
