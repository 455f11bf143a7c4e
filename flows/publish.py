"""What a run has committed, told to MLflow and to Prefect's pages.

Everything is found from the report of a round: its manifest names what it was made from, and the report before it. So
publishing needs no plan, reads only what is committed, and catches up on all that an earlier attempt could not log.
"""

import re
import shlex
import string
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config import RunConfig, dump
from flows.workspace import Run
from tasks import settings
from tasks.store import Manifest, Ref, canonical_json, digest_files, digest_text, read_json

if TYPE_CHECKING:
    from tasks.tracking import Point, Published, TrackedData, TrackedRound

ITERATIONS_SHOWN = 50
SAMPLES_SHOWN = 12
SAMPLE_LENGTH = 400

# The columns of the table of iterations on Prefect's page.
COLUMNS: Mapping[str, str] = {
    "score/mean": "score",
    "score/std": "std",
    "kl/mean": "KL, nats per response",
    "rollouts/response_length": "length, tokens",
    "update/entropy": "entropy, nats per token",
    "update/explained_variance": "explained variance",
    "update/clipfrac": "clipped",
}

# Two publishers in one process would each make the runs that the other one is about to make.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedRound:
    """A round's report and the manifests that it was made from."""

    number: int
    report: Path
    manifest: Manifest
    iterations: Mapping[int, Sequence[Manifest]]
    evaluation: Manifest
    """Committed last before the report."""
    before: Sequence[Manifest]
    """What the iterations started from: data, warm-up, reward model; perhaps of an earlier round."""
    reward_model: Path | None
    data: Path
    checkpoint: Path

    def of_this_round(self) -> list[Manifest]:
        """All stages that were executed for this round."""
        before = [manifest for manifest in self.before if manifest.place.round == self.number]
        return [*before, *(m for group in self.iterations.values() for m in group), self.evaluation, self.manifest]


def publish_round(run: Run, config: RunConfig, report: Ref) -> list[str]:
    """Log this round and any before it that is not logged yet, and show it on Prefect's pages.

    Returns what could not be reported, in words; never raises, because a tracking server that is down delays logging,
    never training.
    """
    problems = []
    published = None
    with _one_at_a_time:
        try:
            rounds = committed_rounds(run.root, report.directory)
            published = publish(run, config, rounds)
        except Exception as error:
            problems.append(f"MLflow: {in_a_sentence(error)}; run the same command again once it works")
        try:
            show_round(run, committed_round(run.root, report.directory), published)
        except Exception as error:
            problems.append(f"Prefect: no artifact of the round ({in_a_sentence(error)}); training is not affected")
    return problems


def publish(run: Run, config: RunConfig, rounds: Sequence[CommittedRound]) -> "Published":
    """Log rounds to MLflow. Raises what MLflow raises."""
    from flows.plan import with_code_digests
    from tasks.tracking import TrackedRun, Tracking

    last = rounds[-1]
    is_finished = last.number >= config.rounds
    tags = {"rounds.directory": str(run.root)}
    if url := flow_run_page():
        tags["rounds.prefect"] = url
    return Tracking(run.home, config.tracking.experiment).publish(
        TrackedRun(
            uid=run_uid(run),
            name=run.name,
            created_at=run.created_at,
            config=dump(with_code_digests(config)),
            rounds=[tracked_round(run, committed) for committed in rounds],
            policy=last.checkpoint / "policy" if is_finished else None,
            policy_digest=part_digest(Manifest.read(last.checkpoint), "policy") if is_finished else "",
            tags=tags,
        )
    )


def run_uid(run: Run) -> str:
    """What tells a run from every other one, wherever its home is moved to."""
    return digest_text(canonical_json([run.name, run.created_at]))


def committed_rounds(root: Path, report: Path) -> list[CommittedRound]:
    """The rounds up to a report, the first one first."""
    rounds = [committed_round(root, report)]
    while (previous := rounds[0].manifest.input_paths["previous"]) is not None:
        rounds.insert(0, committed_round(root, root / previous))
    return rounds


def committed_round(root: Path, report: Path) -> CommittedRound:
    """Read the manifests behind a report."""
    manifest = Manifest.read(report)
    made_from = manifest.input_paths
    groups: dict[int, list[Manifest]] = {}
    for name in ("rollouts", "scored", "experience", "checkpoints"):
        for path in made_from[name]:
            own = Manifest.read(root / path)
            groups.setdefault(own.place.iteration, []).append(own)
    iterations = {number: groups[number] for number in sorted(groups)}
    evaluation = Manifest.read(root / made_from["evaluation"])
    data = root / evaluation.input_paths["data"]
    reference = root / evaluation.input_paths["reference"]
    reward_model = root / made_from["reward_model"] if made_from["reward_model"] else None
    before = [Manifest.read(data)]
    # Without a warm-up the reference is the data's own new model, or a model from outside, which has no manifest.
    if reference != data and reference.is_relative_to(root):
        before.append(Manifest.read(reference))
    if reward_model is not None:
        before.append(Manifest.read(reward_model))
    return CommittedRound(
        number=manifest.place.round,
        report=report,
        manifest=manifest,
        iterations=iterations,
        evaluation=evaluation,
        before=before,
        reward_model=reward_model,
        data=data,
        checkpoint=root / made_from["checkpoints"][-1],
    )


def tracked_round(run: Run, committed: CommittedRound) -> "TrackedRound":
    """A round in the words of the tracking store."""
    from tasks.tracking import TrackedRound

    stages = committed.of_this_round()
    summary = read_json(committed.report / "summary.json")
    files = {"plots": committed.report / "plots"}
    if committed.reward_model is not None:
        files["reward_model/calibration.json"] = committed.reward_model / "calibration.json"
    return TrackedRound(
        number=committed.number,
        variant=committed.manifest.fingerprint,
        started_at=min(committed_at(manifest) - manifest.seconds for manifest in stages),
        ended_at=committed_at(committed.manifest),
        points=points_of(committed),
        summary={name: float(value) for name, value in summary.items() if name not in ("round", "iterations")},
        data=data_sets(committed),
        tables={
            "samples.json": read_json(committed.report / "samples.json"),
            "stages.json": [row_of(manifest) for manifest in stages],
        },
        files=files,
        tags={"rounds.directory": str(run.root), "rounds.report": str(committed.report.relative_to(run.root))},
    )


def points_of(committed: CommittedRound) -> "list[Point]":
    """Every metric of a round: an iteration's at its number, what came before them at 0, the evaluation at the last."""
    from tasks.tracking import Point

    points = []
    rows = {row["iteration"]: row for row in history_of(committed)}
    for iteration, manifests in committed.iterations.items():
        for name in dict.fromkeys(name for manifest in manifests for name in manifest.metrics):
            at = max(committed_at(manifest) for manifest in manifests if name in manifest.metrics)
            points.append(Point(name, rows[iteration][name], iteration, at))
        for stage in dict.fromkeys(manifest.stage for manifest in manifests):
            shards = [manifest for manifest in manifests if manifest.stage == stage]
            seconds = sum(manifest.seconds for manifest in shards)
            points.append(Point(f"seconds/{stage}", seconds, iteration, max(map(committed_at, shards))))
    for manifest, step in [*((m, 0) for m in committed.before), (committed.evaluation, max(committed.iterations))]:
        at = committed_at(manifest)
        points += [Point(name, value, step, at) for name, value in manifest.metrics.items()]
        if manifest.place.round == committed.number:
            points.append(Point(f"seconds/{manifest.stage}", manifest.seconds, step, at))
    return points


def history_of(committed: CommittedRound) -> list[dict[str, Any]]:
    """The rows of this round in the report's history."""
    return [row for row in read_json(committed.report / "metrics.json") if row["round"] == committed.number]


def data_sets(committed: CommittedRound) -> "list[TrackedData]":
    """The sources that the round's data came from, and the data sets that were made of them."""
    from tasks.tracking import TrackedData

    manifest = Manifest.read(committed.data)
    settings = manifest.recipe["settings"]
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


def committed_at(manifest: Manifest) -> float:
    return float(manifest.origin["committed_at"])


def flow_run_page() -> str | None:
    """The page of the flow run that this is part of, if it is part of one."""
    from prefect.runtime import flow_run
    from prefect.utilities.urls import url_for

    return url_for("flow-run", obj_id=flow_run.id) if flow_run.id else None


def show_round(run: Run, committed: CommittedRound, published: "Published | None") -> None:
    """The round's table and links as artifacts of this Prefect task; nothing where no flow is running."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact
    from prefect.runtime import flow_run

    from tasks.tracking import run_page

    if not flow_run.id:
        return
    key = artifact_key(f"{run.name}-round-{committed.number}")
    create_markdown_artifact(
        markdown=round_markdown(run, committed, published),
        key=key,
        description=f"Round {committed.number} of {run.name}",
    )
    if published is not None and (url := run_page(run.home, published, published.rounds[committed.number])):
        create_link_artifact(link=url, link_text="MLflow", key=f"{key}-mlflow", description=f"{key} in MLflow")


def artifact_key(text: str) -> str:
    """The nearest key that Prefect takes: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def round_markdown(run: Run, committed: CommittedRound, published: "Published | None") -> str:
    """A round on one page: what it came to, how it got there, and what the policy says now."""
    summary = read_json(committed.report / "summary.json")
    samples = read_json(committed.report / "samples.json")
    history = history_of(committed)
    known = {name: title for name, title in COLUMNS.items() if any(name in row for row in history)}
    progress = [
        [str(row["iteration"]), *(number(row.get(name)) for name in known)] for row in history[-ITERATIONS_SHOWN:]
    ]
    parts = [
        f"# {escaped(run.name)}, round {committed.number}",
        mlflow_line(run, committed, published),
        "## Held-out prompts",
        *table(["", "reference", "policy", "gain, reference std"], comparison(summary)),
    ]
    if "reward_model/accuracy" in summary:
        parts.append(
            f"Reward model: {summary['reward_model/accuracy']:.1%} of held-out pairs ranked rightly, "
            f"calibration error {summary.get('reward_model/calibration_error', float('nan')):.1%}."
        )
    parts += ["## Iterations", *table(["iteration", *known.values()], progress)]
    if samples:
        parts.append("## Rollouts of the last iteration, from best to worst")
        parts += table(["score", "prompt", "response"], sample_rows(samples))
    parts.append(f"More: `rounds rollouts {run.name} --round {committed.number}`")
    return "\n\n".join(parts) + "\n"


def mlflow_line(run: Run, committed: CommittedRound, published: "Published | None") -> str:
    """Where to see the round in MLflow."""
    from tasks.tracking import run_page, tracking_uri

    if published is None:
        return "Not logged to MLflow yet; the next round, or the same command again, logs it."
    run_id = published.rounds[committed.number]
    if url := run_page(run.home, published, run_id):
        return f"[In MLflow]({url})"
    if settings.mlflow_tracking_uri():
        # The address of a database holds its password.
        return f"In MLflow: run `{run_id}`, in the database of `MLFLOW_TRACKING_URI`."
    command = f"mlflow ui --backend-store-uri {shlex.quote(tracking_uri(run.home))}"
    return f"In MLflow: run `{run_id}`, after\n\n    {command}"


def comparison(summary: Mapping[str, Any]) -> list[list[str]]:
    """Reference and policy on held-out prompts: every score, the length, and how far apart they are."""
    prefix = "evaluation/reference_"
    names = [n.removeprefix(prefix) for n in sorted(summary) if n.startswith(prefix) and not n.endswith("_std")]
    # The score first: it is what was trained for.
    names.sort(key=lambda name: name != "score")
    rows = [
        [
            escaped(name.replace("_", " ")),
            number(summary[f"{prefix}{name}"]),
            number(summary.get(f"evaluation/{name}")),
            number(summary.get(f"evaluation/{name}_gain"), sign=True),
        ]
        for name in names
    ]
    return [*rows, ["KL, nats per response", "0", number(summary.get("evaluation/kl")), ""]]


def sample_rows(samples: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Some samples, evenly from the best to the worst."""
    last = len(samples) - 1
    chosen = sorted({round(i * last / (SAMPLES_SHOWN - 1)) for i in range(SAMPLES_SHOWN)})
    return [[number(s["score"]), escaped(s["prompt"]), escaped(s["response"])] for s in (samples[i] for i in chosen)]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; nothing without rows. Cells are Markdown already."""
    lines = [titles, ["---"] * len(titles), *rows]
    return ["\n".join(f"| {' | '.join(line)} |" for line in lines)] if rows else []


def number(value: Any, *, sign: bool = False) -> str:
    """A number for people; an empty cell for one that is not known."""
    if not isinstance(value, int | float):
        return ""
    return f"{value:+.3g}" if sign else f"{value:.4g}"


def escaped(text: str) -> str:
    """Text that a model wrote, so that a page shows it and does nothing else with it.

    Markdown shows a sign after a backslash as itself, so a response can be no link, image, tag, table cell or heading.
    Character references would say the same, but Prefect's page shows most of them as they are written.
    """
    shown = text if len(text) <= SAMPLE_LENGTH else text[:SAMPLE_LENGTH] + " …"
    return "".join(escaped_character(char) for char in shown)


def escaped_character(char: str) -> str:
    if char == "\n":
        return " ↵ "
    # Control and format characters could hide text or turn its direction.
    if char != "\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return "�"
    return f"\\{char}" if char in string.punctuation else char


def in_a_sentence(error: BaseException) -> str:
    """The first line of an error, short, for people."""
    lines = str(error).strip().splitlines()
    return f"{lines[0]:.200}" if lines else type(error).__name__
