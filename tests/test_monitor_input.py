"""Monitor: input that it cannot take is told in one line, and a network that is no longer the Problem's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monitor_cases import CHEAP, problem_of
from own_loop_cases import network
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.registry import register


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["lambda_mx"]}, "unknown measure 'lambda_mx': did you mean 'lambda_max'"),
        ({"measures": ["bumps"]}, "unknown measure 'bumps': known: .*lambda_max.*trace"),
        ({"measures": ["surface"]}, "unknown measure 'surface'"),
        ({"measures": ["lambda_max:kk=2"]}, "unknown argument of hessian_top_eigenvalues 'kk'"),
        ({"measures": ["trace", "trace"]}, "trace is given twice"),
        ({"measures": []}, "no measure is named: name some of lambda_max"),
        ({"every": 0}, "every must be a number of steps, at least 1, received 0"),
        ({"every": 2.5}, r"every must be a whole number of steps, received 2\.5"),
        ({"every": True}, "every must be a whole number of steps, received True"),
        ({"share": "a"}, "share must be between 0 and 1, a part of the run's time, received 'a'"),
        ({"share": 5}, "share must be between 0 and 1, a part of the run's time, received 5"),
        ({"log": 3}, "log is a int: a SummaryWriter"),
    ],
)
def test_wrong_input_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        landscape.Monitor(problem_of(network()), **options)
    assert "\n" not in str(error.value)


def test_a_measure_of_two_checkpoints_is_refused(monkeypatch):
    from landscape.registry import Entry

    @register("change")
    def change(problem, other, *, seed=0):
        raise AssertionError

    entry = Entry("change", None, "change", "", (), {})
    monkeypatch.setattr(type(landscape.MEASURES), "__getitem__", lambda self, name: change)
    monkeypatch.setitem(landscape.MEASURES.entries, "change", entry)
    with pytest.raises(InputError, match=r"change needs other beside the weights of one step: .* landscape\.change on"):
        landscape.Monitor(problem_of(network()), measures=["change"])


def test_what_is_watched_is_a_problem():
    with pytest.raises(InputError, match="a Problem is watched, received Sequential"):
        landscape.Monitor(network())


def test_what_fails_first_is_raised_and_what_fails_later_is_nan():
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=1, measures=["gradient_norm", "lambda_max"])
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        monitor.step(0)
    monitor.step(1)
    with torch.no_grad():
        model[4].bias.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="could not be measured and is nan: ") as told:
        row = monitor.step(2)
    assert [str(w.message).split()[0] for w in told] == ["gradient_norm", "lambda_max"]
    assert row.keys() == monitor.history[0].keys()
    assert all(math.isnan(v) for k, v in row.items() if not k.endswith("_seconds") and k != "step")
    other = landscape.Monitor(problem_of(model, check=False), every=1, measures=["gradient_norm"])
    with pytest.raises(InputError, match="not finite"):
        other.step(0)


def test_a_model_that_moved_is_told():
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=1, measures=["gradient_norm"])
    model.float()
    with pytest.raises(
        InputError, match=r"made of a model in torch\.float64 on cpu, which is in torch\.float32 on cpu"
    ):
        monitor.step(0)


def test_a_replaced_layer_is_told():
    model = network()
    monitor = landscape.Monitor(problem_of(model), every=1, measures=CHEAP)
    monitor.step(0)
    model[4] = nn.Linear(8, 3).double()
    with pytest.raises(
        InputError, match="the layer '4' was replaced since the Problem was made: make the Problem again"
    ):
        monitor.step(1)


def test_a_step_is_any_whole_number():
    monitor = landscape.Monitor(problem_of(network()), every=1, measures=["gradient_norm"])
    for step in (np.int64(3), torch.tensor(4), 5):
        monitor.step(step)
    assert [(type(row["step"]), row["step"]) for row in monitor.history] == [(int, 3), (int, 4), (int, 5)]
    for step in (0.5, "a", None, True, torch.tensor(6.0), torch.tensor([6, 7])):
        with pytest.raises(InputError, match="^step must be a whole number of steps, received "):
            monitor.step(step)
