"""The data of a run as the loop uses it: loaded, shown to methods, and evaluated on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from landscape.problem.batches import Batch
from trainers.datasets import Data, load_data
from trainers.loop.settings import Settings
from trainers.method import examples, network
from trainers.method.averages import sum_over_processes
from trainers.names import parse_name

EVALUATION_BATCH = 1024
EVALUATION_OUTPUTS = 1 << 24
"""Logits of a batch at most: those of a language model are many."""


class TrainingSet:
    """`trainers.method.context.Examples` over a data set."""

    def __init__(self, data: Data) -> None:
        self._data, self.examples, self.classes = data, data.size("train"), data.classes

    def batch(self, indices: Tensor) -> Batch:
        """The examples with these indices, not augmented."""
        return Batch((self._data.inputs(indices),), {}, self._data.targets(indices), len(indices))


def evaluate(model: nn.Module, data: Data, precision: str = "float32") -> tuple[float, float]:
    """Cross-entropy and accuracy (in [0, 1]) on the test set, in evaluation mode; the model's mode is put back.

    Both are means over examples, of a sequence of targets the means over it, as in training.
    """
    device, mode = data.device, model.training
    each = data.classes * data.y_test[:1].numel()
    size = max(1, min(EVALUATION_BATCH, EVALUATION_OUTPUTS // max(1, each)))
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    model.eval()
    try:
        # What a network keeps of a pass must serve the next training pass; a caller's autocast region has no say.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for inputs, targets in data.batches("test", size):
                with network.autocast(device, None if precision == "float32" else getattr(torch, precision)):
                    # A model may write to its inputs, which are the test set's.
                    outputs = network.logits_of(model(inputs.clone()))
                named = examples.hits(outputs, targets)
                assert named is not None
                sums += torch.stack([examples.cross_entropy(outputs, targets).sum().double(), named.sum()])
    finally:
        model.train(mode)
    loss, accuracy = (sums / data.size("test")).tolist()
    return loss, accuracy


def average_buffers(model: nn.Module, world: int) -> None:
    """Replace running statistics by their mean over the processes, which have seen different examples."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        sum_over_processes(buffers)
        torch._foreach_div_(buffers, world)


def load(settings: Settings) -> Data:
    """The data set that the settings name, with their seed and label noise.

    Raises:
        InputError: a file without training or test examples; see `load_data`.
    """
    name, arguments = parse_name(settings.data)
    arguments = {"seed": settings.seed, "label_noise": settings.label_noise, **arguments}
    data = load_data(name, data_dir=settings.data_dir, **arguments)
    for split in ("train", "test"):
        data.require(split)
    return data
