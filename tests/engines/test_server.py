"""``vllm serve`` as the engine, on a CPU.

Not here, since a CPU has it not: bfloat16 as GPUs round it, several GPUs, and the transfer of weights over NCCL.
"""

import pytest
from runs import PROMPTS, differences, draw, evaluated, files, furthest, moved, three_iterations, tokens
from transformers import AutoTokenizer

from tasks.errors import ServerError, TransientError, UnhealthyError
from tasks.sampling.engines import policy_files, vllm_push
from tasks.sampling.engines.vllm_server import Server
from tasks.sampling.engines.vllm_servers import vllm_servers
from tasks.text.tokens import stop_checker

ROUNDING = 1e-4


@pytest.fixture(scope="module")
def tied(serving, models):
    """Serves the tied model; with logprobs after temperature, which at 1 are those before."""
    return serving(models / "tied", "--logprobs-mode", "processed_logprobs")


# Draws


def test_each_pushed_model_is_the_one_that_samples_whatever_came_before(tied, models, tmp_path):
    for name in ("tied", "other_tied", "tied", "other_tied"):
        with only(tied, files(models / name, tmp_path)) as engine:
            assert furthest(draw(engine), models / name) < ROUNDING, name
    assert not list(tmp_path.iterdir())


def test_without_its_head_a_tied_model_keeps_the_head_of_before(tied, models, tmp_path):
    # The fault of vLLM that the explicit head is for. When this test fails, vLLM has mended it.
    with only(tied, files(models / "tied", tmp_path)):
        pass
    with only(tied, files(models / "other_tied", tmp_path, with_head=False)) as engine:
        assert furthest(draw(engine), models / "other_tied") > 0.1


@pytest.mark.parametrize(
    ("is_reset", "digest", "is_right"), [(True, "one", True), (False, None, True), (False, "both", False)]
)
def test_prompts_of_other_weights_are_found_in_the_prefix_cache_only_without_reset_and_salt(
    tied, models, tmp_path, monkeypatch, is_reset, digest, is_right
):
    """With the digest of each policy as the salt no reset is needed; with one for both, and none, what is kept is stale."""
    if not is_reset:
        monkeypatch.setattr(vllm_push, "_forget_prompts", lambda server: None)
    with only(tied, files(models / "tied", tmp_path, digest=digest)) as engine:
        draw(engine)
    with only(tied, files(models / "other_tied", tmp_path, digest=digest)) as engine:
        assert (furthest(draw(engine), models / "other_tied") < ROUNDING) == is_right


def only(server, policy):
    """The engine over one server, of which nothing is told."""
    return vllm_servers([server.url], policy, pytest.fail)


def server_cards(server):
    with Server(server.url) as asked:
        return asked.cards()


def test_two_samples_of_a_prompt_differ_and_each_is_a_function_of_its_seed(tied, models, tmp_path):
    with only(tied, files(models / "tied", tmp_path)) as engine:
        batch, again = (draw(engine, samples_per_prompt=2) for _ in range(2))
    assert tokens(batch) == tokens(again)
    assert [row.tolist() for row in map(batch.prompts.row, range(6))] == [
        PROMPTS.row(i // 2).tolist() for i in range(6)
    ]
    assert len({tuple(row) for row in tokens(batch)}) == 6
    assert furthest(batch, models / "tied") < ROUNDING


def test_log_probabilities_are_those_after_temperature(tied, models, tmp_path):
    with only(tied, files(models / "tied", tmp_path)) as engine:
        batch = draw(engine, temperature=0.6)
    assert furthest(batch, models / "tied", temperature=0.6) < ROUNDING
    assert furthest(batch, models / "tied") > 0.1


def test_stop_strings_and_stop_ids_end_a_response_as_they_do_without_a_server(tied, models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models / "tied")
    with only(tied, files(models / "tied", tmp_path)) as engine:
        plain = draw(engine, max_new_tokens=24)
        # A text in the middle of the first response, and an id in the middle of the second.
        stop, stop_id = tokenizer.decode(tokens(plain)[0][8:10]), tokens(plain)[1][9]
        should_stop = stop_checker(tokenizer, (stop,))
        batch = draw(
            engine, max_new_tokens=24, stop_strings=(stop,), should_stop=should_stop, stop_token_ids=(stop_id,)
        )
    ended = 0
    for row, whole, stopped in zip(tokens(batch), tokens(plain), batch.stopped.tolist(), strict=True):
        first = next((n for n in range(1, 25) if whole[n - 1] == stop_id or stop in tokenizer.decode(whole[:n])), None)
        assert row == whole[:first]
        assert stopped == (first is not None)
        ended += stopped
    assert ended >= 2
    assert furthest(batch, models / "tied") < ROUNDING


def test_ids_that_are_no_tokens_are_never_drawn(tied, models, tmp_path):
    never = tuple(range(100, 300))
    with only(tied, files(models / "tied", tmp_path)) as engine:
        plain, batch = draw(engine, max_new_tokens=24), draw(engine, max_new_tokens=24, suppress_token_ids=never)
    assert max(map(max, tokens(plain))) >= 100
    assert max(map(max, tokens(batch))) < 100


# Runs


def test_three_iterations_over_a_tied_model(tied, models, tmp_path):
    run, rollouts = three_iterations(tmp_path, "run", models / "tied", f"execution.engine_servers=[{tied.url}]")
    table = differences("server, tied", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING
    assert moved(run) > 0.01
    assert evaluated(run)["evaluation/kl"] != 0


def test_a_push_that_leaves_the_head_as_it_was_stops_the_run_before_anything_is_sampled(
    tied, models, tmp_path, monkeypatch
):
    monkeypatch.setattr(policy_files, "tied_weights", lambda policy: {})
    # The server holds another model's head; what the file of the first checkpoint says of it never arrives.
    with only(tied, files(models / "other_tied", tmp_path)):
        pass
    with pytest.raises(
        UnhealthyError, match=r"tokens tried before sampling is .*the engine at http.* does not hold this policy"
    ):
        three_iterations(tmp_path, "run", models / "tied", f"execution.engine_servers=[{tied.url}]")
    assert not list(tmp_path.glob("runs/run/stages/**/generate_rollouts/**/manifest.json"))


def test_a_server_that_is_killed_and_started_again_goes_on_with_the_weights_it_is_given(tied, models, tmp_path):
    with only(tied, files(models / "other_tied", tmp_path)) as engine:
        untroubled = draw(engine)

        def in_the_middle(rows, tokens):
            tied.kill()

        with pytest.raises(TransientError, match="was not answered"):
            draw(engine, samples_per_prompt=8, max_new_tokens=200, on_rows=in_the_middle)
    settings = (tmp_path, "run", models / "tied", f"execution.engine_servers=[{tied.url}]")
    tied.start()
    with only(tied, files(models / "other_tied", tmp_path)) as engine:
        again = draw(engine)
    assert tokens(again) == tokens(untroubled)

    def after_the_first_update(call):
        if call.stage == "update_policy" and call.place.iteration == 1:
            tied.kill()

    with pytest.raises(TransientError, match="start the server"):
        three_iterations(*settings, after_stage=after_the_first_update)
    tied.start()
    _, rollouts = three_iterations(*settings)
    table = differences("server, tied, killed after 1", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING


def test_three_iterations_over_an_untied_model(serving, models, tmp_path):
    server = serving(models / "untied")
    for name in ("other_untied", "untied"):
        with only(server, files(models / name, tmp_path)) as engine:
            assert furthest(draw(engine), models / name) < ROUNDING
            # Not drawn, and yet a part of the distribution that the log-probabilities are of, as in the trainer.
            assert furthest(draw(engine, suppress_token_ids=tuple(range(100, 300))), models / name) < ROUNDING
    address = f"execution.engine_servers=[{server.url}]"
    with pytest.raises(ServerError, match="gives log-probabilities before temperature; start the server with"):
        three_iterations(tmp_path, "hot", models / "untied", address, "rollouts.sampling.temperature=0.7")
    run, rollouts = three_iterations(tmp_path, "run", models / "untied", address)
    table = differences("server, untied", rollouts)
    assert max(largest for _, largest in table.values()) < ROUNDING
    assert moved(run) > 0.01


def test_three_iterations_of_adapters_over_a_tied_model(serving, models, tmp_path):
    server = serving(models / "tied", "--enable-lora", "--max-lora-rank", "8", VLLM_ALLOW_RUNTIME_LORA_UPDATING="True")
    address = f"execution.engine_servers=[{server.url}]"
    _, rollouts = three_iterations(tmp_path, "run", models / "tied", address, "model.lora={rank: 4}")
    table = differences("server, adapters over tied", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING
    # The last is there, and none of those before.
    assert sum("rlhf-rounds-" in card["id"] for card in server_cards(server)) == 1
