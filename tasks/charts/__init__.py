"""Charts as Plotly's JSON: for the pages, the report, MLflow and notebooks alike. Nothing is drawn here, and no Plotly
imported: a chart is plain data, and the same numbers give the same bytes."""

from tasks.charts.figure import BLUE, COLORS, MUTED, ORANGE, Figure, History, Series
from tasks.charts.kinds import curves, histogram, lines, scatter
from tasks.charts.of_reward_model import calibration_chart
from tasks.charts.of_run import charts_of
from tasks.charts.script import plotly_script

__all__ = [
    "BLUE",
    "COLORS",
    "MUTED",
    "ORANGE",
    "Figure",
    "History",
    "Series",
    "calibration_chart",
    "charts_of",
    "curves",
    "histogram",
    "lines",
    "plotly_script",
    "scatter",
]
