"""A run's results as a page, a Markdown file, figures and a terminal table; renders, computes nothing new."""

from weightsteer.report.page import write_report
from weightsteer.report.terminal import summary_table
from weightsteer.report.verdict import headline

__all__ = ["headline", "summary_table", "write_report"]
