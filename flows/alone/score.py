"""Scores of texts that nobody need have sampled, by a run's rewards or by any reward model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from flows.alone.chosen import Chosen, policy_of
from flows.alone.in_process import Report, in_process
from flows.alone.sample import written_prompt
from flows.outcomes.export import model_output
from flows.plan import external_models
from flows.runs import Run
from tasks.config import ExecutionConfig, RewardConfig, Source
from tasks.config.rewards import ModelReward
from tasks.data import Row, as_json, read_rows, to_texts
from tasks.data.shapes.records import TAKEN
from tasks.errors import RewardError
from tasks.models import Models
from tasks.scoring import score_rows, weighted_sum
from tasks.store import ROLLOUTS, Place, Ref, Table, recalling, require_undamaged, table_of
from tasks.text import encode_dialogue
from tasks.text.encoder import messages_json
from tasks.text.tokens import render_prompt

THE_MODEL = "model"
"""The name of the reward that a named model is."""
OF_THE_TEXT = {"prompt", "response", "completion", "text", "messages", "conversations", *TAKEN}
"""Columns that hold a text, or what a response was sampled with; a reward function sees the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The scores of texts by each reward, and where there are several their weighted sum without those that are held out."""

    texts: Sequence[Mapping[str, Any]]
    """Prompt and response of each row."""
    scores: Mapping[str, Sequence[float]]

    def rows(self) -> list[dict[str, Any]]:
        return [{**text, **{name: own[n] for name, own in self.scores.items()}} for n, text in enumerate(self.texts)]


def texts_in(file: Path) -> list[Row]:
    """The rows of a file that hold a prompt and a response."""
    return read_rows(Source(path=str(file)), seed=0)


def written_texts(prompt: str, responses: Sequence[str], *, run: Run | None, chat: bool | None) -> list[Row]:
    """One prompt with each of its responses, as a command names them."""
    asked = written_prompt(prompt, run=run, chat=chat)
    return [
        Row(f"--response {number}", {"prompt": asked, "response": response})
        for number, response in enumerate(responses, start=1)
    ]


def scored_by_model(chosen: Chosen, rows: Sequence[Row], report: Report) -> Judged:
    """Scores by a sequence classifier with one output, which reads each text in its own template's way."""
    scored = {THE_MODEL: ModelReward(model=chosen.called)}
    with in_process(None, place=Place(0), seed=0, execution=ExecutionConfig(), report=report) as context:
        models = Models(context, chosen.access)
        texts, table = as_rollouts(rows, models.policy_tokenizer(chosen.ref))
        found = score_rows(
            models, table, scored, policy=chosen.ref, reward_model=None, external={THE_MODEL: chosen.ref}
        )
    return Judged(texts=texts, scores={"score": found[THE_MODEL]})


def scored_by_run(run: Run, rows: Sequence[Row], report: Report, *, round: int | None) -> Judged:
    """Scores by all rewards of a run, those held out too: what they would be, had its policy written these responses.

    ``round`` says which of its reward models, by default the last.
    """
    config = run.config
    held_out = config.evaluation.held_out_rewards
    with recalling(run.seen):
        externals = external_models(config, run.home)
    reward_model: Ref | None = None
    if config.reward_model is not None:
        reward_model = model_output(run, "reward_model", round).ref
        require_undamaged(reward_model, "reward_model")
    policy = policy_of(run)
    rewards: Mapping[str, RewardConfig] = {**config.rewards, **held_out}
    with in_process(run, place=Place(0), seed=config.seed, execution=config.execution, report=report) as context:
        models = Models(context, policy.access)
        texts, table = as_rollouts(rows, models.policy_tokenizer(policy.ref))
        found: dict[str, list[float]] = {}
        for name, reward in rewards.items():
            try:
                found |= score_rows(
                    models,
                    table,
                    {name: reward},
                    policy=policy.ref,
                    reward_model=reward_model,
                    external={**externals.rewards, **externals.held_out_rewards},
                    held_out=held_out,
                )
            except RewardError as error:
                # A function may need columns of the run's data, which these texts lack; the other rewards do not.
                report({"warning": f"left out: {error}"})
    return Judged(texts=texts, scores=with_total(found, config.rewards))


def with_total(found: Mapping[str, list[float]], rewards: Mapping[str, RewardConfig]) -> dict[str, Sequence[float]]:
    """The components by the names of their columns, after their weighted sum where all that are in it are there.

    Raises:
        RewardError: there is no component.
    """
    if not found:
        raise RewardError("no reward of the run scores these texts; give rows with the columns that its data has")
    components = {f"score_{name}": own for name, own in found.items()}
    if not rewards.keys() <= found.keys():
        return dict(components)
    return {"score": weighted_sum({name: found[name] for name in rewards}, rewards), **components}


def as_rollouts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[list[dict[str, Any]], Table]:
    """Texts as if a policy of this tokenizer had written them to their end."""
    texts = to_texts(rows)
    records = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=1):
        prompt = text.prompt or ""
        ids, length = encode_dialogue(tokenizer, prompt, text.response, place=text.place)
        extra = {name: value for name, value in row.values.items() if name not in OF_THE_TEXT and value is not None}
        rendered = render_prompt(tokenizer, prompt, place=text.place)
        begin = (f"row {number}", f"row {number}", rendered, messages_json(prompt), ids[:length], as_json(extra))
        records.append((*begin, 0, "", text.response, ids[length:], "stop", [0.0] * (len(ids) - length)))
    return [{"prompt": text.prompt, "response": text.response} for text in texts], table_of(records, ROLLOUTS)
