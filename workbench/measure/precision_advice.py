"""One sentence on which precision to take, with its reason."""

from workbench.core.report import count
from workbench.measure.latency import format_ms
from workbench.measure.precision_table import WORTH, PrecisionRow, PrecisionTable
from workbench.onnx_graph.cost import amount


def advise(table: PrecisionTable) -> str:
    """Say which precision to take: the fastest that keeps its answers, where the speed is real; else fp16.

    Args:
        table: the rows, float32 first.
    Returns:
        One sentence.
    """
    good = [row for row in table.judged if table.within_limit(row)]
    bad = [row for row in table.judged if not table.within_limit(row)]
    if not table.judged:
        return f"Nothing to advise: no precision but {table.rows[0].precision} ran here."
    if not good:
        return f"Stay with {table.rows[0].precision}: {'; '.join(_fault(row, table) for row in bad)}."
    fast = [row for row in good if row.timing]
    choice = _by_speed(table, fast) if fast and table.rows[0].timing else _by_size(table, good)
    return f"{choice}{''.join(f'; not {row.precision}: it {_verb(row, table)}' for row in bad)}."


def _by_speed(table: PrecisionTable, fast: list[PrecisionRow]) -> str:
    """The fastest, if it is worth it, and the row that a reader would ask about next."""
    base, best = table.rows[0], min(fast, key=_ms)
    half = next((row for row in fast if row.precision == "fp16"), None)
    if half is not None and _ms(half) < WORTH * _ms(best):
        best = half  # as fast, and closer to float32
    if _ms(base) < WORTH * _ms(best):
        text = f"Stay with {base.precision} on this machine: {best.precision} takes {_times(best, base)}"
    else:
        faster = f"{_ms(base) / _ms(best):.1f} times as fast as {base.precision}"
        text = f"Take {best.precision}: it is {faster} ({_times(best, base)}), {_cost(best, table)}"
    eight = next((row for row in fast if row.precision == "int8"), None)
    if eight is not None and best is half and _ms(eight) > WORTH * _ms(half):
        return f"{text}; int8 is slower than fp16 here ({_times(eight, half)})"
    if best is not half and half is not None:
        text += f"; fp16 takes {format_ms(_ms(half))} ms"
    elif half is None and any(row.precision == "fp16" and table.within_limit(row) for row in table.judged):
        text += "; this machine has no float16 arithmetic, so compare it with fp16 on the GPU"
    return text


def _by_size(table: PrecisionTable, good: list[PrecisionRow]) -> str:
    """Where no speed is known: float16 is the safe first step, whatever is smaller has to be measured."""
    best = next((row for row in good if row.precision == "fp16"), good[0])
    base, sizes = table.rows[0], ""
    if best.plan_bytes and base.plan_bytes:
        sizes = f", and its plan takes {100 * best.plan_bytes / base.plan_bytes:.0f} % of {base.precision}'s"
    elif best.file_bytes < base.file_bytes:
        sizes = f", and its file shrinks from {amount(base.file_bytes, 'B')} to {amount(best.file_bytes, 'B')}"
    text = f"Take {best.precision}: {_cost(best, table)}{sizes}; how fast it is, only the target machine can tell"
    other = next((row for row in good if row is not best and row.precision in ("int8", "fp8")), None)
    if other is not None:
        text += f", and whether {other.precision} ({_cost(other, table)}) gains more"
    return text


def _cost(row: PrecisionRow, table: PrecisionTable) -> str:
    if row.score is None:
        return f"the largest error is {row.error:.1e} of the range"
    if abs(row.loss) < 5e-5:
        return f"{table.measure} stays at {row.score:.4f}"
    return f"{table.measure} changes by {-row.loss:+.4f}"


def _fault(row: PrecisionRow, table: PrecisionTable) -> str:
    return f"{row.precision} {_verb(row, table)}"


def _verb(row: PrecisionRow, table: PrecisionTable) -> str:
    if row.broken:
        return f"answers {count(row.nan + row.inf, 'NaN or infinite value')}"
    return f"loses {row.loss:.4f} of {table.measure} ({table.limit:g} allowed)"


def _ms(row: PrecisionRow) -> float:
    return row.timing.median_ms if row.timing else float("inf")


def _times(one: PrecisionRow, other: PrecisionRow) -> str:
    return f"{format_ms(_ms(one))} against {format_ms(_ms(other))} ms"
