"""The report of a run: one HTML file that needs no server and no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flows.analysis.differences import chosen_settings
from flows.analysis.hacking import most_suspicious, sampled
from flows.outcomes import latest_variants
from flows.pages.application import HERE
from flows.pages.facts import hacking, reward_model
from flows.pages.facts import run as run_page
from flows.pages.rendering import render
from flows.pages.site import Asked, Site
from flows.query import DataSet, Order, Rows, select, span
from flows.query.one_rollout import OneRollout, opened
from flows.query.tints import tints_of
from flows.runs import Run
from tasks.charts import plotly_script
from tasks.errors import ConfigError, RunError
from tasks.store import Manifest

SEED = 0
"""By which the rollouts are drawn that are in no other quarter."""
SCRIPTS = ("charts.js", "report.js")
STYLES = ("rounds.css", "rollouts.css", "report.css")


def report_text(run: Run, *, rollouts: int) -> str:
    """The report as HTML: results, charts, doubts, where everything came from, and some rollouts token by token."""
    site = Site(homes=(run.home,), only=run.name)
    asked = Asked(path={"run": run.name})
    facts = {
        **run_page.facts(site, asked),
        "settings": chosen_settings(run.config),
        "hacking": as_far_as_it_is(lambda: hacking.facts(site, asked)),
        "reward_model": as_far_as_it_is(lambda: reward_model.facts(site, asked)),
        "stages": lineage_of(run),
        "rollouts": rollouts_of(run, rollouts),
        "seed": SEED,
        "styles": [(HERE / "static" / name).read_text() for name in STYLES],
        "scripts": [script(plotly_script()), *(script(HERE / "static" / name) for name in SCRIPTS)],
    }
    return render("report.html", facts)


def write_report(run: Run, file: Path, *, rollouts: int) -> None:
    """Write the report, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = report_text(run, rollouts=rollouts)
    temporary = file.with_name(f".{file.name}.partly")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(file)
    except OSError as error:
        raise ConfigError(f"--to {file}: cannot be written ({error.strerror}); name another file") from error


def script(file: Path) -> str:
    """A script's text, so that nothing in it ends the element that it stands in."""
    return file.read_text(encoding="utf-8").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def as_far_as_it_is(facts: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """A page's facts; None where the run has not come so far, or has nothing of the kind."""
    try:
        return facts()
    except RunError:
        return None


def lineage_of(run: Run) -> list[dict[str, Any]]:
    """The latest output of each stage at each place: what it is, and when and where it was made."""
    rows = []
    for found in sorted(
        latest_variants(run), key=lambda found: (found.place.round, found.place.iteration, found.stage)
    ):
        manifest = Manifest.read(found.ref.directory)
        rows.append(
            {
                "stage": manifest.stage,
                "place": found.place.label,
                "fingerprint": manifest.fingerprint,
                "digest": manifest.digest,
                "seconds": manifest.seconds,
                "committed_at": manifest.committed_at,
                "host": manifest.origin.get("host"),
            }
        )
    return rows


def rollouts_of(run: Run, number: int) -> list[dict[str, Any]]:
    """Of the last round's rollouts a quarter each: the best, the worst, those of the largest gap to held-out rewards, and of
    the others some that a seed draws."""
    try:
        data_set = select(run, iterations=span("all", option="iteration")).data_set
    except RunError:
        return []
    quarter = max(1, number // 4)
    everything = data_set.search()
    best, worst = (
        everything.sorted_by([Order(column="score", largest_first=largest)], quarter) for largest in (True, False)
    )
    quarters = {"best": opened(run, best), "worst": opened(run, worst)}
    quarters["largest gap"] = opened(run, everything.having("rollout_id", ids_of_largest_gap(data_set, quarter)))
    told = {one.row["rollout_id"] for found in quarters.values() for one in found}
    quarters["drawn"] = opened(run, everything.having("rollout_id", drawn(everything, told, quarter)))
    rows: dict[str, dict[str, Any]] = {}
    for why, found in quarters.items():
        for one in found:
            rows.setdefault(one.row["rollout_id"], {**shown(one), "why": []})["why"].append(why)
    return list(rows.values())


def ids_of_largest_gap(data_set: DataSet, number: int) -> list[str]:
    names = [name for name in data_set.columns if name.startswith("held_out_")]
    rows = sampled(data_set.search()).dicts(["rollout_id", "score", *names])
    return [row["rollout_id"] for row in most_suspicious(rows, names, most=number)]


def drawn(rows: Rows, without: set[str], number: int) -> list[str]:
    """The ids of some rows that are in no other quarter, the same each time."""
    ids = [own for own in rows.table(["rollout_id"]).column("rollout_id").to_pylist() if own not in without]
    return [ids[i] for i in np.random.default_rng(SEED).permutation(len(ids))[:number]]


def shown(one: OneRollout) -> dict[str, Any]:
    """A rollout with its tokens on colours."""
    tokens, scale = tints_of(one.tokens, "advantage" if "advantage" in one.names else "logprob")
    names = ("rollout_id", "prompt", "score", "length", "kl_sum", "finish_reason")
    held_out = {name: value for name, value in one.row.items() if name.startswith("held_out_")}
    return {**{name: one.row.get(name) for name in names}, "held_out": held_out, "tokens": tokens, "scale": scale}
