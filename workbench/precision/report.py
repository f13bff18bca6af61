"""What a change of precision did to a network."""

import html
from dataclasses import dataclass

from workbench.export.onnx_inspect import amount
from workbench.parity_report import count, html_table, text_table

HEADINGS = ("kept in float32", "operator", "why")


@dataclass(frozen=True)
class PrecisionReport:
    """What was converted, what was kept, and what it saves.

    Attributes:
        precision: such as `"int8"`.
        converted: how many nodes compute in it.
        kept: name, operator and reason of each node that could not, or was not to be, converted.
        qdq_pairs: pairs of QuantizeLinear and DequantizeLinear in the file, those of weights included: a weight that
            is stored in 8 bits needs the second half only.
        weights_bytes_before: size of the weights in the source.
        weights_bytes_after: their size in the result.
    """

    precision: str
    converted: int
    kept: tuple[tuple[str, str, str], ...]
    qdq_pairs: int
    weights_bytes_before: int
    weights_bytes_after: int

    def to_text(self) -> str:
        """Write one line, and a table of what was kept."""
        lines = [self._headline(), *(["", *text_table(HEADINGS, list(self.kept))] if self.kept else [])]
        return "\n".join(lines) + "\n"

    def _repr_html_(self) -> str:
        table = html_table(HEADINGS, list(self.kept)) if self.kept else ""
        return f'<div style="color:inherit"><div>{html.escape(self._headline())}</div>{table}</div>'

    def _headline(self) -> str:
        pairs = f", {count(self.qdq_pairs, 'Q/DQ pair')}" if self.qdq_pairs else ""
        sizes = f"{amount(self.weights_bytes_before, 'B')} to {amount(self.weights_bytes_after, 'B')}"
        nodes = f"{count(self.converted, 'node')} converted, {len(self.kept)} kept"
        return f"{self.precision}: {nodes}{pairs}, weights {sizes}"
