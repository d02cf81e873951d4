"""MethodOptimizer when something changes under it: layers, states, micro-batches."""

from __future__ import annotations

import collections
import copy

import pytest
import torch
import torch.nn.functional as F
from method_cases import flat
from own_loop_cases import (
    CLOSURE_METHODS,
    RATE,
    RHO,
    adapted,
    assert_equal_models,
    batches,
    both_gradients,
    closure_of,
    moved,
    network,
    plain,
    sgd,
    steps,
)
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer, Task

# -- layers that come and go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["added", "replaced"])
def test_a_layer_that_is_new_is_perturbed_too(how):
    model = plain()
    optimizer = adapted(model, rho=RHO)
    first, second = batches(2)
    steps(optimizer, model, [first])
    layer = nn.Linear(5, 3 if how == "replaced" else 5).double()
    if how == "replaced":
        model[2] = layer
    else:
        model.insert(2, layer)
    optimizer.add_param_group({"params": list(layer.parameters())})
    twin = copy.deepcopy(model)
    steps(optimizer, model, [second])
    moved(twin, both_gradients(twin, second)[1])
    assert_equal_models(model, twin, rtol=0, atol=1e-14)


def test_a_task_says_that_a_layer_was_replaced():
    model = plain()
    task = Task(model, nn.CrossEntropyLoss())
    copy.deepcopy(task).step(batches(1)[0])
    model[2] = nn.Linear(5, 3).double()
    with pytest.raises(InputError, match="added or replaced: make a new Task"):
        task.step(batches(1)[0])


def test_statistics_of_a_new_norm_move_in_one_pass():
    model = plain()
    optimizer = adapted(model)
    model.insert(1, nn.BatchNorm1d(5).double())
    optimizer.add_param_group({"params": list(model[1].parameters())})
    steps(optimizer, model, batches(1))
    assert int(model[1].num_batches_tracked) == 1


def test_weights_beside_the_model_are_refused():
    """A loss with weights of its own: the base optimizer would step them, and the method not perturb them."""
    model, scale = plain(), nn.Parameter(torch.ones(3).double())
    base = torch.optim.SGD([*model.parameters(), scale], lr=RATE)
    optimizer = MethodOptimizer(base, METHODS["sam"](), model)
    before, (x, y) = flat(model), batches(1)[0]

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x) * scale, y)
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"a tensor of shape \(3,\) .* nn.ModuleList\(\[model, loss\]\)"):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)
    assert torch.equal(scale, torch.ones_like(scale))


def test_what_is_frozen_stays_though_the_closure_never_clears():
    model = plain()
    optimizer = adapted(model)

    def closure():
        loss = F.cross_entropy(model(batches(1)[0][0]), batches(1)[0][1])
        loss.backward()
        return loss

    optimizer.step(closure)
    model[0].requires_grad_(False)
    before = flat(model[0])
    optimizer.step(closure)
    assert torch.equal(flat(model[0]), before)


@pytest.mark.parametrize("name", CLOSURE_METHODS)
def test_a_single_number_is_a_parameter_like_any_other(name):
    """0-dim float32: factors of float64 must not change its dtype."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = network(torch.float32), nn.Parameter(torch.tensor(0.3))

        def forward(self, x):
            return self.net(x) * self.scale.exp()

    model = Scaled()
    optimizer = MethodOptimizer(sgd(model), METHODS[name](), model, total_steps=6)
    steps(optimizer, model, batches(3, dtype=torch.float32))
    assert model.scale.grad.dtype == torch.float32
    assert model.scale != torch.tensor(0.3)


# -- states ---------------------------------------------------------------------------------------------------------


def test_a_state_between_gradient_and_step_stands_before_the_gradient():
    """So does one after a step that the scaler has skipped, whose gradient may be nan."""
    model, twin = plain(), plain()
    optimizer, other = (adapted(m, "vasso", rho=RHO, theta=0.3) for m in (model, twin))
    data = batches(5)
    steps(optimizer, model, data[:2])
    twin.load_state_dict(model.state_dict())
    optimizer.gradient(closure_of(optimizer, model, *data[2]))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    steps(optimizer, model, data[3:])
    steps(other, twin, data[2:])
    assert_equal_models(model, twin, rtol=0, atol=0)


def test_loading_a_state_drops_the_gradient_that_waits():
    """Back to the last checkpoint after a loss of nan."""
    model, twin = plain(), plain()
    optimizer, other = (adapted(m, "vasso", rho=RHO, theta=0.3) for m in (model, twin))
    data = batches(6)
    steps(optimizer, model, data[:2])
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(optimizer, model, data[2:3])
    optimizer.gradient(closure_of(optimizer, model, *data[3]))
    for one, network_of in ((optimizer, model), (other, twin)):
        network_of.load_state_dict(kept[0])
        one.load_state_dict(kept[1])
        steps(one, network_of, data[4:])
    assert_equal_models(model, twin, rtol=0, atol=0)


def test_the_highest_learning_rate_is_in_the_state():
    """GSAM's radius follows it: the rate that a resumed base optimizer was built with is of no account."""
    model, twin = plain(), plain()
    optimizer, other = (adapted(m, "gsam", rate=r, rho=RHO) for m, r in ((model, 0.1), (twin, 1.0)))
    optimizer.param_groups[0]["lr"] = 0.05
    steps(optimizer, model, batches(1))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert other.context() == optimizer.context()


def test_one_cycles_highest_learning_rate_is_known():
    model = network()
    optimizer = MethodOptimizer(sgd(model), METHODS["gsam"](rho=RHO), model)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=9)
    assert optimizer.context().lr_max == 2.0


def test_a_state_of_other_parameters_is_refused_unless_they_are_unfrozen_before_the_step():
    model, twin, third = plain(), plain(), plain()
    optimizer = adapted(model, "vasso", rho=RHO)
    steps(optimizer, model, batches(1))
    for one in (twin, third):
        one.load_state_dict(model.state_dict())
    other, narrow = adapted(twin, "vasso", rho=RHO), adapted(third, "vasso", rho=RHO)
    for one, network_of in ((other, twin), (narrow, third)):
        network_of[0].requires_grad_(False)
        one.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin[0].requires_grad_(True)
    for one, network_of in ((optimizer, model), (other, twin)):
        steps(one, network_of, batches(2)[1:])
    assert_equal_models(model, twin, rtol=0, atol=0)
    with pytest.raises(InputError, match="mean of 4 other parameters, and 2 are trained"):
        steps(narrow, third, batches(1))


def test_a_state_follows_the_dtype_and_the_method_follows_the_device_of_the_parameters():
    """As torch has it for momentum; Accelerate moves the model after the optimizer was made."""
    model, twin = plain().float(), plain()
    optimizer, other = adapted(model, "vasso", rho=RHO, theta=0.3), adapted(twin, "vasso", rho=RHO, theta=0.3)
    steps(optimizer, model, batches(2, dtype=torch.float32))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(other, twin, batches(1))
    steps(optimizer, model, batches(1, dtype=torch.float32))
    torch.testing.assert_close(flat(twin).float(), flat(model), rtol=1e-5, atol=1e-6)
    assert {t.dtype for t in other.method_state["mean"]} == {torch.float64}
    twin.to("meta")  # new parameters, where a GPU would keep them
    other.task.find_parameters()
    assert other.task.device.type == "meta"


def test_a_base_state_that_is_replaced_is_replaced():
    model, twin = plain(), plain()
    optimizer, base = MethodOptimizer(sgd(model), METHODS["sgd"](), model), sgd(twin)
    for i, batch in enumerate(batches(3)):
        if i == 2:
            optimizer.state = collections.defaultdict(dict)
            base.state = collections.defaultdict(dict)
        steps(optimizer, model, [batch])
        base.zero_grad()
        F.cross_entropy(twin(batch[0]), batch[1]).backward()
        base.step()
    assert_equal_models(model, twin, rtol=0, atol=1e-14)


# -- micro-batches ----------------------------------------------------------------------------------------------------


def test_fewer_micro_batches_than_shares_give_a_shorter_step_of_wsam():
    """Three of four at the end of an epoch: its second step is a sum over micro-batches as the first is."""
    model, twin = plain(), plain()
    optimizer = adapted(model, "wsam", rho=RHO, gamma=0.8)
    data = batches(3)
    for i, batch in enumerate(data):
        optimizer.gradient(closure_of(optimizer, model, *batch), share=0.25, add=i > 0)
    optimizer.step()
    pairs = [both_gradients(twin, batch) for batch in data]
    sums = [[sum(column) / 4 for column in zip(*(p[i] for p in pairs), strict=True)] for i in (0, 1)]
    moved(twin, [a + 4 * (b - a) for a, b in zip(*sums, strict=True)])
    assert_equal_models(model, twin, rtol=0, atol=1e-14)


def test_a_micro_batch_that_fails_leaves_those_before_it():
    model, twin = plain(), plain()
    optimizer = adapted(model, rho=RHO)
    first, second = batches(2)
    optimizer.gradient(closure_of(optimizer, model, *first), share=0.5)
    calls = []

    def failing():
        loss = closure_of(optimizer, model, *second)()
        calls.append(loss)
        if len(calls) == 2:
            raise MemoryError
        return loss

    with pytest.raises(MemoryError):
        optimizer.gradient(failing, share=0.5, add=True)
    optimizer.step()
    moved(twin, both_gradients(twin, first)[1], RATE / 2)
    assert_equal_models(model, twin, rtol=0, atol=1e-14)
    calls.clear()
    with pytest.raises(MemoryError):
        optimizer.step(failing)
    with pytest.raises(InputError, match="no gradient yet"):
        optimizer.step()


def test_a_closure_in_step_does_not_drop_micro_batches():
    model = plain()
    optimizer = adapted(model)
    first, second = batches(2)
    optimizer.gradient(closure_of(optimizer, model, *first), share=0.5)
    with pytest.raises(InputError, match=r"waits for step\(\), and step\(closure\) would drop it"):
        steps(optimizer, model, [second])


def test_accumulation_outside_a_closure_that_clips_is_refused():
    model = plain()
    optimizer = adapted(model)
    steps(optimizer, model, batches(1))
    optimizer.zero_grad()
    x, y = batches(1)[0]

    def closure():
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        return loss

    closure()
    before = flat(model)
    with pytest.raises(InputError, match="accumulate_grad_batches"):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)
