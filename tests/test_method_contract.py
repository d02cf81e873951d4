"""What every registered method must keep, whatever it computes; a new file in trainers/methods is tested at once."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import checkpoint
from landscape.errors import InputError
from landscape.problem.batches import Batch
from trainers import METHODS, Context, Task

STEPS = 12
EXAMPLES, BATCH, CLASSES = 48, 8, 3


class Examples:
    """A training set of random images."""

    examples, classes = EXAMPLES, CLASSES

    def __init__(self, dtype=torch.float64):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(EXAMPLES, 2, 5, 5, generator=generator, dtype=torch.float64).to(dtype)
        self.y = torch.randint(CLASSES, (EXAMPLES,), generator=generator)

    def batch(self, indices):
        return Batch((self.x[indices],), {}, self.y[indices], len(indices))


def network(dtype=torch.float64):
    """Convolution, BatchNorm, linear; its last bias is off zero, so that T_w moves it too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, CLASSES))
    return model.to(dtype)


def make_task(model=None, loss=None, **options):
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Task(model, loss or nn.CrossEntropyLoss(reduction="none"), optimizer=optimizer, **options)


def context(step, examples, steps=STEPS):
    """Two steps per epoch, learning rate falling from 0.1 to 0.01."""
    progress = step / steps
    lr = 0.1 - 0.09 * progress
    return Context(
        epoch=step // 2,
        step=step,
        total_steps=steps,
        steps_per_epoch=2,
        progress=progress,
        lr=lr,
        lr_min=0.01,
        lr_max=0.1,
        seed=7,
        training_set=examples,
    )


def rows_of(step):
    """The examples of a step: each comes back in every third step, so that stores by example are read."""
    start = step % 2 * BATCH
    return torch.arange(start, start + BATCH)


def one_step(method, task, state, examples, step, steps=STEPS):
    """One optimization step; returns (pass, gradients that the optimizer got)."""
    rows = rows_of(step)
    made = task.step(examples.batch(rows), context(step, examples, steps), indices=rows)
    result = method.gradient(made, state)
    gradients = [p.grad.clone() for p in task.parameters]
    task.optimizer.step()
    method.after_step(made, state)
    return result, gradients


def snapshot(task, state):
    """Everything that a checkpoint keeps of model, optimizer and method, copied."""
    return copied([task.model.state_dict(), task.optimizer.state_dict(), state])


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list | tuple) else value


def equal(a, b):
    """Bitwise equality of trees."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.fixture(scope="module")
def examples():
    return Examples()


@pytest.fixture(params=list(METHODS))
def method(request):
    return METHODS[request.param]()


def test_it_is_a_documented_frozen_record(method):
    entry = METHODS.entry(method.name)
    assert dataclasses.is_dataclass(method)
    assert {f.name for f in dataclasses.fields(method)} == {o.name for o in entry.options}, "every field needs its help"
    assert {"source", "cost", "statistics"} <= set(entry.facts)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1


def test_the_file_names_paper_official_code_and_deviations(method):
    text = METHODS.entry(method.name).file.read_text(encoding="utf-8")
    for word in ("Paper", "Official implementation", "Deviations"):
        assert word in text.split('"""')[1], word


def test_a_step_differs_from_sgd_unless_it_is_the_base(method, examples):
    task, state, differs = make_task(), None, False
    state = method.init(task, context(0, examples))
    for step in range(STEPS):
        rows = rows_of(step)
        probe = make_task(copy_of(task.model))
        probe.optimizer.load_state_dict(copied(task.optimizer.state_dict()))
        METHODS["sgd"]().gradient(probe.step(examples.batch(rows)), {})
        probe.optimizer.step()
        before = [p.detach().clone() for p in task.parameters]
        one_step(method, task, state, examples, step)
        # Weights are compared, not gradients: a method may act after the optimizer's step instead.
        pairs = zip(task.parameters, probe.parameters, strict=True)
        differs |= not all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)
        assert not equal(before, [p.detach() for p in task.parameters])
    is_base = type(method).compute is METHODS["sgd"].compute
    assert differs != is_base


def copy_of(model):
    twin = network()
    twin.load_state_dict(model.state_dict())
    return twin


def test_statistics_move_exactly_once_a_step(method, examples):
    task = make_task()
    state = method.init(task, context(0, examples))
    for step in range(STEPS):
        _, *_ = one_step(method, task, state, examples, step)
        norm = task.model[1]
        assert norm.num_batches_tracked == step + 1
        assert norm.track_running_stats


def test_statistics_move_by_one_batch(method, examples):
    """With momentum 1 the running mean is the mean of the one pass that moved it: close to the clean batch's."""
    task = make_task()
    task.model[1].momentum = 1.0
    state = method.init(task, context(0, examples))
    clean = task.model[0](examples.batch(rows_of(0)).args[0]).mean((0, 2, 3)).detach()
    one_step(method, task, state, examples, 0)
    torch.testing.assert_close(task.model[1].running_mean, clean, rtol=0.5, atol=0.1)


def test_weights_and_flags_survive_an_exception_in_any_pass(method, examples):
    calls = 0
    fail_at = None

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise RuntimeError("told to fail")
        return F.cross_entropy(outputs, targets, reduction="none")

    task = make_task(loss=loss)
    state = method.init(task, context(0, examples))
    for step in range(STEPS):
        calls, fail_at = 0, None
        with torch.random.fork_rng(devices=[]):
            saved = snapshot(task, state)
            one_step(method, task, state, examples, step)
        after, total = snapshot(task, state), calls
        for failing in range(1, total + 1):
            load(task, state, saved)
            calls, fail_at = 0, failing
            with pytest.raises(RuntimeError, match="told to fail"):
                one_step(method, task, state, examples, step)
            assert equal([p.detach() for p in task.parameters], [saved[0][n] for n in task.layout.names])
            assert task.model.training
            assert task.model[1].track_running_stats
        load(task, state, after)


def load(task, state, saved):
    task.model.load_state_dict(copied(saved[0]))
    task.optimizer.load_state_dict(copied(saved[1]))
    state.clear()
    state.update(copied(saved[2]))


def test_a_saved_and_loaded_run_goes_on_bitwise(method, examples, tmp_path):
    task = make_task()
    state = method.init(task, context(0, examples))
    for step in range(STEPS):
        if step == STEPS // 2 + 1:
            path = tmp_path / "ckpt.pt"
            common = {"data": {}, "epoch": 0, "step": step, "provenance": {}}
            checkpoint.write(path, {"model": dict(task.model.state_dict()), "method": state, **common})
            content = torch.load(path, weights_only=True)
            twin = make_task()
            twin.model.load_state_dict(content["model"])
            twin.optimizer.load_state_dict(copied(task.optimizer.state_dict()))
            other = {**METHODS[method.name]().init(twin, context(0, examples)), **content["method"]}
        one_step(method, task, state, examples, step)
        if step > STEPS // 2:
            one_step(METHODS[method.name](), twin, other, examples, step)
            assert equal(snapshot(task, state), snapshot(twin, other)), step


def test_equal_seeds_give_equal_runs(method, examples):
    ends = []
    for _ in range(2):
        task = make_task()
        state = method.init(task, context(0, examples))
        torch.rand(3)  # the global stream has no say
        for step in range(STEPS):
            one_step(method, task, state, examples, step)
        ends.append(snapshot(task, state))
    assert equal(*ends)


def test_one_group_of_the_whole_batch_is_no_group(method, examples):
    ends = []
    for size in (None, BATCH):
        task = make_task(group_size=size)
        state = method.init(task, context(0, examples))
        for step in range(STEPS):
            one_step(method, task, state, examples, step)
        ends.append([p.detach() for p in task.parameters])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)


def test_a_group_is_a_batch_of_its_own(method, examples):
    """Gradient of two groups = mean of the gradients of two single batches (at the first step, without BatchNorm)."""
    whole, expected = bare_task(group_size=BATCH // 2), None
    rows = rows_of(0)
    method.gradient(
        whole.step(examples.batch(rows), context(0, examples), indices=rows), start(method, whole, examples)
    )
    for half in rows.split(BATCH // 2):
        task = bare_task()
        # Subsets are drawn anew in each group: methods that draw them are compared in their own tests.
        method.gradient(
            task.step(examples.batch(half), context(0, examples), indices=half), start(method, task, examples)
        )
        part = [p.grad / 2 for p in task.parameters]
        expected = part if expected is None else [a + b for a, b in zip(expected, part, strict=True)]
    found = [p.grad for p in whole.parameters]
    if "sample" in METHODS.entry(method.name).file.read_text(encoding="utf-8"):
        assert all(torch.isfinite(g).all() for g in found)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def start(method, task, examples):
    return method.init(task, context(0, examples))


def bare_task(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(50, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, CLASSES)
        ).double()
    return make_task(model, **options)


def test_zero_gradients_and_single_examples_are_finite(method, examples):
    for loss, size in ((lambda o, t: (o * 0).sum(1), BATCH), (nn.CrossEntropyLoss(reduction="none"), 1)):
        task = bare_task(loss=loss)
        state = start(method, task, examples)
        for step in range(STEPS):
            rows = rows_of(step)[:size]
            made = task.step(examples.batch(rows), context(step, examples), indices=rows)
            result = method.gradient(made, state)
            assert torch.isfinite(result.loss)
            assert all(p.grad is None or torch.isfinite(p.grad).all() for p in task.parameters)
            task.optimizer.step()
            method.after_step(made, state)
        assert all(torch.isfinite(p).all() for p in task.parameters)


def test_columns_have_the_same_names_all_along(method, examples):
    task = make_task()
    state = start(method, task, examples)
    first = list(method.columns(state))
    for step in range(STEPS):
        one_step(method, task, state, examples, step)
        columns = method.columns(state)
        assert list(columns) == first
        assert all(isinstance(v, int | float) for v in columns.values())


def test_half_precision_leaves_scaled_gradients_and_reports_overflow(method):
    """What the optimizer gets after unscaling is the gradient; an overflow in any pass reaches the scaler."""
    examples = Examples(torch.float32)
    for broken in (False, True):
        reference = make_task(network(torch.float32))
        expected = start(method, reference, examples)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=10**6)
        task = make_task(network(torch.float32), scaler=scaler)
        state = start(method, task, examples)
        for step in range(STEPS):
            rows, where = rows_of(step), context(step, examples)
            plain_step = reference.step(examples.batch(rows), where, indices=rows)
            method.gradient(plain_step, expected)
            made = task.step(examples.batch(rows), where, indices=rows)
            with overflowing(task) if broken else contextlib.nullcontext():
                method.gradient(made, state)
            scaler.unscale_(task.optimizer)
            if broken:
                before = [p.detach().clone() for p in task.parameters]
                scaler.step(task.optimizer)
                scaler.update()
                assert equal(before, [p.detach() for p in task.parameters])
                assert scaler.get_scale() == 2.0**7
                break
            found, plain = ([p.grad for p in t.parameters] for t in (task, reference))
            # float32 round-off of scaled and unscaled sums
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)
            for t, m, s in ((task, made, state), (reference, plain_step, expected)):
                t.optimizer.step()
                method.after_step(m, s)
            scaler.update()


@contextlib.contextmanager
def overflowing(task):
    """The first backward pass within the context finds an infinity."""
    fired = False

    def hook(gradient):
        nonlocal fired
        if fired:
            return gradient
        fired = True
        return torch.full_like(gradient, torch.inf)

    handles = [p.register_hook(hook) for p in task.parameters]
    yield
    for handle in handles:
        handle.remove()


def test_unknown_options_and_negative_radii_are_refused(method):
    with pytest.raises(InputError, match="unknown argument"):
        METHODS.entry(method.name).option("no-such-option")
    if hasattr(method, "rho"):
        with pytest.raises(InputError, match="rho must be"):
            dataclasses.replace(method, rho=-0.1)
