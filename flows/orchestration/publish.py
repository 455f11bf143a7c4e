"""What a run has committed, told to MLflow and to Prefect's pages.

Everything is found from the report of a round: its manifest names what it was made from, and the report before it. So
publishing needs no plan, reads only what is committed, and catches up on all that an earlier attempt could not log.
"""

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows.config import RunConfig, dump
from flows.orchestration.in_mlflow import evaluation_rows, headline, round_note, run_note, sample_rows
from flows.orchestration.round_page import show_round
from flows.pages.report import report_text
from flows.plan import with_code_digests
from flows.runs import CommittedRound, Run, committed_round, committed_rounds, history_of
from tasks.charts import charts_of
from tasks.errors import DamagedError, UserError
from tasks.metrics import COUNTED, combine, through_rounds
from tasks.stages import STAGES
from tasks.store import Manifest, Ref, digest_files, read_json
from tasks.tracking import Point, Published, TrackedData, TrackedRound, TrackedRun, Tracking

EVALUATION = "evaluation.json"
REPORTED_ROLLOUTS = 200
# Two publishers in one process would each make the runs that the other one is about to make.
_one_at_a_time = threading.Lock()


def publish_round(run: Run, config: RunConfig, report: Ref) -> list[str]:
    """Log this round and any before it that is not logged yet, and show it on Prefect's pages.

    Returns what could not be reported, in words; never raises, because a tracking server that is down delays logging,
    never training.
    """
    published, problems = log_rounds(run, config, report)
    try:
        show_round(run, committed_round(run.root, report.directory), published)
    except Exception as error:
        problems.append(f"Prefect: no artifact of the round ({in_a_sentence(error)}); training is not affected")
    return problems


def log_rounds(run: Run, config: RunConfig, report: Ref) -> tuple[Published | None, list[str]]:
    """Log this round and any before it to MLflow: where they are now, and what could not be logged. Never raises."""
    with _one_at_a_time:
        try:
            return publish(run, config, committed_rounds(run.root, report.directory)), []
        except Exception as error:
            return None, [f"MLflow: {in_a_sentence(error)}; run the same command again once it works"]


def publish(run: Run, config: RunConfig, rounds: Sequence[CommittedRound]) -> Published:
    """Log rounds to MLflow. Raises what MLflow raises."""
    last = rounds[-1]
    is_finished = last.number >= config.rounds
    prefect = flow_run_page()
    tags = {"rounds.directory": str(run.root), "mlflow.note.content": run_note(run, config, rounds, prefect)}
    if prefect:
        tags["rounds.prefect"] = prefect
    calibration = None if last.reward_model is None else read_json(last.reward_model / "calibration.json")
    return Tracking(run.home, config.tracking.experiment).publish(
        TrackedRun(
            uid=run.uid,
            name=run.name,
            created_at=run.created_at,
            config=dump(with_code_digests(config)),
            rounds=[tracked_round(run, committed) for committed in rounds],
            headline=headline(config),
            charts=charts_of(history_through(rounds), calibration),
            report=partial(report_page, run) if is_finished else None,
            tables={EVALUATION: evaluation_rows(last)},
            policy=last.checkpoint / "policy" if is_finished else None,
            policy_digest=part_digest(Manifest.read(last.checkpoint), "policy") if is_finished else "",
            tags=tags,
        )
    )


def report_page(run: Run) -> str | None:
    """The report of a finished run; None where something of it is gone, which is told wherever it is looked at."""
    try:
        return report_text(run, rollouts=REPORTED_ROLLOUTS)
    except (UserError, DamagedError):
        return None


def tracked_round(run: Run, committed: CommittedRound) -> TrackedRound:
    """A round in the words of the tracking store."""
    stages = committed.of_this_round()
    files = {}
    if committed.reward_model is not None:
        files["reward_model/calibration.json"] = committed.reward_model / "calibration.json"
    return TrackedRound(
        number=committed.number,
        variant=committed.manifest.fingerprint,
        started_at=min(manifest.committed_at - manifest.seconds for manifest in stages),
        ended_at=committed.manifest.committed_at,
        points=points_of(committed),
        num_iterations=max(committed.iterations),
        data=data_sets(committed),
        tables={
            EVALUATION: evaluation_rows(committed),
            "samples.json": sample_rows(committed),
            "stages.json": [row_of(manifest) for manifest in stages],
        },
        files=files,
        tags={
            "rounds.directory": str(run.root),
            "rounds.report": str(committed.report.relative_to(run.root)),
            # MLflow shows it as the description of the run.
            "mlflow.note.content": round_note(run, committed),
        },
    )


def history_through(rounds: Sequence[CommittedRound]) -> list[dict[str, Any]]:
    """The metrics of each iteration, and in that of a round's last one what was measured once in the round."""
    rows = [row for committed in rounds for row in history_of(committed)]
    once = {
        committed.number: [m for m in (*committed.before, committed.evaluation) if m.place.round == committed.number]
        for committed in rounds
    }
    return through_rounds(rows, {number: combine((m.rows, m.metrics) for m in own) for number, own in once.items()})


def points_of(committed: CommittedRound) -> list[Point]:
    """Every metric of a round: an iteration's at its number, what came before them at 0, the evaluation at the last."""
    points = []
    rows = {row["iteration"]: row for row in history_of(committed)}
    for iteration, manifests in committed.iterations.items():
        for name in dict.fromkeys(name for manifest in manifests for name in manifest.metrics):
            at = max(manifest.committed_at for manifest in manifests if name in manifest.metrics)
            points.append(Point(name, rows[iteration][name], iteration, at))
        for stage in dict.fromkeys(manifest.stage for manifest in manifests):
            shards = [manifest for manifest in manifests if manifest.stage == stage]
            at = max(shard.committed_at for shard in shards)
            seconds = combine((shard.rows, {f"seconds/{stage}": shard.seconds}) for shard in shards)
            points += [Point(name, value, iteration, at) for name, value in seconds.items()]
    for manifest, step in [*((m, 0) for m in committed.before), (committed.evaluation, max(committed.iterations))]:
        at = manifest.committed_at
        points += [Point(name, value, step, at) for name, value in manifest.metrics.items() if name != COUNTED]
        if manifest.place.round == committed.number:
            points.append(Point(f"seconds/{manifest.stage}", manifest.seconds, step, at))
    return points


def data_sets(committed: CommittedRound) -> list[TrackedData]:
    """The sources that the round's data came from, and the data sets that were made of them."""
    manifest = Manifest.read(committed.data)
    settings = STAGES.settings_of(manifest.recipe)
    data = settings["data"]
    # In the order in which the flow digests them.
    sources = [(kind, s) for kind in ("prompts", "held_out_prompts", "preferences", "texts") for s in data[kind]]
    tracked = [
        TrackedData(
            name=Path(name).name if source["path"] else name,
            digest=digest,
            source=Path(name).expanduser().absolute().as_uri() if source["path"] else name,
            used_as=f"source of {kind}",
        )
        for (kind, source), digest in zip(sources, settings["source_digests"], strict=False)
        for name in [source["path"] or source["dataset"] or source["function"]]
    ]
    for metric, rows in manifest.metrics.items():
        name = metric.removeprefix("data/")
        if (committed.data / name).is_dir():
            where, digest = (committed.data / name).absolute().as_uri(), part_digest(manifest, name)
            tracked.append(TrackedData(name=name, digest=digest, source=where, used_as=name, rows=int(rows)))
    return tracked


def row_of(manifest: Manifest) -> dict[str, Any]:
    """A stage's output in the table of all that a round was made of."""
    return {
        "stage": manifest.stage,
        "round": manifest.place.round,
        "iteration": manifest.place.iteration,
        "shard": manifest.place.shard,
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "rows": manifest.rows,
        "seconds": manifest.seconds,
        "host": manifest.origin.get("host"),
    }


def part_digest(manifest: Manifest, part: str) -> str:
    """The digest of one directory of an output."""
    own = {name: entry["sha256"] for name, entry in manifest.files.items() if name.startswith(f"{part}/")}
    return digest_files(own)


def flow_run_page() -> str | None:
    """The page of the flow run that this is part of, if it is part of one."""
    from prefect.runtime import flow_run
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=flow_run.id) if flow_run.id else None


def in_a_sentence(error: BaseException) -> str:
    """The first line of an error, short, for people."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__
