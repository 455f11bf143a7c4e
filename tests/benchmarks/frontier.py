"""Mean score against KL(policy || reference): what each algorithm reaches, beside the best that there is.

    python tests/benchmarks/frontier.py [--out FILE.png]

Trains by PPO, RLOO and GRPO over a sweep of ``kl_coef`` on two problems small enough to know the optimum of, prints a
table and draws the picture. About two minutes on one core.
"""

import argparse
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "ppo_core"))

from enumerable import RECIPES, Problem, random_problem, train
from tasks.tracking.charts import save
from tasks.tracking.plotting import COLORS, MUTED, STYLE

PROBLEMS = (4, 7)
KL_COEFS = (2.0, 1.0, 0.6, 0.4, 0.25)
# Open shapes that stay apart where all three reach the same point.
MARKERS = {"ppo": "o", "rloo": "x", "grpo": "D"}
SIZES = {"ppo": 80, "rloo": 34, "grpo": 20}
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
    with context(["default", dict(STYLE)]):
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
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = figure.subplots(2, len(PROBLEMS), sharex="col", sharey="row", squeeze=False, height_ratios=[2.4, 1.0])
    for (upper, lower), number in zip(panels.T, PROBLEMS, strict=True):
        problem = random_problem(number)
        draw_frontier(upper, problem)
        for color, algorithm in zip(COLORS, MARKERS, strict=False):
            those = [point for point in points if (point.problem, point.algorithm) == (number, algorithm)]
            style = {"marker": MARKERS[algorithm], "s": SIZES[algorithm], "linewidths": 1.4, "zorder": 3}
            style |= {"color": color} if algorithm == "rloo" else {"facecolors": "none", "edgecolors": color}
            kl = [point.kl for point in those]
            upper.scatter(kl, [point.score for point in those], label=algorithm.upper(), **style)
            lower.scatter(kl, [point.best_score - point.score for point in those], **style)
        upper.set_title(f"{len(problem.responses)} responses of up to {problem.length} tokens")
        lower.set_yscale("log")
        lower.set_xlabel("KL(policy ‖ reference), nats per response")
    panels[0, 0].set_ylabel("score, mean over responses")
    panels[1, 0].set_ylabel("score missing to\nthe frontier")
    panels[0, 0].legend(loc="lower right")
    return figure


def draw_frontier(axes: Axes, problem: Problem) -> None:
    """The optima of all prices as a line; those of the prices trained at are named."""
    lowest, highest = math.log(min(KL_COEFS) / 1.3), math.log(100)
    sweep = [optimum(problem, math.exp(x)) for x in torch.linspace(highest, lowest, 300).tolist()]
    axes.plot(
        [problem.kl(p) for p in sweep], [problem.mean_score(p) for p in sweep], color=MUTED, label="best possible"
    )
    for kl_coef in KL_COEFS:
        best = optimum(problem, kl_coef)
        axes.annotate(
            f"kl_coef = {kl_coef:g}" if kl_coef == KL_COEFS[0] else f"{kl_coef:g}",
            (problem.kl(best), problem.mean_score(best)),
            xytext=(9, -13),
            textcoords="offset points",
            color="#555555",
            fontsize=8.5,
        )


if __name__ == "__main__":
    main()
