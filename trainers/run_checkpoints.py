"""The checkpoints of one training run in the order of its steps, as trainers name them.

Lightning's `epoch=3-step=400.ckpt`, the folders `checkpoint-500` of Hugging Face, `epoch-3.pt` beside `ckpt.pt` of this
toolkit, `model_step_1000.pt`, `net.0004.pth`: numbers are compared as numbers. Beside names that state a step or an
epoch a bare number is neither: `resnet18_best.pth` is no 18th checkpoint.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.checkpoint.folders import is_checkpoint
from landscape.errors import InputError, InputWarning

_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
_STEP = re.compile(r"(?:^|[^a-z])(?:global[_-]?step|steps?|checkpoint|ckpt|iter(?:ation)?)[=_-]?(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"(?:^|[^a-z])epochs?[=_-]?(\d+)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_LATEST = ("ckpt.pt", "last.ckpt")
"""What is written over and over: its step stands inside."""
_WITHIN = ("checkpoints",)
"""Folders of a run that hold its checkpoints."""


@dataclass(frozen=True)
class Stage:
    """One checkpoint of a run.

    Attributes:
        path: of the file or folder.
        step: optimizer steps so far; None where they are not known.
        epoch: likewise.
        number: in its name, for an order where neither is known.
    """

    path: Path
    step: int | None
    epoch: int | None
    number: int | None = None

    def at(self, unit: str) -> int:
        """Where it stands on the axis `unit`: step, epoch or number."""
        value = getattr(self, unit)
        assert value is not None
        return int(value)


@dataclass(frozen=True)
class RunCheckpoints:
    """The checkpoints of a run in their order.

    Attributes:
        folder: that they lie in.
        unit: what they are ordered by: "step", "epoch" or "number".
        stages: at least two, no two at one step.
    """

    folder: Path
    unit: str
    stages: tuple[Stage, ...]

    def thinned(self, every: int) -> tuple[Stage, ...]:
        """Every so many of the checkpoints, from the first on, and the last."""
        kept = self.stages[::every]
        return kept if kept[-1] == self.stages[-1] else (*kept, self.stages[-1])


def run_of(paths: Sequence[Path]) -> RunCheckpoints | None:
    """The run that a folder holds, or whose checkpoints were listed; None where the paths are to be compared.

    Files are a run where they lie in one folder and each has a step or an epoch in its name.

    Raises:
        InputError: a folder with one checkpoint, or whose checkpoints cannot be ordered.

    Warns:
        InputWarning: names the files of weights of a folder that have no place in the order.
    """
    if len(paths) == 1:
        return _of_folder(paths[0]) if paths[0].is_dir() else None
    stages = [_named(p) for p in paths]
    stated = all(s.step is not None or s.epoch is not None for s in stages)
    if len({p.resolve().parent for p in paths}) > 1 or not stated:
        return None
    return _ordered(paths[0].parent, stages)


def _of_folder(folder: Path) -> RunCheckpoints | None:
    """None for a folder that is a checkpoint itself, unless there are checkpoints with their step in it."""
    for directory in (folder, *(folder / name for name in _WITHIN)):
        whole = directory.is_dir() and is_checkpoint(directory)
        stages = [_named(p) for p in sorted(directory.iterdir()) if _is_stage(p, whole)] if directory.is_dir() else []
        if len(stages) > whole:
            latest = [_read(p) for name in _LATEST if (p := directory / name).is_file()]
            return _ordered(directory, [*stages, *latest], _beside(directory, [*stages, *latest]))
    return None


def _is_stage(path: Path, beside_weights: bool) -> bool:
    """Whether a name is that of a checkpoint with a number: no shard, and beside weights no other file of a trainer."""
    if path.name.startswith(".") or path.name in _LATEST or _SHARD.search(path.stem):
        return False
    if path.is_file() and path.suffix not in _SUFFIXES:
        return False
    patterns = (_STEP, _EPOCH) if path.is_dir() or beside_weights else (_STEP, _EPOCH, _LAST_NUMBER)
    return any(p.search(path.stem if path.is_file() else path.name) for p in patterns)


def _beside(directory: Path, stages: Sequence[Stage]) -> list[Path]:
    """The files of weights that are no stages; none beside folders, whose run keeps other files of its trainer."""
    paths = {s.path for s in stages}
    if any(p.is_dir() for p in paths) or is_checkpoint(directory):
        return []
    files = (p for p in sorted(directory.iterdir()) if p.is_file() and p not in paths and p.suffix in _SUFFIXES)
    return [p for p in files if not (p.name.startswith(".") or _SHARD.search(p.stem))]


def _named(path: Path) -> Stage:
    """What a name says."""
    name = path.stem if path.suffix in _SUFFIXES else path.name
    step, epoch, number = (int(m[1]) if (m := p.search(name)) else None for p in (_STEP, _EPOCH, _LAST_NUMBER))
    return Stage(path, step, epoch, number)


def _read(path: Path) -> Stage:
    """What a file without number says of itself: this toolkit's and Lightning's know their step and epoch."""
    from landscape import checkpoint

    content: Any = checkpoint.contents(path)
    content = content if isinstance(content, dict) else {}
    step, epoch = content.get("step", content.get("global_step")), content.get("epoch")
    return Stage(path, step if isinstance(step, int) else None, epoch if isinstance(epoch, int) else None)


def _ordered(folder: Path, stages: Sequence[Stage], beside: Sequence[Path] = ()) -> RunCheckpoints:
    """The run of the stages that have the unit of those whose names state most; of the others a warning tells."""
    named = [s for s in stages if s.number is not None]
    stating = [s for s in named if s.step is not None or s.epoch is not None] or named
    unit = next(u for u in ("step", "epoch", "number") if all(getattr(s, u) is not None for s in stating))
    held: dict[int, Stage] = {}
    left = list(beside)
    for stage in stages:  # those with a number in their name come first
        value = getattr(stage, unit)
        if value is None or (stage in named and stage not in stating):
            left.append(stage.path)
            continue
        if value in held and stage.number is not None:
            raise InputError(
                f"{held[value].path} and {stage.path} are both of {unit} {value}: a run has one checkpoint a step; "
                "give the files of one run"
            )
        held.setdefault(value, stage)
    if len(held) < 2:
        raise InputError(f"{folder} holds one checkpoint of its run: give {next(iter(held.values())).path}")
    _tell_left_out(folder, unit, sorted(p.name for p in left))
    return RunCheckpoints(folder, unit, tuple(held[value] for value in sorted(held)))


def _tell_left_out(folder: Path, unit: str, names: Sequence[str], most: int = 6) -> None:
    if names:
        more = f" and {len(names) - most} more" if len(names) > most else ""
        text = f"{folder}: left out, since no {unit} is known of them: {', '.join(names[:most])}{more}"
        warnings.warn(InputWarning(text), stacklevel=4)
