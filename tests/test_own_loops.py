"""Methods in loops that are not ours: plain torch, schedulers, GradScaler, accumulation, Lightning, Accelerate."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from own_loop_cases import (
    BATCH_METHODS,
    CLOSURE_METHODS,
    assert_equal_models,
    batches,
    closure_of,
    lightning_fit,
    network,
    sgd,
)
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, Context, MethodOptimizer, Task


def trained_by_task(name, loader, **options):
    """The reference: the recipe of trainers/method.py."""
    model = network(loader[0][0].dtype)
    optimizer, method = sgd(model), METHODS[name](**options)
    task = Task(model, nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer)
    state = method.init(task, Context(lr=0.1, lr_max=0.1))
    losses = []
    for i, (inputs, targets) in enumerate(loader):
        where = Context(step=i, total_steps=6, progress=i / 6, lr=0.1, lr_max=0.1)
        step = task.step((inputs, targets), where)
        losses.append(method.gradient(step, state).loss)
        optimizer.step()
        method.after_step(step, state)
    return model, losses


@pytest.mark.parametrize("name", CLOSURE_METHODS)
def test_closures_give_what_tasks_give(name):
    expected, losses = trained_by_task(name, batches())
    model = network()
    optimizer = MethodOptimizer(sgd(model), METHODS[name](), model, total_steps=6)
    found = [optimizer.step(closure_of(optimizer, model, *batch)) for batch in batches()]
    assert_equal_models(model, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found, losses)


@pytest.mark.parametrize("name", sorted(BATCH_METHODS))
def test_methods_that_need_the_batch_say_so(name):
    model = network()
    with pytest.raises(InputError, match=f"{name} looks at the batch itself, .* drive it with trainers.Task"):
        MethodOptimizer(sgd(model), METHODS[name](), model, total_steps=6)


def test_schedules_need_the_length_of_the_run():
    model = network()
    with pytest.raises(InputError, match="give total_steps"):
        MethodOptimizer(sgd(model), METHODS["rst"](), model)


def test_a_warm_up_is_told_to_the_method():
    """RST's steps of the warm-up are SGD steps; a zero warm-up of GNP's penalty makes one pass."""
    for name, options in (("rst", {"p": 1.0, "p_schedule": "constant"}), ("gnp", {"penalty_warmup": "zero"})):
        model, passes, counts = network(), [], []
        optimizer = MethodOptimizer(sgd(model), METHODS[name](**options), model, total_steps=6, warmup=2)
        model.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        for inputs, targets in batches(4):
            passes.clear()
            optimizer.step(closure_of(optimizer, model, inputs, targets))
            counts.append(len(passes))
        assert counts == [1, 1, 2, 2], name


def test_sam_by_hand():
    """Three steps of SAM written out: the recipe is not only consistent but SAM."""
    model = network()
    names = [n for n, _ in model.named_parameters()]
    reference, optimizer = network(), None
    optimizer = sgd(reference)
    adapted = MethodOptimizer(sgd(model), METHODS["sam"](rho=0.3), model)
    for inputs, targets in batches(3):
        adapted.step(closure_of(adapted, model, inputs, targets))
        w = [p.detach().clone() for p in reference.parameters()]
        buffers = {n: b.clone() for n, b in reference.named_buffers()}
        g = torch.autograd.grad(F.cross_entropy(reference(inputs), targets), list(reference.parameters()))
        after_first = {n: b.clone() for n, b in reference.named_buffers()}
        norm = torch.sqrt(sum((t**2).sum() for t in g))
        with torch.no_grad():
            for p, t in zip(reference.parameters(), g, strict=True):
                p.add_(0.3 * t / norm)
        g = torch.autograd.grad(F.cross_entropy(reference(inputs), targets), list(reference.parameters()))
        with torch.no_grad():
            for p, t, old in zip(reference.parameters(), g, w, strict=True):
                p.copy_(old)
                p.grad = t
            for n, b in reference.named_buffers():
                b.copy_(after_first[n])
        assert buffers.keys() == after_first.keys()
        optimizer.step()
    assert names
    assert_equal_models(model, reference, rtol=1e-10, atol=1e-12)


def test_in_place_zeroing_does_not_spoil_the_first_gradient():
    expected, _ = trained_by_task("sam", batches(2), rho=0.5)
    model = network()
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](rho=0.5), model)
    for inputs, targets in batches(2):

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad(set_to_none=False)
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_equal_models(model, expected)


def test_schedulers_drive_the_base_optimizer():
    model = network()
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](), model, total_steps=6)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches():
            optimizer.step(closure_of(optimizer, model, *batch))
            scheduler.step()
            rates.append(optimizer.base.param_groups[0]["lr"])
            assert optimizer.context().lr == rates[-1]
    assert rates[2] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert optimizer.context().progress == 1.0


@pytest.mark.parametrize("base", [sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)])
def test_a_state_dict_keeps_momentum_and_resumes_bitwise(base):
    whole, half = network(), network()
    optimizers = [MethodOptimizer(base(m), METHODS["sam"](), m) for m in (whole, half)]
    for batch in batches()[:3]:
        for optimizer, model in zip(optimizers, (whole, half), strict=True):
            optimizer.step(closure_of(optimizer, model, *batch))
    kept = pickle.loads(pickle.dumps([half.state_dict(), optimizers[1].state_dict()]))
    assert any("momentum_buffer" in s or "exp_avg" in s for s in kept[1]["state"].values())
    fresh = network()
    fresh.load_state_dict(kept[0])
    resumed = MethodOptimizer(base(fresh), METHODS["sam"](), fresh)
    resumed.load_state_dict(kept[1])
    for batch in batches()[3:]:
        optimizers[0].step(closure_of(optimizers[0], whole, *batch))
        resumed.step(closure_of(resumed, fresh, *batch))
    assert_equal_models(fresh, whole, rtol=0, atol=0)
    with pytest.raises(InputError, match="of sam, not of asam"):
        MethodOptimizer(base(fresh), METHODS["asam"](), fresh).load_state_dict(kept[1])


def test_accumulation_over_a_closure_shares_one_perturbation():
    """Two micro-batches in one closure equal one batch of both (a network without BatchNorm)."""
    both, apart = (nn.Sequential(nn.Linear(6, 3)).double() for _ in range(2))
    apart.load_state_dict(both.state_dict())
    inputs, targets = batches(1)[0]
    optimizer = MethodOptimizer(sgd(both), METHODS["sam"](rho=0.5), both)
    optimizer.step(closure_of(optimizer, both, inputs, targets))
    second = MethodOptimizer(sgd(apart), METHODS["sam"](rho=0.5), apart)

    def closure():
        second.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for x, y in zip(inputs.split(6), targets.split(6), strict=True):
            loss = F.cross_entropy(apart(x), y) / 2
            loss.backward()
            total += loss.detach()
        return total

    second.step(closure)
    assert_equal_models(apart, both, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CLOSURE_METHODS)
def test_accumulation_over_calls_perturbs_each_micro_batch(name):
    """The same as m-groups of the task, over five steps: what a method remembers is averaged over micro-batches."""
    model, reference = (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double() for _ in range(2))
    model.load_state_dict(reference.state_dict())
    base, method = sgd(reference), METHODS[name](**({"k": 2} if name == "looksam" else {}))
    task = Task(reference, nn.CrossEntropyLoss(reduction="none"), optimizer=base, group_size=4)
    state = method.init(task, Context(lr=0.1, lr_max=0.1))
    optimizer = MethodOptimizer(sgd(model), method, model, total_steps=5)
    for i, (inputs, targets) in enumerate(batches(5)):
        step = task.step((inputs, targets), Context(step=i, progress=i / 5, lr=0.1, lr_max=0.1))
        method.gradient(step, state)
        base.step()
        method.after_step(step, state)
        for j, (x, y) in enumerate(zip(inputs.split(4), targets.split(4), strict=True)):
            optimizer.gradient(closure_of(optimizer, model, x, y), share=1 / 3, add=j > 0)
        optimizer.step()
        assert_equal_models(model, reference, rtol=1e-10, atol=1e-12)


def test_grad_scaler_with_clipping_in_half_precision():
    expected, _ = trained_by_task("sam", batches(4, dtype=torch.float32), rho=0.1)
    model = network(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # far too large: the first steps overflow
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](rho=0.1), model, scaler=scaler)
    before = {n: t.clone() for n, t in model.named_parameters()}
    skipped = 0
    for inputs, targets in batches(4, dtype=torch.float32):
        while True:

            def closure(inputs=inputs, targets=targets):
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = F.cross_entropy(model(inputs), targets)
                scaler.scale(loss).backward()
                return loss

            statistics = {n: b.clone() for n, b in model.named_buffers()}
            optimizer.gradient(closure)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1e6)
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:
                break
            skipped += 1
            if optimizer.steps == 0:
                torch.testing.assert_close(dict(model.named_parameters()), before, rtol=0, atol=0)
            for n, b in model.named_buffers():
                b.copy_(statistics[n])
    assert skipped > 0
    assert optimizer.steps == 4
    assert_equal_models(model, expected, rtol=0.05, atol=5e-3)  # ten bits of mantissa
    with pytest.raises(InputError, match=r"scaler\.step"):
        optimizer.step(closure)


def test_dropout_masks_are_the_same_in_both_passes():
    masks = []
    model = network(dropout=0.5)
    model[3].register_forward_hook(lambda m, i, out: masks.append(out.detach() != 0))
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](), model)
    for batch in batches(2):
        optimizer.step(closure_of(optimizer, model, *batch))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_what_a_closure_cannot_show_is_said():
    model = network()
    with pytest.raises(InputError, match="does not hold 0.weight"):
        MethodOptimizer(torch.optim.SGD(model[4].parameters(), lr=0.1), METHODS["sam"](), model)
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](), model)
    with pytest.raises(InputError, match="no gradient yet"):
        optimizer.step()
    with pytest.raises(InputError, match="must return the loss"):
        optimizer.step(lambda: None)


def test_a_mean_reduced_loss_serves_methods_that_do_not_rank():
    model, other = network(), network()
    for m, loss in ((model, nn.CrossEntropyLoss()), (other, nn.CrossEntropyLoss(reduction="none"))):
        task = Task(m, loss)
        METHODS["sam"]().gradient(task.step(batches()[0]), {})
    found, expected = ([p.grad for p in m.parameters()] for m in (model, other))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    with pytest.raises(InputError, match="reduction='none'"):
        _ = Task(model, nn.CrossEntropyLoss()).step(batches()[0]).forward().losses


def test_dicts_and_models_that_return_their_loss():
    """A batch as Hugging Face gives it, and a model that computes its loss itself."""

    class Output:
        def __init__(self, loss, logits):
            self.loss, self.logits = loss, logits

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, inputs, labels):
            logits = self.net(inputs)
            return Output(F.cross_entropy(logits, labels), logits)

    inputs, targets = batches()[0]
    model, plain = Model(), network()
    METHODS["sam"]().gradient(Task(model, None).step({"inputs": inputs, "labels": targets}), {})
    METHODS["sam"]().gradient(Task(plain, nn.CrossEntropyLoss()).step((inputs, targets)), {})
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


def test_lightning_manual_optimization(tmp_path):
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model = network()

        def configure_optimizers(self):
            return MethodOptimizer(sgd(self.model), METHODS["sam"](rho=0.2), self.model)

        def training_step(self, batch, batch_index):
            optimizer, (inputs, targets) = self.optimizers(), batch

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(inputs), targets)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure=closure)

    module = Module()
    lightning_fit(lightning, module, batches(), tmp_path, max_epochs=1, logger=False)
    expected, _ = trained_by_task("sam", batches(), rho=0.2)
    assert_equal_models(module.model, expected, rtol=1e-12, atol=1e-14)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](rho=0.2), model)
    model, optimizer = accelerator.prepare(model, optimizer)
    for inputs, targets in batches():

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
    expected, _ = trained_by_task("sam", batches(), rho=0.2)
    assert_equal_models(accelerator.unwrap_model(model), expected, rtol=1e-12, atol=1e-14)
