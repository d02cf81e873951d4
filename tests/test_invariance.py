"""The invariance test: verdicts on networks whose rescaled versions are made by hand, and bad input."""

import copy
import math
import warnings

import h5py
import numpy as np
import pytest
import torch
from attention_cases import network, tokens
from invariance_cases import points, table_2
from torch import nn
from torch.testing import assert_close

import landscape
from figures.page.terminal import invariance_text
from landscape.errors import InputError
from landscape.invariance.measures import InvarianceOptions
from landscape.invariance.result import relative_spread, verdict
from landscape.random import stream
from landscape.results.journal import Journal
from trainers.models import build_model

KEPT = ["adaptive_sharpness", "adaptive_sharpness_fixed_biases"]


KEPT += [f"worst_case_{name}" for name in KEPT]


KEPT += [f"{name}_linf" for name in KEPT]


KEPT += ["lambda_max_adaptive", "average_adaptive_sharpness", "pac_bayes_sigma_magnitude_aware", "loss", "asam_loss"]


VARYING = ["sam_sharpness", "worst_case_sharpness", "sam_loss", "asam_official", "adaptive_sharpness_unscaled_biases"]


VARYING += ["filterwise_sharpness", "layerwise_sharpness", "lambda_max", "gradient_norm", "average_sharpness"]


VARYING += ["keskar_sharpness", "pac_bayes_sigma"]


@pytest.fixture(scope="module")
def result():
    return landscape.rescaling_invariance(table_2(), transforms=5, settings=InvarianceOptions(rho=0.5), seed=4)


def test_the_function_stays(result):
    assert result.output_changes.shape == (5,)
    assert result.output_changes.max() < 1e-12
    assert result.groups["dimension"] == 40
    np.testing.assert_allclose(result.logits - result.logits[:1], 0, atol=1e-12)


@pytest.mark.parametrize("name", KEPT)
def test_invariant_measures(result, name):
    assert result.spread(name) <= 1e-9
    assert result.verdict(name) == "invariant (to rounding)"


@pytest.mark.parametrize("name", VARYING)
def test_measures_of_the_parametrization(result, name):
    assert result.spread(name) > 1e-3
    assert result.verdict(name).startswith("varies ")


def test_values_at_networks_rescaled_by_hand(result):
    """Weights scaled layer by layer with a loop over the units; the measures called one by one."""
    problem = table_2()
    taus = stream(4, "rescaling")
    for j in range(2):
        tau = (0.5 + torch.rand(40, generator=taus, dtype=torch.float64)).view(4, 10)
        model = copy.deepcopy(problem.model)
        linear = [m for m in model if isinstance(m, nn.Linear)]
        with torch.no_grad():
            for layer, factors in enumerate(tau):
                for unit, factor in enumerate(factors):
                    linear[layer].weight[unit] *= factor
                    linear[layer].bias[unit] *= factor
                    linear[layer + 1].weight[:, unit] /= factor
        ((x, y),) = batches = points(40, 2)
        moved = landscape.Problem(model, nn.CrossEntropyLoss(), batches)
        layout = moved.parameters

        def loss(w, model=model, layout=layout, x=x, y=y):
            state = dict(zip(layout.names, layout.unflatten(w), strict=True))
            return nn.functional.cross_entropy(torch.func.functional_call(model, state, x), y)

        for name, value in {
            "sam_sharpness": landscape.sam_sharpness(moved, rho=0.5).value,
            "worst_case_sharpness": landscape.worst_case_sharpness(moved, rho=0.5, restarts=1).value,
            "asam_official": landscape.adaptive_sharpness(moved, scaling="asam-official", one_step_only=True).value,
            "adaptive_sharpness": landscape.adaptive_sharpness(moved, rho=0.5, one_step_only=True).value,
            "gradient_norm": torch.linalg.vector_norm(moved.gradient()).item(),
            "sam_loss": landscape.sam_sharpness(moved, rho=0.5).value + moved.loss().item(),
        }.items():
            # 1e-9: the hand-made weights round differently, and sharpness is a difference of losses.
            assert_close(result.of(name)[j], value, rtol=1e-9, atol=0)
        dense = torch.func.hessian(loss)(moved.weights)
        t = moved.weights.abs()
        assert_close(result.of("lambda_max")[j], torch.linalg.eigvalsh(dense)[-1].item(), rtol=1e-9, atol=0)
        top = torch.linalg.eigvalsh(t[:, None] * dense * t)[-1].item()
        assert_close(result.of("lambda_max_adaptive")[j], top, rtol=1e-9, atol=0)


def test_the_table_on_biases(result):
    alone, both, zero = result.biases
    assert alone["transform"] == "weights only"
    assert alone["function_residual"] > 1e-3
    assert both["function_residual"] < 1e-12
    assert all(spread > 1e-3 for spread in alone["relative_spread"].values())
    assert zero["transform"] == "weights only, biases 0"
    assert zero["function_residual"] < 1e-12
    for row in (both, zero):
        spreads = row["relative_spread"]
        assert max(spreads["scaled"], spreads["fixed"]) <= 1e-9
        assert min(spreads["unscaled"], spreads["asam-official"]) > 1e-3


def test_what_is_not_claimed(result):
    (rotation,) = result.rotations  # the only two layers without an activation between them
    assert rotation["layers"] == ["0", "1"]
    assert rotation["function_residual"] < 1e-12
    for name in ("adaptive_sharpness", "adaptive_sharpness_linf", "worst_case_adaptive_sharpness"):
        assert rotation["relative_spread"][name] > 1e-5


def test_network_with_batch_norm_statistics():
    model = build_model("small-cnn", classes=3, input_shape=(1, 6, 6), channels=(2, 3), seed=1).double()
    generator = torch.Generator().manual_seed(0)
    for norm in (m for m in model if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1, generator=generator)
        norm.running_var.uniform_(0.01, 2, generator=generator)
        norm.weight.data.uniform_(0.3, 2, generator=generator)
        norm.bias.data.uniform_(-1, 1, generator=generator)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), points(12, 1, 6, 6, classes=3))
    before = copy.deepcopy(model.state_dict())
    found = landscape.rescaling_invariance(problem, transforms=3, settings=InvarianceOptions(steps=5))
    assert found.groups["dimension"] == 10
    assert found.output_changes.max() < 1e-12
    for name in KEPT:
        assert found.spread(name) <= 1e-9, name
    for name in ("sam_sharpness", "asam_official", "lambda_max"):
        assert found.spread(name) > 1e-3, name
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_vision_transformer():
    model = build_model("vit-tiny", classes=3, input_shape=(1, 8, 8), patch=4, dim=8, depth=1, heads=2).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(len(name)))
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), points(8, 1, 8, 8, classes=3))
    found = landscape.rescaling_invariance(problem, transforms=3, settings=InvarianceOptions(steps=4, extra={}))
    assert found.groups["dimension"] == 4 * 8 + 8
    assert found.output_changes.max() < 1e-12
    for name in (n for n in KEPT if n in found.names):
        assert found.spread(name) <= 1e-9, name
    assert found.spread("sam_sharpness") > 1e-3


def test_maps_of_attention_leave_geodesic_sharpness_alone(tmp_path):
    model = network(heads=4, key_heads=2)
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(tokens(), torch.tensor([0, 1, 1, 0, 1]))])
    extra = {
        metric: ("geodesic_sharpness", {"metric": metric, "rho": 0.2, "steps": 5, "restarts": 1})
        for metric in ("inv", "mix")
    }
    settings = InvarianceOptions(steps=3, orders=(2.0,), extra={**InvarianceOptions().extra, **extra})
    found = landscape.rescaling_invariance(problem, transforms=3, settings=settings)
    attention = found.summary()["attention"]
    assert attention["outputs"]["max_relative_change"] < 1e-12
    kept = {"geodesic_sharpness", "inv", "mix", "loss", "fisher_rao_norm"}
    kept |= {"relative_flatness_first_layer"}  # of a layer that no map touches; the last layer is that of the outputs
    for name, row in attention["measures"].items():
        if name in kept:
            assert row["relative_spread"] <= 1e-9, name
            assert row["verdict"] == "invariant (to rounding)", name
        else:
            assert row["relative_spread"] > 1e-6, name
            assert row["verdict"].startswith("varies"), name
    assert kept < attention["measures"].keys()
    assert sum(entry["heads"] for entry in found.groups["heads"]) == 4
    text = invariance_text(found, "network")
    assert "through each of 4 heads of attention; outputs change by" in text
    assert "4 heads" not in invariance_text(landscape.rescaling_invariance(table_2(), transforms=2), "mlp")
    found.save(tmp_path / "invariance.h5", "invariance")
    assert landscape.load(tmp_path / "invariance.h5")["invariance"].summary() == found.summary()


def test_the_maps_are_those_of_the_finder():
    model = network()
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), [(tokens(), torch.tensor([0, 1, 1, 0, 1]))])
    settings = InvarianceOptions(steps=0, orders=(2.0,), eigenvalues=False, extra={})
    found = landscape.rescaling_invariance(problem, transforms=2, settings=settings, seed=3)
    symmetries = landscape.rescaling.find(model, tokens())
    ones = torch.ones(symmetries.dimension, dtype=torch.float64)
    for j in range(2):
        maps = symmetries.sample_maps(stream(3, f"maps {j}"), 0.5, 1.5)
        moved = problem.relocated(symmetries.apply(problem.weights, ones, maps=maps).weights)
        value = landscape.sam_sharpness(moved, rho=0.05).value
        assert_close(found.mapped[found.names.index("sam_sharpness"), j], value, rtol=1e-9, atol=0)


def test_float32_is_judged_by_its_own_rounding():
    model = build_model("table2-mlp", classes=2, input_shape=(2,))
    problem = landscape.Problem(model, nn.CrossEntropyLoss(), points(40, 2))
    found = landscape.rescaling_invariance(problem, transforms=3, settings=InvarianceOptions(steps=0, extra={}))
    assert 1e-12 < found.output_changes.max() < 1e-5
    assert found.verdict("adaptive_sharpness") == "invariant (to rounding)"
    assert found.verdict("sam_sharpness").startswith("varies")
    assert not any(name.startswith("worst_case") for name in found.names)


def test_no_symmetry_is_no_error():
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    found = landscape.rescaling_invariance(landscape.Problem(model, nn.CrossEntropyLoss(), points(8, 2)))
    summary = found.summary()
    assert summary["measures"] == {}
    assert summary["groups"]["dimension"] == 0
    assert summary["outputs"] == {"max_relative_change": 0.0}


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.b(nn.functional.dropout(torch.relu(self.a(x)), training=True))


def test_bad_input():
    problem = table_2()
    cases = {
        "transforms=1: a spread needs at least 2": {"transforms": 1},
        "0 < low < high": {"low": 0.0},
        "low=2": {"low": 2.0},
    }
    for text, arguments in cases.items():
        with pytest.raises(InputError, match=text):
            landscape.rescaling_invariance(problem, **arguments)
    for text, arguments in {
        "^rho=0: a radius": {"rho": 0.0},
        "^adaptive_rho=-1: a radius": {"adaptive_rho": -1.0},
        "p=1": {"orders": (1.0,)},
        "steps=-1": {"steps": -1},
    }.items():
        with pytest.raises(InputError, match=text):
            InvarianceOptions(**arguments)
    with pytest.warns(landscape.NonDeterministicWarning):
        noisy = landscape.Problem(Noisy(), nn.CrossEntropyLoss(), points(8, 2))
    with pytest.raises(InputError, match=r"two evaluations of the outputs differ by .*draws random numbers"):
        landscape.rescaling_invariance(noisy)
    broken = table_2().model
    broken[0].weight.data[0, 0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        landscape.rescaling_invariance(landscape.Problem(broken, nn.CrossEntropyLoss(), points(8, 2), check=False))


def test_verdicts_in_words():
    assert verdict(np.array([1.0, 1.0 + 1e-12]), 1e-9) == "invariant (to rounding)"
    assert verdict(np.array([1.0, 3.0]), 1e-9) == "varies by a factor 3"
    assert verdict(np.array([1.0, 1.001]), 1e-9) == "varies by a factor 1 + 1.0e-03"
    assert verdict(np.array([-1.0, 2.0]), 1e-9) == "varies between -1 and 2"
    for values in ([1.0, math.nan], [math.inf, math.inf], [1.0, math.inf]):
        assert verdict(np.array(values), 1e-9) == "not finite at some rescalings"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert math.isnan(relative_spread(np.array(values)))
    assert relative_spread(np.array([2.0, 3.0, 6.0])) == 4 / 3
    assert relative_spread(np.zeros(3)) == 0
    assert relative_spread(np.array([-1.0, 0.0, 1.0])) == math.inf


def test_saved_and_read_back(result, tmp_path):
    result.save(tmp_path / "invariance.h5", "invariance")
    again = landscape.load(tmp_path / "invariance.h5")["invariance"]
    assert again.summary() == result.summary()
    with h5py.File(tmp_path / "invariance.h5") as file:
        group = file["invariance"]
        assert [d.label for d in group["values"].dims] == ["measure", "transform"]
        assert group["logits"].shape == (5, 5, 2)


def test_same_seed_same_values(result):
    again = landscape.rescaling_invariance(
        table_2(),
        transforms=5,
        settings=InvarianceOptions(rho=0.5, orders=(2.0,), steps=0, eigenvalues=False, extra={}),
        seed=4,
    )
    for name in again.names:
        np.testing.assert_array_equal(again.of(name), result.of(name))


class Stopped(Exception):
    """What interrupts a run."""


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    settings = InvarianceOptions(steps=2, eigenvalues=False, extra={}, orders=(2.0,))
    whole = landscape.rescaling_invariance(table_2(), transforms=4, settings=settings)
    true, calls = landscape.invariance.experiment.measure, []

    def limited(problem, settings, most):
        calls.append(1)
        if len(calls) > most:
            raise Stopped
        return true(problem, settings)

    path = tmp_path / "partial.jsonl"
    monkeypatch.setattr(landscape.invariance.experiment, "measure", lambda p, s: limited(p, s, 3))
    with pytest.raises(Stopped):
        landscape.rescaling_invariance(table_2(), transforms=4, settings=settings, journal=Journal(path))
    with open(path, "a") as file:
        file.write('{"name": "rescaled 2", "ro')  # a line cut off by a kill
    calls.clear()
    monkeypatch.setattr(landscape.invariance.experiment, "measure", lambda p, s: limited(p, s, 2))
    journal = Journal(path, resume=True)
    again = landscape.rescaling_invariance(table_2(), transforms=4, settings=settings, journal=journal)
    assert len(calls) == 2  # the reference and two of the four were there
    np.testing.assert_array_equal(again.values, whole.values)
    np.testing.assert_array_equal(again.logits, whole.logits)
    assert again.biases == whole.biases
    journal.finish()
    assert not path.exists()
    # Rows of another network, or of other settings, are not taken over.
    monkeypatch.setattr(landscape.invariance.experiment, "measure", lambda p, s: limited(p, s, 99))
    for seed, transforms in ((0, 2), (1, 2), (1, 3)):
        calls.clear()
        journal = Journal(path, resume=True)
        landscape.rescaling_invariance(table_2(seed), transforms=transforms, settings=settings, journal=journal)
        assert len(calls) == transforms + 1
