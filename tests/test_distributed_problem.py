"""A problem over two processes is that of one: class weights, ignored targets, batches that are ignored whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape
from landscape import processes  # before a group is made: see its imports

WEIGHTS = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
LOSSES = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "a function": F.cross_entropy,
    "smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    "one value per example": nn.CrossEntropyLoss(reduction="none"),
}
ROWS = [slice(0, 5), slice(5, 11), slice(11, 12), slice(12, 23)]


def measured(loss, rows, distributed):
    """Numbers of every kind of pass."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
        x, y, v = torch.randn(23, 4).double(), torch.randint(3, (23,)), torch.randn(51).double()
    y[::4], y[:6] = -100, -100  # nothing of the first batch counts
    problem = landscape.Problem(model, loss, [(x[r], y[r]) for r in rows], distributed=distributed)
    value, gradient = problem.loss_and_gradient()
    return {
        "loss": torch.tensor([float(problem.loss()), value]),
        "accuracy": torch.as_tensor(problem.evaluate().accuracy),
        "gradient": gradient,
        "product": problem.hvp(v),
        "eigenvalues": torch.as_tensor(landscape.top_eigenvalues(problem, k=2, tol=1e-8).values),
        "GGN": torch.as_tensor(landscape.top_eigenvalues(problem, k=1, tol=1e-8, matrix="ggn").values),
        "trace": torch.as_tensor(landscape.trace(problem).value),
        "sharpness": torch.as_tensor(landscape.sam_sharpness(problem, rho=0.05).value),
        "average": torch.as_tensor(landscape.average_sharpness(problem, rho=0.05, draws=4).value),
        "surface": torch.as_tensor(landscape.surface(problem, grid=3, radius=0.3).loss),
    }


def in_half_precision(rows, distributed):
    """Values and stated errors under autocast to bfloat16, and an average, whose losses are in float32 alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
        x, y = torch.randn(23, 4), torch.randint(3, (23,))
    y[::4], y[:6] = -100, -100
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.CrossEntropyLoss(weight=WEIGHTS.float())
        problem = landscape.Problem(model, loss, [(x[r], y[r]) for r in rows], distributed=distributed)
    sharpness, critical = landscape.sam_sharpness(problem, rho=0.05), landscape.critical_sharpness(problem)
    average = landscape.average_sharpness(problem, rho=0.05, draws=4)
    values = [sharpness.value, critical.value, average.value]
    return torch.tensor([values, [sharpness.error_bound[0], critical.error_bound, average.error_bound[0]]])


def shared(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    numbers = {name: measured(loss, ROWS[rank::2], True) for name, loss in LOSSES.items()}
    numbers["half precision"] = in_half_precision(ROWS[rank::2], True)
    torch.save(numbers, f"{folder}/{rank}.pt")
    assert processes.world() == 2
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(shared, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_have_the_numbers_of_one(name, two):
    alone = measured(LOSSES[name], ROWS, False)
    for numbers in two:
        for key, value in alone.items():
            torch.testing.assert_close(numbers[name][key], value, rtol=1e-9, atol=1e-9, msg=f"{name}: {key}")


def test_two_processes_have_the_numbers_of_one_in_half_precision_within_their_error(two):
    values, errors = in_half_precision(ROWS, False)
    assert torch.equal(two[0]["half precision"], two[1]["half precision"])
    found, stated = two[0]["half precision"]
    assert ((found - values).abs() <= errors).all()
    assert (stated <= 4 * errors).all()
    assert (errors <= 4 * stated).all()
