"""The checkpoints of one training run in the order of its steps, as trainers name them.

Lightning's `epoch=3-step=400.ckpt`, the folders `checkpoint-500` of Hugging Face, `epoch-3.pt` beside `ckpt.pt` of this
toolkit, `model_step_1000.pt`, `net.0004.pth`: numbers are compared as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.checkpoint.folders import is_checkpoint
from landscape.errors import InputError

_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors")
_STEP = re.compile(r"(?:^|[^a-z])(?:global[_-]?step|steps?|checkpoint|ckpt|iter(?:ation)?)[=_-]?(\d+)", re.IGNORECASE)
_EPOCH = re.compile(r"(?:^|[^a-z])epochs?[=_-]?(\d+)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_LATEST = ("ckpt.pt", "last.ckpt")
"""What is written over and over: its step stands inside."""
_BESIDE = ("checkpoints",)
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
class Run:
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


def run_of(paths: Sequence[Path]) -> Run | None:
    """The run that a folder holds, or whose checkpoints were listed; None where the paths are to be compared.

    Files are a run where they lie in one folder and each has a step or an epoch in its name.

    Raises:
        InputError: a folder with one checkpoint, or whose checkpoints cannot be ordered.
    """
    if len(paths) == 1:
        return _of_folder(paths[0]) if paths[0].is_dir() else None
    stages = [_named(p) for p in paths]
    stated = all(s.step is not None or s.epoch is not None for s in stages)
    if len({p.resolve().parent for p in paths}) > 1 or not stated:
        return None
    return _ordered(paths[0].parent, stages)


def _of_folder(folder: Path) -> Run | None:
    """None for a folder that is a checkpoint itself, unless there are checkpoints with their step in it."""
    for directory in (folder, *(folder / name for name in _BESIDE)):
        whole = directory.is_dir() and is_checkpoint(directory)
        stages = [_named(p) for p in sorted(directory.iterdir()) if _is_stage(p, whole)] if directory.is_dir() else []
        if len(stages) > whole:
            latest = (directory / name for name in _LATEST)
            return _ordered(directory, [*stages, *(_read(p) for p in latest if p.is_file())])
    return None


def _is_stage(path: Path, beside_weights: bool) -> bool:
    """Whether a name is that of a checkpoint with a number: no shard, and beside weights no other file of a trainer."""
    if path.name.startswith(".") or path.name in _LATEST or _SHARD.search(path.stem):
        return False
    if path.is_file() and path.suffix not in _SUFFIXES:
        return False
    patterns = (_STEP, _EPOCH) if path.is_dir() or beside_weights else (_STEP, _EPOCH, _LAST_NUMBER)
    return any(p.search(path.stem if path.is_file() else path.name) for p in patterns)


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


def _ordered(folder: Path, stages: Sequence[Stage]) -> Run:
    units = ("step", "epoch", "number")
    named = [s for s in stages if s.number is not None]
    unit = next(u for u in units if all(getattr(s, u) is not None for s in named))
    held: dict[int, Stage] = {}
    for stage in stages:  # those with a number in their name come first
        value = getattr(stage, unit)
        if value is None:
            continue
        if value in held and stage.number is not None:
            raise InputError(
                f"{held[value].path} and {stage.path} are both of {unit} {value}: a run has one checkpoint a step; "
                "give the files of one run"
            )
        held.setdefault(value, stage)
    if len(held) < 2:
        raise InputError(f"{folder} holds one checkpoint of its run: give {stages[0].path}")
    return Run(folder, unit, tuple(held[value] for value in sorted(held)))
