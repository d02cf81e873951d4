"""The direction of an optimizer's update: what its step does to a deep copy, and nothing of it changes."""

import copy
import threading

import numpy as np
import pytest
import torch
from edge_cases import OPTIMIZERS, network, quadratic, really_stepped, trained
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing import assert_close

import landscape
from landscape.errors import InputError
from landscape.sharpness.updates import described, optimizer_direction, update_direction


def frozen_copy(value):
    """A deep copy to compare with, tensors by their bits."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {(id(k) if isinstance(k, torch.Tensor) else k): frozen_copy(v) for k, v in value.items()}
    return [frozen_copy(v) for v in value] if isinstance(value, list | tuple) else copy.copy(value)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_is_that_of_a_real_step_and_nothing_changes(name, dtype):
    model, batches = network(dtype)
    optimizer = trained(model, batches, OPTIMIZERS[name])
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    before, after = really_stepped(model, optimizer, batches)
    state, weights = frozen_copy(vars(optimizer)), frozen_copy(model.state_dict())
    grads, random = [p.grad for p in model.parameters()], torch.get_rng_state()
    model.train()

    d = optimizer_direction(problem, optimizer, problem.gradient())

    rate = optimizer.param_groups[0]["lr"]
    # The real step in float32 rounds the weights: eps |w| / lr.
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-5}
    assert_close(d, (before - after) / rate, **tolerance)
    assert_same(state, frozen_copy(vars(optimizer)))
    assert_same(weights, frozen_copy(model.state_dict()))
    assert [p.grad for p in model.parameters()] == grads
    assert model.training
    assert torch.equal(random, torch.get_rng_state())


def test_muon_beside_another_optimizer():
    model, batches = network()
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == two] for two in (True, False))
    several = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05), torch.optim.AdamW(vectors, lr=0.01)]
    model.eval()
    for x, y in batches:
        nn.functional.cross_entropy(model(x), y).backward()
        for optimizer in several:
            optimizer.step()
            optimizer.zero_grad()
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    other = copy.deepcopy((model, several))
    d = optimizer_direction(problem, several, problem.gradient())
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    nn.functional.cross_entropy(other[0](x), y).backward()
    before = problem.weights
    for optimizer in other[1]:
        optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in other[0].parameters()])
    # Muon orthogonalizes in bfloat16 whatever comes in; both steps round alike.
    assert_close(d, (before - after) / 0.02, rtol=1e-6, atol=1e-6)
    assert described(several) == "Muon and AdamW"
    assert landscape.critical_sharpness(problem, direction=several).arguments["direction"] == "Muon and AdamW"


def test_groups_keep_their_proportions_and_others_stay():
    model, batches = network()
    slow, fast = [model.first.weight], [model.last.weight]
    optimizer = torch.optim.SGD([{"params": slow, "lr": 0.01}, {"params": fast, "lr": 0.04}], lr=1.0)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    g = problem.gradient()
    pieces = dict(zip(problem.parameters.names, problem.parameters.unflatten(g), strict=True))
    d = optimizer_direction(problem, optimizer, g)
    moved = dict(zip(problem.parameters.names, problem.parameters.unflatten(d), strict=True))
    assert_close(moved["first.weight"], pieces["first.weight"] / 4)
    assert_close(moved["last.weight"], pieces["last.weight"])
    assert not moved["first.bias"].any()
    assert not moved["last.bias"].any()


def test_a_subset_of_the_parameters_and_frozen_ones():
    model, batches = network()
    model.first.bias.requires_grad_(False)
    optimizer = trained(model, batches, OPTIMIZERS["adam"])
    whole = landscape.Problem(model, nn.functional.cross_entropy, batches)
    part = landscape.Problem(model, nn.functional.cross_entropy, batches, parameters="last")
    assert "first.bias" not in whole.parameters.names
    full = optimizer_direction(whole, optimizer, whole.gradient())
    d = optimizer_direction(part, optimizer, part.gradient())
    assert_close(d, full[-part.dimension :])
    assert landscape.critical_sharpness(part, direction=optimizer).value > 0


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)])
def test_a_learning_rate_of_zero_counts_as_one(rate):
    model, batches = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    assert_close(optimizer_direction(problem, optimizer, problem.gradient()), problem.gradient())
    assert float(optimizer.param_groups[0]["lr"]) == 0


def test_schedulers_and_hooks_see_no_step():
    model, batches = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    calls = []

    class Hook:
        """Holds what cannot be copied, as a hook that knows its trainer does."""

        def __init__(self):
            self.lock = threading.Lock()

        def __call__(self, *_):
            calls.append("own")

    optimizer.register_step_post_hook(Hook())
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("all"))
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    try:
        d = optimizer_direction(problem, optimizer, problem.gradient())
    finally:
        handle.remove()
    assert calls == []
    assert scheduler.last_epoch == 0
    assert_close(d, problem.gradient())


def test_an_optimizer_of_ones_own_with_attributes():
    class Counting(torch.optim.SGD):
        def __init__(self, parameters, lr):
            super().__init__(parameters, lr=lr)
            self.calls, self.factor = 0, 3.0

        def step(self, closure=None):
            self.calls += 1
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(self.factor * p.grad, alpha=-group["lr"])

    model, problem, _, g = quadratic()
    optimizer = Counting(model.parameters(), lr=0.1)
    assert_close(optimizer_direction(problem, optimizer, g), 3 * g)
    assert optimizer.calls == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: "sideways", r"direction 'sideways': 'gradient', a flat vector \(d,\) or an optimizer is needed"),
        (lambda m: "optimizer", r"give the optimizer itself, direction=optimizer, or Monitor\(problem, optimizer="),
        (lambda m: 3.0, "direction is of type float"),
        (lambda m: [], "direction is of type nothing"),
        (lambda m: torch.zeros(3), r"flat vector of shape \(8,\), received \(3,\)"),
        (lambda m: torch.full((8,), float("nan")), "the direction is not finite"),
        (lambda m: torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), "the SGD holds none of the parameters"),
        (lambda m: torch.optim.LBFGS(m.parameters()), "LBFGS calls the closure itself"),
        (lambda m: torch.optim.SparseAdam(m.parameters()), "SparseAdam steps along sparse gradients alone"),
    ],
)
def test_what_is_no_direction_is_told(make, message):
    model, problem, _, g = quadratic()
    with pytest.raises(InputError, match=message) as error:
        update_direction(problem, make(model), g)
    assert "\n" not in str(error.value)


def test_wrappers_are_looked_through_and_a_method_of_training_is_refused():
    from trainers import METHODS, MethodOptimizer

    class Wrapped(torch.optim.Optimizer):
        """As Accelerate's: an optimizer within, whose groups and state it shows."""

        def __init__(self, optimizer):
            self.optimizer, self.lock = optimizer, threading.Lock()  # which cannot be copied

        param_groups = property(lambda self: self.optimizer.param_groups)
        state = property(lambda self: self.optimizer.state)

    model, batches = network()
    inner = trained(model, batches, OPTIMIZERS["adam"])
    problem = landscape.Problem(model, nn.functional.cross_entropy, batches)
    d = optimizer_direction(problem, inner, problem.gradient())
    assert torch.equal(update_direction(problem, Wrapped(inner), problem.gradient()), d)
    values = [landscape.preconditioned_sharpness(problem, o) for o in (inner, Wrapped(inner))]
    assert values[0].value == values[1].value
    assert values[1].optimizer == "Adam"
    sam = MethodOptimizer(inner, METHODS["sam"](rho=0.05), model)
    for measure in (
        lambda: update_direction(problem, sam, d),
        lambda: landscape.preconditioned_sharpness(problem, sam),
    ):
        with pytest.raises(
            InputError, match="MethodOptimizer steps along gradients of its own.*give its base optimizer"
        ):
            measure()


def test_vectors_are_told_apart():
    one, other = torch.zeros(3), torch.ones(3)
    assert described("gradient") == "gradient"
    assert described(one).startswith("vector, sha256 ")
    assert described(one) != described(other)
    assert np.size(described([torch.optim.SGD([nn.Parameter(one)], lr=1)])) == 1
