"""All charts of a run as one page that needs no network: MLflow shows such a file beside the run, but no Plotly JSON."""

import html
import json
from collections.abc import Mapping

from tasks.charts import Figure, plotly_script

HEIGHT_PX = 360
STYLE = """\
body { font: 14px system-ui, sans-serif; margin: 12px; color: #1f2328; background: #ffffff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } }"""
DRAW = """\
const ink = getComputedStyle(document.body).color;
for (const figure of document.querySelectorAll("figure")) {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  const { title, ...rest } = layout;
  const drawn = { ...rest, autosize: true, font: { ...layout.font, color: ink } };
  const axes = Object.keys(layout).filter((name) => /^[xy]axis/.test(name));
  for (const name of axes) drawn[name] = { gridcolor: "#8a8f9855", zerolinecolor: "#8a8f9855", ...layout[name] };
  const place = figure.querySelector("div");
  Plotly.newPlot(place, data, drawn, { displaylogo: false });
  // Where the page is shown in a frame, its width is known only later.
  new ResizeObserver(() => Plotly.Plots.resize(place)).observe(place);
}"""


def charts_page(title: str, charts: Mapping[str, Figure]) -> str:
    """A page of HTML with Plotly's script in it. The same charts give the same text."""
    figures = "\n".join(
        f'<figure id="{html.escape(name)}"><figcaption>{html.escape(chart["layout"]["title"]["text"])}</figcaption>'
        f'<div style="height:{HEIGHT_PX}px"></div><script type="application/json">{as_data(chart)}</script></figure>'
        for name, chart in charts.items()
    )
    return (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n'
        f"<main>\n{figures}\n</main>\n<script>{plotly_script().read_text()}</script>\n<script>\n{DRAW}\n</script>\n"
    )


def as_data(chart: Figure) -> str:
    """JSON that ends no script element."""
    return json.dumps(chart, allow_nan=False).replace("<", "\\u003c")
