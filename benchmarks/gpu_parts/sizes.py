"""Two sizes of everything: for a GPU of the H100's class, and for a CPU in seconds.

Nothing else differs between them, so that the same code has run before it meets a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VIT = "vit-tiny:dim=384,depth=6,heads=6,patch=4"


@dataclass(frozen=True)
class Sizes:
    """The sizes of everything that is measured.

    Attributes:
        name: full or tiny.
        share: of the seconds that an item takes at full size.
        pytest: further arguments of the tests.
        network, side, batch: of training steps and surfaces; `deep` of larger steps.
        step_rounds, step_seconds: rounds of steps: at least so many, and begun for so long.
        products: kind of layer -> name, network, shape of an example, examples of Hessian-vector products.
        compiler: backend of torch.compile.
        gpt, llama: arguments of the language models.
        preset, seeds, figures: of the studies.
    """

    name: str = "full"
    share: float = 1.0
    pytest: tuple[str, ...] = ()
    rounds: int = 7
    network: str = "resnet18"
    side: int = 32
    batch: int = 512
    deep: str = "resnet50"
    deep_side: int = 224
    deep_batch: int = 128
    step_rounds: int = 5
    step_seconds: float = 20.0
    products: Mapping[str, tuple[str, str, tuple[int, ...], int]] = field(
        default_factory=lambda: {
            "convolutions": ("ResNet-18, 512 images of 3x32x32", "resnet18", (3, 32, 32), 512),
            "linear": ("MLP 784-1000-1000-10, 2,000 examples", "mlp:hidden=1000x1000", (784,), 2000),
            "attention": ("ViT, width 384, 6 layers, 256 images of 3x32x32", VIT, (3, 32, 32), 256),
        }
    )
    compiler: str = "inductor"
    exact_images: int = 256
    surface_images: int = 10_000
    surface_points: int = 5
    bare_sizes: tuple[int, ...] = (128, 500, 1000, 2500)
    transforms: int = 50
    toy_grid: int = 51
    gpt: Mapping[str, int] = field(default_factory=dict)
    llama: Mapping[str, int] = field(default_factory=dict)
    sequences: int = 4
    tokens: int = 512
    language_grid: int = 7
    preset: str = "gpu"
    seeds: int = 5
    figures: tuple[str, ...] = (
        "asam-table1",
        "asam-fig7",
        "saf-fig3",
        "saf-fig4",
        "saf-table1",
        "rst-table",
        "ksam-tradeoff",
    )


FULL = Sizes()
TINY = Sizes(
    name="tiny",
    share=0.02,
    pytest=("--collect-only",),  # most of them have to fail without a GPU
    rounds=2,
    network="small-cnn",
    side=8,
    batch=8,
    deep="resnet:depth=8,width=4",
    deep_side=8,
    deep_batch=4,
    step_rounds=2,
    step_seconds=0.0,
    products={
        "convolutions": ("CNN, 8 images of 3x8x8", "small-cnn", (3, 8, 8), 8),
        "linear": ("MLP 8-8-10, 4 examples", "mlp:hidden=(8,)", (8,), 4),
        "attention": ("ViT, width 8, 1 layer", "vit-tiny:dim=8,depth=1,heads=2,patch=4", (3, 8, 8), 4),
    },
    compiler="eager",
    exact_images=8,
    surface_images=16,
    surface_points=2,
    bare_sizes=(8, 16),
    transforms=2,
    toy_grid=3,
    gpt={"words": 17, "width": 8, "layers": 1, "heads": 2, "tokens": 8},
    llama={"words": 17, "width": 8, "layers": 1, "heads": 4, "groups": 2, "hidden": 16},
    sequences=2,
    tokens=6,
    language_grid=3,
    preset="gpu-smoke",
    seeds=1,
    figures=("saf-fig4", "rst-table"),
)
