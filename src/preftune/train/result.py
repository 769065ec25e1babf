"""The end of a run, as Python and notebooks see it."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.report.page import REPORT_NAME
from preftune.report.read import read_run


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The end of a run."""

    folder: Path
    final: Path | None  # the tuned model; None when the run was interrupted
    step: int
    state: str  # "finished" or "interrupted"
    evaluation: Mapping[str, float]  # of the last evaluation on held-out data, {} without

    @property
    def metrics(self) -> Any:
        """Every logged number as a pandas DataFrame: a row for each step, evaluations in the columns eval_*."""
        import pandas

        run = read_run(self.folder)
        columns = {name: pandas.Series(one.values, one.steps) for name, one in run.train.items()}
        columns |= {
            f"eval_{name}": pandas.Series(one.values, one.steps) for name, one in run.evaluation.items()
        }
        return pandas.DataFrame(columns).rename_axis("step")

    def plot(self, *names: str) -> Any:
        """A matplotlib figure of these metrics over the steps; the loss if none is named."""
        from matplotlib.figure import Figure

        table, names = self.metrics, names or ("loss",)
        if unknown := [name for name in names if name not in table]:
            raise ConfigError("The run has no such metric", got=unknown[0], expected=", ".join(table.columns))
        figure = Figure(figsize=(6, 2.4 * len(names)), layout="constrained")
        for place, name in enumerate(names):
            axes = figure.add_subplot(len(names), 1, place + 1)
            axes.plot(table[name].dropna(), marker="o", markersize=3)
            axes.set(xlabel="step", ylabel=name)
        return figure

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        numbers = "".join(
            f"<tr><td>{escape(k)}</td><td>{v:.4f}</td></tr>" for k, v in self.evaluation.items()
        )
        return (
            f"<p>{escape(self.state)} after step {self.step}: {escape(str(self.folder))}</p>"
            f"<table>{numbers}</table><p>report: {escape(str(self.folder / REPORT_NAME))}</p>"
        )
