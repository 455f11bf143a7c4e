"""A run to look at in Python: what the command line shows, as data frames, data sets and models.

    run = flows.open("quickstart")
    run.metrics()
    run.rollouts("score<0 sort:-length", rounds="all").to_pandas()
    run.rollout("r2.i10.s0.4cbb043d373a.0").tokens
    run.stage("score_rollouts", round=2, iteration=3).dataset()
    run.policy(round=2), run.reward_model().score(prompts, responses)

Nothing is read before it is asked for, and nothing of a run is changed.
"""

import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.outcomes import run_state, stage_statuses
from flows.outcomes.export import export_model, model_output
from flows.outcomes.status import metrics_history
from flows.pages.pictures import sparkline
from flows.plan import Plan, glance_at
from flows.query import OneRollout, Rows, one_rollout, select, span
from flows.runs import Run, find_run
from tasks import environment
from tasks.errors import RunError
from tasks.stages import STAGES
from tasks.store import Manifest, Ref, require_undamaged

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from transformers import PreTrainedModel

    from flows.outcomes import Column
    from tasks.data import Messages

Places = int | str | None
"""A number, ``"2-5"`` or ``"all"``; None is the latest."""


def open(name: str | None = None, *, home: str | Path | None = None) -> "OpenedRun":
    """A run by its name or directory; without one, the run that was worked on last.

    Raises:
        RunError: there is no such run.
    """
    environment.quieten(hub=False)
    return OpenedRun(find_run(environment.home_directory(home), name))


class OpenedRun:
    """A run, finished, at work or broken off."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def name(self) -> str:
        return self._run.name

    @property
    def directory(self) -> Path:
        return self._run.root

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was begun with, whole."""
        return self._run.config.model_dump()

    @property
    def state(self) -> str:
        """In a few words, as ``rounds list`` has it."""
        return run_state(self._run, self._plan())

    def metrics(self) -> "pd.DataFrame":
        """A row for each iteration, with ``round``, ``iteration`` and its metrics; what is measured once in a round stands
        in the row of its last iteration."""
        import pandas as pd

        return pd.DataFrame(metrics_history(stage_statuses(self._plan())))

    def rollouts(
        self,
        search: str = "",
        *,
        rounds: Places = None,
        iterations: Places = None,
        data: str = "rollouts",
        top: int | None = None,
    ) -> Rows:
        """The rows that a search finds (its grammar is that of ``flows.query.grammar``); of the latest iteration, or where
        rounds are named, of all of theirs. ``data`` names another data set.

        Raises:
            ConfigError: the search cannot be read, or names a column that there is not.
            RunError: there are no such rows yet.
        """
        if rounds is not None and iterations is None:
            iterations = "all"
        found = select(
            self._run,
            data,
            rounds=span(rounds, option="rounds"),
            iterations=span(iterations, option="iterations"),
        )
        return found.data_set.search(search, top=top)

    def rollout(self, rollout_id: str) -> OneRollout:
        """One rollout, token by token."""
        return one_rollout(self._run, rollout_id)

    def stage(self, name: str, *, round: int, iteration: int = 0, shard: int | None = None) -> "OpenedStage":
        """A committed output; of a stage with shards the first, unless one is named.

        Raises:
            RunError: it is not committed, or there is no such place.
        """
        if name not in STAGES:
            raise RunError(f"{name}: no such stage; stages are {', '.join(STAGES.names)}")
        places = self._plan().select(name, round=round, iteration=iteration)
        wanted = [p for p in places if shard in (None, p.place.shard)]
        if not wanted or wanted[0].ref is None:
            where = f"round {round}" + (f", iteration {iteration}" if iteration else "")
            raise RunError(f"run {self.name} has no committed {name} in {where}; see rounds status {self.name}")
        return OpenedStage(wanted[0].ref)

    def policy(self, *, round: int | None = None) -> "PreTrainedModel":
        """The policy after a round, by default the last one, as a model of transformers; adapters are merged."""
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as scratch:
            directory = export_model(self._run, Path(scratch) / "policy", part="policy", round=round).directory
            trusts = self._run.config.model.trust_remote_code
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(directory), use_safetensors=True, trust_remote_code=trusts
            )
            return model.eval()

    def reward_model(self, *, round: int | None = None) -> "RewardModel":
        """The reward model that the run trained, with what it takes to score texts."""
        return RewardModel(self._run, round)

    def _plan(self) -> Plan:
        return glance_at(self._run)

    def __repr__(self) -> str:
        return f"<run {self.name}: {self.state}>"

    def _repr_html_(self) -> str:
        table = self.metrics()
        names = [c.key for c in self._columns() if c.key in table.columns]
        shown = table[["round", "iteration", *names]].dropna(subset=names, how="all").tail(10)
        scores = table["score/mean"].tolist() if "score/mean" in table else []
        line = f"<b>{html.escape(self.name)}</b>: {html.escape(self.state)} {sparkline(scores, color='#0072b2')}"
        return f"<p>{line}</p>{shown.to_html(index=False, escape=True)}"

    def _columns(self) -> "Sequence[Column]":
        from flows.outcomes import result_columns

        return result_columns(self._run.config)


class OpenedStage:
    """One committed output of a stage."""

    def __init__(self, ref: Ref) -> None:
        self.directory = ref.directory
        self._ref = ref

    @property
    def manifest(self) -> Manifest:
        """What it was made from, its files and its metrics."""
        return Manifest.read(self.directory)

    def dataset(self, name: str | None = None) -> "datasets.Dataset":
        """A data set of this output, memory-mapped; it need not be named where there is one alone.

        Raises:
            RunError: there is none of that name, or several to choose from.
        """
        from datasets import load_from_disk

        there = sorted(path.parent.name for path in self.directory.glob("*/dataset_info.json"))
        if name is None and len(there) == 1:
            (name,) = there
        if name not in there:
            said = "name one of" if name is None else f"{name}: none of"
            raise RunError(f"{self.directory}: {said} its data sets {', '.join(there) or '(it has none)'}")
        require_undamaged(self._ref, name)
        return load_from_disk(str(self.directory / name))


class RewardModel:
    """A run's reward model."""

    def __init__(self, run: Run, round: int | None) -> None:
        from tasks.models.scalar import load_reward_model
        from tasks.text import load_tokenizer

        found = model_output(run, "reward_model", round)
        require_undamaged(found.ref, "reward_model")
        directory = found.ref.directory / "reward_model"
        trusts = run.config.model.trust_remote_code
        self.tokenizer = load_tokenizer(str(directory), trust_remote_code=trusts)
        self.model = load_reward_model(directory, trust_remote_code=trusts).eval()

    def score(self, prompts: "Sequence[str | Messages]", responses: Sequence[str]) -> list[float]:
        """A score for each prompt (text, or messages) and finished response, as the run would give it; one after the other.

        Raises:
            ValueError: there are not as many of the one as of the other.
        """
        import torch

        from tasks.text.tokens import encode_dialogue

        scores = []
        with torch.inference_mode():
            for prompt, response in zip(prompts, responses, strict=True):
                ids, _ = encode_dialogue(self.tokenizer, prompt, response, to_the_end=not self.model.is_calibrated)
                scores.append(float(self.model(torch.tensor([ids]))[0, -1]))
        return scores
