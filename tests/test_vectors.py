"""Sums over the entries of vectors: float64 throughout, flat or in tensors."""

import math

import numpy as np
import pytest
import torch

from landscape import InputError
from landscape.ball import vectors

GENERATOR = torch.Generator().manual_seed(0)
A, B = (torch.randn(10_001, generator=GENERATOR) for _ in range(2))


def parts(x):
    return [x[:7].reshape(7, 1), x[7:]]


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, math.inf])
def test_norms(order):
    exact = np.linalg.norm(A.double().numpy(), order)
    assert float(vectors.norm(A, order)) == pytest.approx(exact, rel=1e-12)
    assert float(vectors.norm(parts(A), order)) == pytest.approx(exact, rel=1e-12)
    assert vectors.norm(A).dtype == vectors.norm(parts(A)).dtype == torch.float64


def test_dots(monkeypatch):
    exact = float(A.double() @ B.double())
    assert float(vectors.dot(A, B)) == pytest.approx(exact, rel=1e-12)
    monkeypatch.setattr(vectors, "_PIECE", 1000)
    assert float(vectors.dot(A, B)) == pytest.approx(exact, rel=1e-12)
    # In tensors the products are float32; their sum is not.
    assert float(vectors.dot(parts(A), parts(B))) == pytest.approx(exact, abs=1e-7 * float((A * B).abs().sum()))
    rows = torch.stack([A, B])
    np.testing.assert_allclose(vectors.dots(rows, B, 999), rows.double() @ B.double(), rtol=1e-12)
    assert float(vectors.cosine(A, -2 * A)) == pytest.approx(-1, rel=1e-12)


def test_every_nan_and_inf_is_seen():
    assert vectors.finite(A)
    for bad in (math.nan, math.inf, -math.inf):
        assert not vectors.finite(torch.where(torch.arange(len(A)) == 5000, bad, A))


def test_rejection_and_gram_schmidt():
    rest = torch.cat([t.reshape(-1) for t in vectors.rejection(parts(A), parts(B))])
    # One subtraction in float32.
    assert abs(float(vectors.cosine(rest, B))) < 1e-7
    first, second, third = vectors.orthogonalized([A, A + 1e-3 * B, B + A])
    assert torch.equal(first, A)
    for x, y in ((first, second), (first, third), (second, third)):
        assert abs(float(vectors.cosine(x, y))) < 1e-7
    with pytest.raises(InputError, match="parallel"):
        vectors.orthogonalized([A, 3 * A])


def test_lengths_and_steps_keep_the_dtype():
    (scaled,) = vectors.scaled_to([A], torch.tensor(2.5, dtype=torch.float64))
    assert scaled.dtype == torch.float32
    assert float(vectors.norm(scaled)) == pytest.approx(2.5, rel=1e-6)
    assert torch.equal(vectors.axpy_(A.clone(), 0.5, B), A + 0.5 * B)
    assert torch.equal(vectors.axpy_(A.clone(), torch.tensor(0.5, dtype=torch.float64), B), A + 0.5 * B)
