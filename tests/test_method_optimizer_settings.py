"""Settings, closures and surroundings in which MethodOptimizer steps, or which it refuses."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from method_cases import flat
from own_loop_cases import (
    RATE,
    RHO,
    adapted,
    assert_equal_models,
    batches,
    closure_of,
    network,
    plain,
    sgd,
    steps,
)
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer


def test_bases_that_maximize_are_refused():
    model = plain()
    with pytest.raises(InputError, match="maximize=True, and sam .* return the negative objective"):
        MethodOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), METHODS["sam"](), model)


def test_a_radius_that_is_put_into_a_group_later_is_refused():
    model = plain()
    optimizer = adapted(model)
    optimizer.param_groups[0]["rho"] = 0.2
    with pytest.raises(InputError, match="a parameter group has rho=0.2"):
        steps(optimizer, model, batches(1))


def test_a_warm_up_of_the_penalty_needs_one():
    with pytest.raises(InputError, match="MethodOptimizer: warmup="):
        adapted(plain(), "gnp", penalty_warmup="zero")


def test_a_scaler_that_the_method_was_not_told_of_is_refused():
    model = plain()
    optimizer, (x, y) = adapted(model, "wsam"), batches(1)[0]
    for enabled in (False, True):
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)

        def closure(scaler=scaler):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            return loss

        optimizer.gradient(closure)
        before = flat(model)
        if enabled:
            with pytest.raises(InputError, match="GradScaler .* give MethodOptimizer scaler="):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
        assert torch.equal(flat(model), before) == enabled


def test_a_closure_without_backward_is_refused():
    model = plain()
    x, y = batches(1)[0]
    with pytest.raises(InputError, match="leaves no gradient: it must call backward"):
        adapted(model).step(lambda: F.cross_entropy(model(x), y))


def test_a_loss_that_was_computed_before_the_closure_is_refused():
    """Where the gradient needs no weights, as that of a linear layer, the second pass would repeat the first."""
    model = nn.Linear(6, 3).double()
    optimizer, before, (x, y) = adapted(model, rho=RHO), flat(model), batches(1)[0]
    loss = F.cross_entropy(model(x), y)

    def closure():
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
        return loss

    with pytest.raises(InputError, match="must compute the loss itself, at the weights of each pass"):
        optimizer.step(closure)
    assert torch.equal(flat(model), before)


def test_functional_dropout_draws_the_same_masks_in_all_passes():
    """No name of a layer or an attribute tells of it."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.masks = plain(), []

        def forward(self, x):
            x = F.dropout(x, training=self.training)
            self.masks.append(x != 0)
            return self.net(x)

    model = Noisy()
    steps(adapted(model), model, batches(2))
    assert torch.equal(model.masks[0], model.masks[1])
    assert not torch.equal(model.masks[0], model.masks[2])


def test_statistics_move_in_one_pass_where_the_closure_sets_the_mode():
    model, (x, y) = network(), batches(1)[0]
    optimizer = adapted(model.eval())

    def closure():
        model.train()
        loss = closure_of(optimizer, model, x, y)()
        model.eval()
        return loss

    optimizer.step(closure)
    assert int(model[1].num_batches_tracked) == 1


def test_a_parameter_that_is_taken_out_of_the_groups_is_refused():
    model = plain()
    optimizer = adapted(model)
    steps(optimizer, model, batches(1))
    optimizer.param_groups[0]["params"] = list(model[2].parameters())
    with pytest.raises(InputError, match="does not hold 0.weight"):
        steps(optimizer, model, batches(1))


def test_a_scaler_where_float64_is_the_default():
    """What is skipped is as if it had not been tried, and a power of two leaves every bit: equal without a scaler."""
    torch.set_default_dtype(torch.float64)
    try:
        model, twin = plain(), plain()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        base = torch.optim.SGD(model.parameters(), lr=RATE)
        optimizer = MethodOptimizer(base, METHODS["vasso"](rho=RHO, theta=0.3), model, scaler=scaler)
        other = adapted(twin, "vasso", rho=RHO, theta=0.3)
        for i, (x, y) in enumerate(batches(4)):
            for factor in (torch.inf, 1.0) if i == 2 else (1.0,):

                def closure(x=x, y=y, factor=factor):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss * factor).backward()
                    return loss

                optimizer.gradient(closure)
                scaler.step(optimizer)
                scaler.update()
            steps(other, twin, [(x, y)])
        assert_equal_models(model, twin, rtol=0, atol=1e-14)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["sam", "msam", "gnp"])
def test_an_autocast_region_around_the_step_is_as_one_within_the_closure(name):
    """It keeps the weights that it has cast, whatever becomes of them."""
    (x, y), weights = batches(1, dtype=torch.float32)[0], []
    for outside in (True, False):
        model = network(torch.float32)
        optimizer = MethodOptimizer(sgd(model), METHODS[name](rho=2.0), model)

        def closure(model=model, optimizer=optimizer, outside=outside):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16) if not outside else contextlib.nullcontext():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16) if outside else contextlib.nullcontext():
                optimizer.step(closure)
        weights.append(flat(model))
    assert torch.equal(*weights)
