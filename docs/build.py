"""Write what can be read from the code into files: reference pages, tables of the README, the typed surface.

`python docs/build.py` writes, `python docs/build.py --check` fails where a file is out of date.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from docs import commands_page, python_page  # noqa: E402
from docs.stub import stub  # noqa: E402
from figures import FIGURES  # noqa: E402
from landscape import MEASURES  # noqa: E402
from landscape.meaning import meaning  # noqa: E402
from landscape.registry import Entry, Registry  # noqa: E402
from trainers import METHODS  # noqa: E402
from trainers.data import DATA  # noqa: E402
from trainers.models import MODELS  # noqa: E402

PAGES: dict[str, tuple[str, Registry]] = {
    "methods": ("Training methods", METHODS),
    "measures": ("Measures", MEASURES),
    "models": ("Models", MODELS),
    "data": ("Data sets", DATA),
    "figures": ("Figures", FIGURES),
}


def page(title: str, registry: Registry) -> str:
    """A reference page: every entry with its documentation and its options."""
    parts = [f"# {title}\n\nMade by `make docs` from the docstrings.\n"]
    return "\n".join([*parts, *(_section(e) for e in registry.entries.values())])


def _section(entry: Entry) -> str:
    prose = re.sub(r"(?<!\n)\n(Cost|Source|Memory): ", r"\n\n\1: ", entry.doc.split("\nArgs:")[0].strip())
    lines = [f"## {entry.name}\n", prose, ""]
    lines += [f"*{key.replace('_', ' ').capitalize()}*: {value}\n" for key, value in _facts(entry).items()]
    if entry.options:
        lines += ["| option | default | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{o.name}` | `{o.default!r}` | {_cell(o.help)} |" for o in entry.options]
    if "\nExample:\n" in entry.doc:
        example = textwrap.dedent(entry.doc.split("\nExample:\n")[1].split("\n\n")[0])
        lines += ["", "```pycon", example, "```"]
    return "\n".join([*lines, ""])


def _facts(entry: Entry) -> dict[str, str]:
    """What a decorator states in words; those of a measure as its default options make them."""
    if "label" not in entry.facts:
        return {key: value for key, value in entry.facts.items() if isinstance(value, str)}
    words = meaning(entry)
    return {"label": words.label, "meaning": words.general, "unit": words.unit}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def readme_table(registry: Registry) -> str:
    """Two columns: name and first line."""
    rows = [f"| `{e.name}` | {_cell(e.summary)} |" for e in registry.entries.values()]
    return "\n".join(["| name | what it is |", "| --- | --- |", *rows])


def contents() -> dict[Path, str]:
    """Every generated file with its text."""
    texts = {k: page(t, r) for k, (t, r) in PAGES.items() if len(r)}
    texts |= {"commands": commands_page.page(), "python": python_page.page()}
    pages = {ROOT / "docs" / "reference" / f"{name}.md": text for name, text in texts.items()}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind, (_, registry) in PAGES.items():
        pattern = rf"(<!-- {kind} -->\n).*?(\n<!-- end -->)"
        readme = re.sub(pattern, lambda m, r=registry: m[1] + readme_table(r) + m[2], readme, flags=re.DOTALL)
    return {**pages, ROOT / "README.md": readme, ROOT / "landscape" / "__init__.pyi": stub()}


def main() -> None:
    """Write or check."""
    stale = [p for p, text in contents().items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        names = ", ".join(str(p.relative_to(ROOT)) for p in stale)
        sys.exit(f"out of date: {names}; run `make docs`" if stale else 0)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents()[path], encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
