"""The typed face of `landscape`: its names are imported when they are first used, which no type checker can follow."""

from __future__ import annotations

import pkgutil
from collections import defaultdict

import landscape

TEXT = '''"""Made by `make docs` from landscape/__init__.py and the measures: what type checkers and editors read."""

from collections.abc import Callable
from typing import Any

{imports}

__all__ = [
{public}
]

__version__: str
MEASURES: Registry[Callable[..., Any]]

def homes() -> dict[str, str]: ...
def import_all() -> None: ...
'''


def stub() -> str:
    """The text of landscape/__init__.pyi: every public name, imported from where it is defined, and all modules."""
    homes = landscape.homes()
    names = defaultdict(set, {"landscape.registry": {"Registry"}})
    for name, home in homes.items():
        names[home].add(name)
    modules = {m.name for m in pkgutil.iter_modules(landscape.__path__)} - set(homes)
    imports = [f"from landscape import {module} as {module}" for module in sorted(modules)]
    imports += [f"from {home} import {', '.join(sorted(names[home], key=_case))}" for home in sorted(names)]
    public = [f'    "{name}",' for name in sorted(["MEASURES", *homes], key=_case)]
    return TEXT.format(imports="\n".join(imports), public="\n".join(public))


def _case(name: str) -> tuple[int, str]:
    """As the linter sorts names: CONSTANTS, Types, the others."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2, name
