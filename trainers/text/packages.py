"""Docstrings of installed packages, by reading their source: nothing is imported, nothing is run."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from landscape.errors import InputError

PINNED = {"matplotlib": "3.11.2", "numpy": "2.4.6", "scikit-learn": "1.9.1", "scipy": "1.17.1", "torch": "2.13.0"}
"""Package -> the version in constraints.txt; the packages, in this order, are the classes."""
MODULES = {"scikit-learn": "sklearn"}
LEFT_OUT = {"test", "tests", "testing"}
MASK = "<package>"
SHORTEST, LONGEST = 5, 200
"""Words that a docstring has at least, and that are kept of one."""

_NAMES = re.compile(
    r"(?<!\w)(?:\w*?(?:numpy|scipy|torch|scikit|sklearn|matplotlib|pyplot|pylab)\w*(?:-learn)?|mpl\w*|(?:np|sp|plt)(?!\w))",
    re.IGNORECASE,
)
_HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_AROUND = (ast.If, ast.Try, ast.With)


@dataclass(frozen=True)
class Docstring:
    """The text of a docstring, names of packages masked, and the place of its package in `PINNED`."""

    text: str
    label: int

    @property
    def words(self) -> tuple[str, ...]:
        """Its words in lower case, without digits and punctuation."""
        return tuple(re.findall(r"[a-z]+", self.text.lower()))


def installed_versions() -> dict[str, str]:
    """Package -> installed version, without the name of the build (2.13.0+cpu is 2.13.0).

    Raises:
        InputError: a package is not installed.
    """
    versions = {}
    for package in PINNED:
        try:
            versions[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            raise InputError(f"docstrings: {package} is not installed: pip install {package}") from None
    return versions


def docstrings() -> Iterator[Docstring]:
    """The docstrings of all modules, classes and functions of the packages, also of private ones and of methods.

    Left out are tests, directories of torch that begin with an underscore (its compilers, which are half of its
    files), and what has fewer than 5 words.
    """
    for label, package in enumerate(PINNED):
        for file in _files(MODULES.get(package, package)):
            for text in _held(file):
                docstring = Docstring(masked(text), label)
                if len(docstring.words) >= SHORTEST:
                    yield docstring


def masked(text: str) -> str:
    """The first 200 words of the text on one line, every word that names a package replaced.

    Parts of words count, whatever their case (PyTorch, np.ndarray, TorchScript, mpl_toolkits), so that the label cannot
    be read off.
    """
    return _NAMES.sub(MASK, " ".join(text.split()[:LONGEST]))


def _files(module: str) -> list[Path]:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"docstrings: {module} is installed without its source files: install it from its wheel")
    root = Path(next(iter(spec.submodule_search_locations)))
    files = []
    for file in root.rglob("*.py"):
        folders = file.relative_to(root).parts[:-1]
        private = module == "torch" and any(folder.startswith("_") for folder in folders)
        if not private and not LEFT_OUT & set(folders):
            files.append(file)
    return sorted(files, key=lambda f: f.relative_to(root).as_posix())


def _held(file: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():  # escapes in the source of others
            warnings.simplefilter("ignore")
            nodes: list[ast.AST] = [ast.parse(file.read_bytes())]
    except SyntaxError:  # templates, and files for a newer Python
        return
    while nodes:
        node = nodes.pop()
        if isinstance(node, _HOLDERS) and (text := ast.get_docstring(node, clean=False)):
            yield inspect.cleandoc(text)
        for part in ("body", "orelse", "finalbody"):
            nodes += [n for n in getattr(node, part, ()) if isinstance(n, (*_HOLDERS, *_AROUND))]
