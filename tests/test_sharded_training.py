"""FSDP2: trainings whose parameters are divided among 2 and 3 processes equal those of one, on plain tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sharded_cases import BASES, FOUR, ONE_EACH, RESUMED, STEPS, TRAININGS, VARIANTS, Network, by_hand, trained, whole
from test_distributed import torchrun

from landscape.errors import InputError
from trainers import METHODS
from trainers.method.sharded import _require_supported

EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64 sums in another order, over some steps


@pytest.fixture(scope="module")
def by(tmp_path_factory):
    """What so many processes make of everything, computed once."""
    made = {}

    def make(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"sharded-{processes}")
            torchrun("tests/sharded_cases.py", str(folder), processes=processes)
            made[processes] = torch.load(folder / "results.pt", weights_only=True)
        return made[processes]

    return make


@pytest.fixture(scope="module")
def one():
    """What one process makes of each training, computed once."""
    made = {}

    def make(training, variant=None, steps=STEPS):
        key = (training, variant, steps)
        if key not in made:
            made[key] = whole(trained(training, None, variant, steps=steps)[0])
        return made[key]

    return make


@pytest.mark.parametrize(
    ("processes", "training"), [*((2, name) for name in TRAININGS), *((3, name) for name in ONE_EACH)]
)
def test_processes_equal_one(processes, training, by, one):
    torch.testing.assert_close(by(processes)[training], one(training), **EXACT)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_equal_one_whatever_lies_gathered(processes, variant, by, one):
    torch.testing.assert_close(by(processes)[variant], one("sam", variant), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("variant", FOUR)
def test_four_processes_equal_one(variant, by, one):
    torch.testing.assert_close(by(4)[variant], one("sam", variant), **EXACT)


def test_each_training_acts(one):
    """Within these steps: a norm that is wrong would be seen."""
    for training, (method, _, base) in TRAININGS.items():
        if METHODS[method].base is None and method != "sgd":
            difference = one(training)["embedding.weight"] - one(base)["embedding.weight"]
            assert difference.abs().max() > 1e-5, training


@pytest.mark.parametrize("training", ["sam", "asam everywhere"])
def test_the_steps_written_by_hand(training, by):
    """SAM's and ASAM's formulas with plain tensors, the weights looked up from whole gradients."""
    adaptive, options = training != "sam", TRAININGS[training][1]
    model = Network()
    expected = by_hand(model, BASES["sgd"](model.parameters()), adaptive=adaptive, rho=options.get("rho", 0.5))
    torch.testing.assert_close(by(2)[training], expected, **EXACT)


def test_passes_in_half_precision(by):
    """Weights, gradients and norms are float32 (float64) all the same."""
    sam, expected, sgd = by(2)["half precision"]
    torch.testing.assert_close(sam, expected, rtol=1e-5, atol=1e-7)
    assert max((sam[n] - sgd[n]).abs().max() for n in sam) > 1e-3


@pytest.mark.parametrize("by_shards", [True, False])
@pytest.mark.parametrize("training", RESUMED)
def test_resumed_trainings_equal_uninterrupted_ones(training, by_shards, by, one):
    torch.testing.assert_close(by(2)[f"{training} resumed {by_shards}"], one(training, steps=6), **EXACT)


REFUSED = {
    **{
        name: f"{name} does not train a sharded model (fully_shard), it looks at the batch itself: use Distributed"
        for name in ("esam", "functional-sam", "k-sam", "mesa", "saf", "ssam", "subset-sam", "xsam")
    },
    "flat-lora": "flat-lora does not train a sharded model (fully_shard), it draws noise by the rows",
    "one each": "synchronized=False is one perturbation a process",
    "muon": "Muon orthogonalizes whole matrices",
    "task": "train it in a loop of your own by trainers.MethodOptimizer with a closure",
    "in part": "the parameter scale is whole and others are sharded: apply fully_shard to the model itself",
    "tensor parallel": "the parameters are DTensors that fully_shard has not made",
    "fsdp1": "FullyShardedDataParallel (FSDP1), whose flat parameters nothing else knows: use torch.distributed",
    "not summed after": "wait to be summed over the processes after the closure",
    "not summed before": "wait to be summed over the processes before the closure",
    "not last": "set_is_last_backward(False) is in force",
    "not cleared": "the closure does not clear them",
    "not cleared later": "the closure does not clear them",
    "train": "train it in a loop of your own by trainers.MethodOptimizer with a closure",
    "bare state": "this state is of a bare optimizer, not of sam (torch.distributed.checkpoint leaves the method's out",
    "too late": "build it from model.parameters() before the first pass, which leaves gathered ones behind",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, by):
    assert REFUSED[name] in by(2)["said"][name]
    assert "\n" not in by(2)["said"][name]


def test_offloaded_parameters_are_refused():
    """A machine without an accelerator has none: a stand-in for the parameter of one."""
    mesh = SimpleNamespace(device_type="cuda", size=lambda: 1)
    parameter = SimpleNamespace(device_mesh=mesh, device=torch.device("cpu"), placements=())
    with pytest.raises(InputError, match="the parameter w is offloaded to the cpu: call fully_shard without offload"):
        _require_supported("w", parameter, parameter)


def test_all_methods_are_trained_or_refused(by):
    assert {method for method, *_ in TRAININGS.values()} | {*by(2)["said"]} >= {*METHODS}
