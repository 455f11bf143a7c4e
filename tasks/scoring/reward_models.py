"""Scores of responses by reward models: the one that the run trains, and finished ones of somebody else's."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ppo_core import InPrecision, Ragged, inside, micro_batches
from tasks.config import RewardConfig
from tasks.errors import ModelError
from tasks.models import REWARD_MODEL, Models, ScalarModel, context_length, part_directory, why_limited
from tasks.scoring.scorer import Scorer
from tasks.store import Ref, Table
from tasks.text import decode_response, encode_dialogues

PASS_COST = 64
"""What a forward pass costs besides its tokens, in tokens."""


def last_token_scores(models: Models, model: ScalarModel, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """(B,) scalars at the last token of each row of token ids, in one forward pass."""
    ragged = Ragged.from_rows(rows, torch.int64)
    assert bool((ragged.lengths > 0).all()), "a row without a token has no last token"
    input_ids = ragged.padded(fill=0).to(models.device)
    scores = inside(model, lambda: InPrecision(model, models.dtype)(input_ids=input_ids))
    return scores.gather(1, ragged.lengths.to(models.device)[:, None] - 1).squeeze(1)


@torch.inference_mode()
def scores_in_batches(models: Models, model: ScalarModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Scores of any number of rows, in their order."""
    config = model.model.config.get_text_config()
    limit, longest = context_length(config), max(map(len, rows), default=0)
    if limit is not None and longest > limit:
        raise ModelError(
            f"a prompt with its response takes {longest} tokens as the reward model reads it, and that has a context "
            f"of {limit}{why_limited(config)}; lower rollouts.sampling.max_new_tokens, or name one with a longer context"
        )
    scores = torch.empty(len(rows))
    lengths = torch.tensor([len(row) for row in rows])
    for part in micro_batches(lengths, models.context.execution.micro_batch_tokens, group_cost=PASS_COST):
        own = last_token_scores(models, model, [rows[i] for i in part.tolist()])
        scores[part] = own.float().cpu()
    return scores.tolist()


def model_scores(
    models: Models,
    model: ScalarModel,
    model_directory: Path,
    rollouts: Table,
    policy: Ref,
    *,
    to_the_end: bool,
) -> list[float]:
    """Scores by a reward model, which reads each dialogue in its own tokenizer's and template's way, as it was trained.

    A response's own special tokens are written out, what ended it gives way to the reward model's own end of a dialogue,
    and one that was cut off is read as if it ended there: what that counts for is settled with the advantages.
    ``to_the_end`` as in ``encode_dialogue``.
    """
    tokenizer = models.tokenizer(model_directory)
    policy_tokenizer = models.policy_tokenizer(policy)
    columns = rollouts.select(["prompt", "messages", "response_token_ids", "finish_reason"]).to_pylist()
    rows = []
    for row in columns:
        finished = row["finish_reason"] == "stop"
        text = decode_response(policy_tokenizer, row["response_token_ids"], finished=finished, special_tokens=True)
        rows += encode_dialogues(tokenizer, row, [text], to_the_end=to_the_end)
    return scores_in_batches(models, model.eval(), rows)


class ModelScorer(Scorer[RewardConfig]):
    """Scores by the model that a run trains, or that a reward names."""

    @property
    def directory(self) -> Path:
        assert self.model is not None, "the configuration refuses a trained reward without a reward model"
        return part_directory(self.model, REWARD_MODEL)

    @property
    def where(self) -> str:
        return f"{super().where}: {self.directory}"

    def score(self, rollouts: Table) -> list[float]:
        assert self.model is not None, "the configuration refuses a trained reward without a reward model"
        model = self.models.reward_model(self.model)
        # A model of others was trained on all that its template writes; ours, calibrated, up to the end of the turn.
        to_the_end = not model.is_calibrated
        return model_scores(self.models, model, self.directory, rollouts, self.policy, to_the_end=to_the_end)
