"""What a file holds of a surface: a finished one, one that was begun, another one that must stay."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape.errors import InputError
from landscape.problem.problem import Problem
from landscape.results import digest, hdf5
from landscape.results.result import plain
from landscape.surfaces.directions.directions import Directions
from landscape.surfaces.grid.journal import PointJournal, refuse_other
from landscape.surfaces.result import Surface


def identity_of(
    problems: Mapping[str, Problem],
    arguments: Mapping[str, Any],
    directions: Directions | None,
    checkpoints: Sequence[Tensor],
    optimizer: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a surface belongs to, as plain values: a file that holds another one is refused.

    Args:
        problems: name -> problem; the one whose weights are the center is called "".
        arguments: of `landscape.surface`.
        directions: where they were made by the caller, not from the arguments.
        checkpoints: weights through which the directions go.
        optimizer: state that the directions are made of.
    """
    problem = problems[""]
    hashes = {f"{k} sample_sha256".strip(): p.batches.fingerprint() for k, p in problems.items()}
    if directions is not None:
        hashes["directions_sha256"] = directions.fingerprint()
    if checkpoints:
        hashes["checkpoints_sha256"] = digest.of_tensors(checkpoints)
    if optimizer is not None:
        entries = (entry for state in optimizer["state"].values() for entry in state.values())
        hashes["optimizer_sha256"] = digest.of_tensors(t for t in entries if isinstance(t, Tensor))
    return plain(
        {
            "weights_sha256": digest.of_tensors([*problem.model.state_dict().values(), problem.weights]),
            **hashes,
            # The same weights compute something else with other activations.
            "model_sha256": digest.of_parts([repr(problem.model)]),
            "loss": problem.loss_name,
            "logit_normalization": problem.logit_normalization,
            "batch_norm": problem.batch_norm,
            "parameters": list(problem.parameters.names),
            "device": problem.weights.device.type,
            "dtype": str(problem.weights.dtype),
            "arguments": arguments,
        }
    )


def opened(
    file: Path,
    name: str,
    identity: Mapping[str, Any],
    *,
    resume: bool = True,
    replace_other: bool = False,
    shared: bool = False,
) -> Surface | PointJournal:
    """The finished surface that the file holds under `name`, or the journal beside it, which may be new.

    Args:
        file: the HDF5 file; it need not exist.
        name: group of the surface.
        identity: what the surface must belong to.
        resume: go on with what is there; False starts over.
        replace_other: start over instead of refusing another surface.
        shared: other processes go on with it at the same time.

    Raises:
        InputError: file or journal hold something else, or are damaged.
    """
    finished = _finished(file, name, identity, resume, replace_other)
    directory = file.with_name(f"{file.name}.{name.replace('/', '-')}.partial")
    if resume and finished is not None:
        shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed while it removed it
        return finished
    try:
        return PointJournal(directory, identity, resume=resume, shared=shared)
    except InputError:
        if not replace_other:
            raise
        return PointJournal(directory, identity, resume=False, shared=shared)


def _finished(file: Path, name: str, identity: Mapping[str, Any], resume: bool, replace_other: bool) -> Surface | None:
    """The file's surface, where it is complete and the same; an unfinished one is the journal's business."""
    if not file.exists():
        return None
    surface = hdf5.load_group(file, name)
    if not isinstance(surface, Surface):
        if surface is None or replace_other:
            return None
        raise InputError(f"{file} holds another result under {name!r}: choose another file")
    if replace_other:
        return surface if surface.complete and surface.identity == identity else None
    # Starting over replaces a surface of the same checkpoint, never one of another.
    wanted = identity if resume else {"weights_sha256": identity["weights_sha256"]}
    refuse_other({k: surface.identity.get(k) for k in wanted}, wanted, file)
    return surface if surface.complete else None
