"""Checkpoints whose pickle names more than tensors: values of harmless types are passed over, code is refused.

Where a listed type is named, torch's unpickler gets a stand-in that keeps nothing: no code of the type runs either.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from landscape.errors import CheckpointWarning, InputError

_ARRAYS = tuple(
    f"numpy.{core}.{made_by}"
    for core in ("core", "_core")
    for made_by in ("multiarray._reconstruct", "numeric._frombuffer")
)
HARMLESS = (
    *_ARRAYS,
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.defaultdict",
    "datetime.datetime",
    "datetime.timedelta",
    *(f"{m}.{c}Path" for m in ("pathlib", "pathlib._local") for c in ("Posix", "Windows", "PurePosix", "PureWindows")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt", "Float") for bits in (8, 16, 32, 64)),
    *("numpy.dtype", "numpy.ndarray", "numpy.dtypes.BoolDType", "numpy.dtypes.StrDType"),
    *("_codecs.encode", "builtins.dict", "builtins.list", "builtins.tuple", "builtins.int", "builtins.slice"),
    *("typing.Any", "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode"),
    *(f"{p}.utilities.data.AttributeDict" for p in ("lightning.fabric", "lightning_fabric")),
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
"""Types of hyper-parameters that training frameworks store beside the weights."""


class Ignored:
    """Stands in for a value of a listed type: takes whatever it is made of and keeps nothing.

    Attributes:
        is_array: whether the value is a NumPy array.
    """

    is_array = False

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Keep nothing of an item."""

    def extend(self, _: Any) -> None:
        """Keep nothing of the items."""


def with_harmless_types(path: Path, error: pickle.UnpicklingError) -> Any:
    """The content of a checkpoint that torch refused, without its values of listed types; they are named in a warning.

    Raises:
        InputError: it names anything else.
    """
    named = _named(path, error)
    code = [name for name in named if name not in HARMLESS]
    if code:
        raise InputError(_refusal(path, code)) from error
    try:
        with safe_globals([(type("Ignored", (Ignored,), {"is_array": name in _ARRAYS}), name) for name in HARMLESS]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as again:
        raise InputError(_refusal(path, [n for n in _named(path, again) if n not in HARMLESS] or named)) from again
    warnings.warn(
        CheckpointWarning(f"{path}: values of {', '.join(named)} beside the weights were passed over"), stacklevel=5
    )
    return content


def _named(path: Path, error: Exception) -> list[str]:
    if zipfile.is_zipfile(path):
        return sorted(get_unsafe_globals_in_checkpoint(path))
    return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1] or ["a type that it does not say"]


def _refusal(path: Path, named: list[str]) -> str:
    modules = [name for name in named if name.startswith("torch.nn.modules.")]
    kind = "is a whole pickled model, or holds one" if modules else "holds pickled Python objects"
    foreign = [name for name in named if name not in modules] or modules
    shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    return (
        f"{path} {kind} ({shown}), which are never loaded, since loading runs their code: save a state dict "
        "instead, torch.save(model.state_dict(), 'state.pt'), and give --model module:callable"
    )
