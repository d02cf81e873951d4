"""Networks by name: built in, of torchvision or timm, or of a folder's configuration; libraries are imported on use."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, unknown
from trainers.hugging_face.networks import Folder
from trainers.models import MODELS, arguments_for, build_model
from trainers.names import checked_arguments, parse_name

if TYPE_CHECKING:
    from torch import nn

    from trainers.datasets import Data

PREFIXES = ("torchvision", "timm", "hf")


@dataclass(frozen=True)
class BuiltIn:
    """One of `trainers.models.MODELS` for a foreign checkpoint.

    Attributes:
        name: of the network.
        arguments: its options; `classes` and `input_shape` too where the data do not say them.
    """

    name: str
    arguments: Mapping[str, Any]

    @property
    def options(self) -> str:
        """What it is made with, and what else each option may be."""
        options = MODELS.entry(self.name).options
        chosen = {o.name: self.arguments.get(o.name, o.default) for o in options}
        return "; ".join(f"{o.name}={chosen[o.name]} ({o.help.rstrip('.')})" for o in options)

    def network(self, data: Data | None) -> nn.Module:
        """The network, in the data's shape where its arguments say none.

        Raises:
            InputError: neither says it; an unknown name or argument.
        """
        shape = {} if data is None else arguments_for(self.name, data)
        arguments = {**shape, **self.arguments}
        missing = [name for name in ("classes", "input_shape") if name not in arguments]
        if missing:
            raise InputError(
                f"--model {self.name} for batches of your own: say {' and '.join(missing)}, for example "
                "--model-arg classes=10 --model-arg input_shape=3x32x32"
            )
        return build_model(self.name, **arguments)

    def others(self, data: Data | None) -> Iterator[tuple[str, str, nn.Module]]:
        """Networks that the same weights fit and that compute another function.

        Yields:
            What this one is made with, what the other is made with instead, and the other.
        """
        entry = MODELS.entry(self.name)
        options = {k: v for k, v in self.arguments.items() if k not in ("classes", "input_shape")}
        chosen = checked_arguments(entry, options)
        for name, values in entry.facts.get("same_weights", {}).items():
            for value in values if chosen[name] in values else ():
                # Not every value goes with the other arguments: a width may be no multiple of the heads.
                with contextlib.suppress(InputError):
                    if value != chosen[name]:
                        other = replace(self, arguments={**self.arguments, name: value})
                        yield f"{name}={chosen[name]}", f"{name}={value}", other.network(data)


@dataclass(frozen=True)
class OfLibrary:
    """A network of torchvision or timm, without its weights.

    Attributes:
        text: as the command line names it.
        name: of the architecture.
        build: the library's function.
        arguments: what it is made with.
    """

    text: str
    name: str
    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any]

    def __call__(self) -> nn.Module:
        """The network.

        Raises:
            InputError: the library refuses the arguments.
        """
        try:
            return self.build(self.name, **self.arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"--model {self.text!r} refuses its arguments {dict(self.arguments)}: {error}") from error


def is_named(text: str) -> bool:
    """Whether `text` names a network that is not a callable of the user's: PREFIX:NAME, NAME or NAME:key=value."""
    head, colon, rest = text.partition(":")
    return head in PREFIXES or not colon or "=" in rest


def named_network(text: str, arguments: Mapping[str, Any]) -> BuiltIn | Callable[[], nn.Module]:
    """What builds the network that `text` names, see `is_named`.

    Raises:
        InputError: no such network; the library that has it is not installed.
    """
    head, _, rest = text.partition(":")
    if head == "hf":
        return Folder(Path(rest).expanduser(), arguments)
    if head == "torchvision":
        models = _library(text, "torchvision.models")
        return _of_library(text, rest, models.list_models(), models.get_model, {"weights": None, **arguments})
    if head == "timm":
        timm = _library(text, "timm")
        return _of_library(text, rest, timm.list_models(), timm.create_model, {"pretrained": False, **arguments})
    name, options = parse_name(text)
    MODELS.entry(name)  # an unknown name is an error that says the nearest ones
    return BuiltIn(name, {**options, **arguments})


def _library(text: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        library = module.partition(".")[0]
        raise InputError(
            f"--model {text!r} needs a {library} that fits the installed torch, pip install "
            f"'loss-landscape-toolkit[vision]': {error}"
        ) from error


def _of_library(
    text: str, name: str, known: list[str], build: Callable[..., nn.Module], arguments: dict[str, Any]
) -> OfLibrary:
    # Names with the tag of their weights, as in vit_base_patch16_224.augreg_in21k, are of an architecture too.
    if name.partition(".")[0] not in known:
        raise unknown(f"architecture of {text.partition(':')[0]}", name, known)
    return OfLibrary(text, name, build, arguments)
