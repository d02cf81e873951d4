"""Buffers filled anew, half precision, other layouts, streams and complex pairs: the tensors in a batch and a model."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from objective_cases import (
    Language,
    classifier,
    close,
    examples,
    require_equal,
    sentences,
)
from torch import nn

import landscape
from landscape import Problem

warnings.simplefilter("ignore", UserWarning)


@pytest.mark.parametrize("once", [True, False])
def test_a_loader_that_fills_one_buffer_again_and_again(once):
    x, y = examples(20)

    class Buffered:
        def __iter__(self):
            inputs, labels = torch.empty(5, 3, dtype=torch.float64), torch.empty(5, dtype=torch.long)
            for i in range(4):
                inputs.copy_(x[5 * i : 5 * i + 5])
                labels.copy_(y[5 * i : 5 * i + 5])
                yield inputs, labels

    model = classifier()
    problem = Problem(model, F.cross_entropy, iter(Buffered()) if once else Buffered())
    close(problem.loss(), F.cross_entropy(model(x), y).detach())


def test_targets_keep_their_precision_beside_half_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1).bfloat16(), torch.randn(20, 4)
    targets = model(x.bfloat16()).float().detach() + 1e-3 * torch.randn(20, 1)

    def loss(outputs, t):
        return F.mse_loss(outputs.to(t.dtype), t)

    right = float(loss(model(x.bfloat16()), targets))
    for inputs in (x.bfloat16(), x):  # what a half network cannot take is cast, targets never
        assert float(Problem(model, loss, [(inputs, targets)]).loss()) == right


def test_a_frozen_half_backbone_takes_its_inputs_as_they_are():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Linear(3, 6).bfloat16().requires_grad_(False)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.backbone(x).float())

    model, (x, y) = Adapted(), examples()
    problem = Problem(model, F.cross_entropy, [(x.bfloat16(), y)])
    assert problem.dimension == 21
    assert float(problem.loss()) == float(F.cross_entropy(model(x.bfloat16()), y))


def test_inputs_that_the_model_writes_to_stay_as_they_are():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x.sub_(0.5).div_(2))

    model, (x, y) = InPlace(), examples()
    before, value = x.clone(), F.cross_entropy(model.inner((x - 0.5) / 2), y)
    problem = Problem(model, F.cross_entropy, [(x, y)])
    require_equal(problem, model.inner, value)
    assert torch.equal(x, before)


@pytest.mark.parametrize("layout", ["csr", "nested"])
def test_inputs_of_other_layouts_go_through_whole(layout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            if x.is_nested:
                return torch.stack([self.inner(t).mean(0) for t in x.unbind()])
            return self.inner(x.to_dense())

    x, y = examples(6)
    inputs = x.to_sparse_csr() if layout == "csr" else torch.nested.nested_tensor([t.expand(2, 3) for t in x])
    model = Net()
    require_equal(Problem(model, F.cross_entropy, [(inputs, y)]), model, F.cross_entropy(model.inner(x), y))


def test_batches_that_ask_for_gradients_themselves():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1).requires_grad_()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def objective(network, points):
        u = network(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return (slope + u).square().mean()

    problem = Problem(model, batches=[x], objective=objective)
    require_equal(problem, model, objective(model, x))
    assert x.grad is None


def test_streams_are_weighed_and_their_targets_counted(monkeypatch):
    from landscape.problem import batches as module

    monkeypatch.setattr(module, "free_memory", lambda device: 0.0)
    torch.manual_seed(0)
    model, (ids, labels) = Language(True).double(), sentences()
    labels[:4] = -100

    class Stream:
        def __iter__(self):
            for a, b in zip(ids.split(4), labels.split(4), strict=True):
                yield {"input_ids": a, "labels": b}

    problem = Problem(model, None, Stream())
    assert problem.batches.kept is None
    require_equal(problem, model, model(ids, labels).loss)
    x, y = examples(20)
    network, masked = classifier(), torch.where(torch.arange(20) < 7, -100, y)
    streamed = Problem(network, F.cross_entropy, TensorDatasetStream(x, masked))
    assert streamed.classified == 13
    close(streamed.evaluate().accuracy, (network(x[7:]).argmax(1) == y[7:]).double().mean())


class TensorDatasetStream:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return zip(self.x.split(6), self.y.split(6), strict=True)


def test_pairs_of_weights_that_stand_for_complex_numbers():
    class Fourier(nn.Module):
        def __init__(self, first):
            super().__init__()
            torch.manual_seed(0)
            shift, pairs = torch.randn(1), torch.randn(3, 3, 2) * 0.5
            if first:  # the pairs begin at an odd place of the flat vector
                self.shift = nn.Parameter(shift)
            self.pairs, self.out = nn.Parameter(pairs), nn.Linear(4, 3)
            if not first:
                self.shift = nn.Parameter(shift)

        def forward(self, x):
            mixed = torch.fft.rfft(x + self.shift) @ torch.view_as_complex(self.pairs)
            return self.out(torch.tanh(torch.fft.irfft(mixed, n=4)))

    x, y = examples(inputs=4)
    odd, even = (Fourier(first).double() for first in (True, False))
    require_equal(Problem(even, F.cross_entropy, [(x, y)]), even, F.cross_entropy(even(x), y))
    problems = [Problem(m, F.cross_entropy, [(x, y)]) for m in (odd, even)]
    tops = [landscape.top_eigenvalues(p, k=2, tol=1e-8).values for p in problems]
    close(tops[0], tops[1], rtol=1e-7)
    centers = [float(landscape.surface(p, radius=0.05, grid=3).loss[1, 1]) for p in problems]
    assert centers[0] == pytest.approx(centers[1], rel=1e-12)
