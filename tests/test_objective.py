"""L(w) on what people bring: any loss, any batches, any outputs, against the function called by hand."""

import dataclasses
import functools
import types
import warnings
from collections import UserDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import InputError, Problem

close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
warnings.simplefilter("ignore", UserWarning)


def dense_hessian(model, loss):
    """Row by row, by plain automatic differentiation of a loss that is a graph already."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(e, weights, retain_graph=True, materialize_grads=True) for e in flat]
    return torch.cat([g.detach().reshape(-1) for g in gradient]), torch.stack(
        [torch.cat([t.reshape(-1) for t in row]) for row in rows]
    )


def require_equal(problem, model, loss, curvature=True):
    """Every pass of the Problem is of this function."""
    gradient, hessian = dense_hessian(model, loss)
    value = loss.detach().double()
    close(problem.loss(), value)
    close(problem.evaluate().loss, value)
    close(problem.loss_and_gradient()[0], value)
    close(problem.gradient(), gradient)
    v = torch.linspace(-1, 1, len(gradient), dtype=gradient.dtype)
    close(problem.hvp(v), hessian @ v, rtol=1e-8)
    if curvature:
        top = landscape.top_eigenvalues(problem, k=1, tol=1e-7, which="LM")
        eigenvalues = torch.linalg.eigvalsh(hessian)
        close(abs(top.values[0]), float(eigenvalues.abs().max()), rtol=1e-6)
        trace = landscape.trace(problem, method="hutch++", probes=len(gradient))
        close(trace.value, float(hessian.trace()), rtol=1e-6, atol=1e-8 + 5 * trace.stderr)
        assert float(landscape.surface(problem, radius=0.05, grid=3).loss[1, 1]) == pytest.approx(
            float(value), rel=1e-9
        )


def classifier(inputs=3, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 5), nn.GELU(), nn.Linear(5, classes)).double()


def examples(n=40, classes=3, inputs=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, dtype=torch.float64, generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def divisions(x, y):
    order = y.argsort() if y.dim() == 1 else torch.arange(len(y))
    x, y = x[order], y[order]
    return {
        "one": [(x, y)],
        "unequal": [(x[:7], y[:7]), (x[7:], y[7:])],
        "of five": list(zip(x.split(5), y.split(5), strict=True)),
        "singles": list(zip(x.split(1), y.split(1), strict=True)),
    }


WEIGHTS = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
CLASS_LOSSES = {
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "class weights and smoothing": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
    "ignored class": nn.CrossEntropyLoss(ignore_index=0),
    "functional": functools.partial(F.cross_entropy, weight=WEIGHTS, ignore_index=2),
    "plain functional": F.cross_entropy,
}


@pytest.mark.parametrize("division", ["one", "unequal", "of five", "singles"])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_class_weights_and_ignored_targets_are_those_of_all_examples(name, division):
    x, y = examples()
    model, loss = classifier(), CLASS_LOSSES[name]
    problem = Problem(model, loss, divisions(x, y)[division])
    require_equal(problem, model, loss(model(x), y), curvature=division in ("one", "of five"))
    close(problem.losses().mean(), loss(model(x), y).detach())
    assert problem.rebatched(3).loss() == pytest.approx(float(problem.loss()), rel=1e-12)


def targets(kind, n=23, outputs=3):
    generator = torch.Generator().manual_seed(2)
    if kind == "numbers":
        return torch.randn(n, outputs, dtype=torch.float64, generator=generator)
    if kind == "bits":
        return torch.randint(2, (n, outputs), generator=generator).double()
    if kind == "signs":
        return torch.randint(2, (n, outputs), generator=generator).double() * 2 - 1
    if kind == "counts":
        return torch.randint(5, (n, outputs), generator=generator).double()
    if kind == "probabilities":
        return torch.rand(n, outputs, dtype=torch.float64, generator=generator).softmax(1)
    return torch.randint(outputs, (n,), generator=generator)


LOSSES = [
    (nn.MSELoss(), "numbers"),
    (nn.L1Loss(), "numbers"),
    (F.smooth_l1_loss, "numbers"),
    (nn.HuberLoss(delta=0.3), "numbers"),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), "bits"),
    (F.binary_cross_entropy_with_logits, "bits"),
    (nn.PoissonNLLLoss(), "counts"),
    (nn.SoftMarginLoss(), "signs"),
    (functools.partial(F.kl_div, reduction="batchmean"), "probabilities"),
    (nn.KLDivLoss(), "probabilities"),
    (nn.CrossEntropyLoss(), "probabilities"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "classes"),
    (nn.MultiMarginLoss(weight=WEIGHTS), "classes"),
    (F.multilabel_soft_margin_loss, "bits"),
]


@pytest.mark.parametrize("case", range(len(LOSSES)))
def test_every_loss_of_torch_is_that_of_all_examples(case):
    loss, kind = LOSSES[case]
    x, _ = examples(23)
    y, model = targets(kind), classifier()
    value = loss(model(x), y)
    for sizes in ((23,), (5, 11, 7)):
        problem = Problem(model, loss, list(zip(x.split(sizes), y.split(sizes), strict=True)))
        close(problem.loss(), value.detach())
        close(problem.losses().mean(), value.detach())
        assert problem.undividable is None


def test_batches_that_are_ignored_whole():
    images = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    maps = torch.randint(3, (6, 4, 4))
    maps[0], maps[1, :3] = 255, 255
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GELU(), nn.Conv2d(2, 3, 1)).double()
    loss = nn.CrossEntropyLoss(ignore_index=255)
    for size in (6, 4, 1):
        problem = Problem(model, loss, list(zip(images.split(size), maps.split(size), strict=True)))
        require_equal(problem, model, loss(model(images), maps), curvature=size != 4)
        close(problem.losses().mean(), loss(model(images), maps).detach())
    with pytest.raises(InputError, match="weights of all batches are 0"):
        Problem(model, loss, [(images, torch.full_like(maps, 255))])


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
    assert len(batches) == 1 or "never divided anew" in problem.notes[0]
    for size in (3, 8):
        top = landscape.top_eigenvalues(problem, k=1, tol=1e-7, chunk_size=size).values[0]
        close(top, landscape.top_eigenvalues(problem, k=1, tol=1e-7).values[0], rtol=1e-6)
    with pytest.raises(InputError, match="another function"):
        problem.rebatched(3)
    with pytest.raises(InputError, match="divide the examples anew"):
        landscape.sam_sharpness(problem, rho=0.05, m=4)
    with pytest.raises(InputError, match="no one value an example"):
        problem.losses()


def test_an_additive_function_is_divided():
    x, y = examples()
    model = classifier()
    problem = Problem(model, lambda o, t: F.cross_entropy(o, t) + 0.1 * o.square().mean(), divisions(x, y)["unequal"])
    assert problem.undividable is None
    assert not problem.notes
    close(problem.rebatched(3).loss(), problem.loss())


@pytest.mark.parametrize("weighted", [True, False])
def test_an_objective_takes_batches_whole(weighted):
    x, _ = examples()
    model = classifier(classes=3)

    def contrast(network, batch):
        a = F.normalize(network(batch), dim=1)
        loss = F.cross_entropy(a @ F.normalize(batch, dim=1).T, torch.arange(len(batch)))
        return (loss, len(batch)) if weighted else loss

    batches = list(x.split(15))
    losses, sizes = zip(*[(contrast(model, b), len(b)) for b in batches], strict=True)
    values = [pair[0] if weighted else pair for pair in losses]
    shares = sizes if weighted else [1] * len(sizes)
    value = sum(v * c for v, c in zip(values, shares, strict=True)) / sum(shares)
    problem = Problem(model, batches=batches, objective=contrast)
    require_equal(problem, model, value)
    assert "objective" in problem.provenance()["loss"]
    with pytest.raises(InputError, match="shows no outputs"):
        problem.outputs()


def test_weights_of_the_user():
    x, y = examples()
    model = classifier()
    batches = [{"x": x[:7], "y": y[:7]}, {"x": x[7:], "y": y[7:]}]

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets, weight=WEIGHTS)

    network = nn.Module()
    network.inner, network.forward = model, lambda x: model(x)
    problem = Problem(network, loss, batches, weight=lambda b: WEIGHTS[b["y"]].sum())
    require_equal(problem, model, F.cross_entropy(model(x), y, weight=WEIGHTS))


class Language(nn.Module):
    """Tokens to tokens; the loss of its own, over what counts."""

    def __init__(self, shifted, output="object", reduction="mean"):
        super().__init__()
        self.shifted, self.output, self.reduction = shifted, output, reduction
        self.embedding, self.out = nn.Embedding(7, 3), nn.Linear(3, 7)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.out(torch.tanh(self.embedding(input_ids).cumsum(1)))
        loss = None
        if labels is not None:
            a, b = (logits[:, :-1], labels[:, 1:]) if self.shifted else (logits, labels)
            loss = F.cross_entropy(a.flatten(0, 1), b.flatten())
        if self.output == "tuple":
            return logits, loss
        return (
            types.SimpleNamespace(logits=logits, loss=loss) if self.output == "object" else {"loss": loss, "x": logits}
        )


def sentences(padded=True):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 7, (11, 5), generator=generator)
    labels = ids.clone()
    if padded:
        for i, length in enumerate([5, 5, 5, 5, 4, 3, 2, 2, 5, 3, 2]):
            labels[i, length:] = -100
    return ids, labels


@pytest.mark.parametrize("output", ["object", "tuple", "dict"])
@pytest.mark.parametrize("shifted", [True, False])
def test_a_models_own_loss_is_exact_over_tokens(shifted, output):
    torch.manual_seed(0)
    model, (ids, labels) = Language(shifted, output).double(), sentences()
    whole = model(ids, labels)
    value = whole.loss if output == "object" else whole[1] if output == "tuple" else whole["loss"]
    for sizes in ((11,), (4, 4, 3), (1,) * 11):
        parts = zip(ids.split(sizes), labels.split(sizes), strict=True)
        problem = Problem(model, None, [{"input_ids": a, "labels": b} for a, b in parts])
        require_equal(problem, model, value, curvature=len(sizes) == 3)
        assert "labels that count" in problem.provenance()["weighing"]
        assert ("first" in problem.provenance()["weighing"]) == shifted


def test_sequences_of_several_lengths_without_padding_are_weighed_by_their_tokens():
    torch.manual_seed(0)
    model, (ids, _) = Language(True).double(), sentences(padded=False)
    batches = [{"input_ids": ids[:4], "labels": ids[:4]}, {"input_ids": ids[4:, :3], "labels": ids[4:, :3]}]
    losses = [model(b["input_ids"], b["labels"]).loss for b in batches]
    value = (losses[0] * 4 * 4 + losses[1] * 7 * 2) / (16 + 14)
    require_equal(Problem(model, None, batches), model, value)


def test_a_models_own_loss_of_another_denominator_keeps_its_batches():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x, labels):
            return types.SimpleNamespace(loss=F.cross_entropy(self.inner(x), labels, weight=WEIGHTS))

    x, y = examples()
    model = Own()
    parts = [{"x": a, "labels": b} for a, b in divisions(x, y)["of five"]]
    value = sum(model(**b).loss * len(b["x"]) for b in parts) / len(x)
    problem = Problem(model, None, parts)
    require_equal(problem, model, value)
    assert "never divided anew" in problem.notes[0]
    assert problem.provenance()["weighing"] == "examples"


# -- outputs and batches of other forms --------------------------------------------------------------------------------


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
        assert isinstance(landscape.MEASURES[name](problem), landscape.Result)
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


@pytest.mark.parametrize(
    ("model", "loss", "batch", "message"),
    [
        (lambda x: x, F.cross_entropy, None, "nn.Module is needed"),
        (nn.Linear, F.cross_entropy, None, "Linear is the class|the class Linear"),
        (classifier(), nn.CrossEntropyLoss, None, "loss is the class"),
        (classifier(), lambda o, t: 1.0, None, "float, no tensor"),
        (classifier(), lambda o, t: o, None, r"shape \(4, 3\) for 4 examples"),
        (classifier(), lambda o, t: {"a": o.sum()}, None, "dict, no tensor"),
        (classifier(), lambda o, t: o.argmax(), None, "torch.int64"),
        (classifier(), lambda o, t, u: o.mean(), None, "loss failed on batch 0"),
        (classifier(), lambda o, t: F.cross_entropy(o, t[:2]), None, "loss failed on batch 0"),
        (classifier(classes=1), F.cross_entropy, None, "single class is 0"),
        (classifier(classes=1), nn.MSELoss(), "numbers", "equal shapes"),
        (classifier(), F.cross_entropy, "labels", "from 0 to 19, the outputs have 3"),
        (classifier(), F.cross_entropy, "numbers", "cross-entropy needs class indices"),
        (classifier(), nn.CrossEntropyLoss(weight=-WEIGHTS), None, "negative or all zero"),
        (classifier(), nn.CrossEntropyLoss(weight=0 * WEIGHTS), None, "negative or all zero"),
        (classifier(), functools.partial(F.cross_entropy, reduction="sum"), None, "reduction='sum'"),
        (classifier(inputs=4), F.cross_entropy, None, "the model failed on batch 0"),
        (classifier(), None, None, "without a loss|returned loss|shape"),
    ],
    ids=range(18),
)
def test_what_cannot_be_is_refused_in_one_line(model, loss, batch, message):
    x, y = examples(4)
    y = {"numbers": x[:, 0], "labels": torch.tensor([0, 19, 1, 2]), None: y}[batch]
    with pytest.raises(InputError, match=message) as raised:
        Problem(model, loss, [(x, y)])
    assert "\n" not in str(raised.value)


def test_labels_beyond_the_outputs_in_a_later_batch():
    x, y = examples(8)
    later = y.clone()
    later[7] = 12
    with pytest.raises(InputError, match="from 0 to 12|to 12, the outputs have 3"):
        Problem(classifier(), F.cross_entropy, [(x[:4], later[:4]), (x[4:], later[4:])])


@pytest.mark.parametrize("weight", [-1.0, float("nan"), "a", torch.ones(2)], ids=range(4))
def test_weights_that_are_none(weight):
    x, y = examples(4)
    with pytest.raises(InputError, match="number"):
        Problem(classifier(), lambda o, t: o.mean(), [(x, y)], weight=lambda b: weight)
    with pytest.raises(InputError, match="number"):
        Problem(classifier(), batches=[(x, y)], objective=lambda m, b: (m(b[0]).mean(), weight))


def test_an_objective_whose_weight_changes_is_refused():
    x, y = examples(4)

    def moving(model, batch):
        return model(batch[0]).square().mean(), 1 + float(model[0].weight.sum().abs())

    problem = Problem(classifier(), batches=[(x, y)], objective=moving)
    with pytest.raises(InputError, match="must be the same at every w"):
        problem.loss(2 * problem.weights)


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), F.multilabel_margin_loss], ids=range(2))
def test_losses_without_a_second_derivative_are_named_by_every_measure_that_needs_one(loss):
    x, y = examples(12)
    y = y if isinstance(loss, nn.Module) else torch.full((12, 3), -1)
    problem = Problem(classifier(), loss, [(x, y)])
    for call in (lambda: landscape.trace(problem), lambda: landscape.top_eigenvalues(problem, k=1)):
        with pytest.raises(InputError, match="no second derivative") as raised:
            call()
        assert "\n" not in str(raised.value)


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


def test_a_forward_that_differentiates_without_asking_for_a_graph():
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.u = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad(self.u(x).sum(), x, create_graph=True)[0]

    model, x = Slope().double(), torch.linspace(-1, 1, 7, dtype=torch.float64).view(-1, 1)
    problem = Problem(model, F.mse_loss, [(x, torch.zeros_like(x))])
    close(problem.loss(), model(x).square().mean().detach())
    assert not problem.loss().requires_grad
    surface = landscape.surface(problem, radius=0.05, grid=3)
    assert float(surface.loss[1, 1]) == pytest.approx(float(problem.loss()), rel=1e-9)
    assert landscape.sam_sharpness(problem, rho=0.05).value > 0


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


def test_numpy_batches_and_columns_of_tables():
    x, y = examples(8)
    model = classifier()
    value = F.cross_entropy(model(x), y).detach()
    close(Problem(model, F.cross_entropy, [(x.numpy(), y.numpy())]).loss(), value)
    table = torch.stack([y, y], 1)
    problem = Problem(model, F.cross_entropy, [(x[i : i + 1], table[i : i + 1, 0]) for i in range(8)])
    close(problem.loss(), value)
    assert problem.provenance()["sample_sha256"]


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


# -- found by an attack ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("once", [True, False])
def test_a_loader_that_fills_one_buffer_again_and_again(once):
    x, y = examples(20)

    class Buffered:
        def __iter__(self):
            inputs, labels = torch.empty(5, 3, dtype=torch.float64), torch.empty(5, dtype=torch.long)
            for i in range(4):
                inputs.copy_(x[5 * i : 5 * i + 5])
                labels.copy_(y[5 * i : 5 * i + 5])
                yield inputs, labels

    model = classifier()
    problem = Problem(model, F.cross_entropy, iter(Buffered()) if once else Buffered())
    close(problem.loss(), F.cross_entropy(model(x), y).detach())


def test_targets_keep_their_precision_beside_half_weights():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1).bfloat16(), torch.randn(20, 4)
    targets = model(x.bfloat16()).float().detach() + 1e-3 * torch.randn(20, 1)

    def loss(outputs, t):
        return F.mse_loss(outputs.to(t.dtype), t)

    right = float(loss(model(x.bfloat16()), targets))
    for inputs in (x.bfloat16(), x):  # what a half network cannot take is cast, targets never
        assert float(Problem(model, loss, [(inputs, targets)]).loss()) == right


def test_a_frozen_half_backbone_takes_its_inputs_as_they_are():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Linear(3, 6).bfloat16().requires_grad_(False)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.backbone(x).float())

    model, (x, y) = Adapted(), examples()
    problem = Problem(model, F.cross_entropy, [(x.bfloat16(), y)])
    assert problem.dimension == 21
    assert float(problem.loss()) == float(F.cross_entropy(model(x.bfloat16()), y))


def test_inputs_that_the_model_writes_to_stay_as_they_are():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            return self.inner(x.sub_(0.5).div_(2))

    model, (x, y) = InPlace(), examples()
    before, value = x.clone(), F.cross_entropy(model.inner((x - 0.5) / 2), y)
    problem = Problem(model, F.cross_entropy, [(x, y)])
    require_equal(problem, model.inner, value)
    assert torch.equal(x, before)


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


def test_an_ignored_batch_of_another_length_beside_a_models_own_loss():
    torch.manual_seed(0)
    model, (ids, _) = Language(True).double(), sentences(padded=False)
    none = torch.full((4, 5), -100)
    some = ids[4:8].clone()
    some[1, 2:] = -100
    batches = [(ids[:4], none), (ids[4:8], some), (ids[8:, :3], ids[8:, :3])]
    losses = [model(*b).loss for b in batches[1:]]
    counts = [float((b[1][:, 1:] != -100).sum()) for b in batches[1:]]
    value = (losses[0] * counts[0] + losses[1] * counts[1]) / sum(counts)
    for form in ([{"input_ids": a, "labels": b} for a, b in batches], batches):  # tuples go to forward(x, labels) too
        problem = Problem(model, None, form)
        require_equal(problem, model, value)
        with pytest.raises(InputError, match="differ in shape"):
            problem.outputs()


def test_a_module_that_keeps_what_it_computed_from_its_weights_is_refused():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head, self.kept = nn.Linear(3, 3), nn.Linear(3, 3), None

        def forward(self, x):
            if self.kept is None:
                self.kept = F.normalize(self.head.weight, dim=1)
            return torch.tanh(self.inner(x)) @ self.kept.T

    model, (x, y) = Merged().double(), examples()
    with pytest.raises(InputError, match="keeps 'kept', computed from its weights"):
        Problem(model, F.cross_entropy, [(x, y)])
    assert model.kept is None


class Swish(torch.autograd.Function):
    """Right in its first derivative; the second is cut off, as the intermediate is kept past autograd."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.gate = torch.sigmoid(x)
        return x * ctx.gate

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ctx.gate * (1 + x * (1 - ctx.gate))


class Twice(Swish):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return g * gate * (1 + x * (1 - gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_custom_functions_with_a_wrong_second_derivative_are_refused(dtype):
    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            torch.manual_seed(0)
            self.function, self.first, self.second = function, nn.Linear(3, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.second(self.function.apply(self.first(x)))

    x, y = examples()
    for call in (lambda p: landscape.top_eigenvalues(p, k=1), lambda p: landscape.trace(p, method="hutch++")):
        with pytest.raises(InputError, match="Swish, a custom function, is wrong"):
            call(Problem(Net(Swish).to(dtype), F.cross_entropy, [(x.to(dtype), y)]))
    right = Problem(Net(Twice).to(dtype), F.cross_entropy, [(x.to(dtype), y)])
    assert landscape.top_eigenvalues(right, k=1).converged


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


def test_an_objective_with_an_inner_step_on_the_weights():
    x, y = examples()
    model = classifier()

    def maml(network, batch):
        named = dict(network.named_parameters())
        inner = F.cross_entropy(network(batch[0]), batch[1])
        gradients = torch.autograd.grad(inner, list(named.values()), create_graph=True)
        moved = {k: p - 0.5 * g for (k, p), g in zip(named.items(), gradients, strict=True)}
        return F.cross_entropy(torch.func.functional_call(network, moved, (batch[0],)), batch[1])

    problem = Problem(model, batches=[(x, y)], objective=maml)
    require_equal(problem, model, maml(model, (x, y)))


def test_accuracy_runs_over_the_targets_that_count():
    x, y = examples(20)
    model = classifier()
    masked = torch.where(torch.arange(20) < 9, -100, y)
    right = (model(x[9:]).argmax(1) == y[9:]).double().mean()
    problem = Problem(model, nn.CrossEntropyLoss(), [(x[:5], masked[:5]), (x[5:], masked[5:])])
    close(problem.evaluate().accuracy, right)
    close(landscape.surface(problem, radius=0.05, grid=3).accuracy[1, 1], float(right))


@pytest.mark.parametrize("layout", ["csr", "nested"])
def test_inputs_of_other_layouts_go_through_whole(layout):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = classifier()

        def forward(self, x):
            if x.is_nested:
                return torch.stack([self.inner(t).mean(0) for t in x.unbind()])
            return self.inner(x.to_dense())

    x, y = examples(6)
    inputs = x.to_sparse_csr() if layout == "csr" else torch.nested.nested_tensor([t.expand(2, 3) for t in x])
    model = Net()
    require_equal(Problem(model, F.cross_entropy, [(inputs, y)]), model, F.cross_entropy(model.inner(x), y))


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


def test_single_sequences_of_several_lengths_are_weighed_by_their_tokens():
    torch.manual_seed(0)
    model, (ids, _) = Language(True).double(), sentences(padded=False)
    rows = [ids[i : i + 1, :n] for i, n in enumerate((3, 5, 4))]
    losses = [model(r, r).loss * (r.shape[1] - 1) for r in rows]
    require_equal(Problem(model, None, [{"input_ids": r, "labels": r} for r in rows]), model, sum(losses) / 9)


def test_a_surface_refuses_to_divide_what_may_not_be_divided():
    x, y = examples()
    problem = Problem(classifier(), lambda o, t: F.cross_entropy(o, t, weight=WEIGHTS), [(x, y)])
    with pytest.raises(InputError, match="another function"):
        landscape.surface(problem, radius=0.05, grid=3, batch_size=3)


def test_functorch_inside_of_a_forward():
    class Jacobian(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.u = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

        def forward(self, x):
            return torch.func.vmap(torch.func.jacrev(lambda z: self.u(z)[0]))(x)

    model, x = Jacobian().double(), torch.linspace(-1, 1, 7, dtype=torch.float64).view(-1, 1)
    require_equal(Problem(model, F.mse_loss, [(x, torch.zeros_like(x))]), model, model(x).square().mean())


def test_inference_mode_around_a_problem_is_refused():
    x, y = examples()
    with torch.inference_mode(), pytest.raises(InputError, match="make it outside"):
        Problem(classifier(), F.cross_entropy, [(x, y)])


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


def test_batches_that_ask_for_gradients_themselves():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64).view(-1, 1).requires_grad_()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def objective(network, points):
        u = network(points)
        (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        return (slope + u).square().mean()

    problem = Problem(model, batches=[x], objective=objective)
    require_equal(problem, model, objective(model, x))
    assert x.grad is None


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
