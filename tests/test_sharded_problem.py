"""A problem whose network `fully_shard` has divided over two or three processes is that of one."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import landscape
from landscape import InputError, processes, random  # before a group is made: see the imports of `processes`
from landscape.ball import vectors
from landscape.curvature import operators
from landscape.curvature.products.differences import DifferenceProduct

VOCABULARY = 11


class Scale(nn.Module):
    """A normalization of the user's own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.gain * x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()


class LanguageModel(nn.Module):
    """Tied weights, a loss of its own, and labels that do not count."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6), Scale())
        self.head = nn.Linear(6, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, labels=None):
        logits = self.head(self.body(self.embedding(input_ids)))
        loss = nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))
        return {"loss": loss, "logits": logits}


class Bowl(nn.Module):
    """L = sum_i h_i w_i^2 / 2 with h_i the mean of x_i^2: everything is known in closed form."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(1, 2, 9, dtype=torch.float64))

    def forward(self, x):
        return x * self.w


def half_square(outputs, targets):
    return outputs.square().sum(1).mean() / 2


def bowl_batches():
    x = torch.arange(1, 37, dtype=torch.float64).reshape(4, 9) / 10
    return [(row[None], torch.zeros(1)) for row in x]


def network(kind, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # Rows of 7 and 2 over two and three processes: unequal shards, and one that is empty.
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)) if kind == "mlp" else LanguageModel()
        return model.to(dtype).eval()


def batches(kind, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    if kind == "mlp":
        return [(torch.randn(5, 5, generator=draw).to(dtype), torch.randint(2, (5,), generator=draw)) for _ in range(6)]
    ids = torch.randint(VOCABULARY, (18, 5), generator=draw)
    labels = ids.clone()
    labels[::3, 2:] = labels[1::4, 3:] = -100
    return [{"input_ids": ids[i : i + 3], "labels": labels[i : i + 3]} for i in range(0, 18, 3)]


def sharded(kind, dtype=torch.float64, mesh=None, **options):
    model = network(kind, dtype)
    layers = [m for m in model if isinstance(m, nn.Linear)] if kind == "mlp" else [model.body]
    for layer in layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def problem_of(kind, model, dtype=torch.float64):
    rank, world = processes.rank(), processes.world()
    own = batches(kind, dtype)[rank::world]
    loss = nn.CrossEntropyLoss() if kind == "mlp" else None
    return landscape.Problem(model, loss, own, distributed=world > 1)


def measured(kind, problem, whole=lambda v: v):
    """Numbers of every kind of pass and of vector."""
    v = random.normal(problem.weights, random.stream(3, "v"))
    w = problem.weights + 0.1 * v
    value, gradient = problem.loss_and_gradient(w)
    differences = DifferenceProduct(problem)
    matrix = "hessian" if problem.objective.by_model else "ggn"
    numbers = {
        "drawn": whole(v),
        "uniform": whole(random.uniform(problem.weights, random.stream(3, "u"))),
        "signs": whole(random.rademacher(problem.weights, random.stream(3, "s"))),
        "loss": torch.stack([problem.loss(), problem.loss(w), value]),
        "accuracy": torch.as_tensor(problem.evaluate(w).accuracy),
        "gradient": whole(gradient),
        "norms": torch.stack([vectors.norm(v, order) for order in (1, 2, 3, math.inf)]),
        "product": whole(problem.hvp(v, w)),
        "differences": whole(differences.product(v)),
        "their error": torch.tensor(differences.relative_error),
        "by layers": whole(operators.build(problem, matrix, w, scaling=("layerwise", "unscaled")) @ v),
        "scaled": whole(operators.build(problem, scaling=("filterwise", "scaled")) @ v),
    }
    if processes.world() < 3:  # what three processes could get wrong is in the passes and vectors
        numbers |= {
            "eigenvalues": landscape.top_eigenvalues(problem, k=2, tol=1e-8).values,
            "without a basis": landscape.top_eigenvalues(problem, k=2, basis=0).values,
            "by differences": landscape.top_eigenvalues(problem, k=2, hvp="differences").values,
            "trace": landscape.trace(problem, probes=12).value,
            "whole trace": landscape.trace(problem, probes=1000).value,
            "density": landscape.spectral_density(problem, probes=4, steps=6).nodes,
            "sharpness": [landscape.sam_sharpness(problem, rho=0.05, p=p).value for p in (1, 2, 3, math.inf)],
            "adaptive": [
                landscape.adaptive_sharpness(problem, rho=0.1, scaling=s).value for s in ("elementwise", "filterwise")
            ],
            "worst case": landscape.worst_case_sharpness(problem, rho=0.1, steps=6, restarts=2).value,
            "average": landscape.average_sharpness(problem, rho=0.1, draws=4).value,
            "from whole vectors": [
                landscape.top_eigenvalues(problem, k=1, start=whole(gradient)).values[0],
                landscape.critical_sharpness(problem, direction=whole(gradient)).value,
            ],
            "of two Problems": landscape.relative_critical_sharpness(
                problem, direction=problem.gradient(), other=problem_of(kind, problem.model)
            ).value,
            "critical": landscape.critical_sharpness(problem, direction=problem.gradient()).value,
            "surfaces": [
                landscape.surface(problem, directions=d, grid=3).loss
                for d in ("gaussian", "filter", "layer", "hessian")
            ],
        }
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in numbers.items()}


def one(kind):
    return measured(kind, problem_of(kind, network(kind)))


def in_group(rank, folder, world):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {}
    for kind in ("mlp", "language model"):
        model = sharded(kind)
        before = [p.to_local().clone() for p in model.parameters()]
        kept = [torch.ones_like(p) for p in model.parameters()]
        for parameter, gradient in zip(model.parameters(), kept, strict=True):
            parameter.grad = gradient
        with torch.no_grad():  # leaves the parameters gathered
            model(**batches(kind)[0]) if kind != "mlp" else model(batches(kind)[0][0])
        problem = problem_of(kind, model)
        found[kind] = measured(kind, problem, problem.whole)
        found[f"{kind}, gathered"] = {"loss": problem.gathered().loss(), "gradient": problem.gathered().gradient()}
        with torch.no_grad():
            model(**batches(kind)[0]) if kind != "mlp" else model(batches(kind)[0][0])
        assert torch.equal(
            problem.updated().weights.as_subclass(torch.Tensor), problem.weights.as_subclass(torch.Tensor)
        )
        assert all(torch.equal(p.to_local(), b) for p, b in zip(model.parameters(), before, strict=True))
        assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
    found |= variants() if world == 2 else {}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def variants():
    """Loss and gradient of other ways of sharding, and what is refused."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    options = {"kept": {"reshard_after_forward": False}, "hybrid": {"mesh": mesh}}
    found = {}
    for name, how in options.items():
        problem = problem_of("language model", sharded("language model", **how))
        found[name] = {"loss": problem.loss(), "gradient": problem.whole(problem.gradient())}
    narrow = problem_of("mlp", sharded("mlp", torch.float32), torch.float32)
    value, gradient = narrow.loss_and_gradient()
    found["float32"] = {"loss": value, "gradient": narrow.whole(gradient)}
    bowl = landscape.Problem(fully_shard(Bowl()), half_square, bowl_batches()[processes.rank() :: 2], distributed=True)
    found["bowl"] = {
        "eigenvalues": landscape.top_eigenvalues(bowl, k=2, tol=1e-6).values,
        "without a basis": landscape.top_eigenvalues(bowl, k=2, tol=1e-6, basis=0).values,
        "by differences": landscape.top_eigenvalues(bowl, k=2, tol=1e-6, hvp="differences").values,
        "trace": landscape.trace(bowl).value,
        "sharpness": landscape.sam_sharpness(bowl, rho=0.1).value,
        "critical": landscape.critical_sharpness(bowl, direction=bowl.gradient()).value,
    }
    found["bowl"] = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found["bowl"].items()}
    found["refused"] = [message(refuse) for refuse in refusals(narrow)]
    return found


def refusals(problem):
    part = fully_shard(network("mlp")[0])
    coarse = problem_of("mlp", sharded("mlp", mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)))
    uneven = batches("mlp")[: 1 + processes.rank()]
    cut = sharded("mlp")
    cut.set_requires_gradient_sync(False)
    return [
        lambda: landscape.Problem(sharded("mlp"), nn.CrossEntropyLoss(), batches("mlp")),
        lambda: landscape.Problem(sharded("mlp"), nn.CrossEntropyLoss(), uneven, distributed=True),
        lambda: problem_of("mlp", nn.Sequential(part, nn.Tanh(), nn.Linear(7, 2).double())),
        lambda: problem_of("mlp", cut),
        lambda: coarse.hvp(coarse.weights),
        lambda: landscape.top_eigenvalues(coarse, k=1, hvp="differences"),
        lambda: landscape.layer_eigenvalues(problem),
        lambda: problem.loss(torch.zeros(3)),
        lambda: problem.weights.sum(),
        lambda: torch.zeros(58).to(problem.weights),
        lambda: torch.save(problem.weights, io.BytesIO()),
        lambda: landscape.surface(problem, grid=3, file="never.h5"),
        lambda: landscape.top_eigenvalues(network_problem().gathered()),
        lambda: np.asarray(problem.weights),
        lambda: torch.einsum("i,i->", problem.weights, problem.weights),
        lambda: nn.functional.cosine_similarity(problem.weights, problem.weights, dim=0),
        lambda: float(problem.weights[0]),
        lambda: problem.with_batches(list(problem.batches)[: 1 + processes.rank()]),
        lambda: landscape.geodesic_sharpness(problem),
        lambda: of_layers(nn.Linear(5, 4), nn.BatchNorm1d(4), batch_norm="recalibrate"),
        lambda: of_layers(nn.Linear(5, 4), nn.BatchNorm1d(4)).with_batch_norm("recalibrate"),
        lambda: of_layers(Cached(5, 2)),
        lambda: of_layers(nn.Embedding(9, 3, max_norm=1.0)),
        lambda: penalized(lambda p: p.square().sum()),
        lambda: penalized(lambda p: p.full_tensor().square().sum()),
    ]


class Cached(nn.Linear):
    """Keeps what it computes from its weights."""

    kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.weight.exp()
        return nn.functional.linear(x, self.kept, self.bias)


def of_layers(*layers, **options):
    model = nn.Sequential(*layers).double()
    for layer in model:
        fully_shard(layer)
    return landscape.Problem(fully_shard(model), nn.CrossEntropyLoss(), batches("mlp"), distributed=True, **options)


def penalized(penalty):
    """Of processes whose batches weigh differently."""

    def objective(model, batch):
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return loss + sum(penalty(p) for p in model.parameters()), 1.0 + processes.rank()

    return landscape.Problem(sharded("mlp"), batches=batches("mlp"), objective=objective, distributed=True)


def network_problem():
    return landscape.Problem(network("mlp"), nn.CrossEntropyLoss(), batches("mlp"))


def message(refuse):
    with pytest.raises(InputError) as error:
        refuse()
    return str(error.value)


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    torch.multiprocessing.spawn(in_group, (folder, request.param), nprocs=request.param)
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone():
    return {kind: one(kind) for kind in ("mlp", "language model")}


@pytest.mark.parametrize("kind", ["mlp", "language model"])
def test_every_number_is_that_of_one_process(several, alone, kind):
    for name, found in several[kind].items():
        if name == "their error":
            continue
        expected = alone[kind][name]
        scale = float(expected.nan_to_num().abs().max())  # a dict shows no accuracy
        tolerance = 1e-8 if name in ("differences", "by differences", "without a basis") else 1e-10
        difference = float((found - expected).nan_to_num().abs().max())
        assert difference <= tolerance * scale, f"{name} is off by {difference / scale:.2g}"


@pytest.mark.parametrize("kind", ["mlp", "language model"])
def test_products_by_differences_are_off_by_no_more_than_they_say(several, kind):
    problem = problem_of(kind, network(kind))
    exact = problem.hvp(random.normal(problem.weights, random.stream(3, "v")))
    error = float((several[kind]["differences"] - exact).norm() / exact.norm())
    assert error <= 3 * float(several[kind]["their error"])


@pytest.mark.parametrize("kind", ["mlp", "language model"])
def test_the_gathered_problem_is_the_same(several, kind):
    expected = problem_of(kind, network(kind))
    found = several[f"{kind}, gathered"]
    assert float(found["loss"]) == pytest.approx(float(expected.loss()), rel=1e-12)
    torch.testing.assert_close(found["gradient"], expected.gradient(), rtol=1e-10, atol=1e-12)


def test_other_ways_of_sharding_are_the_same(several):
    if "kept" not in several:
        pytest.skip("tried with two processes")
    expected = problem_of("language model", network("language model"))
    for name in ("kept", "hybrid"):
        assert float(several[name]["loss"]) == pytest.approx(float(expected.loss()), rel=1e-12)
        torch.testing.assert_close(several[name]["gradient"], expected.gradient(), rtol=1e-10, atol=1e-12)
    expected = problem_of("mlp", network("mlp", torch.float32), torch.float32)
    assert float(several["float32"]["loss"]) == pytest.approx(float(expected.loss()), rel=1e-6)
    torch.testing.assert_close(several["float32"]["gradient"], expected.gradient(), rtol=0, atol=1e-6)


def test_a_bowl_has_the_numbers_of_its_formula(several):
    if "bowl" not in several:
        pytest.skip("tried with two processes")
    h = torch.cat([x for x, _ in bowl_batches()]).square().mean(0)
    w = torch.linspace(1, 2, 9, dtype=torch.float64)
    g = h * w
    step = 0.1 * g / g.norm()
    expected = {
        "trace": h.sum(),
        "sharpness": step @ g + step @ (h * step) / 2,
        "critical": g @ (h * g) / (g @ g),
        **dict.fromkeys(("eigenvalues", "without a basis", "by differences"), h.sort(descending=True).values[:2]),
    }
    for name, value in several["bowl"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=0, msg=name)


def test_what_is_refused_is_named(several):
    if "refused" not in several:
        pytest.skip("tried with two processes")
    words = [
        "give distributed=True",
        "give each as many",
        "apply fully_shard to the model itself",
        "held back or scaled",
        "fully_shard computes in torch.bfloat16",
        "central differences in bfloat16",
        "take problem.gathered()",
        "w must be a flat vector of shape (58,)",
        "sum of a vector that is spread over processes",
        "a whole vector of 58 entries is no part",
        "save problem.whole(vector)",
        "leave out file",
        "the parameters are whole already",
        "__array__ of a vector",
        "einsum of a vector",
        "cosine_similarity of a vector",
        "__float__ of a vector",
        "give each as many",
        "cannot be copied: take problem.gathered()",
        "would estimate other statistics in each process",
        "would estimate other statistics in each process",
        "keeps 'kept', computed from its weights",
        "has max_norm",
        "returned a DTensor",
        "outside of the module that gathers them",
    ]
    assert [w in r for w, r in zip(words, several["refused"], strict=True)] == [True] * len(words), several["refused"]
