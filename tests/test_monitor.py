"""Monitor: it measures what the measures measure, when it says that it does, and leaves no trace in the training."""

from __future__ import annotations

import copy
import doctest
import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monitor_cases import CHEAP, assert_same, dropped, loader, plain, problem_of, snapshot, streams
from own_loop_cases import batches, closure_of, network, sgd
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from torch.utils.data import TensorDataset as Pairs

import landscape
from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer
from trainers.monitor import overhead
from trainers.monitor.measurements import DEFAULT_MEASURES
from trainers.monitor.overhead import Overhead

# -- nothing of the training changes -----------------------------------------------------------------------------------


def by_sam(model, *, watch):
    optimizer = MethodOptimizer(sgd(model), METHODS["sam"](rho=0.2), model)
    kept = []
    for step, batch in enumerate(batches()):
        watch(step)
        optimizer.step(closure_of(optimizer, model, *batch))
        kept.append(snapshot(model, optimizer))
    return kept


def by_adamw(model, *, watch):
    return plain(model, watch=watch, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))


def in_bfloat16(model, *, watch):
    optimizer, kept = sgd(model), []
    for step, (x, y) in enumerate(batches(dtype=torch.float32)):
        with torch.autocast("cpu", torch.bfloat16):
            watch(step)  # also between two passes of one autocast region, which caches its casts
            loss = F.cross_entropy(model(x), y)
            watch(step)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        kept.append(snapshot(model, optimizer))
    return kept


def compiled(model, *, watch):
    return plain(torch.compile(model, backend="eager"), watch=watch, optimizer=sgd(model))


def in_parallel(model, *, watch):
    return plain(nn.DataParallel(model), watch=watch, optimizer=sgd(model))


TRAININGS = [lambda model, *, watch: plain(model, watch=watch), by_sam, by_adamw, in_bfloat16, compiled, in_parallel]


@pytest.mark.parametrize("training", TRAININGS, ids=["sgd", "sam", "adamw", "bfloat16", "compiled", "parallel"])
def test_a_watched_training_is_bitwise_that_of_nobody(training):
    dtype = torch.float32 if training is in_bfloat16 else torch.float64
    torch.manual_seed(11)
    alone = training(dropped(dtype), watch=lambda step: None)
    torch.manual_seed(11)
    model = dropped(dtype)
    monitor = landscape.Monitor(problem_of(model, loader()), every=2, measures=[*DEFAULT_MEASURES, "average_sharpness"])

    def watch(step):
        before = snapshot(model)
        if monitor.step(step):
            assert_same(snapshot(model), before)

    assert_same(training(model, watch=watch), alone)
    assert [row["step"] for row in monitor.history] == [0, 2, 4]
    assert all(math.isfinite(v) for row in monitor.history for v in row.values())


def by_recipe(watch):
    """As image networks are trained: DataLoader, channels last, autocast, scaled and clipped gradients, an average."""
    torch.manual_seed(7)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    images, labels = torch.randn(40, 3, 6, 6).to(memory_format=torch.channels_last), torch.arange(40) % 3
    look = watch(model, [(images[:16], labels[:16])])
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9)
    scaler, kept = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=2), []
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step, (x, y) in enumerate(batch for _ in range(3) for batch in DataLoader(Pairs(images, labels), 16, True)):
        look(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        average.update_parameters(model)
        kept.append(copy.deepcopy([snapshot(model, optimizer), dict(average.state_dict()), scaler.state_dict()]))
        kept[-1].append([tuple(p.stride()) for p in model.parameters()])
    return kept


def test_a_watched_recipe_is_bitwise_that_of_nobody():
    monitors = []

    def watched(model, data):
        monitors.append(landscape.Monitor(problem_of(model, data), every=2))
        return monitors[0].step

    assert_same(by_recipe(watched), by_recipe(lambda model, data: lambda step: None))
    assert [row["step"] for row in monitors[0].history] == [0, 2, 4, 6, 8]


def test_making_a_problem_leaves_the_streams():
    model, before = dropped(), streams()
    problem_of(model, loader(shuffle=True), check=False)
    assert_same(streams(), before)


@pytest.mark.parametrize("where", ["loader", "sampler", "batch_sampler"])
def test_a_loader_with_a_generator_of_its_own_goes_on_as_if_nobody_had_looked(where):
    """The Problem reads the training's own loader when it is made, and again at every measurement where it is large."""
    generator = torch.Generator().manual_seed(5)
    dataset = loader().dataset
    sampler = RandomSampler(dataset, generator=generator)
    options = {
        "loader": {"batch_size": 8, "shuffle": True, "generator": generator},
        "sampler": {"batch_size": 8, "sampler": sampler},
        "batch_sampler": {"batch_sampler": BatchSampler(sampler, 8, drop_last=False)},
    }
    shuffling = DataLoader(dataset, **options[where])
    before = generator.get_state()
    problem = problem_of(dropped(), shuffling, check=False)
    assert torch.equal(generator.get_state(), before)
    problem.batches.kept = None
    landscape.Monitor(problem, every=1, measures=CHEAP).step(0)
    assert torch.equal(generator.get_state(), before)


def test_a_model_that_draws_while_it_is_evaluated_leaves_the_streams():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return self.net(x) + 1e-3 * (torch.randn(len(x), 1) + np.random.rand())  # noqa: NPY002

    with pytest.warns(landscape.NonDeterministicWarning):
        problem = problem_of(Noisy())
    before = streams()
    landscape.Monitor(problem, every=1, measures=CHEAP).step(0)
    assert_same(streams(), before)


def test_an_interrupted_measurement_leaves_the_training(monkeypatch):
    model = dropped()
    calls = iter([False] * 3 + [True] * 9)

    def loss(outputs, targets):
        if next(calls, False):
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    problem = landscape.Problem(model, loss, batches(1), check=False)
    monitor, before = landscape.Monitor(problem, every=1, measures=["lambda_max"]), snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        monitor.step(0)
    assert_same(snapshot(model), before)


# -- what is measured --------------------------------------------------------------------------------------------------


def test_rows_hold_what_the_measures_give_at_the_weights_of_the_moment():
    model, expected = network(), []
    measures = ["sharpness:rho=0.2", "gradient_norm", "trace", "sam_sharpness", "sam_sharpness:rho=0.3"]
    monitor = landscape.Monitor(problem_of(model), every=2, measures=measures)

    def watch(step):
        row, fresh = monitor.step(step), problem_of(model)
        if row:
            expected.append([landscape.sam_sharpness(fresh, rho=rho).value for rho in (0.2, 0.05, 0.3)])
            expected[-1] += [landscape.gradient_norm(fresh).value, landscape.trace(fresh).value]

    plain(model, watch=watch)
    names = ("sharpness", "sam_sharpness", "sam_sharpness:rho=0.3", "gradient_norm", "trace")
    assert [[row[n] for n in names] for row in monitor.history] == expected
    assert len({row["gradient_norm"] for row in monitor.history}) == 3, "the weights moved"


def test_statistics_of_the_moment_are_used():
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=1, measures=["gradient_norm"])
    first = monitor.step(0)
    model[1].running_mean.add_(1.0)
    assert monitor.step(1)["gradient_norm"] == landscape.gradient_norm(problem_of(model)).value
    assert monitor.history[1]["gradient_norm"] != first["gradient_norm"]


def test_eigenvalues_are_those_of_the_dense_hessian_and_start_from_the_last_vectors():
    model, dense = network(), []
    monitor = landscape.Monitor(problem_of(model), every=1, measures=["lambda_max:tol=1e-6", "lambda_max:k=2"])

    def watch(step):
        problem = problem_of(model)
        hessian = torch.stack([problem.hvp(v) for v in torch.eye(problem.dimension, dtype=torch.float64)])
        dense.append(torch.linalg.eigvalsh(hessian)[-2:].tolist())
        monitor.step(step)

    plain(model, watch=watch)
    for row, (second, first) in zip(monitor.history, dense, strict=True):
        assert abs(row["lambda_max"] - first) <= row["lambda_max.error_bound"] + 1e-9 * first
        assert row["lambda_max"] == pytest.approx(first, rel=1e-6)
        assert row["lambda_max:k=2.2"] == pytest.approx(second, rel=1e-3)
    again = landscape.top_eigenvalues(problem_of(model), k=1, tol=1e-6)
    warm = landscape.top_eigenvalues(problem_of(model), None, again.vectors, k=1, tol=1e-6)
    assert monitor._measurements._starts["lambda_max"].shape == again.vectors.shape
    assert warm.hvps < again.hvps


@pytest.mark.parametrize("name", landscape.MEASURES)
def test_every_measure_fills_a_row(name):
    model = network()
    beside = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "other": problem_of(model)}
    monitor = landscape.Monitor(problem_of(model), every=1, measures=[name], **beside)
    row = monitor.step(0)
    columns = [c for c in row if c == name or c.startswith(f"{name}.")]
    assert columns
    assert row.keys() == {"step", "training_seconds", "measuring_seconds", *columns}
    assert any(math.isfinite(row[c]) for c in columns if not c.endswith(".hvps"))
    facts = landscape.MEASURES.entry(name).facts
    assert monitor.result().units[columns[0]] == ("" if "fields" in facts else facts["unit"])


def test_how_sure_a_number_is_stands_beside_it():
    measures = ["negative_curvature", "layer_eigenvalues", "average_sharpness:subsets=4"]
    row = landscape.Monitor(problem_of(network()), every=1, measures=measures).step(0)
    pairs = ["negative_curvature.lambda_min.error_bound", "layer_eigenvalues.0.error_bound"]
    pairs += ["average_sharpness.low", "average_sharpness.high"]
    assert row.keys() >= set(pairs)
    assert row["average_sharpness.low"] < row["average_sharpness"] < row["average_sharpness.high"]


# -- when --------------------------------------------------------------------------------------------------------------


def test_steps_are_multiples_of_every_and_told_once():
    monitor = landscape.Monitor(problem_of(network()), every=3, measures=["gradient_norm"])
    told = [monitor.step(step) for step in (1, 2, 3, 3, 5, 6, 8, 12)]
    assert [row and row["step"] for row in told] == [None, None, 3, None, None, 6, None, 12]
    with pytest.raises(InputError, match="step 6 came after step 12: a Monitor watches one run, forward"):
        monitor.step(6)


def clocked(monkeypatch, seconds):
    """A clock that others advance."""
    now = [0.0]
    monkeypatch.setattr(overhead, "perf_counter", lambda: now[0])

    def advance(by=seconds):
        now[0] += by

    return advance


def test_the_budget_by_hand(monkeypatch):
    """Measurements of 1 s, steps of 1 s, a tenth of the time: the n-th is at 10 n seconds in all, its own included."""
    advance, spent = clocked(monkeypatch, 1.0), Overhead(0.1)
    chosen = []
    for step in range(60):
        spent.trained()
        if spent.fits():
            with spent.measured():
                advance()
            chosen.append(step)
            if step:
                assert spent.part <= 0.1
        advance()
    # training + measuring >= 10 measuring, with step = training: 0, then n measurements at step 9 n.
    assert chosen == [0, 18, 27, 36, 45, 54]
    assert (spent.training, spent.measuring) == (59.0, 6.0)


def test_a_longer_measurement_is_saved_for(monkeypatch):
    advance, spent = clocked(monkeypatch, 1.0), Overhead(0.5)
    for seconds, trained in ((1.0, 0.0), (3.0, 1.0)):
        advance(trained)
        with spent.measured():
            advance(seconds)
    advance(5.75)
    spent.trained()
    assert not spent.fits()  # 4 + 3 > (6.75 + 7) / 2
    advance(0.25)
    spent.trained()
    assert spent.fits()


def test_a_monitor_keeps_its_budget_and_reports_it(monkeypatch):
    advance = clocked(monkeypatch, 1.0)
    monkeypatch.setattr(
        F, "cross_entropy", costly := lambda o, t, inner=F.cross_entropy: (advance(0.5), inner(o, t))[1]
    )
    model = network()
    problem = landscape.Problem(model, costly, batches(1), check=False)
    monitor = landscape.Monitor(problem, share=0.2, measures=["gradient_norm"])
    for step in range(100):
        monitor.step(step)
        advance()
    assert 3 < len(monitor.history) < 60
    for row in monitor.history[1:]:
        assert row["measuring_seconds"] <= 0.2 * (row["measuring_seconds"] + row["training_seconds"])
    last = monitor.history[-1]
    assert monitor.overhead == pytest.approx(last["measuring_seconds"] / (last["measuring_seconds"] + 99), abs=0.02)
    assert f"{100 * monitor.overhead:.1f}% of the time" in repr(monitor)
    assert monitor.result().provenance["overhead"] == monitor.overhead


def test_what_is_not_said_has_a_default():
    problem = problem_of(network())
    made = [landscape.Monitor(problem, **options) for options in ({}, {"every": 7}, {"every": 7, "share": 0.5})]
    assert [(m.every, m.share) for m in made] == [(1, 0.05), (7, None), (7, 0.5)]
    assert made[0]._measurements.keys == list(DEFAULT_MEASURES)


# -- the documentation -------------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs():
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(landscape.Monitor), {}, "Monitor", None, None)
    outcome = doctest.DocTestRunner(verbose=False).run(example)
    assert (outcome.attempted, outcome.failed) == (8, 0)


# -- plain attributes --------------------------------------------------------------------------------------------------


class Remembering(nn.Module):
    """Its outputs depend on what it has kept in plain attributes of every kind."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls, self.last = network(), 0, None
        self.mean, self.total = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        self.seen, self.counts, self.shapes = [], {"calls": 0}, set()

    def forward(self, x):
        y = self.inner(x)
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        self.total += y.detach().sum(0)
        self.seen.append(len(x))
        self.counts["calls"] += 1
        self.shapes.add((self.calls, *x.shape))
        self.last = self.extra = y.detach()
        return y + self.mean + 0.01 * self.total + 0.1 * self.calls + len(self.seen) + self.counts["calls"]

    def kept(self):
        return {k: v for k, v in vars(self).items() if k in ("calls", "mean", "total", "seen", "counts", "shapes")}


@pytest.mark.filterwarnings("ignore::landscape.errors.NonDeterministicWarning")
def test_what_a_network_keeps_in_plain_attributes_is_that_of_a_training_that_nobody_watches():
    model = Remembering()
    problem = problem_of(model, check=False)
    alone = copy.deepcopy(model)
    held = {name: id(value) for name, value in model.kept().items() if name in ("total", "seen", "counts", "shapes")}
    monitor = landscape.Monitor(problem, every=1, measures=CHEAP)
    before = copy.deepcopy(model.kept())
    monitor.step(0)
    assert_same(model.kept(), before)
    assert vars(model).keys() == vars(alone).keys()
    assert {name: id(vars(model)[name]) for name in held} == held
    monitor = landscape.Monitor(problem, every=1, measures=CHEAP)
    assert_same(plain(model, watch=monitor.step), plain(alone))
    assert_same(model.kept(), alone.kept())
    assert model.calls > len(monitor.history) == 6
