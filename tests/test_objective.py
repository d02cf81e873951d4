"""L(w) of any loss, over batches of any size, against the function called by hand."""

import functools
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from objective_cases import WEIGHTS, Language, classifier, close, divisions, examples, require_equal, sentences
from torch import nn

import landscape
from landscape import InputError, Problem
from landscape.problem.losses import TorchLoss

warnings.simplefilter("ignore", UserWarning)


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
    assert "never regrouped" in problem.notes[0]
    assert problem.provenance()["weighing"] == "examples"


@pytest.mark.parametrize("off", [1.01, 1 + 1e-6])
def test_a_denominator_that_is_not_the_one_of_torch_is_noticed(monkeypatch, off):
    own = TorchLoss.denominator
    x, y = examples()
    weighed = nn.CrossEntropyLoss(weight=WEIGHTS)
    assert Problem(classifier(), weighed, divisions(x, y)["of five"]).provenance()["weighing"] != "examples"
    monkeypatch.setattr(TorchLoss, "denominator", lambda self, target: off * own(self, target))
    problem = Problem(classifier(), weighed, divisions(x, y)["of five"])
    assert problem.provenance()["weighing"] == "examples"
    assert "never regrouped" in problem.notes[0]


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


def test_accuracy_runs_over_the_targets_that_count():
    x, y = examples(20)
    model = classifier()
    masked = torch.where(torch.arange(20) < 9, -100, y)
    right = (model(x[9:]).argmax(1) == y[9:]).double().mean()
    problem = Problem(model, nn.CrossEntropyLoss(), [(x[:5], masked[:5]), (x[5:], masked[5:])])
    close(problem.evaluate().accuracy, right)
    close(landscape.surface(problem, radius=0.05, grid=3).accuracy[1, 1], float(right))


def test_accuracy_of_a_function_that_ignores_negative_labels():
    x, y = examples(20)
    model = classifier()
    masked = torch.where(torch.arange(20) % 3 == 0, -1, y)
    counts = masked >= 0
    problem = Problem(model, lambda o, t: F.cross_entropy(o, t, ignore_index=-1), [(x, masked)])
    right = (model(x).argmax(1) == y)[counts].double().mean()
    close(problem.evaluate().accuracy, right)
    close(landscape.surface(problem, radius=0.05, grid=3).accuracy[1, 1], float(right))


def test_single_sequences_of_several_lengths_are_weighed_by_their_tokens():
    torch.manual_seed(0)
    model, (ids, _) = Language(True).double(), sentences(padded=False)
    rows = [ids[i : i + 1, :n] for i, n in enumerate((3, 5, 4))]
    losses = [model(r, r).loss * (r.shape[1] - 1) for r in rows]
    require_equal(Problem(model, None, [{"input_ids": r, "labels": r} for r in rows]), model, sum(losses) / 9)
