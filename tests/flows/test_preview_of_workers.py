"""What is said of several workers before anything is spent: their devices, their number, their memory."""

import re

import pytest
from conftest import TINY
from fake_runs import document
from test_preview import InThisProcess

from flows.config.reading import checked, load_config
from flows.preview import doubts_about_workers, look_first
from flows.preview import workers as preview_workers
from flows.preview.examination import Preview, too_many_for_memory
from flows.preview.memory import StageMemory
from flows.preview.workers import memory_of_others, memory_of_ranks
from tasks.config import ExecutionConfig
from tasks.errors import ConfigError
from tasks.models import device_mistakes


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"workers": 0}, "execution.workers"),
        (
            {"workers": 2, "device": "cuda:1"},
            "device=cuda:1 with workers=2: it names one device, and each worker needs",
        ),
        (
            {"workers": 2, "device": "mps"},
            "device=mps with workers=2: there is one Metal device, and each worker needs",
        ),
    ],
)
def test_workers_without_a_device_each_are_refused(tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        checked(document(tmp_path, execution=settings), where="test")


class Cuda:
    """What torch says of devices."""

    def __init__(self, monkeypatch, *names):
        for name, value in {"is_available": bool(names), "device_count": len(names)}.items():
            monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda number: names[number])


@pytest.mark.parametrize(
    ("names", "settings", "mistake"),
    [
        ((), {"workers": 9}, None),
        (("A",), {}, None),
        (("A", "A"), {"workers": 2}, None),
        (("A", "B"), {"workers": 1}, None),
        (("A", "B"), {"device": "cpu", "workers": 2}, None),
        (
            ("A",),
            {"workers": 2},
            "execution.workers=2: there is 1 CUDA device, and each worker needs one of its own; lower it to 1",
        ),
        (
            ("A", "A"),
            {"workers": 3, "device": "cuda"},
            "execution.workers=3: there are 2 CUDA devices, and each worker needs one of its own; lower it to 2",
        ),
        (
            ("A", "A", "B"),
            {"workers": 3},
            "execution.workers=3: cuda:0 is A and cuda:2 is B, which round otherwise; name equal ones by "
            "CUDA_VISIBLE_DEVICES, or lower it",
        ),
        (
            ("A", "A"),
            {"device": "cuda:2"},
            "execution.device=cuda:2: there are 2 CUDA devices, the last of which is cuda:1; name that",
        ),
        ((), {"device": "cuda"}, "execution.device=cuda: this PyTorch sees no CUDA device; set it to auto or cpu"),
    ],
)
def test_devices_that_are_not_there_are_told_in_one_sentence(monkeypatch, tmp_path, names, settings, mistake):
    Cuda(monkeypatch, *names)
    config = checked(document(tmp_path, execution=settings), where="test")
    assert device_mistakes(config.execution) == ([] if mistake is None else [mistake])


def test_a_device_that_is_not_there_stops_a_run_in_its_first_look(tmp_path, monkeypatch):
    Cuda(monkeypatch, "A", "A")
    config = load_config(str(TINY), ["execution.workers=3"])
    with pytest.raises(ConfigError, match="there are 2 CUDA devices, and each worker needs one of its own"):
        look_first(InThisProcess(None), config, {})


def test_more_workers_than_shards_or_cores_are_doubts_since_the_results_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(preview_workers, "num_cores", lambda: 2)

    def doubts(lag=0, **settings):
        rollouts = {"shards": 2, "lag": lag, "sampling": {"max_new_tokens": 4}}
        return doubts_about_workers(checked(document(tmp_path, execution=settings, rollouts=rollouts), where="test"))

    assert doubts() == doubts(workers=2) == []
    (of_shards,) = doubts(workers=3, device="cuda")
    assert of_shards == (
        "execution.workers=3: an iteration has 2 shards, so that no more workers have something to do; raise "
        "rollouts.shards, or lower it"
    )
    assert doubts(workers=3)[1].startswith("execution.workers=3: there are 2 cores, for which workers on the processor")
    # The cores of other machines are not known here.
    assert len(doubts(workers=3, ray="host:6379")) == 1
    # With a lag one more updates meanwhile, and one alone does nothing meanwhile.
    assert doubts(lag=1, workers=3, device="cuda") == doubts(lag=1, workers=2) == []
    assert doubts(lag=1) == [
        "rollouts.lag=1: with execution.workers=1 nothing is sampled while the policy is updated, so that nothing is gained "
        "for what is learned from older rollouts; raise execution.workers, or leave the lag out"
    ]


def test_each_worker_but_the_first_holds_what_shards_need():
    stages = [
        StageMemory(stage="update_policy", weights=2**30, gradients=2**30, moments=2**31),
        StageMemory(stage="generate_rollouts", weights=2**30, cache=2**29),
        StageMemory(stage="score_rollouts", weights=2**30),
    ]
    assert memory_of_others(stages, 1) == 0
    assert memory_of_others(stages, 3) == 2 * (2**30 + 2**29)
    # 4 GiB for the first and 1.5 GiB for each other one.
    preview = Preview(memory=stages, other_workers=2 * (2**30 + 2**29), device={"name": "the processor"})
    for free, fits in [(7 * 2**30, True), (6 * 2**30, False)]:
        preview.device["free"] = free
        assert preview.fits is fits
    three = ExecutionConfig(workers=3)
    assert too_many_for_memory(preview, three) == [
        "execution.workers=3: together they take 7.0 GiB (4.0 GiB for the first, 1.5 GiB for each other), and the "
        "processor has 6.0 GiB free; lower it to 2"
    ]
    # Where not even one fits, it is not their number.
    preview.device["free"] = 2**30
    assert too_many_for_memory(preview, three) == []


def test_each_process_that_trains_holds_what_training_needs():
    stages = [
        StageMemory(stage="update_policy", weights=2**30, gradients=2**30, moments=2**31),
        StageMemory(stage="generate_rollouts", weights=2**33),
    ]
    assert memory_of_ranks(stages, ExecutionConfig()) == 0
    assert memory_of_ranks(stages, ExecutionConfig(train_processes=3)) == 2 * 2**32
    preview = Preview(memory=stages, other_processes=2 * 2**32, device={"name": "the processor", "free": 13 * 2**30})
    assert too_many_for_memory(preview, ExecutionConfig(train_processes=3)) == [
        "execution.train_processes=3: together they take 16.0 GiB (8.0 GiB for the first, 4.0 GiB for each other), and the "
        "processor has 13.0 GiB free; lower it to 2"
    ]
