"""The examples that a loss is stated over: of a data set, of a folder of Hugging Face, or of a callable's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError
from landscape.problem.batches import Reader
from landscape.random import stream
from trainers.datasets import Data
from trainers.hugging_face import HubExamples

DEFAULT_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The examples that a loss is stated over.

    Attributes:
        data: a built-in data set, `npz:FILE` and its kin, examples of Hugging Face, or a callable that returns batches;
            default: what the checkpoint names.
        data_arguments: options of a data set that has a name, see `trainers.datasets.load_data`.
        split: "train" (without augmentation) or "test".
        samples: examples, drawn without replacement by the seed; default 4,096 or all. A callable's batches are taken
            in order until there are as many.
        batch_size: default by `_batch_size` (a callable's batches stay as they are).
        seed: of the draw.
        data_dir: where data files lie.

    Raises:
        InputError: no examples asked for.
    """

    data: str | HubExamples | Callable[[], Iterable[Any]] | None = None
    data_arguments: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    data_dir: str | Path | None = None

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("batch size", self.batch_size)):
            if value is not None and value <= 0:
                raise InputError(f"{name} must be at least 1, received {value}")


def batches_of(
    data: Data | None, sample: Sample, network: nn.Module, *, whole: bool = False, folders: Sequence[Path] = ()
) -> Iterable[Any]:
    """The examples that a sample means: of a data set, of Hugging Face's, or of the sample's own callable.

    Args:
        data: the data set; None for the others.
        sample: which of them.
        network: whose kind says how many make a batch, and what an example is to one of Hugging Face's.
        whole: the objective takes the items as they are.
        folders: where a tokenizer may lie.
    """
    samples = sample.samples or DEFAULT_SAMPLES
    if isinstance(sample.data, HubExamples):
        return sample.data.batches(
            network, folders, split=sample.split, samples=samples, batch_size=sample.batch_size, seed=sample.seed
        )
    if data is None:
        assert callable(sample.data)
        return _limited(sample.data(), sample.samples, Reader(network.forward, whole=whole))
    count = data.size(sample.split)
    size = min(samples, count)
    indices = None
    if size < count:
        order = torch.randperm(count, generator=stream(sample.seed, f"samples of {sample.split}"))
        indices = order[:size].sort().values
    return data.batches(sample.split, sample.batch_size or _batch_size(network), indices)


def _batch_size(network: nn.Module) -> int:
    """One big batch for fully connected networks, 256 for all others.

    On a CPU one batch is 4x faster than batches of 128 for an MLP, while a ResNet-20 is 2.4x slower in one batch of
    2,000 than in batches of 64 to 256; activations of 256 examples fit beside any model that trained. A surface, the
    longest of the analyses, times the alternatives and chooses for itself.
    """
    dense = (nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    plain = all(isinstance(m, dense) for m in network.modules() if next(m.parameters(recurse=False), None) is not None)
    return DEFAULT_SAMPLES if plain else 256


def _limited(batches: Iterable[Any], size: int | None, read: Reader) -> Iterable[Any]:
    if size is None:
        return batches
    kept, count = [], 0
    for raw in batches:
        kept.append(raw)
        count += read(raw).size
        if count >= size:
            break
    return kept
