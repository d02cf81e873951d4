"""Lanczos without a basis: exact on matrices whose eigenpairs are known, within k + 3 vectors."""

import math

import numpy as np
import pytest
import torch
from live_vectors import LiveVectors
from test_krylov import generator, run, spectrum, symmetric
from torch import nn

import landscape
from audit.subjects import spectrum as adversarial
from landscape.ball import vectors
from landscape.curvature import factorization, krylov, operators, three_term, two_pass
from landscape.curvature.factorization import Factorization
from landscape.curvature.operators import Operator
from landscape.curvature.three_term import ThreeTerm
from landscape.errors import AsymmetryWarning, InputError
from landscape.problem import memory


def deep(dtype=torch.float32):
    """L of a network whose activations are small beside its weights."""
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(30, 30), nn.Tanh())]
    x = torch.randn(2, 30, dtype=dtype)
    return landscape.Problem(nn.Sequential(*layers).to(dtype), nn.CrossEntropyLoss(), [(x, torch.arange(2))])


# -- the process -------------------------------------------------------------------------------------------------------


def test_the_recurrence_is_that_of_a_basis_and_its_vectors_come_again():
    a, _, _ = symmetric(spectrum(60))
    operator, first = Operator("matrix", lambda v: a @ v, a[0]), torch.randn(60, dtype=torch.float64)
    kept = Factorization(operator.matvec, a[0], generator(), first)
    process = ThreeTerm(operator, first.clone, a[:0])
    for _ in range(8):
        kept.step()
        process.step()
    values, s, residuals = process.ritz()
    np.testing.assert_allclose(values, kept.ritz()[0], rtol=1e-12)
    np.testing.assert_allclose(residuals, kept.ritz()[2], rtol=1e-8)
    result = torch.empty(60, dtype=torch.float64)
    process.combine(s[:, -1], result)
    right = kept.basis.combined(kept.ritz()[1][:, -1:])[0]
    torch.testing.assert_close(result * torch.sign(result @ right), right, rtol=0, atol=1e-12)
    assert process.products == 15


def test_the_chance_is_never_below_that_of_an_orthonormal_basis():
    values = torch.linspace(0, 1, 300, dtype=torch.float64)
    operator, first = Operator("diagonal", lambda v: values * v, values), torch.randn(300, dtype=torch.float64)
    kept, process = (
        Factorization(operator.matvec, values, generator(), first),
        ThreeTerm(operator, first.clone, values[None, :][:0]),
    )
    for _ in range(12):
        kept.step()
        process.step()
        assert kept.chance(1.1) <= process.chance(1.1) <= 3 * kept.chance(1.1) + 1e-3


# -- eigenpairs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_each_end_of_a_spectrum(which, dtype, scale):
    a, exact, _ = symmetric(spectrum() * scale)
    found = run(a.to(dtype), 2, which=which, capacity=0, max_products=2000)
    assert found.converged
    assert not found.basis
    assert found.missed_probability <= 1e-5
    np.testing.assert_allclose(found.values, adversarial.extremes(exact, 2, which), rtol=1e-3)
    rows, values = found.vectors.double(), torch.from_numpy(found.values)
    residuals = torch.linalg.vector_norm(rows @ a - values[:, None] * rows, dim=1).numpy()
    assert np.all(residuals <= found.residuals + found.rounding)
    gram = (rows @ rows.T).numpy()
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(
    ("eigenvalues", "k"),
    [
        ([5.0] * 4 + [1.0] * 50, 3),  # a Krylov space holds one copy of each
        ([5.0, 5.0 - 1e-7, 5.0 - 2e-7, *np.linspace(0, 1, 60)], 3),
        ([3.0, 2.0] + [0.0] * 80, 2),
        ([0.0] * 30, 2),
        ([1.0] * 30, 3),
        ([4.0, -2.0, 1.0], 3),
        ([2.5], 1),
    ],
)
def test_repeated_clustered_and_few_eigenvalues(eigenvalues, k):
    a, exact, _ = symmetric(eigenvalues)
    found = run(a, k, tol=1e-9, capacity=0, max_products=2000)
    assert found.converged
    np.testing.assert_allclose(found.values, exact[::-1][:k], rtol=1e-9, atol=1e-13)


def test_what_the_start_hides_is_found_by_the_look():
    a, _, q = symmetric(spectrum())
    operator = Operator("matrix", lambda v: a @ v, a[0])
    hiding = q[:, -2] + q[:, :-2].sum(1) / 20  # nothing of the largest
    request = krylov.Request(1, "LA", 1e-3, "value", 2e-16, 500, 0)
    with krylov.Bar("", None) as bar:
        found = two_pass.TwoPass(request, operator, generator(), bar).pairs(hiding.clone, False)
    assert found.converged
    np.testing.assert_allclose(found.values, [9.0], rtol=1e-6)


def test_the_search_does_not_go_round_in_a_cluster():
    # Values that have settled lie in the midst of hundreds, less far out than the look saw one.
    drawn = adversarial.choice(538)
    a = adversarial.matrix(drawn)
    found = run(a, 3, which="SA", capacity=0, max_products=400)
    assert found.converged
    right = np.linalg.eigvalsh(a.numpy())[:3][::-1]
    np.testing.assert_allclose(found.values, right, rtol=1e-3)


def test_bounds_hold_where_a_later_pair_explains_nearly_all_of_a_residual():
    draw = np.random.default_rng(5)
    for trial in range(300):
        eigenvalues = [*(1 + 1e-5 * draw.normal(size=2)), *draw.uniform(-1, 0.9, size=1 + trial % 2)]
        a, _, _ = symmetric(eigenvalues)
        found = run(a, 2, capacity=0)
        values = torch.from_numpy(found.values)
        residuals = torch.linalg.vector_norm(found.vectors @ a - values[:, None] * found.vectors, dim=1).numpy()
        assert found.converged
        assert np.all(residuals <= found.residuals)


def test_looks_that_see_nothing_do_not_add_up_to_certainty():
    # One eigenvalue stands out by 50 roundings: every look ends after a product, which shows as good as nothing.
    epsilon = torch.finfo(torch.float32).eps
    for seed in range(8):
        values = torch.full((150,), 1 - 50 * epsilon)
        values[0] = 1.0
        operator = Operator("diagonal", lambda v, values=values: values * v, values)
        stream = torch.Generator().manual_seed(seed)
        found = krylov.lanczos(operator, 1, tol=1e-8, generator=stream, capacity=0)
        assert not found.converged or abs(found.values[0] - 1) <= found.residuals[0]


def test_the_joint_probability_of_looks_is_one():
    draws = np.random.default_rng(0).random((4000, 8))
    joint = np.array([factorization.joint(row) for row in draws])
    for level in (0.01, 0.1, 0.5):
        assert np.mean(joint <= level) == pytest.approx(level, rel=0.3)
    assert factorization.joint([0.2]) == pytest.approx(0.2)
    assert factorization.joint([1.0, 1.0]) == 1.0
    assert factorization.joint([0.5, 0.0]) == 0.0


def test_no_more_products_than_allowed_and_a_bound_that_is_true():
    a, exact, _ = symmetric(spectrum())
    for most in (6, 7, 15, 40):
        found = run(a, 3, tol=1e-9, capacity=0, max_products=most)
        assert not found.converged
        assert found.products <= most
        assert all(
            np.abs(exact - value).min() <= bound for value, bound in zip(found.values, found.residuals, strict=True)
        )
    with pytest.raises(InputError, match="at least 6 products where no basis is kept, received 5"):
        run(a, 3, capacity=0, max_products=5)


def test_products_that_are_not_symmetric_are_told():
    a, _, _ = symmetric(spectrum())
    noise = torch.randn(200, 200, dtype=torch.float64, generator=generator()) / math.sqrt(200)
    with pytest.warns(AsymmetryWarning, match="not those of a symmetric matrix"):
        assert not run(a + noise - noise.T, 1, capacity=0).converged
    slight = run(a + 1e-4 * (noise - noise.T), 1, tol=1e-6, capacity=0)
    assert 1e-4 < slight.residuals[0] < 2e-2
    assert not slight.converged


def test_a_product_that_is_not_finite():
    with pytest.raises(InputError, match="not finite"):
        run(torch.full((4, 4), float("nan"), dtype=torch.float64), 1, capacity=0)


def test_adversarial_spectra_are_never_wrong():
    verdicts = [adversarial.again(adversarial.choice(seed) | {"basis": False, "k": 1 + seed % 3}) for seed in range(60)]
    assert not [v for v in verdicts if v.outcome == "wrong"]
    assert sum(v.outcome == "refused" for v in verdicts) <= 1


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("k", [1, 3])
def test_k_and_three_vectors_are_held(matrix, k, monkeypatch):
    monkeypatch.setattr(vectors, "_PIECE", 500)
    for module in (three_term, two_pass):
        monkeypatch.setattr(module, "COLUMNS", 500)
    problem = deep()
    operator = operators.build(problem, matrix)
    operator.matvec(problem.weights)  # model, weights, gradient and graphs are there
    hint = operator.hint()
    with LiveVectors(problem.weights) as live:
        found = krylov.lanczos(operator, k, hint=hint, generator=generator(), capacity=0)
    assert found.converged
    # A tenth of a vector for slices in float64, layers and activations; two tenths a pair where slices hold k + 1.
    assert k + 2 < live.most <= k + 3 + (0.1 if k == 1 else 0.2 * k)
    with LiveVectors(problem.weights) as live:
        krylov.lanczos(operator, k, hint=hint, generator=generator(), capacity=k + 8)
    assert live.most > k + 10


def test_no_basis_is_kept_where_it_does_not_fit(monkeypatch):
    problem = deep(torch.float64)
    plain = landscape.top_eigenvalues(problem, k=2)
    operator = operators.hessian(problem)
    one = problem.dimension * 8

    def found(fitting, k=2):
        monkeypatch.setattr(krylov, "free_memory", lambda device: (fitting + 0.5) * one)
        return krylov.lanczos(operator, k, generator=generator())

    assert found(30).basis
    short = found(29)
    assert not short.basis
    # Residuals of 1e-3 leave their square.
    np.testing.assert_allclose(short.values, plain.values, rtol=1e-5)
    assert found(5).converged
    with pytest.raises(InputError, match=r"2 eigenpairs need 5 vectors.*4 fit .*: find at most 1 .*, or restrict"):
        found(4)
    with pytest.raises(InputError, match="free: restrict parameters"):
        found(3, k=1)


def test_the_plan_says_which_way_fits_and_what_the_nearest_setting_is(monkeypatch):
    problem = deep(torch.float64)
    plan, one = problem.plan(eigenpairs=2), problem.dimension * 8
    assert (plan.vectors, plan.vector_bytes) == (30, 30 * one)
    assert "30 vectors of 87.2 KiB for 2 eigenpairs, 1 chunk of 2 examples with a graph" in str(plan)

    def short(vectors):
        monkeypatch.setattr(memory, "free_memory", lambda device: plan.product_bytes + (vectors + 0.5) * one)
        return problem.plan(eigenpairs=2)

    assert "5 vectors of 87.2 KiB for 2 eigenpairs without a basis (at least twice" in str(short(12))
    short(5).require()
    with pytest.raises(InputError, match=r"does not fit: find at most 1 \(a smaller k\), or restrict parameters"):
        short(4).require()
    with pytest.raises(InputError, match="does not fit: restrict parameters"):
        short(3).require()


def test_where_the_basis_is_kept():
    assert memory.way(1, 27) == (27, "device")
    assert memory.way(1, 26.9, 1000) == (4, "none")
    assert memory.way(5, 11, 39) == (11, "host")
    assert memory.way(5, 11, 38.9) == memory.way(5, 10.9, 39) == (8, "none")
    assert memory.hosted(torch.ones(3)) == 0


@pytest.mark.parametrize("eigenvalues", [spectrum(), [5.0] * 4 + [1.0] * 60])
@pytest.mark.parametrize("capacity", [11, 100])
def test_a_basis_elsewhere_gives_the_same_bits(eigenvalues, capacity):
    a, _, _ = symmetric(eigenvalues)
    here, there = (run(a, 3, capacity=capacity, device=device) for device in (None, torch.device("cpu")))
    assert here.converged
    np.testing.assert_array_equal(there.values, here.values)
    assert torch.equal(there.vectors, here.vectors)
    assert there.products == here.products


@pytest.mark.gpu
def test_a_basis_on_the_host_leaves_the_device_to_the_products(monkeypatch):
    a, exact, _ = symmetric(spectrum(2000))
    a = a.cuda()
    monkeypatch.setattr(krylov, "way", lambda *_: (9, "host"))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = krylov.lanczos(Operator("matrix", lambda v: a @ v, a[0]), 3, generator=generator())
    assert found.vectors.device == a.device
    np.testing.assert_allclose(found.values, exact[::-1][:3], rtol=1e-6)
    # Nine vectors, and what cuBLAS takes for itself.
    assert torch.cuda.max_memory_allocated() - before < 20 * 2000 * 8 + 64 * 2**20


def test_the_measure_says_that_no_basis_was_kept():
    problem = deep(torch.float64)
    plain, short = landscape.top_eigenvalues(problem, k=1), landscape.top_eigenvalues(problem, k=1, basis=0)
    np.testing.assert_allclose(short.values, plain.values, rtol=1e-6)
    assert short.converged
    assert short.provenance["basis"] == 0
    assert "basis" not in plain.provenance
    assert plain.hvps < short.hvps <= 3 * plain.hvps
