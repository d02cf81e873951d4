"""Forward and backward examples of every method: as counted by the network itself, and as its file states."""

from __future__ import annotations

import re
import statistics

import pytest
import torch.nn.functional as F
from method_cases import Run, context
from oracle_network import EXAMPLES

from trainers import METHODS

B, N, RUN = 8, 6, 60


class Meter:
    """Counts what really happens: examples through the network, and examples whose gradient came back."""

    def __init__(self):
        self.forward = self.backward = 0

    def loss(self, outputs, targets):
        if outputs.grad_fn is not None:  # the network's last operation: a slope at the logits alone is no pass
            outputs.grad_fn.register_prehook(self._returned)
        return F.cross_entropy(outputs, targets, reduction="none")

    def _returned(self, gradients):
        self.backward += gradients[0].shape[0]

    def seen(self, module, inputs):
        self.forward += inputs[0].shape[0]


def per_step(name, options, where=context, group_size=None, steps=N):
    """(forward, backward) examples of each step, and those before the first, in batches; the counter must agree."""
    meter = Meter()

    class Loss:
        model = None

        def __call__(self, outputs, targets):
            return meter.loss(outputs, targets)

    run = Run(name, loss=Loss(), group_size=group_size, **options)
    run.model.register_forward_pre_hook(meter.seen)
    costs, passes = [], run.task.passes
    before = (passes.forward / B, passes.backward / B)
    for t in range(steps):
        start = (passes.forward, passes.backward)
        meter.forward = meter.backward = 0
        run.step(where=where(t))
        counted = (passes.forward - start[0], passes.backward - start[1])
        assert counted == (meter.forward, meter.backward), "the counter and the network disagree"
        costs.append((meter.forward / B, meter.backward / B))
    return costs, before


STATEMENT = re.compile(r"(?P<forward>.+) forward \+ (?P<backward>.+) backward(;.+)?")


def expressions(name):
    """The stated (forward, backward) passes of a step, as expressions."""
    text = METHODS.entry(name).facts["cost"]
    stated = STATEMENT.fullmatch(text)
    assert stated, f"{name}: {text!r} is not 'F forward + B backward[; remark]'"
    return stated["forward"], stated["backward"]


def words(name):
    """The names in these expressions."""
    return set(re.findall(r"[a-z_]+", " ".join(expressions(name))))


def options_of(name, changed):
    """Values of the hyperparameters that the statement names: the defaults (2 where there is none), or others."""
    named = [o for o in METHODS.entry(name).options if o.name in words(name)]
    options = {o.name: 2 if o.default is None else o.default for o in named}
    options = {k: v / 2 if isinstance(v, float) else v + 1 for k, v in options.items()} if changed else options
    return {k: RUN // 4 if v > RUN else v for k, v in options.items()}  # what happens seldom happens in the run


@pytest.mark.parametrize("setting", ["default", "changed", "groups"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_costs_what_its_method_states(name, setting):
    """Exactly, or where the seed decides which steps cost more: the mean, within 4 standard errors."""
    options, group = options_of(name, setting == "changed"), B // 2 if setting == "groups" else None

    def run(seed):
        def where(t):
            return context(t, epoch=t // 3, steps=RUN, seed=seed)

        return per_step(name, {**options, "norm": "layer"}, where, group, RUN)

    steps, at_first = run(seed=0)
    drawn = len(set(steps)) > 1 and run(seed=1)[0] != steps
    known = {"batch": group or B, "examples": EXAMPLES, "epoch": 3}
    known |= {word: getattr(METHODS[name](**options), word) for word in words(name) - set(known)}
    for i, expression in enumerate(expressions(name)):
        costs = [step[i] for step in steps]
        error = 4 * statistics.stdev(costs) / RUN**0.5 if drawn else 0
        mean = statistics.mean(costs) + at_first[i] / RUN
        assert mean == pytest.approx(eval(expression, {"__builtins__": {}}, known), abs=error + 1e-12), expression


def test_looksam_costs_one_more_pass_every_k_steps():
    steps, _ = per_step("looksam", {"k": 4})
    assert steps == [(2, 2), (1, 1), (1, 1), (1, 1), (2, 2), (1, 1)]
    assert sum(f for f, _ in steps) == N + -(-N // 4)


@pytest.mark.parametrize("name", ["rst", "g-rst"])
def test_rst_costs_one_pass_and_one_more_at_its_sam_steps(name):
    steps, _ = per_step(name, {"p": 0.5, "p_schedule": "constant"})
    assert set(steps) == {(1, 1), (2, 2)}
    assert per_step(name, {"p": 0.5, "p_schedule": "piecewise1"}, lambda t: context(t, steps=N))[0] == [
        *[(1, 1)] * 4,  # the step at p T too, as in the official code
        *[(2, 2)] * 2,
    ]


def test_esam_without_a_choice_skips_the_ranking():
    assert per_step("esam", {"gamma": 1.0})[0] == [(2, 2)] * N


def test_k_sam_by_default_costs_what_sgd_costs():
    """1/3 of a forward-plus-backward pass for the ranking and 2/3 for a third of the batch (here 2 of 8)."""
    (forward, backward), *_ = per_step("k-sam", {})[0]
    assert (forward + 2 * backward) / 3 == pytest.approx(1 / 3 + 2 * (2 / 8))


def test_random_perturbation_mixed_with_the_clean_gradient_costs_two_passes():
    assert per_step("random-perturbation", {"alpha": 0.5})[0] == [(2, 2)] * N


def test_mesa_and_saf_before_their_start_cost_what_sgd_costs():
    for name in ("mesa", "saf"):
        assert per_step(name, {}, lambda t: context(t, progress=0.0))[0] == [(1, 1)] * N


def test_a_fisher_refresh_costs_one_pass_of_each_sample():
    steps, at_first = per_step("ssam", {"samples": 4})  # two steps per epoch; the first mask precedes the first step
    assert steps == [(2, 2), (2, 2), (2.5, 2.5), (2, 2), (2.5, 2.5), (2, 2)]
    assert at_first == (0.5, 0.5)


def test_weight_gradients_that_are_not_needed_are_not_computed():
    """The first pass of SAM-ON differentiates 2 of the 6 tensors here, that of ESAM with a tiny beta one."""
    for name, options, computed in (("sam-on", {}, 2 + 6), ("esam", {"beta": 1e-9}, 1 + 6)):
        run, fired = Run(name, **options), []
        for p in run.model.parameters():
            p.register_hook(lambda gradient, seen=fired: seen.append(gradient.shape))
        run.step()
        assert len(fired) == computed, name
