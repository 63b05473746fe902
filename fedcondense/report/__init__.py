"""What people look at: the HTML report of a federation, its results in numbers and words, plots."""

from fedcondense.report.page import write_report
from fedcondense.report.plots import Point, accuracy_by_bytes
from fedcondense.report.results import ReportRow, headline, read_result, read_rows, table
from fedcondense.report.units import human_bytes

__all__ = [
    "Point",
    "ReportRow",
    "accuracy_by_bytes",
    "headline",
    "human_bytes",
    "read_result",
    "read_rows",
    "table",
    "write_report",
]
