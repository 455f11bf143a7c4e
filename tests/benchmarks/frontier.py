"""Mean score against KL(policy || reference): what each algorithm reaches, beside the best that there is.

    python tests/benchmarks/frontier.py [--out FILE.png]

Trains by PPO, RLOO and GRPO over a sweep of ``kl_coef`` on two problems small enough to know the optimum of, prints a
table and draws the picture, in Chromium. About two minutes on one core.
"""

import argparse
import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "ppo_core"))

from enumerable import RECIPES, Problem, random_problem, train

from tasks.charts import COLORS, MUTED, Figure, plotly_script

PROBLEMS = (4, 7)
KL_COEFS = (2.0, 1.0, 0.6, 0.4, 0.25)
# Open shapes that stay apart where all three reach the same point.
MARKERS = {"ppo": ("circle-open", 14), "rloo": ("x-thin-open", 9), "grpo": ("diamond-open", 7)}
SIZE = {"width": 960, "height": 560}
KL = "KL(policy ‖ reference), nats per response"
MISSING = "score missing to<br>the frontier"
LOGARITHMIC = {"type": "log", "exponentformat": "power", "dtick": 1}
HEADER = ("responses", "algorithm", "kl_coef", "KL, nats", "score", "best score at that KL", "share of J* - J(ref)")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy that training reached."""

    problem: int
    algorithm: str
    kl_coef: float
    kl: float
    score: float
    best_score: float
    share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), metavar="FILE.png")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    points = []
    for number in PROBLEMS:
        for algorithm in RECIPES:
            for kl_coef in KL_COEFS:
                point = reached(number, algorithm, kl_coef)
                points.append(point)
                print("| " + " | ".join(row_of(point)) + " |", flush=True)
    save(figure_of(points), out)
    print(f"\n{out}")


def row_of(point: Point) -> tuple[str, ...]:
    return (
        str(len(random_problem(point.problem).responses)),
        point.algorithm,
        f"{point.kl_coef:g}",
        f"{point.kl:.3f}",
        f"{point.score:.3f}",
        f"{point.best_score:.3f}",
        f"{point.share:.2%}",
    )


def reached(number: int, algorithm: str, kl_coef: float) -> Point:
    problem = replace(random_problem(number), kl_coef=kl_coef)
    logprobs = problem.logprobs(train(problem, RECIPES[algorithm], seed=0).table)
    kl = problem.kl(logprobs)
    return Point(
        problem=number,
        algorithm=algorithm,
        kl_coef=kl_coef,
        kl=kl,
        score=problem.mean_score(logprobs),
        best_score=best_score_at(problem, kl),
        share=problem.share(logprobs),
    )


def optimum(problem: Problem, kl_coef: float) -> Tensor:
    return replace(problem, kl_coef=kl_coef).optimum


def best_score_at(problem: Problem, kl: float) -> float:
    """The largest mean score among distributions with this KL: that of the optimum whose price leads to it."""
    low, high = math.log(1e-2), math.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.kl(optimum(problem, math.exp(middle))) > kl else (low, middle)
    return problem.mean_score(optimum(problem, math.exp(high)))


def figure_of(points: list[Point]) -> Figure:
    """A column for each problem: score against KL, and below it what is missing to the best score."""
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    layout: dict[str, Any] = {**SIZE, "margin": {"l": 70, "r": 10, "t": 40, "b": 50}, "plot_bgcolor": "white"}
    for column, number in enumerate(PROBLEMS):
        problem = random_problem(number)
        upper, lower = (f"{2 * column + row}" if column or row > 1 else "" for row in (1, 2))
        left, right = column * 0.52, column * 0.52 + 0.48
        data.append(frontier_of(problem, upper, is_named=column == 0))
        for color, (algorithm, (symbol, size)) in zip(COLORS, MARKERS.items(), strict=False):
            those = [point for point in points if (point.problem, point.algorithm) == (number, algorithm)]
            style = {
                "mode": "markers",
                "name": algorithm.upper(),
                "x": [point.kl for point in those],
                "marker": {"symbol": symbol, "size": size, "color": color, "line": {"color": color, "width": 2}},
            }
            of_scores = [point.score for point in those]
            missing = [point.best_score - point.score for point in those]
            data.append({**style, **on(upper), "y": of_scores, "showlegend": column == 0})
            data.append({**style, **on(lower), "y": missing, "showlegend": False})
        notes += names_of_prices(problem, upper)
        title = f"<b>{len(problem.responses)} responses of up to {problem.length} tokens</b>"
        place = {"x": left, "y": 1.0, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        notes.append({"text": title, **place, "showarrow": False, "font": {"size": 15}})
        axis = {"domain": [left, right], "gridcolor": "#e6e8eb", "zeroline": False}
        layout[f"xaxis{upper}"] = {**axis, "anchor": f"y{upper}", "matches": f"x{lower}", "showticklabels": False}
        layout[f"xaxis{lower}"] = {**axis, "anchor": f"y{lower}", "title": {"text": KL}}
        rows = {upper: ([0.36, 1.0], "score, mean over responses", {}), lower: ([0.0, 0.28], MISSING, LOGARITHMIC)}
        for own, (domain, words, more) in rows.items():
            named = {"title": {"text": words}} if column == 0 else {"showticklabels": False}
            first = {} if column == 0 else {"matches": "y" if own == upper else "y2"}
            grid = {"gridcolor": "#e6e8eb", "zeroline": False}
            layout[f"yaxis{own}"] = {"domain": domain, "anchor": f"x{own}", **grid, **named, **first, **more}
    layout["legend"] = {"x": 0.47, "y": 0.4, "xanchor": "right", "yanchor": "bottom"}
    return {"data": data, "layout": {**layout, "annotations": notes}}


def on(axes: str) -> dict[str, str]:
    return {"xaxis": f"x{axes}", "yaxis": f"y{axes}"}


def frontier_of(problem: Problem, axes: str, *, is_named: bool) -> dict[str, Any]:
    """The optima of all prices as a line."""
    lowest, highest = math.log(min(KL_COEFS) / 1.3), math.log(100)
    sweep = [optimum(problem, math.exp(x)) for x in torch.linspace(highest, lowest, 300).tolist()]
    return {
        **on(axes),
        "mode": "lines",
        "name": "best possible",
        "x": [problem.kl(p) for p in sweep],
        "y": [problem.mean_score(p) for p in sweep],
        "line": {"color": MUTED, "width": 2},
        "showlegend": is_named,
    }


def names_of_prices(problem: Problem, axes: str) -> list[dict[str, Any]]:
    """The prices trained at, beside their optima."""
    found = []
    for kl_coef in KL_COEFS:
        best = optimum(problem, kl_coef)
        words = f"kl_coef = {kl_coef:g}" if kl_coef == KL_COEFS[0] else f"{kl_coef:g}"
        place = {"x": problem.kl(best), "y": problem.mean_score(best), "xref": f"x{axes}", "yref": f"y{axes}"}
        look = {"showarrow": False, "xanchor": "left", "yanchor": "top", "xshift": 9, "yshift": -3}
        found.append({"text": words, **place, **look, "font": {"size": 11, "color": "#555555"}})
    return found


def save(figure: Figure, path: Path) -> None:
    """Have a browser draw a figure, as the pages do, and keep the picture."""
    page = f"<body style='margin:0'><div id='chart'></div><script>{plotly_script().read_text()}</script>"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]) as browser,
    ):
        view = browser.new_page(viewport=SIZE, device_scale_factor=1.3)
        view.set_content(page)
        view.evaluate("figure => Plotly.newPlot('chart', figure.data, figure.layout, {staticPlot: true})", figure)
        view.screenshot(path=path)


if __name__ == "__main__":
    main()
