"""A network's weights from a file of any origin: found by the names and shapes that the network needs."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.checkpoint import states
from landscape.checkpoint.adapters import with_adapter_names
from landscape.checkpoint.states import Reading, Tensors
from landscape.errors import CheckpointWarning, InputError

STALE = ("masked_bias", "inv_freq")
"""Buffers that older releases of transformers stored and newer ones compute."""
_MADE = "--model, or --model-arg KEY=VALUE"


class UnfitWeights(InputError):
    """The file's tensors are not those of the network; another network may fit."""


@dataclass(frozen=True)
class Selection:
    """What is read of a file, and what of it may be left.

    Attributes:
        key: dotted name of the mapping that holds the weights, or of a prefix of their names; "" is the outermost
            mapping; default: the only one that fits.
        allow_missing: shell patterns of the network's tensors that stay as the model was built.
        allow_extra: shell patterns of the file's tensors that are left out.
        rename: "OLD=NEW", parts of names in the file and what the network calls them.
    """

    key: str | None = None
    allow_missing: Sequence[str] = ()
    allow_extra: Sequence[str] = ()
    rename: Sequence[str] = ()


def load_weights(network: nn.Module, content: Any, path: str | Path, selection: Selection | None = None) -> None:
    """Load the weights in `content` (see `contents`) into the network.

    A tensor that is one with another of the network (a tie), a count of batches and an integer or boolean buffer need
    not be in the file. A buffer that the network computes and a tensor outside the network's prefix may be. What is
    not used, and what the network supplies, is named in a warning.

    Raises:
        UnfitWeights: tensors are missing, left over or of other shapes.
        InputError: several sets of weights fit, tensors are quantized or complex.
    """
    selection = selection or Selection()
    needed = {n: t for n, t in network.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    tensors = _chosen(Tensors.of(content), selection, path)
    tensors, base = with_adapter_names(tensors.unwrapped(needed), needed, path)
    ties = _ties(needed)
    optional = base | _optional(network, needed, selection)
    reading = _reading(tensors, needed, [ties[n] for n in needed if n not in optional], path)
    used = {n: tensors.named[f] for n in needed if (f := reading.in_file(n)) in tensors.named}
    _require_values(needed, used, ties, path)
    mapped = _mapped(tensors, reading)
    missing, extra = _load(network, {n: tensors.named[f] for n, f in mapped.items()}, path)
    missing = [n for n in missing if n in needed and not any(tie in used for tie in ties[n])]
    lacking = [n for n in missing if n not in optional]
    left = [mapped[n] for n in extra if not _is_stale(network, n, tensors.named[mapped[n]], mapped[n], selection)]
    if lacking or left:
        raise UnfitWeights(_unfit(path, needed, lacking, tensors, left))
    _tell(path, [mapped[n] for n in extra] + _beside(tensors, reading), [n for n in missing if n not in base], base)


def _chosen(tensors: Tensors, selection: Selection, path: str | Path) -> Tensors:
    if tensors.packed:
        raise InputError(
            f"{path} holds quantized weights ({tensors.packed[0]}), which have no gradient: give the network's weights "
            "from before its quantization"
        )
    if not tensors.named and tensors.arrays:
        raise InputError(
            f"{path} holds NumPy arrays ({_list(tensors.arrays, 2)}), no tensors: save them again as a state dict, "
            "torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)"
        )
    if not tensors.named:
        raise InputError(f"{path} holds no state dict: save one with torch.save(model.state_dict(), path)")
    if selection.key is not None:
        within = tensors.below(selection.key)
        if not within.named:
            raise InputError(f"{path} has no tensors under --key {selection.key!r}: it holds {tensors.summary()}")
        tensors = within
    return tensors.renamed(selection.rename)


def _ties(needed: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Name -> all names of the same tensor of the network."""
    names: dict[int, list[str]] = {}
    for name, tensor in needed.items():
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(names[id(tensor)]) for name, tensor in needed.items()}


def _optional(network: nn.Module, needed: Mapping[str, Tensor], selection: Selection) -> set[str]:
    """Names that a file may lack: no part in evaluation, computed by the network, or left by the user."""
    declared = [re.compile(p) for p in getattr(network, "_keys_to_ignore_on_load_missing", None) or ()]
    optional = set()
    for name, tensor in needed.items():
        buffer = not isinstance(tensor, nn.Parameter)
        counts = buffer and not (tensor.is_floating_point() or tensor.is_complex())
        computed = buffer and any(p.search(name) for p in declared)
        if counts or computed or _matches(name, selection.allow_missing):
            optional.add(name)
    return optional


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns)


def _reading(
    tensors: Tensors, needed: Mapping[str, Tensor], required: Sequence[tuple[str, ...]], path: str | Path
) -> Reading:
    """The one reading that fits best.

    Raises:
        UnfitWeights: none fits at all.
        InputError: several fit equally, or cannot be compared.
    """
    fitting_readings = states.different(states.readings(tensors, needed, required), tensors, path)
    if not fitting_readings:
        raise UnfitWeights(
            f"{path} does not fit the model: no tensor has a name and a shape of it; the model needs "
            f"{states.shown(needed, list(needed))}; the file holds {tensors.summary()}, such as "
            f"{states.shown(tensors.named, list(tensors.named))}: give another --model, --key or --rename OLD=NEW"
        )
    if len(fitting_readings) > 1:
        keys = [r.prefix.rstrip(".") for r in fitting_readings]
        fitting = ", ".join(key or "the outermost" for key in keys)
        raise InputError(
            f"{path} holds several sets of weights that fit: {fitting}; say which, --key {next(k for k in keys if k)}"
        )
    return fitting_readings[0]


def _require_values(
    needed: Mapping[str, Tensor], used: Mapping[str, Tensor], ties: Mapping[str, tuple[str, ...]], path: str | Path
) -> None:
    """Raise UnfitWeights for a tensor that would lose something on its way into the network."""
    for name, tensor in used.items():
        states.require_numbers(path, name, tensor)
        ours = needed[name]
        if tensor.shape != ours.shape:
            problem = f"{name} is {tuple(tensor.shape)}, the model needs {tuple(ours.shape)}"
        elif tensor.is_complex() and not ours.is_complex():
            problem = f"{name} is complex, the model's is real"
        elif ours.is_floating_point() and not tensor.is_floating_point() and not tensor.is_complex():
            problem = f"{name} is stored as {tensor.dtype} (quantized?), the model's is {ours.dtype}"
        elif any(not torch.equal(tensor, used[tie]) for tie in ties[name] if tie != name and tie in used):
            problem = f"{' and '.join(ties[name])} are one tensor in the model and differ in the file"
        else:
            continue
        raise UnfitWeights(f"{path} does not fit the model: {problem}; give the network that was saved ({_MADE})")


def _mapped(tensors: Tensors, reading: Reading) -> dict[str, str]:
    """The network's name -> the file's, of all tensors below the prefix in mappings that the network is read from."""
    holders = {tensors.container[name] for name in reading.names.values()}
    below = [f for f, c in tensors.container.items() if c in holders and f.startswith(reading.prefix)]
    return {reading.dropped + f.removeprefix(reading.prefix): f for f in below}


def _beside(tensors: Tensors, reading: Reading) -> list[str]:
    """The file's names outside the prefix, in the mappings that the network is read from."""
    holders = {tensors.container[name] for name in reading.names.values()}
    return [f for f, c in tensors.container.items() if c in holders and not f.startswith(reading.prefix)]


def _load(network: nn.Module, mapped: dict[str, Tensor], path: str | Path) -> tuple[list[str], list[str]]:
    """Missing and unexpected names by torch's own loading, which knows former names of its layers' tensors."""
    try:
        result = network.load_state_dict(mapped, strict=False)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise UnfitWeights(
            f"{path} does not fit the model: {why[:300]}; give the network that was saved ({_MADE})"
        ) from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _is_stale(network: nn.Module, name: str, tensor: Tensor, in_file: str, selection: Selection) -> bool:
    """Whether a tensor without a place may be left out: the network computes it, or the user leaves it."""
    declared = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    return (
        name in dict(network.named_buffers())
        or not (tensor.is_floating_point() or tensor.is_complex())
        or name.rpartition(".")[2] in STALE
        or any(re.search(p, name) for p in declared)
        or _matches(name, selection.allow_extra)
        or _matches(in_file, selection.allow_extra)
    )


def _unfit(
    path: str | Path, needed: Mapping[str, Tensor], lacking: list[str], tensors: Tensors, left: list[str]
) -> str:
    said, options = [], []
    if lacking:
        said.append(f"it lacks {states.shown(needed, lacking, {n: tensors.named[n] for n in left})}")
        options.append("--allow-missing GLOB (keeps what the model was built with)")
    if left:
        said.append(f"it holds {states.shown(tensors.named, left)}, which the model has not")
        options.append("--allow-extra GLOB (leaves them out)")
    if lacking and left:
        options.insert(0, "--rename OLD=NEW (names of the file in the model's words)")
    other = _computed_weights(left)
    if other:
        return f"{path} does not fit the model: {'; '.join(said)}: {other}"
    return f"{path} does not fit the model: {'; '.join(said)}: give the network that was saved, or {', '.join(options)}"


def _computed_weights(left: Sequence[str]) -> str:
    """What to do where the file holds what weights are computed from, which no other name makes right; "" elsewhere."""
    again = "give a network with the same, or save it again after"
    if any(n.endswith("_mask") and f"{n.removesuffix('_mask')}_orig" in left for n in left):
        return (
            f"it was pruned, weight = weight_orig * weight_mask: {again} torch.nn.utils.prune.remove(layer, 'weight')"
        )
    if any(".parametrizations." in f".{n}" for n in left):
        remove = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
        return f"its weights are parametrized (weight_norm, spectral_norm, ...): {again} {remove}"
    if any(n.endswith("_g") and f"{n.removesuffix('_g')}_v" in left for n in left):
        return f"it has weight normalization, weight = g v / ||v||: {again} torch.nn.utils.remove_weight_norm(layer)"
    return ""


def _tell(path: str | Path, unused: list[str], supplied: list[str], base: set[str]) -> None:
    """Warn of what was left out and of what the network supplied; counts of batches are not worth it."""
    unused, supplied = ([n for n in names if not n.endswith("num_batches_tracked")] for names in (unused, supplied))
    said = [f"left out: {_list(unused)}"] if unused else []
    if supplied:
        said.append(f"as the model was built, not from the file: {_list(supplied)}")
    if base:
        said.append(f"an adapter; the {len(base)} tensors of the network below it are as the model was built")
    if said:
        warnings.warn(CheckpointWarning(f"{path}: {'; '.join(said)}"), stacklevel=5)


def _list(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
