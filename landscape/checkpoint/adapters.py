"""Files that hold an adapter (LoRA and its kin, as peft writes them) and not the network below it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from landscape.checkpoint.states import Tensors
from landscape.errors import InputError

_INSERTED = re.compile(r"\.((?:lora|vera|ia3|hada|lokr|oft|boft)_\w+|modules_to_save)\.(\w+)(?=\.|$)")
"""What peft inserts into a name: the kind of tensor, then the adapter's name, which its files leave out."""

_IN_FILE = re.compile(r"\.(?:lora|vera|ia3|hada|lokr|oft|boft)_\w+(?:\.|$)")


def is_adapter(names: Iterable[str]) -> bool:
    """Whether some of the names are those of an adapter's tensors."""
    return any(_IN_FILE.search(name) for name in names)


def adapter_names(needed: Iterable[str]) -> dict[str, str]:
    """The network's names of its adapter's tensors -> what files of peft call them."""
    matches = {name: m for name in needed if (m := _INSERTED.search(name))}
    return {name: name.replace(m[0], "" if m[1] == "modules_to_save" else f".{m[1]}", 1) for name, m in matches.items()}


def with_adapter_names(tensors: Tensors, needed: Iterable[str], path: str | Path) -> tuple[Tensors, set[str]]:
    """The tensors under the network's names, and the names that an adapter's file leaves to the network below.

    Raises:
        InputError: the file holds an adapter, the network has none.
    """
    needed = list(needed)
    if not is_adapter(tensors.named):
        return tensors, set()
    if not is_adapter(needed):
        raise InputError(
            f"{path} is an adapter (LoRA), not a network, and no adapter_config.json lies beside it: put it there, or "
            "give --model module:callable that returns the adapted network with the weights of its base, "
            "peft.get_peft_model(base, config)"
        )
    ours = {theirs: name for name, theirs in adapter_names(needed).items()}
    base = {name for name in needed if name not in ours.values()}
    if any(name in tensors.named for name in base):  # the whole adapted network, under its own names
        return tensors, set()
    names = {name: ours.get(name, name) for name in tensors.named}
    return Tensors(
        {names[n]: t for n, t in tensors.named.items()}, {names[n]: c for n, c in tensors.container.items()}
    ), base
