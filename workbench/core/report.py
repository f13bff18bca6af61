"""The result of a comparison: the verdict and its numbers, as text, HTML and JSON."""

import html
import math
from collections.abc import Sequence
from typing import Any, Literal

Cells = tuple[str, ...]
Status = Literal["pass", "fail", "inconclusive"]
COLORS = {"pass": "#2e9e5b", "fail": "#d64545", "inconclusive": "#c98a1b"}


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
