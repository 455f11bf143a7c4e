"""What orchestration, persistence and tracking cost: an iteration through the flow against the same as a bare loop.

    python tests/benchmarks/overhead.py [--case 15M] [--iterations N] [--repeat N] [--out FILE.json] [--readme]

The flow is ``rounds run``: Prefect's server and tasks, the worker's process, data sets, checkpoints with both optimizers,
digests, flushes, an audit, MLflow; once with every checkpoint kept, once with none of those between (``checkpoint_every``).
The loop calls the same functions one after the other and writes nothing. All sample the same rows. Beside them, what the
files of one checkpoint cost alone: as many bytes written, hashed and flushed by the standard library.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import harness  # noqa: E402
from ppo_iteration import CASES, EPOCHS, MINIBATCHES, make_case  # noqa: E402

from tasks.environment import MEMORY  # noqa: E402


def configuration(directory, case, iterations, every=1):
    rows, length = CASES[case][5:]
    return {
        "iterations": iterations,
        "checkpoint_every": every,
        "model": {"policy": str(directory / "policy"), "critic": str(directory / "critic")},
        "data": {
            "prompts": [str(directory / "prompts.jsonl")],
            "held_out_prompts": [str(directory / "held_out.jsonl")],
        },
        "reward_model": None,
        "warm_up": None,
        "critic_pretraining": None,
        "rewards": {"reward": {"model": str(directory / "reward")}},
        "rollouts": {"prompts_per_iteration": rows, "sampling": {"max_new_tokens": length}},
        "ppo": {"epochs": EPOCHS, "num_minibatches": MINIBATCHES},
        "execution": {"device": "cpu", "dtype": "float32"},
    }


def flow(directory, case, iterations, every=1):
    """Seconds between the ends of iterations, as their manifests tell. The last one counts as little as the first: its
    checkpoint is kept in any case."""
    import yaml

    from tasks.store.manifest import Manifest

    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "config.yaml"
        path.write_text(yaml.safe_dump(configuration(directory, case, iterations, every)))
        rounds = [str(Path(sys.executable).with_name("rounds")), "--home", home]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW"))}
        subprocess.run([*rounds, "run", str(path)], check=True, capture_output=True, env=environment)
        subprocess.run([*rounds, "down"], check=True, capture_output=True, env=environment)
        root = Path(home) / "runs/config/stages/round-001"
        ends = []
        for number in range(1, iterations + 1):
            (done,) = (root / f"iteration-{number:03d}/audit_rollouts").iterdir()
            ends.append(Manifest.read(done).committed_at)
        (scored,) = (root / f"iteration-{iterations:03d}/score_rollouts/shard-000").iterdir()
        score = Manifest.read(scored).metrics["score/mean"]
        (first,) = (root / "iteration-001/update_policy").iterdir()
        size = sum(entry["size"] for entry in Manifest.read(first).files.values())
    return {"wall": (ends[-2] - ends[0]) / (iterations - 2), "score": score, "bytes": size}


def sparse_flow(directory, case, iterations):
    """The same, where the iterations that are measured keep no weights."""
    return flow(directory, case, iterations, every=iterations)


def files(directory, size):
    """Seconds for a new file of so many bytes."""
    content = bytes(2**20) * (size // 2**20)
    path = directory / "file"
    began = time.perf_counter()
    path.write_bytes(content)
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())
    took = time.perf_counter() - began
    path.unlink()
    return took


def loop(directory, case, iterations):
    from tasks import environment

    environment.quieten(hub=False)
    import torch
    from direct_run import run_directly

    from flows.config.reading import checked
    from flows.iteration import advantages_config, generate_config, update_config
    from ppo_core import InPrecision, Optimizers, gae, kl_estimate, masked_whiten, ppo_update, token_rewards
    from tasks.config.execution import ExecutionConfig, HealthConfig
    from tasks.config.model_access import ModelAccess
    from tasks.contract.resident import ResidentModels
    from tasks.contract.stage import StageContext
    from tasks.generate_rollouts import prompts_of_iteration
    from tasks.models.access import Models
    from tasks.models.loading import load_policy
    from tasks.models.scalar import load_scalar_model
    from tasks.models.training import adamw
    from tasks.sampling.passes import batch_logprobs, batch_values, rollout_batch
    from tasks.sampling.sampler import Sampler
    from tasks.store.data_sets import read_dataset
    from tasks.store.manifest import Place, Ref

    config = checked(configuration(directory, case, iterations), where="benchmark")
    home = Path(tempfile.mkdtemp(dir=directory))

    class Done(Exception):
        pass

    def stop(_):
        raise Done

    try:
        run_directly(home, "run", config, stop)
    except Done:
        (data,) = (home / "runs/run/stages/round-001/prepare_data").iterdir()
    prompts = read_dataset(data / "prompts")
    policy_ref = Ref(str(directory / "policy"), "policy")
    resident = ResidentModels()
    reference, policy = (load_policy(directory / "policy") for _ in "ab")
    critic, reward = (load_scalar_model(directory / part) for part in ("critic", "reward"))
    resident.keep(policy_ref, "policy", policy)
    rates = config.optimizers
    optimizers = Optimizers(
        policy=adamw([{"params": policy.parameters(), "lr": rates.learning_rate}]),
        critic=adamw([{"params": critic.parameters(), "lr": rates.critic_learning_rate}]),
    )
    ends = []
    for number in range(1, iterations + 1):
        context = StageContext(
            output=home,
            place=Place(1, number, 0),
            run_seed=config.seed,
            execution=ExecutionConfig(**dict(config.execution)),
            health=HealthConfig(),
            resident=resident,
            report=lambda _: None,
        )
        models = Models(context, ModelAccess())
        rollouts = Sampler(models, policy_ref).sample(
            prompts.take([i for i, _ in prompts_of_iteration(prompts.num_rows, generate_config(config), context)]),
            samples_per_prompt=1,
            sampling=config.rollouts.sampling,
            stop_strings=(),
            seed_of=lambda prompt_id, index, context=context: context.seed("rollout", prompt_id, index),
            on_rows=lambda *_: None,
        )
        batch = rollout_batch(rollouts, "logprobs")
        _, scores = batch_values(models, reward, batch)
        ref_logprobs = batch_logprobs(models, reference, batch, temperature=1.0)
        values, _ = batch_values(models, critic, batch)
        batch = batch.with_columns(ref_logprobs=ref_logprobs, values=values)
        columns, mask = batch.padded().token_columns, batch.responses.mask()
        advantage = advantages_config(config)
        kl = kl_estimate(columns["logprobs"], columns["ref_logprobs"], advantage.kl_estimator)
        rewards = token_rewards(scores, kl, mask, kl_coef=advantage.kl_coef)
        advantages, returns = gae(rewards, columns["values"], mask, gamma=advantage.gamma, lam=advantage.lam)
        advantages = masked_whiten(advantages, mask)
        batch = batch.with_columns(advantages=advantages[mask], returns=returns[mask])
        ppo_update(
            InPrecision(policy, torch.float32),
            InPrecision(critic, torch.float32),
            optimizers,
            batch,
            update_config(config, context.place).ppo,
            micro_batch_tokens=config.execution.micro_batch_tokens,
            seed=context.seed("update"),
        )
        ends.append(time.time())
    return {"wall": (ends[-2] - ends[0]) / (iterations - 2), "score": float(scores.mean())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="15M")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--system")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(harness.ROOT / "tests" / "flows"))
    systems = {"flow": flow, "sparse": sparse_flow, "loop": loop}
    if given.system:
        print(json.dumps(systems[given.system](given.directory, given.case, given.iterations)))
        return
    with tempfile.TemporaryDirectory() as directory:
        make_case(Path(directory), given.case, ragged=True)
        place = ("--case", given.case, "--iterations", given.iterations, "--directory", directory)
        found = harness.interleaved(
            {
                name: lambda name=name: harness.child(Path(__file__), "--system", name, *place, env=MEMORY)
                for name in systems
            },
            given.repeat,
        )
        size = found["flow"][0]["bytes"]
        alone = [files(Path(directory), size) for _ in range(given.repeat)]
    rows = []
    for name, title in (("flow", "kept, each"), ("sparse", "not kept")):
        a, b = found[name][0]["score"], found["loop"][0]["score"]
        if abs(a - b) > 1e-3 * max(1.0, abs(b)):
            raise SystemExit(f"the last score is {a} in the flow and {b} in the loop: not the same work")
        shares = [1 - b["wall"] / a["wall"] for a, b in zip(found[name], found["loop"], strict=True)]
        rows.append([
            given.case,
            title,
            f"{harness.median(found[name], 'wall'):.2f} s",
            f"{harness.median(found['loop'], 'wall'):.2f} s",
            harness.spread([100 * share for share in shares], 1) + " %",
        ])  # fmt: skip
    titles = [
        "case",
        "checkpoints",
        "through the flow",
        "as a bare loop",
        "share of orchestration, persistence, tracking",
    ]
    text = (
        f"{harness.in_words(harness.machine())}; {given.repeat} turns. The files of a checkpoint, {size / 2**20:.0f} MiB, "
        f"written, hashed and flushed alone: {harness.spread(alone)} s.\n\n{harness.table(titles, rows)}"
    )
    print(text)
    if given.out:
        given.out.write_text(json.dumps({"machine": harness.machine(), **found}, indent=1))
    if given.readme:
        harness.write_readme("overhead", text)


if __name__ == "__main__":
    main()
