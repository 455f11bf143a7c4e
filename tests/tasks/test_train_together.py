"""Several processes that train one model: the same bytes as one process, and what a failure of one of them costs."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_world import LENGTH, SAMPLING, Workbench, an_update, make_world, train_reward_model

from ppo_core import PPOConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.execution import ExecutionConfig
from tasks.config.model_access import AdapterConfig
from tasks.config.rewards import ScoreRolloutsConfig
from tasks.config.training import CriticPretrainingStageConfig, WarmUpStageConfig
from tasks.contract import ElsewhereError, classify, describe
from tasks.store import Place

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = AdapterConfig(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))
UPDATES = {
    "untied": {"ppo": PPOConfig(epochs=2, num_minibatches=1)},
    "adapters": {"lora": LORA},
    "shared body": {"shared_trunk": True},
    "clipped gradients": {"ppo": PPOConfig(epochs=2, num_minibatches=2, max_grad_norm=1e-3)},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def one_thread():
    """As many as each of several processes has by default where they share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(world, tmp_path, monkeypatch):
    """Executes something at a bench of its own, with these settings of execution."""
    _, base, data, _ = world
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def execute(what, **execution):
        bench = Workbench(tmp_path / "-".join(map(str, execution.values())), micro_batch_tokens=32)
        bench.execution = ExecutionConfig(**{**bench.execution.model_dump(), **execution})
        return what(bench, base, data)

    return execute


def update(changes):
    return lambda bench, base, data: an_update(bench, base, data, **changes)


def largest_difference(one, other):
    """Between all tensors of two outputs."""
    names = sorted(path.relative_to(one.directory) for path in one.directory.rglob("*.safetensors"))
    assert names
    pairs = [(load_file(one.directory / name), load_file(other.directory / name)) for name in names]
    return max(float((a[key].float() - b[key].float()).abs().max()) for a, b in pairs for key in a)


def test_an_update_by_two_processes_has_the_bytes_of_one(trained):
    one = trained(update(UPDATES["untied"]), shares=2, train_processes=1)
    two = trained(update(UPDATES["untied"]), shares=2, train_processes=2)
    assert two.digest == one.digest
    # Without shares the sums round otherwise, and nothing else differs.
    alone = trained(update(UPDATES["untied"]), shares=1, train_processes=1)
    assert alone.digest != one.digest
    assert largest_difference(alone, one) < 1e-4


def test_an_update_in_parts_by_two_processes_has_the_bytes_of_one(trained):
    # Where no gradient is scaled down: a norm is a sum in another order.
    unclipped = update({"ppo": PPOConfig(epochs=2, num_minibatches=1, max_grad_norm=1e6, critic_max_grad_norm=1e6)})
    # Six passes in rounds of four shares: in the second round, each process makes one pass times 0.
    one = trained(unclipped, shares=4, train_processes=1)
    parts = trained(unclipped, shares=4, train_processes=2, sharded=True)
    assert parts.digest == one.digest


@pytest.mark.slow
@pytest.mark.parametrize("execution", [{}, {"dtype": "bfloat16", "gradient_checkpointing": True}])
@pytest.mark.parametrize("changes", UPDATES.values(), ids=UPDATES)
def test_every_kind_of_update_by_several_processes_has_the_bytes_of_one(trained, changes, execution):
    one = trained(update(changes), shares=4, train_processes=1, **execution)
    for number in (2, 4):
        assert trained(update(changes), shares=4, train_processes=number, **execution).digest == one.digest
    # Three processes, of which each has other micro-batches: rounding, and the same each time.
    three, again = (trained(update(changes), train_processes=3, **execution, retries=n) for n in (1, 2))
    assert three.digest == again.digest
    assert largest_difference(one, three) < (1e-4 if not execution else 1e-2)


def warm_up(bench, base, data):
    config = WarmUpStageConfig(epochs=1, learning_rate=1e-2, batch_tokens=128)
    return bench.run("warm_up", config, place=Place(1), base=base, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [warm_up, train_reward_model], ids=lambda stage: stage.__name__)
def test_what_is_trained_before_ppo_by_several_processes_has_the_bytes_of_one(trained, stage):
    digests = {trained(stage, shares=2, train_processes=number).digest for number in (1, 2)}
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("execution", [{}, {"dtype": "bfloat16", "gradient_checkpointing": True}])
@pytest.mark.parametrize("number", [2, 3])
def test_in_parts_only_rounding_differs_and_the_same_layout_gives_the_same_bytes(trained, execution, number):
    clipped = update(UPDATES["clipped gradients"])
    one = trained(clipped, train_processes=1, **execution)
    parts, again = (trained(clipped, train_processes=number, sharded=True, **execution, retries=n) for n in (1, 2))
    assert parts.digest == again.digest
    assert largest_difference(one, parts) < (1e-4 if not execution else 1e-2)


@pytest.mark.slow
def test_the_second_update_in_parts_goes_on_with_the_moments_of_the_first(trained):
    unclipped = {"ppo": PPOConfig(epochs=1, num_minibatches=1, max_grad_norm=1e6, critic_max_grad_norm=1e6)}

    def twice(bench, base, data):
        return an_update(bench, base, data, start=an_update(bench, base, data, **unclipped), iteration=2, **unclipped)

    one = trained(twice, shares=2, train_processes=1)
    assert trained(twice, shares=2, train_processes=2, sharded=True).digest == one.digest


def pretrain_critic(bench, base, data):
    config = CriticPretrainingStageConfig(
        samples=16,
        epochs=2,
        learning_rate=1e-2,
        sampling=SAMPLING,
        scoring=ScoreRolloutsConfig(rewards=LENGTH, temperature=1.0),
        advantages=ComputeAdvantagesConfig(),
        versions={},
    )
    inputs = {"reference": base, "critic": base, "reward_model": None, "external": {}, "data": data}
    return bench.run("critic_pretraining", config, place=Place(1), **inputs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [warm_up, train_reward_model, pretrain_critic], ids=lambda stage: stage.__name__)
def test_what_is_trained_before_ppo_in_parts_differs_by_rounding_alone(trained, stage, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    one, parts = trained(stage, train_processes=1), trained(stage, train_processes=2, sharded=True)
    assert largest_difference(one, parts) < 1e-4


# Failures


def ranks_of(parent):
    """The processes of this one that train together, by their number."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            ppid = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if ppid == parent and "tasks.worker.rank" in words:
            found[int(words[words.index("tasks.worker.rank") + 2])] = int(path.name)
    return found


def test_a_process_that_is_killed_ends_the_others_and_is_worth_another_attempt(trained):
    def kill():
        while len(ranks := ranks_of(os.getpid())) < 2:
            time.sleep(0.05)
        os.kill(ranks[1], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(ElsewhereError) as told:
        trained(warm_up, train_processes=2)
    killer.join()
    assert classify(told.value) == "transient"
    assert describe(told.value) == "process 2 of 2 that train together was killed by signal SIGKILL"
    assert ranks_of(os.getpid()) == {}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_told_as_by_one_process(trained):
    def spoiled(bench, base, data):
        config = WarmUpStageConfig(epochs=1, learning_rate=1e38, batch_tokens=128)
        return bench.run("warm_up", config, place=Place(1), base=base, data=data)

    sentences = []
    for number in (1, 2):
        with pytest.raises(Exception, match="lower the learning rate") as told:
            trained(spoiled, shares=2, train_processes=number)
        sentences.append((classify(told.value), describe(told.value)))
    assert sentences[0] == sentences[1]
    assert sentences[0][0] == "refused"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_processes": 2, "shares": 3}, "each process takes 1, 2, 4, 8, ... shares"),
        ({"train_processes": 2, "device": "cuda:1"}, "each process needs a device of its own"),
        ({"sharded": True}, "one process has the whole model"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExecutionConfig(**settings)
