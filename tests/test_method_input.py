"""Hyperparameters out of range and tasks that a method cannot train are refused, with what to do."""

from __future__ import annotations

import pytest
import torch
from method_cases import Run, context, flat
from oracle_network import CLASSES, examples, network
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, Context, Task

RHO = 0.3

REFUSED = [
    ("esam", {"beta": 0.0}, r"beta must be in \(0, 1\], received 0.0"),
    ("esam", {"beta": 1.2}, r"beta must be in \(0, 1\], received 1.2"),
    ("esam", {"gamma": 0.0}, r"gamma must be in \(0, 1\], received 0.0"),
    ("looksam", {"k": 0}, "k must be at least 1 step, received 0"),
    ("looksam", {"alpha": -0.1}, "alpha must be >= 0, received -0.1"),
    ("gsam", {"rho_min": -0.1}, "rho_min must be between 0 and rho = 0.04, received -0.1"),
    ("gsam", {"rho": 0.1, "rho_min": 0.2}, "rho_min must be between 0 and rho = 0.1, received 0.2"),
    ("gsam", {"alpha": -1.0}, "alpha must be >= 0"),
    ("gnp", {"alpha": -1.0}, "alpha must be >= 0"),
    ("gnp", {"penalty_warmup": "zeros"}, "unknown penalty-warmup 'zeros': did you mean 'zero'"),
    ("gsam", {"descend": "cleaner"}, "unknown choice of descend 'cleaner': did you mean 'clean'"),
    ("rst", {"p": 1.5}, "p is a probability, from 0 .* to 1 .*, received 1.5"),
    ("rst", {"p": -0.1}, "p is a probability"),
    ("rst", {"p_schedule": "linear3"}, "unknown p-schedule 'linear3': did you mean 'linear"),
    ("g-rst", {"alpha": -1.0}, "alpha must be >= 0"),
    ("g-rst", {"p": 2.0}, "p is a probability"),
    ("k-sam", {"k": 0}, "k must be at least 1 example"),
    ("subset-sam", {"s": 0.0}, "s is a share of the batch"),
    ("subset-sam", {"s": 1.5}, "s is a share of the batch"),
    ("amp", {"radius": -1.0}, "radius must be >= 0"),
    ("amp", {"inner_steps": 0}, "inner-steps must be at least 1"),
    ("amp", {"inner_clip": 0.0}, "inner-clip must be above 0"),
    ("amp", {"inner_lr": -1.0}, "inner-lr must be >= 0"),
    ("friendly-sam", {"lmbda": 1.0}, r"lmbda must be in \[0, 1\)"),
    ("friendly-sam", {"sigma": -1.0}, "sigma must be >= 0"),
    ("wsam", {"gamma": 1.0}, r"gamma must be in \[0, 1\), received 1.0"),
    ("random-perturbation", {"sigma": -1.0}, "sigma must be >= 0"),
    ("random-perturbation", {"alpha": 2.0}, r"alpha must be in \[0, 1\]"),
    ("random-perturbation", {"scaling": "rows"}, "unknown scaling 'rows'"),
    ("saf", {"strength": -1.0}, "strength must be >= 0"),
    ("saf", {"tau": 0.0}, "tau must be > 0, received 0.0"),
    ("saf", {"lag": 0}, "lag must be at least 1 epoch"),
    ("saf", {"start": 5.0}, "start is a share of the run, from 0 to 1, received 5.0"),
    ("saf", {"store": "quarter"}, "unknown store 'quarter'"),
    ("saf", {"top": 0}, "top must be at least 1 class"),
    ("saf", {"recipe": "papers"}, "unknown recipe 'papers': did you mean 'paper'"),
    ("mesa", {"decay": 1.0}, r"decay must be in \(0, 1\), received 1.0: leave it out .* the paper's value is 0.9995"),
    ("mesa", {"decay": 0.0}, r"decay must be in \(0, 1\)"),
    ("mesa", {"decay": 0.99, "horizon": 2.0}, "horizon=2.0 and decay=0.99 both say"),
    ("mesa", {"recipe": "paper", "horizon": 2.0}, "horizon=2.0 and recipe=paper both say"),
    ("mesa", {"recipe": "paper", "start": 0.5}, "start=0.5 and recipe=paper adds the term after 5 epochs: choose one"),
    ("saf", {"recipe": "paper", "start": 0.5}, "start=0.5 and recipe=paper"),
    ("ssam", {"mask": "dynamic", "samples": 32}, "samples=32 belongs to mask=fisher, the mask is dynamic"),
    ("ssam", {"drop": 0.2}, "drop=0.2 belongs to mask=dynamic"),
    ("mesa", {"horizon": 0.0}, "horizon must be above 0 epochs"),
    ("ssam", {"sparsity": 1.0}, r"sparsity must be in \[0, 1\)"),
    ("ssam", {"samples": 0}, "samples must be at least 1 example"),
    ("ssam", {"every": 0}, "every must be at least 1 epoch"),
    ("ssam", {"drop": 1.1}, r"drop must be in \[0, 1\]"),
    ("ssam", {"mask": "static"}, "unknown mask 'static'"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_hyperparameters_out_of_range_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        METHODS[name](**options)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_number_is_taken_for_nan(name):
    """nan fails every comparison: a check written the other way round would let it pass."""
    for option in METHODS.entry(name).options:
        if option.type.startswith("float"):
            with pytest.raises(InputError, match="nan"):
                METHODS[name](**{option.name: float("nan")})


def bare_task(optimizer=None, model=None, loss=None, **options):
    model = network("layer") if model is None else model
    return Task(model, loss or nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer, **options)


def test_saf_without_indices_says_how_to_give_them():
    run, (x, y) = Run("saf"), examples()
    with pytest.raises(InputError, match=r"return \(inputs, targets, index\) and call task.step"):
        run.method.gradient(run.task.step((x[:8], y[:8]), context(0)), run.state)


def test_saf_without_a_training_set_or_with_too_many_classes():
    with pytest.raises(InputError, match="Context\\(training_set="):
        METHODS["saf"]().init(bare_task(), Context())
    with pytest.raises(InputError, match=f"top must be below the number of classes, {CLASSES}, received 3"):
        METHODS["saf"](top=3).init(bare_task(), context(0))


def test_saf_refuses_mixed_targets():
    run, (x, y) = Run("saf"), examples()
    mixed = nn.functional.one_hot(y[:8], CLASSES).double()
    with pytest.raises(InputError, match="mixup and cutmix off, or use mesa"):
        run.method.gradient(run.task.step((x[:8], mixed), context(0), indices=torch.arange(8)), run.state)


def test_mesa_works_with_mixed_targets():
    run, (x, y) = Run("mesa", start=0.0), examples()
    mixed = nn.functional.one_hot(y[:8], CLASSES).double()
    made = run.method.gradient(run.task.step((x[:8], mixed), context(1)), run.state)
    assert torch.isfinite(made.loss)


def test_ssam_needs_a_training_set_for_its_fisher_mask():
    with pytest.raises(InputError, match="mask='dynamic'"):
        METHODS["ssam"]().init(bare_task(), Context())
    METHODS["ssam"](mask="dynamic").init(bare_task(), Context())


def test_msam_needs_a_momentum():
    with pytest.raises(InputError, match="give Task the optimizer"):
        METHODS["msam"]().init(bare_task(), Context())
    model = network("layer")
    for optimizer, refused in (
        (torch.optim.SGD(model.parameters(), lr=0.1), True),
        (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), False),
        (torch.optim.AdamW(model.parameters()), False),
    ):
        if refused:
            with pytest.raises(InputError, match="choose a momentum above 0"):
                METHODS["msam"]().init(bare_task(optimizer, model), Context())
        else:
            METHODS["msam"]().init(bare_task(optimizer, model), Context())


def test_wsam_needs_a_learning_rate_and_takes_each_groups_own():
    with pytest.raises(InputError, match="give Task the optimizer, or Context the lr"):
        METHODS["wsam"]().init(bare_task(), Context())
    METHODS["wsam"](decoupled=False).init(bare_task(), Context())
    ends = []
    for rates in ((0.2, 0.0), None):
        model = network("layer")
        parameters = list(model.parameters())
        optimizer = None
        if rates:
            groups = [{"params": parameters[:2], "lr": rates[0]}, {"params": parameters[2:], "lr": rates[1]}]
            optimizer = torch.optim.SGD(groups, lr=0.1)
        task, (x, y) = bare_task(optimizer, model), examples()
        method, before = METHODS["wsam"](rho=RHO), flat(model)
        step = task.step((x, y), Context(lr=0.2))
        method.gradient(step, method.init(task, Context(lr=0.2)))
        method.after_step(step, {})
        ends.append(flat(model) - before)
    first = sum(p.numel() for p in parameters[:2])
    torch.testing.assert_close(ends[0][:first], ends[1][:first], rtol=1e-12, atol=1e-14)
    assert ends[0][first:].norm() == 0
    assert ends[1][first:].norm() > 0


def test_sam_on_needs_normalization_layers():
    with pytest.raises(InputError, match="has none that is trained"):
        METHODS["sam-on"]().init(bare_task(model=nn.Linear(5, 3).double()), Context())


def test_ranking_needs_one_loss_an_example():
    for name in ("k-sam", "esam"):
        task, (x, y) = bare_task(loss=nn.CrossEntropyLoss()), examples()
        method = METHODS[name]()
        with pytest.raises(InputError, match="give Task a loss with reduction='none'"):
            method.gradient(task.step((x, y), context(0)), method.init(task, context(0)))
