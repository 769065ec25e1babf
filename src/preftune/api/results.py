"""What the functions return: numbers as a DataFrame, a figure, and everything that --json prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """The result of `evaluate`, `diagnose` or `compare`.

    Attributes:
        rows: one mapping per line of the table; `mean`, `low` and `high` are a value with its 95% interval.
        content: what the command prints with --json.
        summary: the result in one or two sentences.
        page: the path of the report page, if the command writes one.
    """

    rows: Sequence[Mapping[str, Any]]
    content: Mapping[str, Any]
    summary: str
    page: str | None = None

    @property
    def metrics(self) -> Any:
        """The table as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame(list(self.rows))

    def plot(self) -> Any:
        """A matplotlib figure of the means with their intervals."""
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if row.get("mean") is not None]
        if not rows:
            raise ConfigError("The result has no means to plot", got="a table of verdicts", do="Use .metrics")
        names = [str(next(iter(row.values()))) for row in rows]
        means = [row["mean"] for row in rows]
        low = [max(0.0, row["mean"] - row["low"]) for row in rows]
        high = [max(0.0, row["high"] - row["mean"]) for row in rows]
        figure = Figure(figsize=(6, 0.5 * len(rows) + 0.9), layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(means, names, xerr=[low, high], fmt="o", capsize=3)
        axes.invert_yaxis()
        axes.set_xlabel("mean and 95% interval")
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        page = f"<p>page: {escape(self.page)}</p>" if self.page else ""
        return f"<p>{escape(self.summary)}</p>{self.metrics.to_html(index=False)}{page}"
