"""vLLM in this process as the engine, on a CPU. What a CPU does not have: sleep, so it stays awake beside the trainer."""

import pytest
import torch
from runs import differences, draw, files, furthest, moved, three_iterations, tokens

from tasks.contract.resident import ResidentModels
from tasks.errors import UnhealthyError
from tasks.sampling.engines import policy_files
from tasks.sampling.engines.vllm_in_process import vllm_in_process

pytestmark = pytest.mark.usefixtures("in_process")
ROUNDING = 1e-4


def test_a_tied_model_is_right_after_each_push_with_temperature_and_several_samples(models, tmp_path):
    resident = ResidentModels()
    for name in ("tied", "other_tied", "tied"):
        settings = {"lora_base": None, "dtype": torch.float32, "temperature": 0.7, "trust_remote_code": False}
        with vllm_in_process(resident, files(models / name, tmp_path), **settings) as engine:
            batch = draw(engine, samples_per_prompt=2, temperature=0.7)
            assert max(map(max, tokens(draw(engine, suppress_token_ids=tuple(range(100, 300)))))) < 100
        assert furthest(batch, models / name, temperature=0.7) < ROUNDING, name
    # Without its head, that of before stays: the fault that the explicit head is for.
    with vllm_in_process(resident, files(models / "other_tied", tmp_path, with_head=False), **settings) as engine:
        assert furthest(draw(engine, temperature=0.7), models / "other_tied", temperature=0.7) > 0.1


def test_three_iterations_over_a_tied_model(models, tmp_path):
    run, rollouts = three_iterations(tmp_path, "run", models / "tied")
    table = differences("in process, tied", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING
    assert moved(run) > 0.01


def test_a_push_that_leaves_the_head_as_it_was_stops_the_run(models, tmp_path, monkeypatch):
    monkeypatch.setattr(policy_files, "tied_weights", lambda policy: {})
    with pytest.raises(UnhealthyError, match=r"tokens tried before sampling is .*the engine does not hold this policy"):
        three_iterations(tmp_path, "run", models / "tied")
    # The first is what the engine was made from.
    sampled = tmp_path.glob("runs/run/stages/**/generate_rollouts/**/manifest.json")
    assert {path.parts[path.parts.index("stages") + 2] for path in sampled} == {"iteration-001"}


def test_three_iterations_over_an_untied_model(models, tmp_path):
    _, rollouts = three_iterations(tmp_path, "run", models / "untied")
    table = differences("in process, untied", rollouts)
    assert max(largest for _, largest in table.values()) < ROUNDING


def test_three_iterations_of_adapters_over_a_tied_model(models, tmp_path):
    _, rollouts = three_iterations(tmp_path, "run", models / "tied", "model.lora={rank: 4}")
    table = differences("in process, adapters over tied", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING


def test_in_bfloat16_the_two_agree_as_far_as_its_rounding_allows(models, tmp_path):
    _, rollouts = three_iterations(tmp_path, "run", models / "tied", "execution.dtype=bfloat16")
    table = differences("in process, tied, bfloat16", rollouts)
    assert 1e-4 < max(mean for mean, _ in table.values()) < 0.03
