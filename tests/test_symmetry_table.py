"""The table of symmetries in docs/invariance.md: each applied by hand, and what it does to which measure."""

import copy

import pytest
import torch
import torch.nn.functional as F
from attention_cases import tokens
from torch import nn

import landscape


class Block(nn.Module):
    """RMSNorm, attention, RMSNorm, SwiGLU, a ReLU layer and a tanh layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(3, 6), nn.RMSNorm(6), nn.RMSNorm(6)
        self.q, self.k, self.v = (nn.Linear(6, 8) for _ in range(3))
        self.o, self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)
        self.relu, self.middle, self.tanh, self.head = (
            nn.Linear(6, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        n = self.norm1(h)
        q, k, v = (layer(n).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = h + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        n = self.norm2(h)
        h = h + self.down(F.silu(self.gate(n)) * self.up(n))
        h = self.middle(F.relu(self.relu(torch.tanh(h))))
        return self.head(torch.tanh(self.tanh(torch.tanh(h)))).mean(1)


A = torch.tensor([[1.5, 0.4, 0, 0], [-0.3, 0.8, 0, 0.2], [0, 0, 1.2, 0.5], [0.1, 0, -0.6, 0.7]], dtype=torch.float64)


def head_map(m):
    m.q.weight[:4], m.q.bias[:4] = A @ m.q.weight[:4], A @ m.q.bias[:4]
    inverse = torch.linalg.inv(A).T
    m.k.weight[:4], m.k.bias[:4] = inverse @ m.k.weight[:4], inverse @ m.k.bias[:4]
    m.v.weight[4:], m.v.bias[4:] = A @ m.v.weight[4:], A @ m.v.bias[4:]
    m.o.weight[:, 4:] = m.o.weight[:, 4:] @ torch.linalg.inv(A)


def relu(m):
    m.relu.weight[1] *= 3.0
    m.relu.bias[1] *= 3.0
    m.middle.weight[:, 1] /= 3.0


def swiglu(m):
    m.up.weight[2] *= -3.0
    m.up.bias[2] *= -3.0
    m.down.weight[:, 2] /= -3.0


def gain_into_mlp(m):
    m.norm2.weight[3] *= 3.0
    m.gate.weight[:, 3] /= 3.0
    m.up.weight[:, 3] /= 3.0


def gain_into_attention(m):
    m.norm1.weight[3] *= 3.0
    for layer in (m.q, m.k, m.v):
        layer.weight[:, 3] /= 3.0


def softmax_keys(m):
    m.k.bias[2] += 0.7


def softmax_classes(m):
    m.head.bias += 0.7


def tanh(m):
    m.tanh.weight[1] *= -1
    m.tanh.bias[1] *= -1
    m.head.weight[:, 1] *= -1


def order_of_units(m):
    m.tanh.weight[:], m.tanh.bias[:] = m.tanh.weight.flip(0), m.tanh.bias.flip(0)
    m.head.weight[:] = m.head.weight.flip(1)


def order_of_heads(m):
    for layer in (m.q, m.k, m.v):
        layer.weight[:], layer.bias[:] = layer.weight.roll(4, 0), layer.bias.roll(4)
    m.o.weight[:] = m.o.weight.roll(4, 1)


STAYS = {  # SAM and lambda_max, adaptive and its lambda_max, geodesic
    head_map: (False, False, True),
    relu: (False, True, True),
    swiglu: (False, True, True),
    gain_into_mlp: (False, True, True),
    gain_into_attention: (False, True, False),
    softmax_keys: (True, True, False),
    softmax_classes: (True, False, False),
    tanh: (True, True, True),
    order_of_units: (True, True, True),
    order_of_heads: (True, True, True),
}


def measured(model):
    problem = landscape.Problem(model, F.cross_entropy, [(tokens(), torch.tensor([0, 1, 2, 0, 1]))])
    groups = [
        {
            "sam": landscape.sam_sharpness(problem, rho=0.3).value,
            "lambda": landscape.top_eigenvalues(problem, k=1, tol=1e-10).values[0],
        },
        {
            "adaptive": landscape.adaptive_sharpness(problem, rho=0.3, one_step_only=True).value,
            "adaptive lambda": landscape.adaptive_top_eigenvalues(problem, tol=1e-10).values[0],
        },
        {
            metric: landscape.geodesic_sharpness(problem, rho=0.2, metric=metric, steps=6, restarts=1).value
            for metric in ("inv", "mix")
        },
    ]
    return problem.loss().item(), groups


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Block().double()
    with torch.no_grad():
        for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
            layer.weight *= 2  # every layer shall be seen in the loss
        for norm in (model.norm1, model.norm2):
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    return model, measured(model)


@pytest.mark.parametrize("symmetry", STAYS, ids=lambda s: s.__name__)
def test_symmetry(symmetry, plain):
    model, (loss, before) = plain
    other = copy.deepcopy(model)
    with torch.no_grad():
        symmetry(other)
    after_loss, after = measured(other)
    assert after_loss == pytest.approx(loss, rel=1e-12)
    for stays, old, new in zip(STAYS[symmetry], before, after, strict=True):
        for name, value in old.items():
            change = abs(new[name] - value) / abs(value)
            # 1e-8: eigenvalues are searched to 1e-10.
            assert (change <= 1e-8) if stays else (change > 1e-5), f"{name} changes by {change:.1e}"
