"""Training on tokens: losses of single examples, padding, every method, and what is refused."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from text_cases import MODEL, random_text

from landscape.errors import InputError
from landscape.problem.problem import Problem
from trainers import METHODS, train
from trainers.datasets import load_data
from trainers.loop.evaluation import evaluate
from trainers.method import examples
from trainers.method.context import Context, Pass
from trainers.method.task import Task
from trainers.models import build_model

KINDS = ["class", "next tokens"]


def network(data, seed=0, dtype=torch.float64):
    name, _, rest = MODEL[data.kind[1]].partition(":")
    options = dict(pair.split("=") for pair in rest.split(","))
    options |= {"vocabulary": data.vocabulary} if data.kind[1] == "class" else {}
    return build_model(name, classes=data.classes, input_shape=data.input_shape, seed=seed, **options).to(dtype)


def by_hand(logits, targets):
    """Loss and share of right ones of each example, token by token."""
    losses, right = [], []
    for row, target in zip(logits, targets, strict=True):
        pairs = [(row[:, i], int(t)) for i, t in enumerate(target) if t != -100]
        losses.append(sum(torch.logsumexp(column, 0) - column[t] for column, t in pairs) / len(pairs))
        right.append(sum(int(column.argmax()) == t for column, t in pairs) / len(pairs))
    return torch.stack(losses), torch.tensor(right, dtype=torch.float64)


def test_the_loss_of_a_text_is_the_mean_over_the_tokens_that_count():
    data = random_text("next tokens")
    logits = network(data)(data.x_train).detach()
    losses, right = by_hand(logits, data.y_train)
    torch.testing.assert_close(examples.cross_entropy(logits, data.y_train), losses, rtol=1e-12, atol=0)
    torch.testing.assert_close(examples.hits(logits, data.y_train), right, rtol=1e-12, atol=0)
    done = Pass(losses.mean(), logits, data.y_train, losses)
    torch.testing.assert_close(done.hits(), right.sum(), rtol=1e-12, atol=0)


def test_a_text_without_a_token_that_counts_adds_nothing():
    targets = torch.tensor([[-100, -100], [1, -100]])
    losses = examples.cross_entropy(torch.zeros(2, 3, 2), targets)
    torch.testing.assert_close(losses, torch.tensor([0.0, math.log(3)]))


def test_losses_and_hits_of_classes_are_what_they_were():
    logits, targets = torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), torch.arange(7) % 4
    wanted = F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
    assert torch.equal(examples.cross_entropy(logits, targets, 0.1), wanted)
    assert examples.hits(logits, targets).tolist() == (logits.argmax(1) == targets).double().tolist()
    assert examples.hits(logits, logits.softmax(1)) is None
    assert examples.hits(logits[:, :1].squeeze(1), targets) is None


def test_test_loss_and_accuracy_are_means_over_texts():
    data = random_text("next tokens")
    model = network(data)
    losses, right = by_hand(model(data.x_test).detach(), data.y_test)
    assert evaluate(model, data) == pytest.approx((float(losses.mean()), float(right.mean())), rel=1e-12)


def test_evaluation_never_holds_more_logits_than_it_may(monkeypatch):
    from trainers.loop import evaluation

    data, sizes = random_text("next tokens"), []
    model = network(data)
    whole = evaluate(model, data)
    model.register_forward_hook(lambda m, inputs, outputs: sizes.append(outputs.numel()))
    monkeypatch.setattr(evaluation, "EVALUATION_OUTPUTS", 5 * 11 * 6)
    assert evaluate(model, data) == pytest.approx(whole, rel=1e-12)
    assert max(sizes) == 5 * 11 * 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "saf"])
def test_every_method_trains_on_tokens(method, kind):
    data = random_text(kind)
    run = train(method, data=data, model=MODEL[kind], epochs=3, batch_size=16, seed=1)
    row = run.history[-1]
    assert all(torch.isfinite(torch.tensor(v)) for v in row.values() if v is not None)
    assert 0 <= row["train_accuracy"] <= 1
    fresh = network(data, seed=1, dtype=torch.float32)
    assert any(not torch.equal(p, q) for p, q in zip(run.model.parameters(), fresh.parameters(), strict=True))


def test_saf_trains_classes_and_refuses_next_tokens_in_the_first_step(tmp_path):
    assert train("saf", data=random_text(), model=MODEL["class"], epochs=5, batch_size=16).history
    with pytest.raises(InputError, match=r"saf compares class probabilities: .* received \(16, 11, 6\)"):
        train("saf", data=random_text("next tokens"), model=MODEL["next tokens"], epochs=5, batch_size=16)


@pytest.mark.parametrize(("method", "options"), [("k-sam", {"k": 5}), ("esam", {"gamma": 0.25, "beta": 1.0})])
def test_the_texts_that_are_chosen_are_those_of_the_largest_mean_loss(method, options):
    data = random_text("next tokens")
    model = network(data)
    x, y = data.x_train[:20], data.y_train[:20]

    def gradient(net, rows):
        net.zero_grad()
        each = torch.stack([F.cross_entropy(net(x[i : i + 1]), y[i : i + 1], ignore_index=-100) for i in rows])
        each.mean().backward()
        return [p.grad.clone() for p in net.parameters()]

    def losses(net):
        with torch.no_grad():
            return by_hand(net(x), y)[0]

    ranked = losses(model)
    chosen = ranked.topk(5).indices if method == "k-sam" else torch.arange(20)
    first = gradient(copy.deepcopy(model), chosen)
    length = torch.stack([g.square().sum() for g in first]).sum().sqrt()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), first, strict=True):
            p += 0.05 * g / length
    if method == "esam":
        chosen = (losses(moved) - ranked).topk(5).indices
    wanted = gradient(moved, chosen)

    made = METHODS[method](rho=0.05, **options)
    task = Task(model, examples.cross_entropy)
    state = made.init(task, Context())
    made.gradient(task.step((x, y), Context()), state)
    for p, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-8, atol=1e-12)


def test_mesa_compares_texts_over_the_tokens_that_count():
    data = random_text("next tokens")
    model, x, y = network(data), data.x_train[:8], data.y_train[:8]
    made = METHODS["mesa"](strength=0.8, tau=2.0, decay=0.5, start=0.0)
    task = Task(model, examples.cross_entropy)
    state = made.init(task, Context())
    past = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(p.numel()))
    made.gradient(task.step((x, y), Context()), state)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    target, now = (F.log_softmax(net(x) / 2.0, dim=1) for net in (past, model))
    terms = []
    for i in range(8):
        counted = y[i] != -100
        kl = (target[i].exp() * (target[i] - now[i])).sum(0)[counted].mean()
        terms.append(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) + 0.8 * 4 * kl)
    wanted = torch.autograd.grad(torch.stack(terms).mean(), list(model.parameters()))
    for g, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-12)


def test_l_of_a_language_model_is_the_mean_over_all_tokens():
    data = random_text("next tokens")
    model = network(data).eval()
    whole = F.cross_entropy(model(data.x_train), data.y_train)
    for size in (48, 7):
        problem = Problem(model, F.cross_entropy, data.batches("train", size))
        torch.testing.assert_close(problem.loss(), whole.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (
            "class",
            "mlp",
            "mlp reads numbers and predicts class, random-text holds tokens and class: choose --model bert",
        ),
        ("class", "gpt-small", "choose --model bert-small"),
        ("next tokens", "bert-small", "choose --model gpt-small"),
    ],
)
def test_a_network_for_other_data_is_refused_with_one_that_fits(data, model, message):
    with pytest.raises(InputError, match=message):
        train("sgd", data=random_text(data), model=model, epochs=1)


def test_a_network_that_reads_tokens_refuses_numbers():
    with pytest.raises(InputError, match=r"bert-small reads tokens and predicts class, digits holds numbers and class"):
        train("sgd", data="digits", model="bert-small", epochs=1)


@pytest.mark.parametrize(("name", "model"), [("docstrings", "bert-small"), ("docstrings-lm", "gpt-small")])
def test_a_checkpoint_of_docstrings_is_analyzed_with_these_alone(name, model, tmp_path):
    from trainers.rebuild import subject

    text = f"{name}:length=8,train=64,test=16"
    try:
        load_data(name)
    except InputError as error:
        pytest.skip(str(error))
    train("adamw", data=text, model=f"{model}:dim=8,heads=2,depth=1", epochs=1, out=tmp_path)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    arguments = content["data"]["arguments"]
    assert "scipy==" in arguments["versions"]
    assert json.dumps(arguments)
    found = subject(tmp_path / "ckpt.pt", samples=32)
    assert found.problem.examples == 32
    content["data"]["arguments"]["sha256"] = "0" * 64
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other texts or tokens"):
        subject(tmp_path / "other.pt", samples=32)
