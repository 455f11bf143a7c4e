"""Plotly's own script, from where its package lies; the package is not imported."""

from importlib.util import find_spec
from pathlib import Path


def plotly_script() -> Path:
    """The file that draws charts in a browser."""
    found = find_spec("plotly")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "package_data" / "plotly.min.js"
