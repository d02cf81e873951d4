"""Batches are regrouped only where that leaves L(w) as it is."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from objective_cases import WEIGHTS, classifier, close, dense_hessian, divisions, examples, require_equal
from torch import nn

import landscape
from landscape import InputError, Problem

warnings.simplefilter("ignore", UserWarning)


@pytest.mark.parametrize("division", ["one", "unequal", "of five"])
def test_a_denominator_hidden_in_a_function_keeps_the_batches(division):
    def hidden(outputs, y):
        return F.cross_entropy(outputs, y, weight=WEIGHTS)

    x, y = examples()
    model, batches = classifier(), divisions(x, y)[division]
    value = sum(hidden(model(a), b) * len(a) for a, b in batches) / len(x)
    problem = Problem(model, hidden, batches)
    require_equal(problem, model, value)
    assert problem.undividable is not None
    assert len(batches) == 1 or "never regrouped" in problem.notes[0]
    for size in (3, 8):
        top = landscape.top_eigenvalues(problem, k=1, tol=1e-7, chunk_size=size).values[0]
        close(top, landscape.top_eigenvalues(problem, k=1, tol=1e-7).values[0], rtol=1e-6)
    with pytest.raises(InputError, match="another function"):
        problem.rebatched(3)
    with pytest.raises(InputError, match="regroup the examples"):
        landscape.sam_sharpness(problem, rho=0.05, m=4)
    with pytest.raises(InputError, match="no value per example"):
        problem.losses()


def test_an_additive_function_is_divided():
    x, y = examples()
    model = classifier()
    problem = Problem(model, lambda o, t: F.cross_entropy(o, t) + 0.1 * o.square().mean(), divisions(x, y)["unequal"])
    assert problem.undividable is None
    assert not problem.notes
    close(problem.rebatched(3).loss(), problem.loss())


def test_statistics_are_recalibrated_on_the_given_batches_however_these_are_divided():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = examples(17)
    for weight in (None, lambda m, b: (F.cross_entropy(m(b[0]), b[1]), len(b[1]))):
        batches = [(x[:9], y[:9]), (x[9:], y[9:])]
        loss = {"loss": F.cross_entropy} if weight is None else {"objective": weight}
        problem = Problem(model, batches=batches, batch_norm="recalibrate", **loss)
        tops = [landscape.top_eigenvalues(problem, k=1, tol=1e-8, chunk_size=c).values[0] for c in (None, 1, 4)]
        close(tops, [tops[0]] * 3, rtol=1e-6)
        v = torch.ones_like(problem.weights)
        close(landscape.curvature.operators.hessian(problem, chunk_size=3) @ v, problem.hvp(v))


def test_examples_of_weight_0_that_add_to_the_loss_by_their_smoothing():
    x, y = examples()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), label_smoothing=0.2)
    problem = Problem(classifier(), loss, [(x, y)])
    require_equal(problem, problem.model, loss(problem.model(x), y))
    assert problem.undividable is not None
    with pytest.raises(InputError, match="only classes of weight 0"):
        Problem(classifier(), loss, list(zip(x.split(1), y.split(1), strict=True)))


def test_a_coupled_loss_has_no_exact_trace_also_where_the_first_batch_holds_one_example():
    def coupled(outputs, y):
        return (F.one_hot(y, 3).to(outputs) - outputs).square().mean().sqrt()

    x, y = examples(9)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 3)).double()
    batches = [(x[:1], y[:1]), (x[1:], y[1:])]
    value = sum(coupled(model(a), b) * len(b) for a, b in batches) / 9
    trace = landscape.trace(Problem(model, coupled, batches), probes=200)
    assert not trace.exact
    assert trace.value == pytest.approx(float(dense_hessian(model, value)[1].trace()), rel=1e-8)
    for call in (landscape.trace, landscape.hessian_diagonal):
        with pytest.raises(InputError, match="couples the examples"):
            call(Problem(model, coupled, batches), method="exact")
    with pytest.raises(InputError, match="couples the examples"):
        landscape.top_eigenvalues(Problem(model, coupled, batches), matrix="ggn", k=1)


def test_parts_that_the_model_cannot_take_keep_the_batches():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier(inputs=2)

        def forward(self, x):
            return self.inner(x).mean(0)

    torch.manual_seed(1)
    model, x, y = TimeFirst(), torch.randn(5, 5, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) * (1 + 0.5 * (targets == 2).any())

    problem = Problem(model, loss, [(x, y)])
    assert problem.undividable is not None
    require_equal(problem, model, loss(model(x), y))


@pytest.mark.parametrize("kind", ["dense adjacency", "sparse adjacency", "a matrix of three beside batches of three"])
def test_tensors_that_have_as_many_rows_as_there_are_examples_by_accident(kind):
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = nn.Linear(3, 3)

        def forward(self, x, matrix):
            return matrix @ self.inner(x) if len(matrix) == len(x) and kind[0] != "a" else self.inner(x @ matrix)

    model, n = Convolution().double(), 3 if kind[0] == "a" else 10
    x, y = examples(n)
    matrix = torch.rand(n, n, dtype=torch.float64) if kind[0] != "a" else torch.rand(3, 3, dtype=torch.float64)
    matrix = matrix.to_sparse() if kind[0] == "s" else matrix
    for loss in (nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)):
        problem = Problem(model, loss, [((x, matrix), y)])
        require_equal(problem, model, F.cross_entropy(model(x, matrix), y))
        assert problem.provenance()["sample_sha256"]


def test_what_the_loss_adds_past_the_outputs_is_in_no_exact_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = examples(20)

    def decayed(outputs, targets):
        return F.cross_entropy(outputs, targets) + 0.1 * sum(p.square().sum() for p in model.parameters())

    problem = Problem(model, decayed, [(x[:9], y[:9]), (x[9:], y[9:])])
    _, hessian = dense_hessian(model, decayed(model(x), y))
    trace = landscape.trace(problem, probes=150)
    assert not trace.exact
    assert trace.value == pytest.approx(float(hessian.trace()), abs=5 * trace.stderr + 1e-6)
    for call in (
        lambda: landscape.trace(problem, method="exact"),
        lambda: landscape.top_eigenvalues(problem, matrix="ggn"),
    ):
        with pytest.raises(InputError, match="past the model's outputs"):
            call()


def test_a_small_term_beside_cross_entropy_is_in_the_exact_trace_of_a_saturated_network():
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)), examples(30)
    x = x.float()
    with torch.no_grad():
        model[2].weight.mul_(30)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) + 1e-4 * outputs.logsumexp(1).square().mean()

    trace = landscape.trace(Problem(model, loss, [(x, y)]))
    double = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    double.load_state_dict(model.state_dict())
    exact = float(dense_hessian(double, loss(double(x.double()), y))[1].trace())
    assert trace.exact
    assert trace.value == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_what_a_function_hides_shows_at_every_scale(scale):
    def hidden(outputs, targets):
        return scale * F.cross_entropy(outputs, targets, weight=WEIGHTS.to(outputs))

    x, y = examples()
    model = classifier().float()
    batches = list(zip(x.float().split(9), y.split(9), strict=True))
    problem = Problem(model, hidden, batches)
    assert problem.undividable is not None
    double = classifier()
    value = sum(hidden(double(a.double()), b) * len(a) for a, b in batches) / len(x)
    top = float(torch.linalg.eigvalsh(dense_hessian(double, value)[1])[-1])
    assert landscape.top_eigenvalues(problem, k=1).values[0] == pytest.approx(top, rel=2e-3)


def test_a_coupled_loss_that_is_0_at_the_weights_is_seen_elsewhere():
    def hard(outputs, targets):
        distances, same = torch.cdist(outputs, outputs), targets[:, None] == targets[None]
        far = torch.where(same, distances, 0.0).amax(1)
        near = torch.where(same, 1e9, distances).amin(1)
        return F.relu(far - near + 0.2).mean()

    y = torch.arange(12) % 3
    x = 10.0 * F.one_hot(y, 3).double() + 0.01 * examples(12)[0]
    model = nn.Linear(3, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
    problem = Problem(model, hard, [(x, y)])
    assert float(problem.loss()) == 0
    assert problem.undividable is not None


def test_what_computes_coarsely_keeps_its_batches():
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier().float()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x - x.mean(0)).float()

    x, y = examples()
    for loss in (nn.CrossEntropyLoss(), lambda o, t: F.cross_entropy(o, t)):
        problem = Problem(Autocast(), loss, [(x.float(), y)])
        assert "too coarsely" in problem.undividable
        assert landscape.top_eigenvalues(problem, k=1, tol=0.1, chunk_size=4).values[0] > 0


def test_a_model_that_couples_the_examples_of_a_batch_is_noted():
    class Centered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x - x.mean(0))

    x, y = examples()
    problem = Problem(Centered(), nn.CrossEntropyLoss(), [(x[:15], y[:15]), (x[15:], y[15:])])
    assert "these 2 batches" in problem.notes[0]
    assert not Problem(Centered(), nn.CrossEntropyLoss(), [(x, y)]).notes


def test_a_coupling_that_shows_in_large_batches_only_keeps_the_batches():
    class Crowded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x) * (1 + (len(x) > 40))

    (x, y), model = examples(120), Crowded()
    problem = Problem(model, F.cross_entropy, [(x[:60], y[:60]), (x[60:], y[60:])])
    value = (F.cross_entropy(model(x[:60]), y[:60]) + F.cross_entropy(model(x[60:]), y[60:])) / 2
    top = float(torch.linalg.eigvalsh(dense_hessian(model, value)[1])[-1])
    assert landscape.top_eigenvalues(problem, k=1, tol=1e-7, chunk_size=20).values[0] == pytest.approx(top, rel=1e-5)
    assert "these 2 batches" in problem.notes[0]


def test_single_examples_that_cannot_be_joined_leave_nothing_to_divide():
    def focal(outputs, targets):
        p = F.cross_entropy(outputs, targets, reduction="none").neg().exp()
        return ((1 - p) ** 2 * F.cross_entropy(outputs, targets, reduction="none")).mean()

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x.mean(1))

    torch.manual_seed(0)
    model, y = Pooled(), torch.tensor([0, 2])
    batches = [(torch.randn(1, n, 3, dtype=torch.float64), y[i : i + 1]) for i, n in enumerate((2, 5))]
    problem = Problem(model, focal, batches)
    assert problem.undividable is None
    assert not problem.notes
    close(problem.losses().mean(), problem.loss())


def test_a_single_example_leaves_nothing_to_divide():
    batch = (torch.randn(1, 3, dtype=torch.float64), torch.tensor([1]))
    problem = Problem(classifier(), lambda outputs, y: F.cross_entropy(outputs, y) ** 2, [batch])
    assert problem.undividable is None
    alone = landscape.sam_sharpness(problem, rho=0.05, m=1).value
    assert alone == landscape.sam_sharpness(problem, rho=0.05).value
