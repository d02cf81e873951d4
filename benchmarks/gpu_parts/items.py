"""What part b measures: one table an item, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import methods
import torch
from language import GPT, Llama

from gpu_parts import models, products, steps, surfaces
from gpu_parts.measuring import Rows
from gpu_parts.sizes import Sizes
from trainers import METHODS


@dataclass(frozen=True)
class Item:
    """A table that is measured at once.

    Attributes:
        title: of the table.
        goal: what was aimed at, and what the columns are.
        header: of its columns.
        seconds: how long it takes on a GPU of the H100's class, roughly.
        measure: makes the rows.
    """

    title: str
    goal: str
    header: Sequence[str]
    seconds: float
    measure: Callable[[Sizes, torch.device], Rows]


PRODUCTS = ["network", "by hand, ms", "`hvp` / by hand", "graph kept / by hand", "compiled / by hand", "compiling, s"]
PRODUCTS += ["difference", "peak by hand, GB", "peak of `hvp`, GB"]
STEP = [*methods.HEADER, "peak memory, GB"]
LANGUAGE = ["what", "seconds", "units", "a unit, of one by hand", "peak memory, vectors of float32"]
IN_UNITS = (
    "Units: forward passes, points, products; each against the one by hand above. Random weights, 4 x 512 tokens."
)
OTHERS = ["sgd", *(name for name in METHODS if name not in methods.BARRED)]

ITEMS = {
    "accuracy": Item(
        "Accuracy of float32 on the device",
        "Relative errors against float64 on the same device, ResNet-18 on 256 images.",
        ["arithmetic", "loss", "gradient", "Hessian-vector product", "largest eigenvalue"],
        25,
        products.accuracy,
    ),
    "products": Item(
        "Hessian-vector products of a ResNet",
        "Goal: at most 1.05 of a hand-written double backward, 0.75 once graphs are kept. Compiled: the same double "
        "backward traced and compiled as a whole, its seconds of compilation and its relative difference beside.",
        PRODUCTS,
        80,
        products.products("convolutions"),
    ),
    "surface": Item(
        "A point of a surface: ResNet-18 over 10,000 images",
        "Goal: at least 95% of the best bare bfloat16 forward. Bare arms count the accuracy too, as ours do; "
        '"again" is one of them once more: what two runs of the same arm differ by.',
        [
            "arm, examples a batch",
            "ms a point",
            "images/s",
            "% of the best autocast",
            "% of the best in bfloat16 weights",
        ],
        40,
        surfaces.surface,
    ),
    "steps": Item(
        "A step of each method: ResNet-18, batch 512, 32x32, bfloat16",
        "Goal: at most 1.03 of the method's own bare passes. Poster: images/s in percent of SGD's, on ImageNet.",
        STEP,
        50,
        steps.steps("network", "side", "batch", methods.BARRED),
    ),
    "toy surface": Item(
        "A 51x51 surface of the Table II network",
        "Goal: below 1 s. Directions, checks and all points.",
        ["device", "points", "first call, s", "later calls, s"],
        15,
        surfaces.toy_surface,
    ),
    "products of an MLP": Item(
        "Hessian-vector products of a multilayer perceptron",
        "Goal and columns as for the ResNet.",
        PRODUCTS,
        25,
        products.products("linear"),
    ),
    "deep steps": Item(
        "A step of each method: ResNet-50, batch 128, 224x224, bfloat16",
        "Goal and columns as for ResNet-18; the poster measured networks of this size.",
        STEP,
        110,
        steps.steps("deep", "deep_side", "deep_batch", methods.BARRED),
    ),
    "gpt2": Item(
        "A language model of GPT-2 small's shape",
        IN_UNITS,
        LANGUAGE,
        45,
        models.language(lambda sizes: GPT(**sizes.gpt)),
    ),
    "llama": Item(
        "A language model of Llama 1B's shape",
        IN_UNITS,
        LANGUAGE,
        100,
        models.language(lambda sizes: Llama(**sizes.llama)),
    ),
    "products of a ViT": Item(
        "Hessian-vector products of a vision transformer",
        "Goal and columns as for the ResNet.",
        PRODUCTS,
        90,
        products.products("attention"),
    ),
    "other steps": Item(
        "A step of the other methods: ResNet-18, batch 512, 32x32, bfloat16",
        "Goal and columns as there.",
        STEP,
        40,
        steps.steps("network", "side", "batch", OTHERS),
    ),
    "invariance": Item(
        "Every measure at 50 rescalings of the Table II network",
        "Goal: below 2 s.",
        ["device", "transforms", "measures", "seconds"],
        150,
        surfaces.invariance,
    ),
}
