"""Problem against a hand-written loop: loss (bar 1.05x) and gradient (bar 1.1x), of an image and of a language model.

ResNet-20 over 1,000 images in batches of 128; a causal transformer (4 layers of width 128, 1.1 million parameters) over
256 padded sequences of 64 tokens in batches of 32, its loss the mean over the tokens that count. Both arms run without
torch's inference fast paths, the loops with the weights that make their mean exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from language import GPT
from torch import Tensor, nn

from landscape import Problem
from trainers.models import build_model

Case = tuple[nn.Module, Any, list[Any], Callable[[Any], Tensor], list[float]]


def images() -> Case:
    """Model, loss for Problem, batches, the loss of a batch, the weights of the batches."""
    model = build_model("resnet20", classes=10, input_shape=(3, 32, 32)).eval()
    x, y = torch.randn(1000, 3, 32, 32), torch.randint(0, 10, (1000,))
    batches = list(zip(x.split(128), y.split(128), strict=True))
    loss = nn.CrossEntropyLoss()
    return model, loss, batches, lambda b: loss(model(b[0]), b[1]), [float(len(b[1])) for b in batches]


def text() -> Case:
    """The same of the causal language model."""
    model = GPT(words=1000, width=128, layers=4, heads=4, tokens=64, tied=False).eval()
    ids, lengths = torch.randint(1, 1000, (256, 64)), torch.randint(8, 65, (256, 1))
    labels = torch.where(torch.arange(64) < lengths, ids, -100)
    pairs = zip(ids.split(32), labels.split(32), strict=True)
    batches = [{"input_ids": a, "labels": b} for a, b in pairs]
    weights = [float((b["labels"][:, 1:] != -100).sum()) for b in batches]
    return model, None, batches, lambda b: model(**b).loss, weights


def row(name: str, case: Case) -> list[str]:
    """Ratios of one case."""
    model, loss, batches, of_batch, weights = case
    problem, total = Problem(model, loss, batches), sum(weights)
    assert problem.weight == total

    def bare_loss() -> float:
        weighed = 0.0
        with torch.no_grad():
            for batch, weight in zip(batches, weights, strict=True):
                weighed = weighed + of_batch(batch) * weight
        return float(weighed) / total

    def bare_gradient() -> list[Tensor | None]:
        model.zero_grad()
        for batch, weight in zip(batches, weights, strict=True):
            (of_batch(batch) * (weight / total)).backward()
        return [p.grad for p in model.parameters()]

    arms = {
        "bare loss": bare_loss,
        "problem.loss": lambda: float(problem.loss()),
        "bare gradient": bare_gradient,
        "problem.gradient": problem.gradient,
    }
    seconds = interleaved(arms, rounds=7, clock=time.process_time)
    pairs = (("problem.loss", "bare loss"), ("problem.gradient", "bare gradient"))
    return [name, *(ratio(seconds, arm, base) for arm, base in pairs)]


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    print(machine())
    rows = [row("ResNet-20, 1,000 images", images()), row("causal LM, 256 padded sequences", text())]
    print(table(rows, ["CPU seconds", "loss / bare", "gradient / bare"]))


if __name__ == "__main__":
    main()
