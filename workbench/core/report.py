"""One report under every verdict and table: the verdict first, then tables, then remarks; as text, HTML and JSON."""

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

Cells = tuple[str, ...]
Status = Literal["pass", "fail", "inconclusive"]
COLORS = {"pass": "#2e9e5b", "fail": "#d64545", "inconclusive": "#c98a1b", "": "rgba(128,128,128,.5)"}


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells under headings, one for each column; the title is a line above them."""

    headings: Cells
    rows: Sequence[Cells]
    title: str = ""


class Report:
    """What every report is: a dataclass with a `verdict`, its first line, which gives tables and remarks.

    One that judges has a `status` too, which colours the bar beside it in a notebook; nothing is said twice.
    """

    if TYPE_CHECKING:

        @property
        def verdict(self) -> str:
            """The first line; a field or a property of the subclass."""

    @property
    def passed(self) -> bool:
        """Whether the status is `"pass"`."""
        return self._status() == "pass"

    def _status(self) -> str:
        return getattr(self, "status", "")

    def _tables(self) -> Iterable[Table]:
        return ()

    def _remarks(self) -> Iterable[str]:
        return ()

    def _content(self) -> dict[str, Any]:
        """What `to_json` writes; `passed` only where there is a status."""
        passed = {"passed": self.passed} if self._status() else {}
        return passed | dataclasses.asdict(self)  # type: ignore[call-overload]

    def to_text(self) -> str:
        """Write the verdict, aligned tables, and remarks."""
        blocks = [[self.verdict]]
        for table in self._tables():
            blocks.append([*([table.title] if table.title else []), *text_table(table.headings, table.rows)])
        blocks.append(self._unsaid())
        return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"

    def to_html(self) -> str:
        """Write the same as HTML that reads well in light and dark notebooks."""
        parts = [f'<div style="font-weight:600;margin-bottom:.4em">{html.escape(self.verdict)}</div>']
        for table in self._tables():
            parts += [f"<div>{html.escape(table.title)}</div>"] if table.title else []
            parts.append(html_table(table.headings, table.rows))
        parts += [f'<div style="opacity:.8">{html.escape(text)}</div>' for text in self._unsaid()]
        border = f"border-left:.35em solid {COLORS[self._status()]};padding:.2em .8em;color:inherit"
        return f'<div style="{border}">{"".join(parts)}</div>'

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_json(self) -> str:
        """Write everything as strict JSON: numbers that are not finite become null."""
        content = {"format": "workbench report 1", **finite_or_none(self._content())}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def _unsaid(self) -> list[str]:
        """The remarks, each once, without what the verdict says already."""
        return [text for text in dict.fromkeys(self._remarks()) if text not in self.verdict]


def percent(share: float) -> str:
    """Write a share in percent, never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.9999):.6g} %"


def count(number: int, noun: str) -> str:
    """Write a number and its noun, in the plural where needed."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def text_table(headings: Cells, rows: Sequence[Cells]) -> list[str]:
    """Align cells to columns: the headings, a line, then the rows."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = (headings, tuple("-" * width for width in widths), *rows)
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in lines]


def html_table(headings: Cells, rows: Sequence[Cells]) -> str:
    """Write cells as a table that reads well in light and dark notebooks."""
    line = "border-bottom:1px solid rgba(128,128,128,.35);padding:.25em .7em;text-align:left"

    def row(tag: str, cells: Cells) -> str:
        inner = "".join(f'<{tag} style="{line}">{html.escape(cell)}</{tag}>' for cell in cells)
        return f"<tr>{inner}</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return (
        '<table style="border-collapse:collapse;color:inherit;background:transparent;font-size:90%">'
        f"<thead>{row('th', headings)}</thead><tbody>{body}</tbody></table>"
    )


def finite_or_none(value: Any) -> Any:
    """The same value for strict JSON, with None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(entry) for entry in value]
    return value
