"""Trainings of the caller's networks, data and numbers, within the caller's contexts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import landscape
from landscape import problem_from
from landscape.errors import InputError
from trainers import METHODS, train
from trainers.datasets import load_data
from trainers.loop.evaluation import evaluate

RUN = {"epochs": 2, "batch_size": 50, "lr": 0.05}


def toy(**options):
    return load_data("toy2d", **{"n": 100, **options})


def network(width=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def trained(method="sgd", **options):
    return train(method, **{"model": network(), "data": toy(), **RUN, **options})


# -- resuming ----------------------------------------------------------------------------------------------------------


def with_a_frozen_bias():
    made = network()
    made[0].bias.requires_grad_(False)
    return made


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"data": toy(seed=1)},
            "trained on other data .SHA-256 [0-9a-f]{12}..., now [0-9a-f]{12}.*: resume with",
        ),
        ({"model": network(5)}, r"0.weight is float32 \(4, 2\) in the checkpoint and float32 \(5, 2\) in this network"),
        (
            {"model": nn.Sequential(*network(), nn.Linear(2, 2))},
            r"3.weight is absent in the .* and float32 \(2, 2\) in",
        ),
        ({"model": network()[:1]}, r"2.weight is float32 \(2, 4\) in the checkpoint and absent in this network"),
        ({"model": network().double()}, "0.weight is float32 .* and float64 .* in this network"),
        ({"model": with_a_frozen_bias()}, "the run trains 4 parameters, 3 of this network are trainable"),
    ],
)
def test_other_data_and_other_networks_do_not_go_on_with_a_run(other, message, tmp_path):
    trained(out=tmp_path)
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        trained(out=tmp_path, resume=True, **other)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files
    assert trained(out=tmp_path, resume=True).epochs_trained == 0


@pytest.fixture
def run_on_a_file(tmp_path):
    """A run on a file of data, its options, and what writes the file with other labels."""
    made = toy()
    data = {f"{axis}_{split}": getattr(made, f"{axis}_{split}").numpy() for axis in "xy" for split in ("train", "test")}
    np.savez(tmp_path / "data.npz", **data)
    options = {"data": f"npz:{tmp_path / 'data.npz'}", "model": "mlp:hidden=4", "out": tmp_path / "run"}
    trained(**options)
    return options, lambda: np.savez(tmp_path / "data.npz", **{**data, "y_train": 1 - data["y_train"]})


def test_a_file_of_data_that_has_changed_does_not_go_on_with_a_run(run_on_a_file):
    options, change = run_on_a_file
    assert trained(resume=True, **options).epochs_trained == 0
    change()
    with pytest.raises(InputError, match="trained on other data"):
        trained(resume=True, **options)


@pytest.mark.filterwarnings("error")
def test_a_file_of_data_that_has_changed_is_told_where_a_checkpoint_is_analyzed(run_on_a_file):
    options, change = run_on_a_file
    before = float(problem_from(options["out"] / "ckpt.pt").evaluate().accuracy)
    change()
    with pytest.warns(landscape.InputWarning, match="trained on other examples than npz:.* holds now"):
        after = float(problem_from(options["out"] / "ckpt.pt").evaluate().accuracy)
    assert after == pytest.approx(1 - before)
    problem_from(options["out"] / "ckpt.pt", data=options["data"])  # what is asked for is no surprise


@pytest.mark.parametrize("written", [5, None, [1], "\x1b[31m\nred"])
def test_what_a_checkpoint_says_of_its_data_is_taken_for_text(written, run_on_a_file):
    options, _ = run_on_a_file
    file = options["out"] / "ckpt.pt"
    content = torch.load(file, weights_only=True)
    content["provenance"]["data_sha256"] = written
    torch.save(content, file)
    with pytest.warns(landscape.InputWarning, match="trained on other examples") as said:
        problem_from(file)
    with pytest.raises(InputError, match="trained on other data") as refused:
        trained(resume=True, **options)
    for text in (str(said[0].message), str(refused.value)):
        assert text.isprintable()


def test_data_that_are_drawn_by_name_may_round_otherwise_on_another_machine(tmp_path):
    trained(out=tmp_path)
    rounded = dataclasses.replace(toy(), sha256="0" * 64)
    assert trained(out=tmp_path, resume=True, data=rounded).epochs_trained == 0


# -- a network that fails, or keeps something --------------------------------------------------------------------------


class Failing(nn.Linear):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not today")
        return super().forward(x)


def test_a_network_that_fails_in_its_first_step_leaves_nothing(tmp_path):
    """A configuration alone would refuse the next attempt, as a run that is there."""
    with pytest.raises(RuntimeError, match="not today"):
        trained(model=Failing(2, 2), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Caching(nn.Linear):
    """Keeps a mask as large as the largest batch, as position tables are kept; evaluation sees larger ones."""

    mask: torch.Tensor | None = None

    def forward(self, x):
        if self.mask is None or len(self.mask) < len(x):
            self.mask = torch.ones(len(x), 1)
        return super().forward(x) * self.mask[: len(x)]


def test_what_a_network_keeps_of_an_evaluation_serves_the_next_epoch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        caching, plain = Caching(2, 2), nn.Linear(2, 2)
        plain.load_state_dict(caching.state_dict())
    data = toy(n=400)
    kept = trained(model=caching, data=data)
    assert len(caching.mask) > RUN["batch_size"]
    assert torch.equal(weights(kept), weights(trained(model=plain, data=data)))


class Remembering(nn.Linear):
    """Keeps what the last training pass computed, as losses of inner layers are kept."""

    def forward(self, x):
        outputs = super().forward(x)
        if self.training:
            self.last, self.all = outputs, {"outputs": [outputs.sum(), (outputs.mean(),)]}
        return outputs


@pytest.mark.parametrize("average", ["ema", "swa", "lawa"])
def test_a_network_that_keeps_a_computed_tensor_is_averaged(average):
    """It could not be copied when the last epoch was over, before that was saved."""
    model = Remembering(2, 2)
    run = trained(model=model, average=average)
    assert run.averaged.count
    assert model.last.requires_grad, "the training's own goes on with its graph"
    assert not run.averaged.model.last.requires_grad
    assert not run.averaged.model.all["outputs"][0].requires_grad


class Shifting(nn.Linear):
    """Normalizes its inputs in place, as some scripts do."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x)


class Shifted(nn.Linear):
    def forward(self, x):
        return super().forward(x - 0.5)


@pytest.mark.parametrize(
    ("method", "settings"), [("sgd", {}), ("sam", {}), ("k-sam", {}), ("mesa", {}), ("sam", {"m": 7})]
)
def test_a_network_that_writes_to_its_inputs_is_trained_and_tested_on_the_same(method, settings):
    """The second pass of a step would see them shifted twice, and each evaluation a test set shifted once more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        writing, plain = Shifting(2, 2), Shifted(2, 2)
        plain.load_state_dict(writing.state_dict())
    runs = [trained(method, model=model, **{"epochs": 3, **settings}) for model in (writing, plain)]
    assert torch.equal(*map(weights, runs))
    assert [row["test_loss"] for row in runs[0].history] == [row["test_loss"] for row in runs[1].history]


# -- contexts of the caller's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_an_autocast_region_around_a_training_changes_nothing(method, precision):
    """It would keep the weights of the first step cast; the settings name the precision."""
    alone = trained(method, precision=precision)
    with torch.autocast("cpu", torch.bfloat16):
        within = trained(method, precision=precision)
    assert torch.equal(weights(alone), weights(within))
    assert alone.history[-1]["test_loss"] == within.history[-1]["test_loss"]


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(InputError, match=r"within torch.inference_mode\(\)"):
        trained()


@pytest.mark.parametrize("data", ["toy2d:n=100", "many-classes:classes=3,n=200,n_test=50"])
def test_torchs_default_dtype_changes_nothing(data):
    options = {"model": "mlp:hidden=4", "data": data, "epochs": 1}
    plain = trained(**options)
    torch.set_default_dtype(torch.float64)
    try:
        wide = trained(**options)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert weights(wide).dtype == torch.float32
    assert torch.equal(weights(plain), weights(wide))


# -- numbers of the caller's -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(kind, tmp_path):
    """They were refused when the first checkpoint was written, an epoch of training later."""
    options = {"lr": kind(0.25), "epochs": np.int64(2), "batch_size": torch.tensor(50), "nesterov": np.bool_(True)}
    run = trained(METHODS["sam"](rho=kind(0.5)), out=tmp_path, **options)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["method"]["arguments"] == {"rho": 0.5}
    assert [config["settings"][name] for name in options] == [0.25, 2, 50, True]
    plain = {"lr": 0.25, "epochs": 2, "batch_size": 50, "nesterov": True}
    again = trained(METHODS["sam"](rho=0.5), out=tmp_path, resume=True, **plain)
    assert again.epochs_trained == 0
    assert torch.equal(weights(run), weights(again))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number, received 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number, received True"),
        ({"m": 2.5}, "m must be a whole number, received 2.5"),
        ({"seed": "1"}, "seed must be a whole number, received '1'"),
        ({"seed": 2**63}, "seed must be a whole number of 64 bits, received 9223372036854775808"),
        ({"lr": "0.1"}, "lr must be a number, received '0.1'"),
        ({"lr": torch.ones(2)}, "lr must be a number, received tensor"),
        ({"nesterov": "no"}, "nesterov must be True or False, received 'no'"),
        ({"schedule": 1}, "schedule must be text, received 1"),
        (
            {"data": (torch.zeros(4, 2), torch.zeros(4))},
            "data must be a data set's name or trainers.datasets.Data, rec",
        ),
        ({"model": lambda x: x}, "model must be a network's name or an nn.Module, received function"),
    ],
)
def test_settings_of_another_type_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        trained(out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sam", {"rho": "0.1"}, "rho must be a number, received '0.1'"),
        ("sam", {"rho": None}, "rho must be a number, received None"),
        ("looksam", {"k": 2.5}, "k must be a whole number, received 2.5"),
        ("g-rst", {"p": True}, "p must be a number, received True"),
        ("gnp", {"normalized": 2}, "normalized must be True or False, received 2"),
        ("asam", {"normalize": 3}, "normalize must be text, received 3"),
    ],
)
def test_hyperparameters_of_another_type_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        METHODS[name](**options)


@pytest.mark.parametrize("method", [METHODS["sam"], None, 3])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(InputError, match="a method's name or a method such as"):
        trained(method)


def test_an_evaluation_is_in_the_precision_that_it_names():
    model, data = network(), toy()
    outside = evaluate(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, data) == outside
        assert evaluate(model, data, "bfloat16") != outside
