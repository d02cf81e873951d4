"""BatchNorm over the examples of a pass, of all processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, Context, Task
from trainers.method.batch_norm import SynchronizedBatchNorm, synchronize_batch_norm


def task(model, **options):
    return Task(model, nn.CrossEntropyLoss(reduction="none"), **options)


def features():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()


@pytest.mark.parametrize(
    ("method", "options", "group_size"), [("k-sam", {"k": 1}, None), ("esam", {"gamma": 0.01}, None), ("sam", {}, 1)]
)
def test_one_example_in_a_pass_through_batch_norm_is_refused(method, options, group_size):
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    made = METHODS[method](**options)
    trained = task(features(), group_size=group_size)
    with pytest.raises(InputError, match="a pass of one example through BatchNorm.*--k, --s, --gamma, --m"):
        made.gradient(trained.step((x, y), Context()), made.init(trained, Context()))


def test_one_example_on_all_processes_is_refused(one_process_as_two):
    layer = synchronize_batch_norm(nn.BatchNorm1d(5)).double()
    x = torch.randn(1, 5, dtype=torch.float64)
    with pytest.raises(InputError, match="a pass of one example through BatchNorm"):
        layer(x)
    assert torch.equal(layer.running_var, torch.ones(5, dtype=torch.float64))
    layer(torch.randn(2, 5, dtype=torch.float64))
    assert torch.isfinite(layer.running_var).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_synchronized_batch_norm_is_batch_norm_without_a_warning(momentum, one_process_as_two):
    """Values, derivatives, running statistics of a group of one; no warning that anything is deprecated."""
    one, x = nn.BatchNorm1d(5, momentum=momentum).double(), torch.randn(6, 5, dtype=torch.float64)
    two = synchronize_batch_norm(copy.deepcopy(one))
    found = []
    for layer in (one, two):
        inputs = x.clone().requires_grad_()
        outputs = layer(inputs)
        (slope,) = torch.autograd.grad(outputs.pow(3).sum(), inputs, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.pow(2).sum(), inputs)
        found.append([outputs, slope, curvature, layer.running_mean, layer.running_var])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize("options", [{}, {"synchronized": False}, {"group_size": 4}])
@pytest.mark.parametrize("name", ["sam", "gsam", "looksam"])
def test_an_unused_head_has_no_gradient_on_several_processes(name, options, one_process_as_two):
    """Zeros would let weight decay and momentum move it."""
    model, method = TwoHeads(), METHODS[name]()
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), **options)
    assert task.world == 2
    state = method.init(task, Context())
    for _ in range(2):
        method.gradient(task.step((torch.randn(8, 6), torch.randint(3, (8,))), Context()), state)
        assert [p.grad is None for p in model.parameters()] == [False, False, True, True]


@pytest.fixture
def one_process_as_two(monkeypatch):
    """A group of this process alone, which layers take for one of several."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr("landscape.processes.world", lambda: 2)
    yield
    torch.distributed.destroy_process_group()


class Own(nn.BatchNorm1d):
    pass


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layers, self.parents = nn.BatchNorm1d(4), [nn.BatchNorm1d(4)], [self]

    def forward(self, x):
        return self.layers[0](self.first(x))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self._branches = nn.BatchNorm1d(4), {"a": nn.Sequential(nn.BatchNorm1d(4))}

    def forward(self, x):
        return self._branches["a"](self.first(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), "needs a network with BatchNorm, this one has none"),
        (lambda: nn.Sequential(nn.BatchNorm1d(4), Own(4)), r"not 1 \(Own\)"),
        (lambda: Own(4), r"not the model \(Own\)"),
        (Listed, r"not layers\[0\] \(BatchNorm1d\)"),
        (lambda: nn.Sequential(Listed()), r"not 0.layers\[0\] \(BatchNorm1d\)"),
        (Nested, r"not _branches\['a'\].0 \(BatchNorm1d\)"),
        (lambda: nn.Sequential(nn.LazyBatchNorm1d()), r"not 0 \(LazyBatchNorm1d\)"),
    ],
)
def test_batch_norm_that_would_not_be_synchronized_is_refused(model, message):
    with pytest.raises(InputError, match=f"--sync-batch-norm .*{message}"):
        synchronize_batch_norm(model())


def test_layers_that_are_synchronized_already_stay():
    model = nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm1d(4))
    assert [type(m) for m in synchronize_batch_norm(synchronize_batch_norm(model))] == [
        nn.SyncBatchNorm,
        SynchronizedBatchNorm,
    ]
