"""How a source tree is built: sizes, import depth, parameters, tests and annotations, as a Markdown table.

    python docs/house.py [PATH...]      # roots of source trees or packages; this project without any

* Code: the packages and modules at the root (or in `src`); tests are the `test_*.py`, `*_test.py` and the files in
  `test` or `tests`. Lines are those that are neither blank nor a comment.
* Body: the lines of a function behind its signature and docstring, those of functions within it too.
* Import depth: modules in the longest chain of imports within the tree. `at import` follows what runs when a module is
  imported; `all` follows imports in functions and for type checkers too. Modules that import each other count as one
  link of so many modules.
* Parameters of a function or method, `self` and `cls` apart.
* Annotated: the share of public functions and methods all of whose parameters and results carry a type.
"""

from __future__ import annotations

import ast
import functools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
APART = {"setup.py", "conftest.py", "noxfile.py"}


@dataclass(frozen=True)
class Module:
    """A file of the tree by its dotted name."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, root: Path) -> Module:
        """Parse a file."""
        parts = path.relative_to(root).with_suffix("").parts
        text = path.read_text(encoding="utf-8")
        return cls(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, text, ast.parse(text))

    @property
    def is_package(self) -> bool:
        """Whether it is an `__init__.py`."""
        return self.path.name == "__init__.py"

    @functools.cached_property
    def functions(self) -> list[tuple[Function, bool]]:
        """Every function with whether it is a method."""
        methods = {id(f) for c in ast.walk(self.tree) if isinstance(c, ast.ClassDef) for f in c.body}
        return [(node, id(node) in methods) for node in ast.walk(self.tree) if isinstance(node, Function)]


# -- what belongs to a tree --------------------------------------------------------------------------------------------


def is_test(path: Path, root: Path) -> bool:
    """By the names of the file and its folders."""
    folders = path.relative_to(root).parts[:-1]
    names = path.name.startswith("test_") or path.name.endswith("_test.py") or path.name == "conftest.py"
    return names or bool({"test", "tests"} & set(folders))


def modules(root: Path) -> tuple[list[Module], list[Path]]:
    """(code, files of tests)."""
    if (root / "__init__.py").exists():
        base = root.parent
        code = files = sorted(root.rglob("*.py"))
    else:
        base = root / "src" if (root / "src").is_dir() else root
        files = sorted(p for p in root.rglob("*.py") if not any(f.startswith(".") for f in p.relative_to(root).parts))
        packages = {p.parent for p in base.glob("*/__init__.py")}
        code = [p for p in files if (p.parent == base and p.name not in APART) or packages & set(p.parents)]
    tests = [p for p in files if is_test(p, base if p in code else root)]
    return [Module.read(p, base) for p in code if p not in set(tests)], tests


def lines_of(text: str) -> int:
    """Lines that are neither blank nor a comment."""
    return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))


# -- functions ---------------------------------------------------------------------------------------------------------


def body_lines(module: Module, function: Function) -> int:
    """Lines behind signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return lines_of("\n".join(module.text.splitlines()[body[0].lineno - 1 : body[-1].end_lineno])) if body else 0


def parameters(function: Function, is_method: bool) -> list[ast.arg]:
    """Without the first of a method that is no static method."""
    a = function.args
    listed = [
        *a.posonlyargs,
        *a.args,
        *([a.vararg] if a.vararg else []),
        *a.kwonlyargs,
        *([a.kwarg] if a.kwarg else []),
    ]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
    return listed[1:] if is_method and not static else listed


def public_functions(module: Module) -> Iterator[tuple[Function, bool]]:
    """Functions of the module and methods of its classes, none of them private by its name."""
    for node in module.tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for function in inner:
            if isinstance(function, Function) and not function.name.startswith("_"):
                yield function, function is not node


def is_annotated(function: Function, is_method: bool) -> bool:
    """Every parameter and the result carries a type."""
    return function.returns is not None and all(p.annotation for p in parameters(function, is_method))


# -- imports -----------------------------------------------------------------------------------------------------------


def imports(tree: ast.AST, deferred: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run with a module; with `deferred` those of functions and for type checkers too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not deferred and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []), deferred)
        elif deferred or not isinstance(node, Function | ast.Lambda):
            yield from imports(node, deferred)


def targets(module: Module, known: set[str], deferred: bool) -> set[str]:
    """Modules of the tree that it imports."""
    names: set[str] = set()
    for node in imports(module.tree, deferred):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        parts = module.name.split(".")
        above = parts[: len(parts) - node.level + module.is_package] if node.level else []
        source = ".".join([*above, *(node.module.split(".") if node.module else [])])
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            names.add(inner if inner in known else source)
    return (names & known) - {module.name}


def depth(code: list[Module], deferred: bool) -> int:
    """Modules in the longest chain of imports."""
    known = {m.name for m in code}
    edges = {m.name: targets(m, known, deferred) for m in code}
    component = components(edges)
    size: dict[int, int] = {}
    for number in component.values():
        size[number] = size.get(number, 0) + 1
    next_ones: dict[int, set[int]] = {number: set() for number in size}
    for name, others in edges.items():
        next_ones[component[name]] |= {component[o] for o in others} - {component[name]}

    @functools.cache
    def longest(number: int) -> int:
        return size[number] + max((longest(other) for other in next_ones[number]), default=0)

    return max(map(longest, size), default=0)


def components(edges: dict[str, set[str]]) -> dict[str, int]:
    """Module -> number of the ring of modules that import each other (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    component: dict[str, int] = {}

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
            if other not in component:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            number = len(set(component.values()))
            while name not in component:
                component[stack.pop()] = number

    for name in edges:
        if name not in order:
            visit(name)
    return component


# -- the table ---------------------------------------------------------------------------------------------------------


def spread(values: list[int], last: bool = False) -> str:
    """Median, 90th percentile and, for `last`, the largest."""
    if not values:
        return "-"
    ninth = statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]
    return " / ".join(str(round(v)) for v in (statistics.median(values), ninth, *([max(values)] if last else [])))


def measured(root: Path) -> dict[str, str]:
    """Column -> what it holds for this tree."""
    code, tests = modules(root)
    functions = [(m, f, is_method) for m in code for f, is_method in m.functions]
    public = [is_annotated(f, is_method) for m in code for f, is_method in public_functions(m)]
    total = sum(lines_of(m.text) for m in code)
    tested = sum(lines_of(p.read_text(encoding="utf-8")) for p in tests)
    return {
        "tree": root.resolve().name,
        "files": str(len(code)),
        "lines": f"{total:,}",
        "file: median / p90 / max": spread([lines_of(m.text) for m in code], last=True),
        "body: median / p90 / max": spread([body_lines(m, f) for m, f, _ in functions], last=True),
        "parameters: median / p90 / max": spread([len(parameters(f, of)) for _, f, of in functions], last=True),
        "import depth: at import / all": f"{depth(code, False)} / {depth(code, True)}",
        "tests / code": f"{tested / total:.2f}" if tests and total else "-",
        "annotated": f"{sum(public) / len(public):.0%}" if public else "-",
    }


def main() -> None:
    """A row for every tree."""
    rows = [measured(Path(p)) for p in sys.argv[1:] or [Path(__file__).parent.parent]]
    print("| " + " | ".join(rows[0]) + " |")
    print("| --- |" + " ---: |" * (len(rows[0]) - 1))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
