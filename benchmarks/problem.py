"""Problem against a hand-written loop: loss (bar 1.05x) and gradient (bar 1.1x), of an image and of a language model.

ResNet-20 over 1,000 images in batches of 128; a causal transformer (4 layers of width 128, 1.1 million parameters) over
256 padded sequences of 64 tokens in batches of 32, its loss the mean over the tokens that count. Both arms run without
torch's inference fast paths, the loops with the weights that make their mean exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape import Problem
from trainers.models import build_model


class Language(nn.Module):
    """A pre-norm causal transformer that returns its loss, shifted, over labels that are not -100."""

    def __init__(self, words: int = 1000, width: int = 128, layers: int = 4, tokens: int = 64) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(words, width), nn.Parameter(0.02 * torch.randn(tokens, width))
        self.inner = nn.ModuleList([_Layer(width) for _ in range(layers)])
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        """Logits and loss."""
        x = self.embedding(input_ids) + self.position
        for layer in self.inner:
            x = layer(x)
        logits = self.out(self.norm(x))
        return SimpleNamespace(
            logits=logits, loss=F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        )


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.first, self.second = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = (z.view(n, t, self.heads, -1).transpose(1, 2) for z in self.qkv(self.first(x)).chunk(3, dim=-1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d))
        return x + self.wide(self.second(x))


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
    model = Language().eval()
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
