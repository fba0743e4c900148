"""Turn the figures of the pairs into medians, ratios and one table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs

from tests.bench.cases import Case, Row
from tests.bench.loads import Figures


@attrs.frozen(kw_only=True)
class Line:
    """One finished line: medians of both daemons and the median of the pairs' ratios."""

    case: str
    row: Row
    real: float
    ours: float
    ratio: float

    @property
    def is_met(self) -> bool | None:
        return self.row.is_met(self.ours if self.row.absolute else self.ratio)


def lines(case: Case, pairs: Sequence[tuple[Figures, Figures]]) -> list[Line]:
    """Summarise the pairs (real, ours) of one case."""
    result = []
    for row in case.rows:
        real = [theirs[row.figure] for theirs, _ in pairs]
        ours = [mine[row.figure] for _, mine in pairs]
        result.append(
            Line(
                case=case.name,
                row=row,
                real=statistics.median(real),
                ours=statistics.median(ours),
                ratio=statistics.median(
                    mine / theirs for theirs, mine in zip(real, ours, strict=True)
                ),
            )
        )
    return result


def number(value: float) -> str:
    """Print three significant digits, and no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


HEADER = (
    "| load | figure | QSD 7.2 | qsd-trio | ratio | target | met |",
    "|---|---|---:|---:|---:|---|---|",
)


def table_line(line: Line, *, with_name: bool) -> str:
    """Print one line of the Markdown table."""
    met = {True: "yes", False: "**no**", None: ""}[line.is_met]
    cells = (
        line.case if with_name else "",
        line.row.figure,
        number(line.real),
        number(line.ours),
        f"{line.ratio:.2f}x",
        line.row.target(),
        met,
    )
    return f"| {' | '.join(cells)} |"


def table(found: Sequence[Line]) -> str:
    """Print the Markdown table; a case's name stands in its first line only."""
    names = ["", *(line.case for line in found)]
    body = (
        table_line(line, with_name=line.case != before)
        for before, line in zip(names, found, strict=False)
    )
    return "\n".join((*HEADER, *body))
