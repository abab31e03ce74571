"""The report: records in, one self-contained HTML page out. Reads records only and knows no torch."""

from subeight.report.page import build, render

__all__ = ["build", "render"]
