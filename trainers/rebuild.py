"""A checkpoint brought back to life: its model, its data, and the Problem that analyzers measure.

Names inside a checkpoint are looked up among the built-in models and data sets and nowhere else; code comes only from
callables that the caller passes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape import checkpoint
from landscape.checkpoint import Selection, UnfitWeights
from landscape.errors import InputError
from landscape.problem.batches import Reader
from landscape.problem.losses import NAMED
from landscape.problem.problem import Problem
from landscape.random import stream
from landscape.results import digest
from trainers.architectures import BuiltIn
from trainers.companions import NOTHING_BESIDE, Companions
from trainers.datasets import Data, load_data
from trainers.loop.base import stored_optimizer
from trainers.names import parse_name
from trainers.references import import_callable, resolve_data, resolve_device, resolve_loss, resolve_model
from trainers.subject_checks import (
    naming_the_loss,
    require_finite,
    require_labels,
    tell_if_another_fits_better,
    tell_if_worse_than_nothing,
)

DEFAULT_SAMPLES = 4096


@dataclass(frozen=True)
class Subject:
    """What is analyzed: a file, the model rebuilt from it, and the loss over a fixed sample.

    Attributes:
        path: the checkpoint.
        sha256: of its bytes.
        model: rebuilt, on the device, in the dtype of the analysis.
        problem: L(w) over the sample.
        metadata: what the checkpoint says of itself (model, data, method, epoch, ...); plain values.
        seed: of the sample.
        companions: what measures take beside the problem: the optimizer that the training was left with, over the
            model's parameters.
        split: "train" or "test"; "" of data that have no such parts.
    """

    path: Path
    sha256: str
    model: nn.Module
    problem: Problem
    metadata: dict[str, Any]
    seed: int
    companions: Companions = NOTHING_BESIDE
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The examples that a loss is stated over.

    Attributes:
        data: a built-in data set, `npz:FILE` and its kin, or a callable that returns batches; default: what the
            checkpoint names.
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

    data: str | Callable[[], Iterable[Any]] | None = None
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


def subject(
    path: str | Path,
    sample: Sample | None = None,
    *,
    model: Callable[[], nn.Module] | BuiltIn | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    objective: Callable[[nn.Module, Any], Any] | None = None,
    batch_norm: str = "frozen",
    parameters: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    selection: Selection | None = None,
    **options: Any,
) -> Subject:
    """Rebuild the model of a checkpoint and state its loss over a fixed sample.

    Args:
        path: a checkpoint of this toolkit, or with `model` any file or folder that holds a state dict.
        sample: the examples; default 4,096 of the training set that the checkpoint names.
        model: returns the architecture of a foreign checkpoint, or a built-in one.
        loss: a name ("own", "cross-entropy", "mse", "bce", "nll") or called as loss(outputs, targets); default
            cross-entropy of class labels without label smoothing or weight decay, whatever the training added, so that
            methods can be compared.
        objective: called as objective(model, batch), in place of a loss.
        batch_norm: policy, see Problem.
        parameters: shell patterns; default all.
        dtype: of the analysis.
        device: where it runs.
        selection: which of the sets of weights in the file, and what of it may be left; default all of the one.
        options: fields of `sample` (data, split, samples, ...) and of `selection` (key, rename, ...) by name.

    Raises:
        InputError: the file is unreadable or not ours, tensors do not fit the model, a non-finite weight, bad sizes.
    """
    chosen = {f.name: options.pop(f.name) for f in dataclasses.fields(Selection) if f.name in options}
    selection, path = replace(selection or Selection(), **chosen), Path(path)
    sample = replace(sample or Sample(), **options)
    if model is not None and sample.data is None:
        raise InputError(f"{path} is analyzed with --model: give its data too, --data NAME or module:callable")
    content = checkpoint.read(path) if model is None else checkpoint.contents(path)
    source = content if model is None else None
    if model is None:
        with _fields(path, "data"):
            data = _data(source, sample, device)
        with _fields(path, "model"):
            network = BuiltIn(content["model"]["name"], content["model"]["arguments"]).network(data)
        content = content["model"]["state"]
    else:
        data = _data(source, sample, device)
        network = model.network(data) if isinstance(model, BuiltIn) else _called(model)
    made_with = model.options if isinstance(model, BuiltIn) else ""
    with _naming_the_options(made_with):
        network = _loaded(path, network, content, selection, dtype).to(device).eval()
    if objective is not None and loss is not None:
        raise InputError("--objective computes the loss by itself: give it without --loss")
    batches = batches_of(data, sample, network, whole=objective is not None)
    with naming_the_loss() if loss is None and objective is None else contextlib.nullcontext():
        problem = Problem(
            network,
            None if objective is not None else _loss(loss),
            batches,
            objective=objective,
            parameters=list(parameters) or None,
            batch_norm=batch_norm,
        )
    if loss is None and objective is None:
        require_labels(problem)
    if sample.batch_size and callable(sample.data):
        problem = problem.rebatched(sample.batch_size)
    require_finite(path, problem)
    others = _others(problem, model, data) if isinstance(model, BuiltIn) else ()
    if model is not None and not tell_if_another_fits_better(path, problem, others):
        tell_if_worse_than_nothing(path, problem, made_with)
    companions = Companions(optimizer=functools.partial(stored_optimizer, source or {}, network))
    split = "" if callable(sample.data) else sample.split
    return Subject(path, digest.of_path(path), network, problem, _metadata(source), sample.seed, companions, split)


def problem_from(
    path: str | Path,
    *,
    model: str | nn.Module | Callable[..., nn.Module] | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | Iterable[Any] | Callable[..., Iterable[Any]] | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    objective: str | Callable[[nn.Module, Any], Any] | None = None,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    **options: Any,
) -> Problem:
    """The loss L(w) over a fixed sample that `landscape analyze` computes, from a checkpoint.

    Args:
        path: a checkpoint of this toolkit, or with `model` any file or folder that holds weights.
        model: a built-in network, torchvision:NAME, timm:NAME, hf:FOLDER, module:callable, or the callable itself; a
            network that is there already stays as it is, its copy gets the weights.
        model_arguments: what the network is made with.
        data: a built-in data set, npz:FILE, hdf5:FILE, pt:FILE, images:FOLDER, module:callable, a callable that returns
            batches, or the batches.
        data_arguments: of the data set, or of module:callable.
        loss: a name, module:callable or a function of (outputs, targets), see `subject`.
        objective: module:callable or a function of (model, batch), in place of a loss.
        dtype: of the analysis, or its name.
        device: default CUDA where there is one.
        options: `split`, `samples`, `batch_size`, `seed`, `data_dir`; `batch_norm`, `parameters`; `key`,
            `allow_missing`, `allow_extra`, `rename`; as `Sample` and `subject` take them.

    Raises:
        InputError: as `subject`; a name that refers to nothing.
    """
    if isinstance(model, nn.Module):
        model = functools.partial(copy.deepcopy, model)
    if data is not None and not isinstance(data, str) and not callable(data):
        data = functools.partial(_same, data)
    return subject(
        path,
        model=resolve_model(model, model_arguments),
        data=resolve_data(data, data_arguments),
        data_arguments=data_arguments or {},
        loss=resolve_loss(loss),
        objective=import_callable(objective, "--objective") if isinstance(objective, str) else objective,
        dtype=_dtype(dtype),
        device=resolve_device(None if device is None else str(device)),
        **options,
    ).problem


def _same(batches: Iterable[Any]) -> Iterable[Any]:
    return batches


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    known = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise InputError(f"dtype {dtype!r}: float32, float64 or bfloat16 is needed")
    return known


@contextlib.contextmanager
def _fields(path: Path, name: str) -> Iterator[None]:
    """What a checkpoint's values make fail is an InputError that names them; a machine's lack of memory is none."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        if "memory" in str(error):
            raise
        raise InputError(
            f"{path}: the arguments of its {name} do not fit it ({error}): it was written by another program or is "
            "damaged; use another copy of it"
        ) from error


@contextlib.contextmanager
def _naming_the_options(options: str) -> Iterator[None]:
    """What a built-in network is made with, where the weights are another's."""
    try:
        yield
    except UnfitWeights as error:
        raise InputError(f"{error}; the model is made with {options}" if options else str(error)) from error


def _loss(loss: str | Callable[[Any, Any], Tensor] | None) -> Callable[[Any, Any], Tensor] | None:
    if loss is None:
        return nn.functional.cross_entropy
    return NAMED[loss] if isinstance(loss, str) else loss


def _called(build: Callable[[], nn.Module]) -> nn.Module:
    network = build()
    if not isinstance(network, nn.Module):
        raise InputError(f"--model returned {type(network).__name__}: an nn.Module is needed")
    return network


def _loaded(path: Path, network: nn.Module, content: Any, selection: Selection, dtype: torch.dtype) -> nn.Module:
    """The network in the analysis' dtype with the file's weights, which are rounded once and no more."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    imaginary = next((name for name, tensor in tensors if tensor.is_complex()), None)
    if imaginary is not None:
        raise InputError(
            f"the model's {imaginary!r} is complex: weights must be real (store it as real and imaginary parts, "
            "torch.view_as_real)"
        )
    if checkpoint.is_ours(content) and selection.key is None:
        selection = replace(selection, key="model.state")
    network = network.to(dtype)
    checkpoint.load_weights(network, content, path, selection)
    return network


def _others(problem: Problem, model: BuiltIn, data: Data | None) -> Iterator[tuple[str, str, Problem]]:
    """What the network is made with, what else it might be, and the same weights' loss in that."""
    for chosen, other, network in model.others(data):
        network.load_state_dict(problem.model.state_dict())
        yield chosen, other, problem.in_network(network.to(problem.weights).eval())


def _data(content: dict[str, Any] | None, sample: Sample, device: torch.device | str) -> Data | None:
    """The data set that the sample names, else the checkpoint; None for a callable's batches."""
    if callable(sample.data):
        return None
    if sample.data is not None:
        name, arguments = parse_name(sample.data)
    else:
        assert content is not None
        name, arguments = content["data"]["name"], content["data"]["arguments"]
    arguments = {**arguments, **sample.data_arguments}
    if sample.data_dir is not None:
        arguments |= {"data_dir": str(sample.data_dir)}
    return _load(name, json.dumps(arguments, sort_keys=True), str(device))


def batches_of(data: Data | None, sample: Sample, network: nn.Module, *, whole: bool = False) -> Iterable[Any]:
    """The examples that a sample means: of a data set, or of the sample's own callable.

    Args:
        data: the data set; None for a callable's batches.
        sample: which of them.
        network: whose kind says how many make a batch.
        whole: the objective takes the items as they are.
    """
    if data is None:
        assert callable(sample.data)
        return _limited(sample.data(), sample.samples, Reader(network.forward, whole=whole))
    count = data.size(sample.split)
    size = min(sample.samples or DEFAULT_SAMPLES, count)
    indices = None
    if size < count:
        order = torch.randperm(count, generator=stream(sample.seed, f"samples of {sample.split}"))
        indices = order[:size].sort().values
    return data.batches(sample.split, sample.batch_size or _batch_size(network), indices)


@functools.lru_cache(maxsize=2)
def _load(name: str, arguments: str, device: str) -> Data:
    """The data set on the device; several checkpoints of one comparison read it once."""
    return load_data(name, **json.loads(arguments)).to(device)


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


def _metadata(content: dict[str, Any] | None) -> dict[str, Any]:
    if content is None:
        return {}
    named = {k: {"name": content[k]["name"], "arguments": content[k]["arguments"]} for k in ("model", "data", "method")}
    facts = {k: content[k] for k in ("epoch", "step", "provenance")}
    seed, spent = content.get("settings", {}).get("seed"), content.get("spent")
    return {**named, **facts, **({} if seed is None else {"seed": seed}), **({"spent": spent} if spent else {})}
