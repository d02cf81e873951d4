"""One file, one entry: measures, methods and figures are found by reading their files.

An entry is a top-level function or class decorated with ``@register("name")``, a measure with ``@measure("name")``. The
files are *read* for names, options and documentation and only imported when an entry is used, so that ``--help`` does
not wait for torch.
Options are the keyword-only arguments of a function or the fields of a dataclass; their help is the ``Args:`` section
of its docstring. Entries that have all options in common take them as ``**options`` and name the dataclass that holds
them, in a file beside theirs: ``@register("npz", options="forms.Form")``.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from landscape.errors import InputError, unknown

T = TypeVar("T")
_DECORATORS = ("register", "measure")


def register(name: str, **facts: Any) -> Callable[[T], T]:
    """Decorator that gives the entry its public name; `facts` are literals that can be read without importing."""

    def mark(entry: T) -> T:
        entry.registered_name = name  # type: ignore[attr-defined]
        return entry

    return mark


@dataclass(frozen=True)
class Option:
    """A keyword of an entry: `type` is the annotation's text, `default` its literal default."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Entry:
    """What is known of an entry without importing it."""

    name: str
    file: Path
    symbol: str
    doc: str
    options: tuple[Option, ...]
    facts: dict[str, Any]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.strip().splitlines()[0].rstrip(".") if self.doc.strip() else ""

    def option(self, name: str) -> Option:
        """The option called `name` (dashes and underscores alike)."""
        by_name = {o.name: o for o in self.options}
        if name.replace("-", "_") not in by_name:
            raise unknown(f"argument of {self.name}", name, by_name)
        return by_name[name.replace("-", "_")]


class Registry(Mapping[str, T]):
    """The entries of a package, by name: ``METHODS["sam"]`` imports trainers/methods/sam.py and returns its class."""

    def __init__(self, package: str, kind: str) -> None:
        self.package, self.kind = package, kind

    @functools.cached_property
    def entries(self) -> dict[str, Entry]:
        """Every entry of the package, in alphabetical order; two of one name are an error that names both files."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None, self.package
        assert spec.submodule_search_locations, self.package
        entries: dict[str, Entry] = {}
        for file in sorted(f for folder in spec.submodule_search_locations for f in Path(folder).glob("*.py")):
            for entry in _read(file):
                if entry.name in entries:
                    raise InputError(
                        f"two {self.kind}s are called {entry.name!r}: {entries[entry.name].file} and {file}"
                    )
                entries[entry.name] = entry
        return dict(sorted(entries.items()))

    def entry(self, name: str) -> Entry:
        """The entry called `name`; an unknown name raises InputError with the nearest ones."""
        if name not in self.entries:
            raise unknown(self.kind, name, self.entries)
        return self.entries[name]

    def __getitem__(self, name: str) -> T:
        entry = self.entry(name)
        return getattr(importlib.import_module(f"{self.package}.{entry.file.stem}"), entry.symbol)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _read(file: Path) -> Iterator[Entry]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _DECORATORS:
                name = ast.literal_eval(call.args[0])
                facts = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg and k.arg != "says"}
                doc = _doc(node)
                common = facts.pop("options", "")
                options = _common(file, common) if common else _options(node)
                yield Entry(name, file, node.name, doc, tuple(options), facts)


def _common(file: Path, place: str) -> Iterator[Option]:
    """The fields of the dataclass at `place`, a module beside `file` and a name in it."""
    module, _, symbol = place.rpartition(".")
    tree = ast.parse(file.with_name(f"{module}.py").read_text(encoding="utf-8"))
    return next(_options(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == symbol)


def _doc(node: ast.FunctionDef | ast.ClassDef) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")


def _options(node: ast.FunctionDef | ast.ClassDef) -> Iterator[Option]:
    helps = argument_help(_doc(node))
    fields: list[tuple[str, ast.expr | None, ast.expr | None]]
    if isinstance(node, ast.ClassDef):
        fields = [
            (f.target.id, f.annotation, f.value)
            for f in node.body
            if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)
        ]
    else:
        fields = [(a.arg, a.annotation, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    for name, annotation, default in fields:
        type_text = ast.unparse(annotation) if annotation else "str"
        if default is not None and not type_text.startswith("ClassVar") and name in helps:
            yield Option(name, type_text, ast.literal_eval(default), helps[name])


def argument_help(doc: str) -> dict[str, str]:
    """The ``Args:`` section of a docstring: name -> text."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not section:
        return {}
    helps: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc("\n" + section[1]).splitlines():
        start = re.match(r"(\w+)(?: \(.*?\))?: (.*)", line)
        if start and not line.startswith(" "):
            name = start[1]
            helps[name] = start[2].strip()
        elif name:
            helps[name] += " " + line.strip()
    return helps
