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
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape import checkpoint
from landscape.checkpoint import Selection, UnfitWeights
from landscape.errors import InputError, InputWarning
from landscape.problem.losses import NAMED
from landscape.problem.parameters import Parameters
from landscape.problem.problem import Problem
from landscape.results import digest
from trainers.architectures import BuiltIn
from trainers.companions import NOTHING_BESIDE, Companions
from trainers.datasets import Data, change_since, load_data
from trainers.hugging_face import Folder, HubExamples, adapter_folder
from trainers.loop.base import stored_optimizer
from trainers.names import parse_name
from trainers.references import import_callable, resolve_data, resolve_device, resolve_loss, resolve_model
from trainers.sample import Sample, batches_of
from trainers.subject_checks import (
    naming_the_loss,
    require_finite,
    require_labels,
    tell_if_another_fits_better,
    tell_if_worse_than_nothing,
)
from trainers.weights import loaded

__all__ = ["Sample", "Subject", "batches_of", "problem_from", "subject"]


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
    adapter: str | None = None,
    **options: Any,
) -> Subject:
    """Rebuild the model of a checkpoint and state its loss over a fixed sample.

    Args:
        path: a checkpoint of this toolkit, or with `model` any file or folder that holds a state dict.
        sample: the examples; default 4,096 of the training set that the checkpoint names.
        model: returns the architecture of a foreign checkpoint, or a built-in one.
        loss: a name ("own", "cross-entropy", "mse", "bce", "nll") or called as loss(outputs, targets); default
            cross-entropy of class labels without label smoothing or weight decay, whatever the training added, so that
            methods can be compared; of the data of `hf:` and `text:` what the network returns.
        objective: called as objective(model, batch), in place of a loss.
        batch_norm: policy, see Problem.
        parameters: shell patterns; default all.
        dtype: of the analysis.
        device: where it runs.
        selection: which of the sets of weights in the file, and what of it may be left; default all of the one.
        adapter: of an adapter of peft: "alone" (default), L as a function of its own parameters over the fixed network
            below, or "merged", of all weights with the adapter's change in them.
        options: fields of `sample` (data, split, samples, ...) and of `selection` (key, rename, ...) by name.

    Raises:
        InputError: the file is unreadable or not ours, tensors do not fit the model, a non-finite weight, bad sizes.
    """
    chosen = {f.name: options.pop(f.name) for f in dataclasses.fields(Selection) if f.name in options}
    selection, path = replace(selection or Selection(), **chosen), Path(path)
    sample = replace(sample or Sample(), **options)
    if model is None and adapter_folder(path) is not None:
        raise InputError(
            f"{path} is an adapter: say which network it was trained over, --model hf:FOLDER of its base (or "
            "module:callable that returns the base with its weights), and --data"
        )
    if model is None and adapter is not None:
        raise InputError(f"--adapter {adapter}: {path} is no adapter of peft, leave it out")
    if model is not None and sample.data is None:
        raise InputError(f"{path} is analyzed with --model: give its data too, --data NAME or module:callable")
    content = checkpoint.read(path) if model is None else checkpoint.contents(path)
    source = content if model is None else None
    if model is None:
        with _fields(path, "data"):
            data = _data(source, sample, device)
        _tell_if_others(path, content, data, sample)
        with _fields(path, "model"):
            network = BuiltIn(content["model"]["name"], content["model"]["arguments"]).network(data)
        content = content["model"]["state"]
    else:
        data = _data(source, sample, device)
        network = model.network(data) if isinstance(model, BuiltIn) else _called(model)
    made_with = model.options if isinstance(model, BuiltIn) else ""
    with _naming_the_options(made_with):
        network = loaded(path, network, content, selection, dtype, model=model, adapter=adapter)
        network = network.to(device).eval()
    if objective is not None and loss is not None:
        raise InputError("--objective computes the loss by itself: give it without --loss")
    if loss is None and objective is None and isinstance(sample.data, HubExamples):
        loss = sample.data.loss(network)
    folders = [path if path.is_dir() else path.parent, *([model.path] if isinstance(model, Folder) else [])]
    batches = batches_of(data, sample, network, whole=objective is not None, folders=folders)
    Parameters.of(network, list(parameters) or None)  # a pattern that matches none says nothing about the loss
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
        data: a built-in data set, npz:FILE, hdf5:FILE, pt:FILE, images:FOLDER, hf:FOLDER (a data set of Hugging Face),
            text:FILE, module:callable, a callable that returns batches, or the batches.
        data_arguments: of the data set, of hf:FOLDER or text:FILE, or of module:callable.
        loss: a name, module:callable or a function of (outputs, targets), see `subject`.
        objective: module:callable or a function of (model, batch), in place of a loss.
        dtype: of the analysis, or its name.
        device: default CUDA where there is one.
        options: `split`, `samples`, `batch_size`, `seed`, `data_dir`; `batch_norm`, `parameters`; `key`,
            `allow_missing`, `allow_extra`, `rename`, `adapter`; as `Sample` and `subject` take them.

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


def _others(problem: Problem, model: BuiltIn, data: Data | None) -> Iterator[tuple[str, str, Problem]]:
    """What the network is made with, what else it might be, and the same weights' loss in that."""
    for chosen, other, network in model.others(data):
        network.load_state_dict(problem.model.state_dict())
        yield chosen, other, problem.in_network(network.to(problem.weights).eval())


def _data(content: dict[str, Any] | None, sample: Sample, device: torch.device | str) -> Data | None:
    """The data set that the sample names, else the checkpoint; None where examples are none of ours."""
    if callable(sample.data) or isinstance(sample.data, HubExamples):
        return None
    if sample.data is not None:
        name, arguments = parse_name(sample.data)
    else:
        assert content is not None
        name, arguments = content["data"]["name"], content["data"]["arguments"]
    arguments = {**arguments, **sample.data_arguments}
    if sample.data_dir is not None:
        arguments |= {"data_dir": str(sample.data_dir)}
    return _load(name, json.dumps(arguments, sort_keys=True), str(device), _version(name))


@functools.lru_cache(maxsize=2)
def _load(name: str, arguments: str, device: str, version: tuple[int, int]) -> Data:
    """The data set on the device; several checkpoints of one comparison read it once, while its file stays the same."""
    return load_data(name, **json.loads(arguments)).to(device)


def _version(name: str) -> tuple[int, int]:
    """Time and size of the file that a data set names; zeros where it names none."""
    file = Path(name.partition(":")[2]).expanduser()
    try:
        status = file.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _tell_if_others(path: Path, content: dict[str, Any], data: Data | None, sample: Sample) -> None:
    asked = sample.data is not None or sample.data_arguments  # for other examples than those of the training
    if data is not None and not asked and (change := change_since(content, data)):
        text = (
            f"{path} was trained on other examples than {data.name} holds now ({change}): its training loss and "
            "accuracy are those of the examples of now"
        )
        warnings.warn(InputWarning(text), stacklevel=2)


def _metadata(content: dict[str, Any] | None) -> dict[str, Any]:
    if content is None:
        return {}
    named = {k: {"name": content[k]["name"], "arguments": content[k]["arguments"]} for k in ("model", "data", "method")}
    facts = {k: content[k] for k in ("epoch", "step", "provenance")}
    return {**named, **facts, **{k: content[k] for k in ("settings", "spent") if content.get(k)}}
