"""MethodOptimizer where parameters, gradients and copies are not the usual ones: each as by hand, or refused."""

from __future__ import annotations

import copy
import logging
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from method_cases import flat
from own_loop_cases import CLOSURE_METHODS, assert_equal_models, batches, closure_of, network, sgd
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer, Task

RHO = 0.5


class TwoHeads(nn.Module):
    """A body, a head and a head that the loss does not use."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.body, self.norm, self.head = nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)
            self.unused = nn.Linear(5, 4)
        self.double()

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.body(x))))


def adapted(model, name="sam", base=None, **options):
    base = sgd(model) if base is None else base
    return MethodOptimizer(base, METHODS[name](**options), model, total_steps=6)


def steps(optimizer, model, data):
    for batch in data:
        optimizer.step(closure_of(optimizer, model, *batch))


# -- parameters that the loss does not use --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOSURE_METHODS)
def test_an_unused_head_stays_where_it_is(name):
    """As under the base optimizer alone, whose weight decay and momentum pass over parameters without a gradient."""
    model = TwoHeads()
    before = flat(model.unused)
    optimizer = adapted(model, name, **({"k": 2} if name == "looksam" else {}))
    steps(optimizer, model, batches(4))
    assert torch.equal(flat(model.unused), before)
    assert not torch.equal(flat(model.head), flat(TwoHeads().head))


def test_an_unused_head_stays_in_m_groups_and_over_micro_batches():
    for name in ("sam", "gsam"):
        model, reference = TwoHeads(), TwoHeads()
        before, base = flat(model.unused), sgd(reference)
        optimizer = adapted(model, name, rho=RHO)
        method = METHODS[name](rho=RHO)
        task = Task(reference, nn.CrossEntropyLoss(reduction="none"), optimizer=base, group_size=6)
        for inputs, targets in batches(3):
            for i, (x, y) in enumerate(zip(inputs.split(6), targets.split(6), strict=True)):
                optimizer.gradient(closure_of(optimizer, model, x, y), share=0.5, add=i > 0)
            optimizer.step()
            step = task.step((inputs, targets), optimizer.context())
            method.gradient(step, {"clamped": False})
            base.step()
        assert torch.equal(flat(model.unused), before)
        assert torch.equal(flat(reference.unused), before)
        assert_equal_models(model, reference, rtol=1e-10, atol=1e-12)


# -- parameters that come and go ------------------------------------------------------------------------------------


def sam_by_hand(model, optimizer, inputs, targets):
    """A step of SAM over all trainable parameters that the loss uses."""
    weights = [p for n, p in model.named_parameters() if p.requires_grad and "unused" not in n]
    start = [w.detach().clone() for w in weights]
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), weights)
    norm = torch.sqrt(sum((g**2).sum() for g in gradient))
    with torch.no_grad():
        for w, g in zip(weights, gradient, strict=True):
            w += RHO * g / norm
    gradient = torch.autograd.grad(F.cross_entropy(model(inputs), targets), weights)
    optimizer.zero_grad()
    with torch.no_grad():
        for w, s, g in zip(weights, start, gradient, strict=True):
            w.copy_(s)
            w.grad = g
    optimizer.step()


@pytest.mark.parametrize("how", ["add_param_group", "held from the start", "frozen later"])
def test_sam_perturbs_what_is_trainable_now(how):
    model, twin = TwoHeads(), TwoHeads()
    added = how == "add_param_group"
    for one in (model, twin):
        one.body.requires_grad_(how == "frozen later")
    held = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad or not added], lr=0.1, momentum=0.9)
        for m in (model, twin)
    ]
    optimizer = adapted(model, base=held[0], rho=RHO)
    for i, batch in enumerate(batches(4)):
        if i == 2:
            for one, group in zip((model, twin), (optimizer, held[1]), strict=True):
                one.body.requires_grad_(how != "frozen later")
                if added:
                    group.add_param_group({"params": list(one.body.parameters()), "lr": 0.03})
        steps(optimizer, model, [batch])
        sam_by_hand(twin, held[1], *batch)
    assert_equal_models(model, twin, rtol=1e-12, atol=1e-14)


# Noise moves a body without a gradient too.
@pytest.mark.parametrize("name", sorted({*CLOSURE_METHODS} - {"random-perturbation", "flat-lora"}))
def test_what_a_method_remembers_follows_the_parameters(name):
    """A body unfrozen after two steps is remembered as zero, as its gradient was: the steps are those of a network
    whose body had no gradient until then."""
    model, detached = TwoHeads(), TwoHeads()
    gate, forward = [False], detached.body.forward
    detached.body.forward = lambda x: forward(x) if gate[0] else forward(x).detach()
    model.body.requires_grad_(False)
    optimizer, other = adapted(model, name), adapted(detached, name)
    for i, batch in enumerate(batches(5)):
        if i == 2:
            model.body.requires_grad_(True)
            gate[0] = True
        steps(optimizer, model, [batch])
        steps(other, detached, [batch])
    assert_equal_models(model, detached, rtol=1e-10, atol=1e-12)


def test_an_unfrozen_body_that_the_base_optimizer_does_not_hold_is_refused():
    model = TwoHeads()
    model.body.requires_grad_(False)
    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer = adapted(model, base=base)
    steps(optimizer, model, batches(1))
    model.body.requires_grad_(True)
    with pytest.raises(InputError, match="does not hold body.weight"):
        steps(optimizer, model, batches(1))
    task = Task(model, nn.CrossEntropyLoss(reduction="none"))
    model.body.requires_grad_(False)
    with pytest.raises(InputError, match=r"frozen or unfrozen since .* make a new Task"):
        task.step(batches(1)[0])


def test_groups_with_a_radius_of_their_own_are_refused():
    """Nobody would read it: one ball holds all parameters. What the base optimizer reads may differ by group."""
    model = TwoHeads()
    body, rest = list(model.body.parameters()), [p for n, p in model.named_parameters() if not n.startswith("body")]
    with pytest.raises(InputError, match="a parameter group has rho=0.1, and sam has one rho for all parameters"):
        adapted(model, base=torch.optim.SGD([{"params": body, "rho": 0.1}, {"params": rest}], lr=0.1))
    optimizer = adapted(model, base=torch.optim.SGD([{"params": body, "lr": 0.01}, {"params": rest}], lr=0.1))
    assert (optimizer.context().lr, optimizer.context().lr_max) == (0.01, 0.01)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(InputError, match="rho=0.2"):
        optimizer.add_param_group({"params": list(model.extra.parameters()), "rho": 0.2})


# -- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("name", CLOSURE_METHODS)
def test_a_copy_steps_as_the_original_and_leaves_it_alone(name, how):
    model = network(dropout=0.0)
    optimizer = adapted(model, name)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    for batch in batches(2):
        steps(optimizer, model, [batch])
        scheduler.step()
    before = flat(model)
    twin, other = how((model, optimizer))
    rest = batches()[2:4]
    steps(other, twin, rest)
    assert torch.equal(flat(model), before)
    assert not torch.equal(flat(twin), before)
    steps(optimizer, model, rest)
    assert_equal_models(twin, model, rtol=0, atol=0)
    assert other.param_groups is other.base.param_groups
    assert {id(p) for g in other.param_groups for p in g["params"]} == {id(p) for p in twin.parameters()}


def test_a_copy_between_gradient_and_step_stands_before_the_gradient():
    model = network()
    optimizer = adapted(model, "looksam")
    optimizer.gradient(closure_of(optimizer, model, *batches(1)[0]))
    twin, other = copy.deepcopy((model, optimizer))
    with pytest.raises(InputError, match="no gradient yet"):
        other.step()
    optimizer.step()
    twin.load_state_dict(network().state_dict())
    steps(other, twin, batches(1))
    torch.testing.assert_close(flat(twin), flat(model), rtol=0, atol=0)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sam", "gnp", "sgd"])
def test_base_optimizers_that_call_the_closure_are_refused(name):
    model = network()
    with pytest.raises(InputError, match="^LBFGS calls the closure itself .* choose a base optimizer"):
        adapted(model, name, base=torch.optim.LBFGS(model.parameters()))
    with pytest.raises(InputError, match="^MethodOptimizer calls the closure itself"):
        adapted(model, name, base=adapted(model))


class Bag(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding, self.out = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, ids):
        return self.out(self.embedding(ids).mean(1))


@pytest.mark.parametrize("name", ["sam", "gsam", "rst", "msam", "sgd"])
def test_sparse_gradients_are_refused(name):
    model = Bag(sparse=True)
    optimizer = adapted(model, name)
    with pytest.raises(InputError, match=r"^the gradient of embedding.weight is sparse.*sparse=False$"):
        steps(optimizer, model, [(torch.randint(10, (8, 3)), torch.randint(3, (8,)))])
    assert torch.equal(flat(model), flat(Bag(sparse=True)))


def test_sparse_gradients_under_a_closure_that_does_not_clear_are_refused():
    model = Bag(sparse=True)
    optimizer, ids, targets = adapted(model), torch.randint(10, (8, 3)), torch.randint(3, (8,))

    def closure():
        loss = F.cross_entropy(model(ids), targets)
        loss.backward()
        return loss

    closure()
    with pytest.raises(InputError, match="does not clear them"):
        optimizer.step(closure)


# -- accumulation that the closure does not show ---------------------------------------------------------------------


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_accumulated_outside_the_closure_are_refused(to_none):
    model, twin = network(), network()
    optimizer, other = adapted(model), adapted(twin)
    first, second, third = batches(3)
    steps(optimizer, model, [first])
    steps(other, twin, [first])

    def backward():
        loss = F.cross_entropy(model(second[0]), second[1])
        loss.backward()
        return loss

    before = flat(model)
    optimizer.zero_grad(set_to_none=to_none)
    backward()
    with pytest.raises(
        InputError, match=r"does not clear them .*optimizer.gradient\(closure, share=1 / k, add=i > 0\)"
    ):
        optimizer.step(backward)
    assert torch.equal(flat(model), before)
    twin.load_state_dict(model.state_dict())
    # A closure that clears them is as good as ever: a discriminator's gradients of the generator's loss.
    backward()
    twin.load_state_dict(model.state_dict())
    steps(optimizer, model, [third])
    steps(other, twin, [third])
    assert_equal_models(model, twin, rtol=0, atol=0)


def test_closures_that_never_clear_are_cleared_for_as_long_as_nobody_else_adds():
    model, twin = network(), network()
    optimizer, other = adapted(model, rho=RHO), adapted(twin, rho=RHO)
    for i, (inputs, targets) in enumerate(batches()):
        if i % 2:
            optimizer.zero_grad(set_to_none=False)

        def closure(inputs=inputs, targets=targets):
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
        steps(other, twin, [(inputs, targets)])
    assert_equal_models(model, twin, rtol=0, atol=0)


def test_lightning_accumulation_is_refused(tmp_path):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def configure_optimizers(self):
            return adapted(self.model)

        def training_step(self, batch, index):
            return F.cross_entropy(self.model(batch[0]), batch[1])

    def fit(**options):
        module = Module()
        quiet = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet, **options
        )
        trainer.fit(module, torch.utils.data.DataLoader(batches(), batch_size=None))
        return module.model

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="accumulate_grad_batches"):
            fit(accumulate_grad_batches=2)
        fitted = fit()
    expected = network()
    steps(adapted(expected), expected, batches())
    assert_equal_models(fitted, expected, rtol=1e-12, atol=1e-14)


def test_accelerates_accumulation_is_refused():
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    from accelerate.state import AcceleratorState, GradientState

    model, plain = network(), network()
    try:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model, optimizer = accelerator.prepare(model, adapted(model))
        with accelerator.accumulate(model):
            optimizer.step(lambda: pytest.fail("not called on steps that do not synchronize"))
            with pytest.raises(InputError, match="divides its loss by 2"):  # not through Accelerate, within its bounds
                optimizer.optimizer.gradient(closure_of(optimizer, model, *batches(1)[0]))
        with accelerator.accumulate(model), pytest.raises(InputError, match=r"one .* in 2 .*optimizer.gradient\("):
            optimizer.step(closure_of(optimizer, model, *batches(1)[0]))
        steps(adapted(plain), plain, batches(1))  # in the same process, without Accelerate
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
