"""The table of small problems that tests run over: float64 networks with unequal batches of fixed random data."""

import inspect

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape


class TinyAttention(nn.Module):
    """One pre-norm transformer block over tokens, with scaled dot-product attention."""

    def __init__(self, dim=6, heads=2, tokens=4, classes=3):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.inner = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim))
        self.head = nn.Linear(dim, classes)
        self.position = nn.Parameter(0.1 * torch.ones(1, tokens, dim))

    def forward(self, x):
        x = x + self.position
        n, t, d = x.shape
        q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.norm(x)).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        x = x + self.out(mixed)
        return self.head((x + self.inner(x)).mean(dim=1))


class Residual(nn.Module):
    """A residual block with BatchNorm, pooled to a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.inner, self.norm2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.relu, self.head = nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x):
        x = self.relu(self.norm1(self.stem(x)))
        return self.head(self.relu(x + self.norm2(self.inner(x))).mean(dim=(2, 3)))


def _mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)


def _cnn():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 4, 4)


def _resnet():
    return Residual(), (2, 4, 4)


def _vit():
    return TinyAttention(), (4, 6)


MAKERS = {"mlp": _mlp, "cnn": _cnn, "resnet": _resnet, "vit": _vit}


def case(name, examples=11, dtype=torch.float64, seed=0):
    """Model (its BatchNorm statistics moved away from 0 and 1), and batches of sizes 5, 5, 1, ..."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, shape = MAKERS[name]()
        model = model.to(dtype)
        x, y = torch.randn(examples, *shape, dtype=dtype), torch.randint(0, 3, (examples,))
        with torch.no_grad():
            for _ in range(3):
                model.train()(x + torch.randn_like(x))
    return model.eval(), list(zip(x.split(5), y.split(5), strict=True))


def measured(name, problem, **options):
    """The result of a measure with its defaults; what it takes beside the problem: an optimizer, the same loss."""
    beside = {"optimizer": lambda: torch.optim.SGD(problem.model.parameters(), lr=0.1), "other": lambda: problem}
    parameters = inspect.signature(landscape.MEASURES[name]).parameters.values()
    taken = [p.name for p in parameters if p.name in beside]
    return landscape.MEASURES[name](problem, **{name: beside[name]() for name in taken}, **options)


def dense(model, batches, parameters):
    """w -> mean cross-entropy over all examples at once, by plain torch: the slow, obvious reference."""
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))

    def loss(w):
        tensors = {}
        start = 0
        for name, shape in ((s.name, s.shape) for s in parameters):
            tensors[name] = w[start : start + shape.numel()].view(shape)
            start += shape.numel()
        outputs = torch.func.functional_call(model, tensors, (x,))
        return nn.functional.cross_entropy(outputs, y)

    return loss


def dense_hessian(model, batches, problem):
    """The Hessian (d, d) at the Problem's weights by reverse over reverse.

    Not by torch.func.hessian: through scaled_dot_product_attention that is wrong (asymmetric by 0.005 on this network
    in torch 2.13, where this one agrees with finite differences to 3e-9).
    """
    with sdpa_kernel(SDPBackend.MATH):
        return torch.autograd.functional.hessian(dense(model, batches, problem.parameters), problem.weights)
