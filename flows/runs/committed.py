"""A round as it lies in the store: its report names what it was made from, and so on down to the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.store import Manifest, Ref, read_json, require_undamaged


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedRound:
    """A round's report and the manifests that it was made from."""

    number: int
    report: Path
    manifest: Manifest
    iterations: Mapping[int, Sequence[Manifest]]
    evaluation: Manifest
    """Committed last before the report."""
    evaluated: Path
    """The responses to held-out prompts."""
    before: Sequence[Manifest]
    """What the iterations started from: data, warm-up, reward model; perhaps of an earlier round."""
    reward_model: Path | None
    data: Path
    checkpoint: Path

    def of_this_round(self) -> list[Manifest]:
        """All stages that were executed for this round."""
        before = [manifest for manifest in self.before if manifest.place.round == self.number]
        return [*before, *(m for group in self.iterations.values() for m in group), self.evaluation, self.manifest]


def committed_rounds(root: Path, report: Path) -> list[CommittedRound]:
    """The rounds up to a report, the first one first."""
    rounds = [committed_round(root, report)]
    while (previous := rounds[0].manifest.input_paths["previous"]) is not None:
        rounds.insert(0, committed_round(root, root / previous))
    return rounds


def committed_round(root: Path, report: Path) -> CommittedRound:
    """Read the manifests behind a report.

    Raises:
        DamagedError: the report has changed since it was committed, so that its numbers are nobody's.
    """
    manifest = Manifest.read(report)
    require_undamaged(Ref(str(report), manifest.digest))
    made_from = manifest.input_paths
    groups: dict[int, list[Manifest]] = {}
    for name in ("rollouts", "scored", "experience", "checkpoints", "audits"):
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
        evaluated=root / made_from["evaluation"] / "evaluation",
        before=before,
        reward_model=reward_model,
        data=data,
        checkpoint=root / made_from["checkpoints"][-1],
    )


def history_of(committed: CommittedRound) -> list[dict[str, Any]]:
    """The rows of this round in the report's history."""
    return [row for row in read_json(committed.report / "metrics.json") if row["round"] == committed.number]
