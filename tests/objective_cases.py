"""Networks, examples and dense references that the tests of L(w) share."""

import functools
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape

warnings.simplefilter("ignore", UserWarning)


close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def dense_hessian(model, loss):
    """Row by row, by plain automatic differentiation of a loss that is a graph already."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(e, weights, retain_graph=True, materialize_grads=True) for e in flat]
    return torch.cat([g.detach().reshape(-1) for g in gradient]), torch.stack(
        [torch.cat([t.reshape(-1) for t in row]) for row in rows]
    )


def require_equal(problem, model, loss, curvature=True):
    """Every pass of the Problem is of this function."""
    gradient, hessian = dense_hessian(model, loss)
    value = loss.detach().double()
    close(problem.loss(), value)
    close(problem.evaluate().loss, value)
    close(problem.loss_and_gradient()[0], value)
    close(problem.gradient(), gradient)
    v = torch.linspace(-1, 1, len(gradient), dtype=gradient.dtype)
    close(problem.hvp(v), hessian @ v, rtol=1e-8)
    if curvature:
        top = landscape.top_eigenvalues(problem, k=1, tol=1e-7, which="LM")
        eigenvalues = torch.linalg.eigvalsh(hessian)
        close(abs(top.values[0]), float(eigenvalues.abs().max()), rtol=1e-6)
        trace = landscape.trace(problem, method="hutch++", probes=len(gradient))
        close(trace.value, float(hessian.trace()), rtol=1e-6, atol=1e-8 + 5 * trace.stderr)
        assert float(landscape.surface(problem, radius=0.05, grid=3).loss[1, 1]) == pytest.approx(
            float(value), rel=1e-9
        )


def classifier(inputs=3, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.GELU(), nn.Linear(5, classes)).double()


def examples(n=40, classes=3, inputs=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def divisions(x, y):
    order = y.argsort() if y.dim() == 1 else torch.arange(len(y))
    x, y = x[order], y[order]
    return {
        "one": [(x, y)],
        "unequal": [(x[:7], y[:7]), (x[7:], y[7:])],
        "of five": list(zip(x.split(5), y.split(5), strict=True)),
        "singles": list(zip(x.split(1), y.split(1), strict=True)),
    }


WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


class Language(nn.Module):
    """Tokens to tokens; the loss of its own, over what counts."""

    def __init__(self, shifted, output="object", reduction="mean"):
        super().__init__()
        self.shifted, self.output, self.reduction = shifted, output, reduction
        self.embedding, self.out = nn.Embedding(7, 3), nn.Linear(3, 7)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.out(torch.tanh(self.embedding(input_ids).cumsum(1)))
        loss = None
        if labels is not None:
            a, b = (logits[:, :-1], labels[:, 1:]) if self.shifted else (logits, labels)
            loss = F.cross_entropy(a.flatten(0, 1), b.flatten())
        if self.output == "tuple":
            return logits, loss
        return (
            types.SimpleNamespace(logits=logits, loss=loss) if self.output == "object" else {"loss": loss, "x": logits}
        )


def sentences(padded=True):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 7, (11, 5), generator=generator)
    labels = ids.clone()
    if padded:
        for i, length in enumerate([5, 5, 5, 5, 4, 3, 2, 2, 5, 3, 2]):
            labels[i, length:] = -100
    return ids, labels
