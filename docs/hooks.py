"""What mkdocs is told beyond mkdocs.yml: files from outside of docs/, notebooks as pages, formulas as MathML.

No network is needed to read a page; one that would ask for it fails the build.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown.extensions import Extension
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages at the root of the repository, which become pages at the root of the site."""

_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL)
_REQUEST = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="?(?:https?:)?//|<link[^>]*\shref="?(?:https?:)?//')


class NoHtml(Extension):
    """Text as it stands: `<w_s, w_t>` is a product, not a tag."""

    def extendMarkdown(self, md):  # noqa: D102
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config):
    """No page has HTML of its own."""
    config.markdown_extensions.append(NoHtml())
    return config


def on_files(files, config):
    """Add the pages of the root and of docs/notebooks."""
    for name in ROOT_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for script in sorted((ROOT / "docs" / "notebooks").glob("*.py")):
        text = notebook_page(script.read_text(encoding="utf-8"))
        files.append(File.generated(config, f"notebooks/{script.stem}.md", content=text))
    return files


def on_page_markdown(markdown, page, **_):
    """Comments go; links that leave docs/ lead to the pages that were added; scripts of notebooks to their pages."""
    markdown = _COMMENT.sub("", markdown)
    up = "../" * page.file.src_uri.count("/")
    for name in ROOT_PAGES:
        markdown = markdown.replace(f"](../{up}{name}", f"]({up}{name}")
    return re.sub(r"\]\(((?:\.\./)*(?:notebooks/)?\w+)\.py\)", r"](\1.md)", markdown)


def on_page_content(content, page, **_):
    """Formulas as MathML, which browsers draw by themselves; bars in the code of a table, as GitHub reads them."""
    content = _CELL.sub(lambda match: match[0].replace("\\|", "|"), content)
    content = _FORMULA.sub(_mathml, content)
    if 'class="arithmatex"' in content:
        raise PluginError(f"{page.file.src_uri}: a formula was not understood")
    return content


def on_post_page(output, page, **_):
    """Fail where a page would load something from another machine."""
    if found := _REQUEST.search(output):
        raise PluginError(f"{page.file.src_uri}: asks the network for something: {found[0]}")
    return output


def notebook_page(script: str) -> str:
    """Markdown of a script in percent format: `# %% [markdown]` cells as text, `# %%` cells as code."""
    parts = []
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _mathml(match: re.Match) -> str:
    display = "block" if match[1] == "div" else "inline"
    formula = convert(html.unescape(match[2]).strip(), display=display)
    # A bar with an exponent would be stretched, and sink below the line.
    return re.sub(r"<mo>(&#x02016;|&#x0007C;|\|)</mo>", r'<mo stretchy="false">\1</mo>', formula)
