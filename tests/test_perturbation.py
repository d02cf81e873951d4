import math

import numpy as np
import pytest
import torch
from scipy import optimize

from landscape.ball.perturbation import ascent, perturbed
from landscape.ball.vectors import norm


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((3, 2), (4,), ())]


def flat(pieces):
    return torch.cat([t.reshape(-1) for t in pieces])


def order(x, p):
    return torch.linalg.vector_norm(x, p).item()


P = [1.0, 1.2, 1.5, 2.0, 3.0, 10.0, math.inf]


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("scaled", [False, True])
def test_ascent_lies_on_the_sphere_and_reaches_the_dual_norm(p, scaled):
    g, scales = tensors(), [t.abs() + 0.1 for t in tensors(1)] if scaled else None
    epsilon = ascent(g, 0.7, scales, p)
    t = flat(scales) if scaled else torch.ones(11).double()
    assert order(flat(epsilon) / t, p) == pytest.approx(0.7, rel=1e-10)
    q = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)
    assert (flat(g) @ flat(epsilon)).item() == pytest.approx(0.7 * order(t * flat(g), q), rel=1e-10)


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
def test_no_other_point_of_the_ball_is_better(p):
    g = flat(tensors())[:4].numpy()
    found = -optimize.minimize(
        lambda e: -g @ e,
        np.full(4, 0.1),
        constraints={"type": "ineq", "fun": lambda e: 0.5**p - (np.abs(e) ** p).sum()},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    ).fun
    ours = ascent([torch.from_numpy(g)], 0.5, None, p)[0].numpy() @ g
    # SLSQP ends within about 1e-6 of the optimum.
    assert ours == pytest.approx(found, rel=1e-5)
    generator = np.random.default_rng(0)
    others = generator.normal(size=(20_000, 4))
    others *= 0.5 / np.linalg.norm(others, p, axis=1, keepdims=True)
    assert (others @ g).max() <= ours * (1 + 1e-12)


def test_ascent_on_lists_equals_ascent_on_the_flat_vector():
    g, scales = tensors(), [t.abs() for t in tensors(1)]
    for p in P:
        lists, whole = flat(ascent(g, 0.3, scales, p)), ascent([flat(g)], 0.3, [flat(scales)], p)[0]
        torch.testing.assert_close(lists, whole, rtol=1e-13, atol=0)


def test_scales_broadcast_like_filter_norms():
    g = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()]
    column = torch.tensor([[1.0], [2.0], [0.5]]).double()
    torch.testing.assert_close(ascent(g, 0.1, [column])[0], ascent(g, 0.1, [column.expand(3, 4).contiguous()])[0])


@pytest.mark.parametrize("p", P)
def test_zero_gradients_and_zero_scales_do_not_move(p):
    zeros = [torch.zeros(3), torch.zeros(2, 2)]
    for epsilon in ascent(zeros, 1.0, None, p):
        assert not epsilon.any()
    g, scales = [torch.ones(4), torch.ones(2)], [torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.zeros(2)]
    first, second = ascent(g, 1.0, scales, p)
    assert not first[[0, 3]].any()
    assert not second.any()
    assert torch.isfinite(first).all()
    assert first[2] > 0
    assert not flat(ascent([torch.ones(4)], 1.0, [torch.zeros(4)], p)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("p", P)
def test_ascent_in_low_precision_stays_in_the_dtype_and_on_the_sphere(p, size, dtype):
    g = [t * size for t in tensors(dtype=dtype)]
    epsilon = ascent(g, 0.05, None, p)
    assert all(t.dtype == dtype for t in epsilon)
    # 8 bits of mantissa in bfloat16, entries below 6e-8 are lost in float16.
    assert order(flat(epsilon).double(), p) == pytest.approx(0.05, rel=1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("tiny", [1e-30, 1e-38, 1e-42])
def test_gradients_near_underflow_give_finite_steps_in_the_ball(p, tiny):
    epsilon = flat(ascent([t * tiny for t in tensors(dtype=torch.float32)], 0.05, None, p))
    assert torch.isfinite(epsilon).all()
    assert 0 < order(epsilon.double(), p) <= 0.05 * (1 + 1e-6)


def test_norms_of_many_float32_entries_are_exact():
    x = torch.rand(2_000_000, generator=torch.Generator().manual_seed(0))
    exact = math.sqrt((x.double() ** 2).sum().item())
    assert norm([x[:7], x[7:]]).item() == pytest.approx(exact, rel=1e-12)
    assert norm([x]).dtype == torch.float64


def test_rho_may_be_a_tensor():
    g = tensors()
    for p in P:
        torch.testing.assert_close(flat(ascent(g, torch.tensor(0.3).double(), None, p)), flat(ascent(g, 0.3, None, p)))


def test_perturbed_weights_come_back_to_the_last_bit():
    weights = [torch.nn.Parameter(t) for t in tensors(dtype=torch.float32)]
    before, places = [t.detach().clone() for t in weights], [t.data_ptr() for t in weights]
    epsilon = [torch.full_like(t, 1e-3) for t in weights]
    with perturbed(weights, epsilon):
        for t, b in zip(weights, before, strict=True):
            torch.testing.assert_close(t.detach(), b + 1e-3)
    assert all(torch.equal(t, b) for t, b in zip(weights, before, strict=True))
    with pytest.raises(KeyError), perturbed(weights, epsilon):
        raise KeyError
    assert all(torch.equal(t, b) for t, b in zip(weights, before, strict=True))
    assert [t.data_ptr() for t in weights] == places
    assert all(t.requires_grad and t.is_leaf for t in weights)
