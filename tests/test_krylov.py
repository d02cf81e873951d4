"""Lanczos against matrices whose eigenpairs are known."""

import numpy as np
import pytest
import torch

from landscape import random
from landscape.curvature import krylov, stochastic
from landscape.curvature.factorization import Factorization
from landscape.curvature.operators import Operator
from landscape.errors import AsymmetryWarning, InputError


def symmetric(eigenvalues, seed=0):
    """(A, eigenvalues ascending, eigenvectors in columns) with a random orthonormal basis."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64).sort().values
    q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator(seed)))[0]
    return q @ torch.diag(values) @ q.T, values.numpy(), q


def generator(seed=0):
    return random.stream(seed, "test")


def spectrum(d=200):
    """A few outliers above a bulk, and a few negative values, as a network's Hessian has."""
    return np.concatenate([[9.0, 7.0, 4.0, 2.5, 2.4], np.linspace(0, 1, d - 8), [-0.5, -0.6, -1.2]])


def run(a, k, **kwargs):
    like = torch.empty(a.shape[0], dtype=a.dtype)
    kwargs.setdefault("generator", generator(1))
    return krylov.lanczos(Operator("matrix", lambda v: a @ v, like), k, **kwargs)


def first_products(a, k, tol=1e-3, **kwargs):
    """Products until every bound is met, without the look at what was missed."""
    return next(
        n
        for n in range(k, 200)
        if np.all((f := run(a, k, tol=tol, max_products=n, **kwargs)).residuals <= tol * f.values)
    )


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("LA", [9.0, 7.0, 4.0]),
        ("SA", [-0.5, -0.6, -1.2]),
        ("LM", [9.0, 7.0, 4.0]),
        ("BE", [9.0, 7.0, 4.0, -0.5, -0.6, -1.2]),
    ],
)
def test_each_end_of_the_spectrum(which, expected):
    a, _, _ = symmetric(spectrum())
    found = run(a, 3, which=which, tol=1e-9)
    assert found.converged
    np.testing.assert_allclose(found.values, expected, rtol=1e-10)


def test_largest_magnitude_takes_both_signs():
    a, _, _ = symmetric([-5.0, 4.0, 1.0, 0.5, -0.2, 0.1])
    np.testing.assert_allclose(run(a, 2, which="LM", tol=1e-10).values, [-5.0, 4.0], rtol=1e-12)


def test_vectors_and_reported_residuals():
    a, _, q = symmetric(spectrum())
    found = run(a, 4, tol=1e-4)
    gram = found.vectors @ found.vectors.T
    torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-13)
    values = torch.from_numpy(found.values)
    residuals = torch.linalg.vector_norm(found.vectors @ a - values[:, None] * found.vectors, dim=1)
    np.testing.assert_allclose(found.residuals, residuals.numpy(), rtol=1e-6, atol=3e-14)
    assert np.all(found.residuals <= 1.001e-4 * found.values)
    overlap = (found.vectors @ q[:, -4:].flip(1)).abs()
    assert overlap.diagonal().min() > 1 - 1e-6


@pytest.mark.parametrize("capacity", [None, 9])  # with 9 vectors the process restarts
@pytest.mark.parametrize("size", [1e-4, 1e-3])
def test_residuals_include_what_is_not_symmetric_in_the_products(size, capacity):
    a, _, _ = symmetric(spectrum())
    noise = size * torch.randn(a.shape, dtype=a.dtype, generator=generator(2))
    found = run(a + noise - noise.T, 3, tol=1e-4, capacity=capacity)
    values = torch.from_numpy(found.values)
    product = (a + noise - noise.T) @ found.vectors.T
    true = torch.linalg.vector_norm(product.T - values[:, None] * found.vectors, dim=1).numpy()
    assert np.all(found.residuals >= true)
    assert found.converged == bool(np.all(found.residuals <= 1e-4 * found.values))
    # ||E|| stands for ||E s||: larger, but by a small factor.
    assert np.all(found.residuals <= 6 * true)
    assert np.all(true > 3 * size)


def test_an_asymmetric_matrix_does_not_converge():
    a, _, _ = symmetric(spectrum())
    a = a + torch.triu(torch.randn(a.shape, dtype=a.dtype, generator=generator(2)))
    with pytest.warns(AsymmetryWarning, match="symmetric"):
        assert not run(a, 2).converged
    with pytest.warns(AsymmetryWarning, match="symmetric"):
        stochastic.quadrature(lambda v: a @ v, a[0], probes=4, steps=30, generator=generator(3))


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_an_eigenvalue_lies_within_every_bound(tol):
    for seed in range(10):
        a, exact, _ = symmetric(spectrum(), seed)
        found = run(a, 5, tol=tol, generator=generator(seed))
        distances = np.abs(found.values[:, None] - exact[None]).min(axis=1)
        assert np.all(distances <= found.residuals)


def test_stops_at_the_first_step_at_which_every_residual_is_small():
    a, _, _ = symmetric(spectrum())
    state = Factorization(lambda v: a @ v, torch.empty(200, dtype=torch.float64), generator(1))
    for steps in range(1, 60):
        state.step()
        values, _, residuals = state.ritz()
        if steps >= 3 and np.all(residuals[-3:] + 10 * np.finfo(float).eps * values[-1] <= 1e-5 * values[-3:]):
            break
    short = run(a, 3, tol=1e-5, max_products=steps - 1)
    assert not short.converged
    assert np.any(short.residuals > 1e-5 * np.abs(short.values))
    # All bounds are met, but nothing is left for a look at what was missed.
    without_look = run(a, 3, tol=1e-5, max_products=steps)
    assert not without_look.converged
    assert without_look.missed_probability is None
    assert np.all(without_look.residuals <= 1e-5 * without_look.values)
    cut = run(a, 3, tol=1e-5, max_products=steps + 2)
    assert not cut.converged
    assert cut.missed_probability > 1e-5
    assert run(a, 3, tol=1e-5).converged


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_a_small_basis_restarts_and_finds_the_same(which):
    a, _, _ = symmetric(spectrum())
    free = run(a, 3, which=which, tol=1e-8)
    tight = run(a, 3, which=which, tol=1e-8, capacity=12)
    assert tight.converged
    assert tight.products >= free.products > 12
    np.testing.assert_allclose(tight.values, free.values, rtol=1e-10)


def test_every_eigenvalue_of_a_small_matrix():
    a, exact, _ = symmetric([3.0, 1.0, -2.0, 0.0, 0.5])
    found = run(a, 5, tol=1e-12)
    assert found.converged
    assert found.products == 5
    assert found.missed_probability == 0
    np.testing.assert_allclose(found.values, exact[::-1], atol=1e-14)


@pytest.mark.parametrize("value", [2.5, -3.0, 0.0])
def test_one_dimension(value):
    found = run(torch.tensor([[value]], dtype=torch.float64), 1)
    assert found.converged
    assert found.products == 1
    np.testing.assert_allclose(found.values, [value], atol=1e-15)


def test_zero_and_identity():
    zero = run(torch.zeros(30, 30, dtype=torch.float64), 2)
    np.testing.assert_array_equal(zero.values, [0, 0])
    assert zero.converged
    found = run(torch.eye(30, dtype=torch.float64), 3)
    assert found.converged
    np.testing.assert_allclose(found.values, [1, 1, 1], rtol=1e-14)


def test_a_neighboring_matrix_starts_warm():
    a, _, _ = symmetric(spectrum())
    cold = run(a, 4, tol=1e-3)
    near = a + 1e-4 * symmetric(spectrum(), 5)[0]
    again = run(near, 4, tol=1e-3)
    warm = run(near, 4, tol=1e-3, start=cold.vectors)
    assert warm.converged
    assert warm.products < again.products
    np.testing.assert_allclose(warm.values, again.values, rtol=1e-5)


def test_float32_vectors_keep_float64_accuracy_of_the_values():
    a, exact, _ = symmetric(spectrum(400))
    found = run(a.float(), 5, tol=1e-3)
    # 2e-7 is the rounding of the matrix itself; a float32 norm or dot would leave 1e-5.
    np.testing.assert_allclose(found.values, exact[::-1][:5], rtol=2e-6)


def test_residuals_relative_to_the_spectrum_need_fewer_products():
    a, _, _ = symmetric(spectrum())
    each = run(a, 1, which="BE", tol=1e-3)
    whole = run(a, 1, which="BE", tol=1e-3, relative_to="spectrum")
    assert whole.products < each.products
    np.testing.assert_allclose(whole.values, [9.0, -1.2], atol=9e-3)


def test_the_basis_grows_beyond_a_block_and_stays_orthonormal():
    a, exact, _ = symmetric(spectrum(150))
    state = Factorization(lambda v: a @ v, torch.empty(150, dtype=torch.float64), generator())
    for _ in range(150):
        state.step()
    values, _, residuals = state.ritz()
    np.testing.assert_allclose(values, exact, atol=1e-12)
    np.testing.assert_array_equal(residuals, 0)
    rows = torch.stack([state.basis[i] for i in range(150)])
    torch.testing.assert_close(rows @ rows.T, torch.eye(150, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("k", "kwargs", "text"),
    [
        (0, {}, "k must be between 1 and the number of parameters d = 10, received 0"),
        (-2, {}, "received -2"),
        (11, {}, "received 11"),
        (1, {"tol": 0.0}, "tol must be > 0"),
        (1, {"tol": float("nan")}, "tol must be > 0"),
        (1, {"which": "XX"}, "which must be one of LA, SA, LM, BE, received 'XX'"),
        (1, {"max_products": 0}, "at least one"),
        (4, {"capacity": 5}, "at least 7 are needed"),
        (1, {"start": torch.ones(3)}, "start vectors must have length d = 10"),
        (1, {"relative_to": "x"}, "relative_to"),
    ],
)
def test_wrong_arguments(k, kwargs, text):
    with pytest.raises(InputError, match=text):
        run(torch.eye(10, dtype=torch.float64), k, **kwargs)


def test_a_product_that_is_not_finite():
    with pytest.raises(InputError, match="not finite"):
        run(torch.full((4, 4), float("nan"), dtype=torch.float64), 1)


def test_a_hint_saves_products_and_shuts_nothing_out():
    a, exact, q = symmetric(spectrum())
    rich = q[:, -6:].sum(1) + 0.3 * q.sum(1) / np.sqrt(200)
    hinted = run(a, 4, tol=1e-3, hint=rich)
    assert first_products(a, 4, hint=rich) < first_products(a, 4)
    np.testing.assert_allclose(hinted.values, exact[::-1][:4], rtol=1e-5)
    blind = run(a, 4, tol=1e-3, hint=q[:, 0])  # holds none of the wanted vectors
    np.testing.assert_allclose(blind.values, exact[::-1][:4], rtol=1e-5)
    nothing = torch.zeros(200, dtype=torch.float64)
    assert first_products(a, 4, hint=nothing) == first_products(a, 4)


def test_blocks_of_the_basis_follow_the_length_of_the_vectors(monkeypatch):
    from landscape.curvature import basis

    a, exact, _ = symmetric(spectrum(60))
    monkeypatch.setattr(basis, "_LARGEST", 3 * 60 * 8)  # three rows per block
    for kwargs in ({}, {"capacity": 13}):
        found = run(a, 4, tol=1e-9, **kwargs)
        np.testing.assert_allclose(found.values, exact[::-1][:4], rtol=1e-10)


def test_the_asymmetry_of_a_pair_covers_its_residual_also_after_restarts():
    """A V s - theta V s is E s within the space and beta s_last beyond it; all pairs together have more."""
    a = torch.randn(120, 120, dtype=torch.float64, generator=generator(2))
    a = a + a.T + 1e-4 * torch.randn(120, 120, dtype=torch.float64, generator=generator(3))
    state = Factorization(lambda v: a @ v, a[0], generator(4))
    for steps in (45, 30, 30):
        for _ in range(steps):
            state.step()
        values, vectors, residuals = state.ritz()
        ends = [0, 1, -2, -1]
        rows = state.basis.combined(vectors[:, ends])
        true = torch.linalg.vector_norm(rows @ a.T - torch.from_numpy(values[ends])[:, None] * rows, dim=1).numpy()
        asymmetry = state.asymmetry_of(vectors[:, ends])
        assert np.all(true <= np.hypot(residuals[ends], asymmetry) * (1 + 1e-9))
        assert np.all(asymmetry < state.asymmetry / 2)
        state.restart(np.array([*range(5), *range(len(values) - 5, len(values))]))
