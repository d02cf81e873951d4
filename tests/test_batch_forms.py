"""Outputs and batches of other forms than tensors and pairs, against the function called by hand."""

import dataclasses
import types
import warnings
from collections import UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from cases import measured
from objective_cases import (
    classifier,
    close,
    examples,
    require_equal,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import InputError, Problem

warnings.simplefilter("ignore", UserWarning)


@dataclasses.dataclass
class Answer:
    scores: torch.Tensor
    features: torch.Tensor


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.inner, self.head = form, nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        features = torch.tanh(self.inner(x))
        scores = self.head(features)
        return {
            "tuple": (scores, features),
            "dict": {"features": features, "scores": scores},
            "dataclass": Answer(scores, features),
        }[self.form]


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_loss_gets_what_the_model_returned(form, n):
    def loss(outputs, y):
        if form == "tuple":
            scores, features = outputs
        else:
            parts = outputs if form == "dict" else vars(outputs)
            scores, features = parts["scores"], parts["features"]
        return F.cross_entropy(scores, y) + 0.1 * features.square().mean()

    torch.manual_seed(0)
    model, (x, y) = Several(form).double(), examples(n)
    require_equal(Problem(model, loss, [(x, y)]), model, loss(model(x), y), curvature=n == 17)
    with pytest.raises(InputError, match="one of torch's losses needs a tensor"):
        Problem(model, nn.CrossEntropyLoss(), [(x, y)])


def test_logits_of_an_output_stand_for_it_where_the_loss_cannot_take_it_whole():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return types.SimpleNamespace(logits=self.inner(x), loss=None)

    model, (x, y) = Wrapped(), examples()
    for loss in (
        nn.CrossEntropyLoss(),
        lambda o, t: F.cross_entropy(o * 1.0, t),
        lambda o, t: F.cross_entropy(o.logits, t),
    ):
        close(Problem(model, loss, [(x, y)]).loss(), F.cross_entropy(model.inner(x), y).detach())


class Items:
    """A batch of a type of its own, as graph libraries have."""

    def __init__(self, x, edges, y):
        self.x, self.edges, self.y = x, edges, y

    def to(self, device):
        return Items(self.x.to(device), self.edges.to(device), self.y.to(device))


Named = namedtuple("Named", ["y", "x"])


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x, edges=None):
        if isinstance(x, Items):
            x, edges = x.x, x.edges
        if isinstance(x, dict):
            x, edges = x["x"], x["edges"]
        return torch.tanh(self.inner(x)).index_add(0, edges[1], x[edges[0]])


@pytest.mark.parametrize("form", ["tuple", "dict", "object", "list"])
def test_a_graph_goes_through_whole(form):
    torch.manual_seed(0)
    model, (x, y) = Graph().double(), examples(9)
    edges = torch.randint(9, (2, 20))
    batch = {
        "tuple": ((x, edges), y),
        "dict": {"x": x, "edges": edges, "y": y},
        "object": Items(x, edges, y),
        "list": [[x, edges], y],
    }[form]
    problem = Problem(model, nn.CrossEntropyLoss(), [batch])
    require_equal(problem, model, F.cross_entropy(model(x, edges), y))
    for name in landscape.MEASURES:
        assert isinstance(measured(name, problem), landscape.Result)
    assert problem.undividable is not None


def test_named_tuples_lists_of_targets_packed_and_time_first_sequences():
    x, y = examples(6)
    model = classifier()
    close(Problem(model, F.cross_entropy, [Named(y, x)]).loss(), F.cross_entropy(model(x), y).detach())

    def boxes(outputs, targets):
        return torch.stack(
            [(o - t["box"].mean(0)).square().mean() for o, t in zip(outputs, targets, strict=True)]
        ).mean()

    found = [{"box": torch.randn(i % 3 + 1, 3, dtype=torch.float64)} for i in range(6)]
    detection = Problem(model, boxes, [(x, found)])
    assert detection.examples == 6
    require_equal(detection, model, boxes(model(x), found))

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x).mean(0)

    times, labels, network = torch.randn(7, 5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]), TimeFirst()
    problem = Problem(network, F.cross_entropy, [(times, labels)])
    assert problem.examples == 5
    require_equal(problem, network, F.cross_entropy(network(times), labels))

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = nn.RNN(3, 2, batch_first=True), nn.Linear(2, 3)

        def forward(self, sequences):
            return self.out(self.cell(sequences)[1][0])

    torch.manual_seed(0)
    network = Packed().double()
    packed = nn.utils.rnn.pack_padded_sequence(times.transpose(0, 1), torch.tensor([7, 5, 5, 3, 1]), batch_first=True)
    require_equal(
        Problem(network, F.cross_entropy, [(packed, labels)]), network, F.cross_entropy(network(packed), labels)
    )


def test_one_argument_or_several():
    class TakesDict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, batch):
            return self.inner(batch["x"])

    class TakesList(TakesDict):
        def forward(self, images):
            return self.inner(torch.stack(images))

    x, y = examples()
    value = F.cross_entropy(TakesDict()({"x": x}), y).detach()
    for batch in (({"x": x}, y), {"x": x, "labels": y}):
        close(Problem(TakesDict(), F.cross_entropy, [batch]).loss(), value)
    images = list(x)
    detection = Problem(TakesList(), lambda o, t: F.cross_entropy(o, torch.stack(t)), [(images, list(y))])
    close(detection.loss(), value)


def test_datasets_and_what_is_confused_with_batches():
    x, y = examples(17, inputs=4)
    model, loss = classifier(inputs=4), nn.CrossEntropyLoss()
    value = loss(model(x), y).detach()
    for data in (TensorDataset(x, y), DataLoader(TensorDataset(x, y), batch_size=4), [(x, y)], iter([(x, y)])):
        problem = Problem(model, loss, data)
        assert problem.examples == 17
        close(problem.loss(), value)
    for wrong, message in (
        ((x, y), r"give \[\(x, y\)\]"),
        ([x, y], "element|class indices|probabilities"),
        (list(TensorDataset(x, y)), "one example"),
        (x, r"give \[batch\]"),
        (7, "iterable of batches"),
        ([(x, "label")], "needs a tensor"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            Problem(model, loss, wrong)
        assert "\n" not in str(raised.value)


def test_numpy_batches_and_columns_of_tables():
    x, y = examples(8)
    model = classifier()
    value = F.cross_entropy(model(x), y).detach()
    close(Problem(model, F.cross_entropy, [(x.numpy(), y.numpy())]).loss(), value)
    table = torch.stack([y, y], 1)
    problem = Problem(model, F.cross_entropy, [(x[i : i + 1], table[i : i + 1, 0]) for i in range(8)])
    close(problem.loss(), value)
    assert problem.provenance()["sample_sha256"]


def test_an_objective_may_take_its_batch_apart():
    x, y = examples(8)
    model = classifier()

    def objective(network, batch):
        labels = batch.pop("labels")
        return F.cross_entropy(network(**batch), labels)

    network = nn.Module()
    network.inner, network.forward = model, lambda x: model(x)
    problem = Problem(network, batches=[{"x": x, "labels": y}], objective=objective)
    for _ in range(2):
        close(problem.loss(), F.cross_entropy(model(x), y).detach())


def test_batches_that_differ_in_structure_are_never_joined():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x, z, scale=1.0):
            return torch.tanh(self.a(x)) + scale * self.b(z).sin()

    (x, y), z = examples(20), torch.randn(20, 3, dtype=torch.float64)
    model, parts = Two().double(), (slice(0, 10), slice(10, 20))
    one, two = ({"x": x[p], "z": z[p], "labels": y[p]} for p in parts)
    turned = {k: two[k] for k in ("z", "labels", "x")}
    for batches, scales in (([one, turned], (1, 1)), ([one, {**two, "scale": 7.0}], (1, 7))):
        losses = [F.cross_entropy(model(x[p], z[p], s), y[p]) for p, s in zip(parts, scales, strict=True)]
        require_equal(Problem(model, F.cross_entropy, batches), model, sum(losses) / 2)


class Encoding(UserDict):
    """A mapping with attributes and `.to`, as tokenizers return it."""

    def __getattr__(self, name):
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def to(self, device):
        return Encoding({k: v.to(device) for k, v in self.data.items()})


def test_an_objective_gets_its_batch_as_the_loader_gave_it():
    x, y = examples()
    model = classifier()

    def objective(network, batch):
        moved = batch.to("cpu")
        return F.cross_entropy(network(moved.x), batch.y)

    problem = Problem(model, batches=[Encoding({"x": x, "y": y})], objective=objective)
    require_equal(problem, model, F.cross_entropy(model(x), y))
    close(Problem(model, F.cross_entropy, [(x, y)]).loss(), problem.loss())
