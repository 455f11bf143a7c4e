"""A stage of one's own inside the flow, between ``score_rollouts`` and ``compute_advantages``.

The flow is told how a stage is called, and so can be given a caller that puts something between. The stage here takes from
each score what other responses to prompts of the same iteration share with it: whoever says what all say, earns less. It
keeps the contract: its output has a fingerprint of all that it was made from, is committed whole, and is found again.

    python own_flow.py HOME

What a run made so has committed is looked at like that of any other, but ``rounds status`` and ``rounds run`` know the chain
without this stage. A stage for every run belongs into the table of stages.
"""

import sys
import time
from collections import Counter
from pathlib import Path

from flows.config import checked
from flows.plan import external_models, stage_call, with_code_digests
from flows.round import rlhf_round
from flows.runs import Run, create_or_open
from tasks import environment
from tasks.contract import ResidentModels, execute
from tasks.store import Place, Recipe, Ref, input_digests, read_dataset, with_columns, write_dataset

SMALL = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2}
WORLD = "flows.presets.quickstart"
CONFIG = {
    "algorithm": "rloo",
    "iterations": 2,
    "model": {"from_scratch": {**SMALL, "context_length": 160}},
    "data": {
        "texts": [{"function": f"{WORLD}:texts", "arguments": {"count": 40}}],
        "prompts": [{"function": f"{WORLD}:prompts", "arguments": {"count": 24}}],
        "num_held_out_prompts": 4,
    },
    "rewards": {"quality": {"function": f"{WORLD}:true_quality"}},
    "rollouts": {"prompts_per_iteration": 4, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 8}},
    "ppo": {"epochs": 1, "num_minibatches": 1},
}


class Flow:
    """Calls stages in this process, and after ``score_rollouts`` the one of our own."""

    def __init__(self, run: Run, config, penalty: float) -> None:
        self.run, self.config, self.penalty = run, config, penalty
        self.models = ResidentModels()

    def __call__(self, stage, place, settings, **inputs):
        if stage == "compute_advantages":
            inputs["scored"] = [self.penalise_sameness(scored, place) for scored in inputs["scored"]]
        call = stage_call(self.run, self.config, stage, place, settings, self.run.generations)
        return execute(call.with_inputs(inputs), self.models, lambda event: None)

    def penalise_sameness(self, scored: Ref, place: Place) -> Ref:
        """The rollouts again, with lower scores for tokens that many of them have."""
        inputs = {"scored": scored}
        recipe = Recipe(
            stage="penalise_sameness",
            version="1",
            place=place,
            seed=self.config.seed,
            settings={"penalty": self.penalty},
            inputs=input_digests(inputs),
            generation=0,
        )
        if (done := self.run.store.find(recipe)) is not None:
            print(f"penalise_sameness-{place.label}: reused")
            return done
        started = time.monotonic()
        table = read_dataset(scored.directory / "rollouts")
        responses = [set(ids) for ids in table.column("response_token_ids").to_pylist()]
        users = Counter(token for ids in responses for token in ids)
        shared = [sum(users[token] - 1 for token in ids) / len(ids) / len(responses) for ids in responses]
        scores = [score - self.penalty * s for score, s in zip(table.column("score").to_pylist(), shared, strict=True)]
        output = self.run.store.scratch(recipe)
        write_dataset(output / "rollouts", with_columns(table, {"score": scores}, table.schema))
        metrics = {"sameness/mean": sum(shared) / len(shared)}
        print(f"penalise_sameness-{place.label}: {metrics}")
        seconds = time.monotonic() - started
        return self.run.store.commit(
            recipe, output, inputs=inputs, rows=table.num_rows, metrics=metrics, seconds=seconds
        )


def main(home: Path, penalty: float = 0.5) -> None:
    environment.quieten(hub=False)
    run = create_or_open(home, "own-flow")
    with run.locked():
        run.set_config(checked(CONFIG, where="CONFIG"))
        run.store.sweep()
        config = with_code_digests(run.config)
        state = None
        for number in range(1, config.rounds + 1):
            state = rlhf_round(Flow(run, config, penalty), config, number, state, external_models(config, home))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
