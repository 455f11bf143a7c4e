// Charts: each figure of the page has its data in a script element beside it. A click on a point opens its rollouts.
"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new WeakMap();

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: color("--line"), linecolor: color("--line"), zerolinecolor: color("--line") };
    // The page has it above the chart.
    const { title, ...rest } = layout;
    const found = { ...rest, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    found.font = { ...layout.font, color: color("--text"), size: 11, family: "system-ui, sans-serif" };
    const names = new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((name) => /^[xy]axis\d+$/.test(name))]);
    for (const name of names) found[name] = { ...axis, ...layout[name] };
    return found;
  }
  function draw(figure) {
    const element = figure.querySelector(".plot");
    const source = figure.querySelector("script[type='application/json']");
    if (source) drawn.set(element, JSON.parse(source.textContent));
    const chart = drawn.get(element);
    if (!chart) return;
    source?.remove();
    const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendDataToCloud", "lasso2d", "select2d"] };
    Plotly.react(element, chart.data, themed(chart.layout), options).then(() => {
      element.dataset.drawn = "yes";
      element.removeAllListeners?.("plotly_click");
      element.on("plotly_click", (event) => open(element, event.points[0].customdata));
    });
  }
  function open(element, data) {
    const base = element.closest("[data-points]")?.dataset.points;
    if (!base || data === undefined || data === null) return;
    if (typeof data === "string") location.href = `${base}/${encodeURIComponent(data)}`;
    else location.href = `${base}?round=${data[0]}&iteration=${data[1]}`;
  }
  function all() {
    document.querySelectorAll(".chart").forEach(draw);
  }
  document.addEventListener("refreshed", all);
  dark.addEventListener("change", all);
  all();
})();
