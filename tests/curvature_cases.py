"""Small problems in float64 and their dense Hessians, computed by obvious means."""

import functools

import torch
from torch import nn

from landscape import random
from landscape.problem.problem import Problem


class SmallViT(nn.Module):
    """Patches, a class token, one pre-norm block with scaled-dot-product attention and a GELU MLP."""

    def __init__(self, dim: int = 8, heads: int = 2, classes: int = 3):
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(1, dim, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 8), nn.GELU(), nn.Linear(8, dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


def mlp(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(6, 7), activation(), nn.Linear(7, 5), activation(), nn.Linear(5, 3))


def cnn():
    """Convolutions with BatchNorm whose statistics and affines are not the initial ones."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(4, 3)),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    return model


MODELS = {"mlp": (mlp, (6,)), "cnn": (cnn, (1, 8, 8)), "vit": (SmallViT, (1, 8, 8))}


def case(name, sizes=(11, 5, 8), seed=0, loss=None, **kwargs):
    """A Problem over batches of the given (unequal) sizes."""
    build, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double()
        x = torch.randn(sum(sizes), *shape, dtype=torch.float64)
        y = torch.randint(0, 3, (sum(sizes),))
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    return Problem(model, loss or nn.CrossEntropyLoss(), batches, **kwargs)


def everything(problem):
    """(inputs, targets) of all examples."""
    batch = problem.batches.whole()
    return batch.args[0], batch.target


def dense_hessian(problem, w=None):
    """(d, d) Hessian of the mean loss over all examples at once, row by row, by torch itself."""
    x, y = everything(problem)
    model, layout = problem.model, problem.parameters

    def mean_loss(flat):
        named = dict(zip(layout.names, layout.unflatten(flat), strict=True))
        return problem.objective.loss(torch.func.functional_call(model, named, (x,)), y).mean()

    training = model.training
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(mean_loss, problem.weights if w is None else w)
    model.train(training)
    return hessian


@functools.cache
def dense_of(name):
    """The dense Hessian of `case(name)`, computed once."""
    return dense_hessian(case(name))


def jacobian(problem):
    """(n, C, d) derivative of all outputs."""
    x, _ = everything(problem)
    model, layout = problem.model, problem.parameters

    def outputs(flat):
        named = dict(zip(layout.names, layout.unflatten(flat), strict=True))
        return torch.func.functional_call(model, named, (x,), tie_weights=True)

    training = model.training
    model.eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found = torch.autograd.functional.jacobian(outputs, problem.weights)
    model.train(training)
    return found


def dense_ggn(problem):
    """(d, d) generalized Gauss-Newton matrix of mean cross-entropy."""
    p = torch.softmax(problem.outputs(), dim=1)
    middle = (torch.diag_embed(p) - p[:, :, None] * p[:, None]) / len(p)
    j = jacobian(problem)
    return torch.einsum("nca,ncd,ndb->ab", j, middle, j)


X = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
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


def vector(problem, seed=0):
    return random.normal(problem.weights, random.stream(seed, "vector"))
