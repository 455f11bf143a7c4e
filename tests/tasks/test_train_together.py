"""Several processes that train one model: the same bytes as one process, and what a failure of one of them costs."""

import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from small_world import (
    LENGTH,
    SAMPLING,
    Workbench,
    advantages,
    an_update,
    generate,
    make_world,
    score,
    train_reward_model,
)

from ppo_core import PPOConfig
from tasks.config.advantages import ComputeAdvantagesConfig
from tasks.config.execution import ExecutionConfig
from tasks.config.model_access import AdapterConfig, ModelAccess
from tasks.config.rewards import ScoreRolloutsConfig
from tasks.config.training import CriticPretrainingStageConfig, WarmUpStageConfig
from tasks.contract import ElsewhereError, classify, describe
from tasks.models import STATE_FILE
from tasks.store import Place, Ref, read_dataset, write_dataset, write_json
from tasks.worker.ranks import FAILURE, failure

pytestmark = pytest.mark.usefixtures("one_thread")
LORA = AdapterConfig(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))
UPDATES = {
    "untied": {"ppo": PPOConfig(epochs=2, num_minibatches=1)},
    "adapters": {"lora": LORA},
    "shared body": {"shared_trunk": True},
    "clipped gradients": {"ppo": PPOConfig(epochs=2, num_minibatches=2, max_grad_norm=1e-3)},
}
CLIPPED = UPDATES["clipped gradients"]
IN_PARTS = {
    "all weights": CLIPPED,
    "adapters": {"lora": LORA, **CLIPPED},
    "shared body": {"shared_trunk": True, **CLIPPED},
    "adapters on a shared body": {"lora": LORA, "shared_trunk": True, **CLIPPED},
}
SHORT_OF_MEMORY = {"dtype": "bfloat16", "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def one_thread():
    """One a process, so that three of them do not wait for two cores."""
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


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        # Parameters in parts and whole ones in one optimizer; whole ones alone.
        ("shared body", {}),
        ("adapters", {}),
        *(
            pytest.param(name, execution, marks=pytest.mark.slow)
            for name in IN_PARTS
            for execution in ({}, SHORT_OF_MEMORY)
            if execution or name not in ("shared body", "adapters")
        ),
    ],
)
def test_an_update_in_parts_by_two_processes_has_the_bytes_of_one(trained, name, execution):
    # Passes come in rounds of four shares: in the last round there are fewer, and a process makes passes times 0.
    one = trained(update(IN_PARTS[name]), shares=4, train_processes=1, **execution)
    parts = trained(update(IN_PARTS[name]), shares=4, train_processes=2, sharded=True, **execution)
    assert parts.digest == one.digest


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IN_PARTS if "adapters" in name])
def test_adapters_over_a_base_in_three_parts_have_the_bytes_of_those_over_a_whole_one(trained, name):
    one = trained(update(IN_PARTS[name]), shares=3, train_processes=1)
    assert trained(update(IN_PARTS[name]), shares=3, train_processes=3, sharded=True).digest == one.digest
    # The order in which three add up is one too, if another.
    whole, parts = (trained(update(IN_PARTS[name]), train_processes=3, sharded=sharded) for sharded in (False, True))
    assert parts.digest == whole.digest != one.digest


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", IN_PARTS)
def test_processes_without_a_row_change_no_gradient(trained, name, number):
    # All rows of a minibatch in one pass.
    one, whole, parts = (
        trained(update(IN_PARTS[name]), micro_batch_tokens=4096, shares=number, **layout)
        for layout in (
            {"train_processes": 1},
            {"train_processes": number},
            {"train_processes": number, "sharded": True},
        )
    )
    assert whole.digest == one.digest
    if number == 2 or "adapters" in name:
        assert parts.digest == one.digest
    # Of 16 numbers in three parts the last are no full vector of the processor's, and the optimizer rounds them otherwise.
    assert largest_difference(one, parts) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("execution", [{}, SHORT_OF_MEMORY])
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
@pytest.mark.parametrize("execution", [{}, SHORT_OF_MEMORY])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("changes", [CLIPPED, {"shared_trunk": True, **CLIPPED}], ids=["all weights", "shared body"])
def test_in_parts_only_rounding_differs_and_the_same_layout_gives_the_same_bytes(trained, changes, number, execution):
    clipped = update(changes)
    one = trained(clipped, train_processes=1, **execution)
    parts, again = (trained(clipped, train_processes=number, sharded=True, **execution, retries=n) for n in (1, 2))
    assert parts.digest == again.digest
    assert largest_difference(one, parts) < (1e-4 if not execution else 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PARTS)
def test_updates_whole_in_parts_and_whole_again_go_on_with_the_moments_of_those_before(trained, name):
    def thrice(layouts):
        def execute(bench, base, data):
            done = None
            for iteration, layout in enumerate(layouts, start=1):
                bench.execution = bench.execution.model_copy(update=layout)
                done = an_update(bench, base, data, start=done, iteration=iteration, **IN_PARTS[name])
            return done

        return execute

    whole, parted = {"train_processes": 1, "sharded": False}, {"train_processes": 2, "sharded": True}
    one = trained(thrice([whole, whole, whole]), shares=2, retries=1)
    assert trained(thrice([whole, parted, whole]), shares=2, retries=2).digest == one.digest


def pretrain_critic(bench, base, data, **changes):
    access = ModelAccess(**changes)
    config = CriticPretrainingStageConfig(
        samples=16,
        epochs=2,
        learning_rate=1e-2,
        sampling=SAMPLING,
        scoring=ScoreRolloutsConfig(
            rewards=LENGTH, temperature=1.0, access=ModelAccess(shared_trunk=access.shared_trunk)
        ),
        advantages=ComputeAdvantagesConfig(),
        versions={},
        access=access,
    )
    inputs = {"reference": base, "critic": base, "reward_model": None, "external": {}, "data": data}
    lora_base = base if access.lora else None
    return bench.run("critic_pretraining", config, place=Place(1), lora_base=lora_base, **inputs)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [warm_up, train_reward_model, pretrain_critic], ids=lambda stage: stage.__name__)
def test_what_is_trained_before_ppo_in_parts_differs_by_rounding_alone(trained, stage, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    one, parts = trained(stage, train_processes=1), trained(stage, train_processes=2, sharded=True)
    assert largest_difference(one, parts) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("access", [{"lora": LORA}, {"shared_trunk": True}, {"lora": LORA, "shared_trunk": True}])
def test_a_critic_on_what_lies_in_parts_has_the_bytes_of_one_process_before_ppo(trained, access, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    layouts = ({"train_processes": 1}, {"train_processes": 2, "sharded": True})
    digests = {trained(partial(pretrain_critic, **access), shares=2, **layout).digest for layout in layouts}
    assert len(digests) == 1


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


REFUSED = {"kind": "refused", "message": "a loss", "is_of_users_code": False, "at": 1.0}
LOST = {"kind": "transient", "message": "connection closed by peer", "is_of_users_code": False, "at": 2.0}


@pytest.mark.parametrize(
    ("codes", "told", "ran_out", "kind", "message"),
    [
        ([1, 1, 1], {0: LOST, 1: REFUSED}, False, "refused", "a loss"),
        # Who was killed says nothing, and what those say who miss it is no cause; a user's mistake is.
        ([1, -9, 1], {0: LOST}, False, "transient", "process 2 of 3 that train together was killed by signal SIGKILL"),
        ([1, -9, 1], {0: LOST, 2: REFUSED}, False, "refused", "a loss"),
        (
            [1, None, -9],
            {},
            True,
            "memory",
            "process 3 of 3 was killed by signal SIGKILL, since the machine's memory ran",
        ),
        ([0, 3, 0], {}, False, "defect", "process 2 of 3 that train together ended with exit code 3 and said nothing"),
    ],
)
def test_of_several_processes_that_failed_the_cause_is_told(tmp_path, codes, told, ran_out, kind, message):
    for rank, words in told.items():
        write_json(tmp_path / FAILURE.format(rank), words)
    error = failure(tmp_path, codes, ran_out=ran_out)
    assert classify(error) == kind
    assert describe(error).startswith(message)


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", IN_PARTS)
def test_a_loss_that_is_not_finite_in_one_process_is_told_as_by_one_alone(trained, name, number):
    changes = IN_PARTS[name]

    def spoiled(bench, base, data):
        adapted, on_body = changes.get("lora"), changes.get("shared_trunk", False)
        lora_base = base if adapted else None
        (rollouts,) = generate(bench, base, data, lora_base)
        scored = score(bench, base, rollouts, LENGTH, lora_base=lora_base, shared_trunk=on_body)
        experience = advantages(bench, [scored], base)
        table = read_dataset(experience.directory / "rollouts")
        columns = table.to_pydict()
        # One row, which one pass has.
        columns["advantages"][2][0] = float("nan")
        target = bench.store.root / "spoiled"
        write_dataset(target / "rollouts", pa.table(columns, schema=table.schema))
        shutil.copyfile(experience.directory / STATE_FILE, target / STATE_FILE)
        return an_update(bench, base, data, experience=Ref(str(target), "spoiled"), **changes)

    sentences = []
    for layout in ({"train_processes": 1}, {"train_processes": number}, {"train_processes": number, "sharded": True}):
        with pytest.raises(Exception, match="loss nan") as told:
            trained(spoiled, **layout)
        sentences.append((classify(told.value), describe(told.value)))
    assert sentences == [sentences[0]] * 3
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
