"""Run folders to one self-contained HTML page. Sees only files: neither torch nor transformers is imported."""

from preftune.report.page import write_comparison, write_report
from preftune.report.read import RunFiles, read_run

__all__ = ["RunFiles", "read_run", "write_comparison", "write_report"]
