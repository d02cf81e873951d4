"""The terminal summary: an aligned table that says what was measured, with errors, without opening anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from figures.page.answer import Answer, answer
from figures.page.rows import Differences, Row, notes, rows
from landscape.formatting import count, signed
from landscape.results.cells import BOUND, INTERVAL, Cell

if TYPE_CHECKING:
    from figures.page.analysis import Analysis


def render(analyses: Sequence[Analysis], *, differences: Differences | None = None) -> RenderableType:
    """The summary of one or several analyses, for a rich console.

    Names come from files: they are `Text`, so that brackets in them are not read as markup.

    Args:
        analyses: in the order of the columns.
        differences: see `figures.page.rows.Differences`.
    """
    first = analyses[0]
    sizes = dict.fromkeys(count(a.parameters) for a in analyses)
    about = f"{count(first.samples)} examples, {' and '.join(sizes)} parameters"
    policy = first.provenance.get("batch_norm") if first.provenance.get("has_batch_norm", True) else None
    head = Text(first.label if len(analyses) == 1 else f"{len(analyses)} checkpoints", style="bold")
    head.append(f"  {about}" + (f", BatchNorm {policy}" if policy else ""), style="dim")
    shown = rows(analyses, differences)
    kinds = dict.fromkeys(c.kind for r in shown for c in r.cells if c and c.error_text)
    below = [Text(f"! {note}", style="yellow") for note in notes(analyses)]
    if len(analyses) == 1:
        return Group(head, _single(shown), *([Text(_scope(kinds), style="dim")] if kinds else []), *below)
    error = f"; ±: {' or '.join(kinds)}" if kinds else ""
    foot = Text(f"Δ: difference from {first.label}, * where its error leaves out zero{error}", style="dim")
    compared = _compared(shown, [a.label for a in analyses])
    says = _answer(answer(analyses, shown))
    return Group(head, compared, foot, Text(_scope(kinds), style="dim"), *below, *says)


def _answer(says: Answer | None) -> Iterator[RenderableType]:
    """The comparison in sentences; last, where the eye is when a command has ended."""
    if says is None:
        return
    yield Text()
    for sentence in says.sentences:
        yield Text(sentence, style="bold")
    for caution in says.cautions:
        yield Text(f"! {caution}", style="yellow")


def show(analyses: Sequence[Analysis], *, differences: Differences | None = None) -> None:
    """Print the summary on stdout; where that is not a terminal, 100 columns wide and without color."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100)
    console.print(render(analyses, differences=differences))


def text(analyses: Sequence[Analysis], *, width: int = 100, differences: Differences | None = None) -> str:
    """The summary as plain text."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(render(analyses, differences=differences))
    return captured.get()


def _scope(kinds: Iterable[str]) -> str:
    """What the errors speak of, and what they do not."""
    says = {
        INTERVAL: "an interval speaks of these examples and probes, not of other training seeds",
        BOUND: "an error bound of the arithmetic alone",
    }
    text = "; ".join(words for kind, words in says.items() if kind in kinds)
    return f"{text[:1].upper()}{text[1:]}" if text else "No errors are known here; other training seeds differ"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1))


def _single(shown: Sequence[Row]) -> Table:
    table = _table()
    table.add_column("measure", min_width=18)
    table.add_column("setting", style="dim")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for row in shown:
        table.add_row(Text(row.label), Text(row.setting), Text(_value(row.cells[0])), Text(_remark(row.cells[0])))
    return table


def _compared(shown: Sequence[Row], labels: Sequence[str]) -> Table:
    """One line per measure and checkpoint: any number of checkpoints fits in a terminal, and the values line up."""
    table = _table()
    table.add_column("", min_width=18, overflow="fold")  # long names differ at their ends
    table.add_column("value", justify="right")
    table.add_column(Text("Δ"), justify="right")
    for row in shown:
        table.add_row(Text(row.label, style="bold"), Text(row.setting, style="dim"))
        for i, (label, cell) in enumerate(zip(labels, row.cells, strict=True)):
            change = Text(_difference(row, i) if i else "")
            table.add_row(Text(f"  {label}"), Text(_value(cell)), change, end_section=i == len(labels) - 1)
    return table


def _value(cell: Cell | None) -> str:
    return cell.text if cell else "–"


def _difference(row: Row, index: int) -> str:
    difference = row.differences[index]
    if difference is None:
        return "–"
    return f"{signed(_value(difference))}{' *' if difference.clear else ''}"


def _remark(cell: Cell | None) -> str:
    return "" if cell is None else "; ".join(t for t in (cell.kind, cell.note) if t)
