"""Two ``vllm serve`` as one engine, on a CPU: weights for both, one that dies, and two runs that meet on one."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from runs import PROMPTS, differences, draw, files, furthest, moved, three_iterations, tokens

from tasks.errors import ServerError, TransientError
from tasks.sampling.engines.vllm_push import server_mistakes
from tasks.sampling.engines.vllm_servers import order_of_servers, vllm_servers

ROUNDING = 1e-4
# On a CPU, vLLM 0.32 dies where prompts of seeded requests exceed what it reads in one step.
LONG = {"samples_per_prompt": 8, "max_new_tokens": 200}


@pytest.fixture(scope="module")
def pair(serving, models):
    return serving.several(2, models / "tied")


def both(pair, policy, warn=pytest.fail):
    return vllm_servers([server.url for server in pair], policy, warn)


def addresses(pair):
    return f"execution.engine_servers=[{', '.join(server.url for server in pair)}]"


def num_asked(server):
    """The requests that a server has answered to the end."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in server.text("/metrics").splitlines()
        if line.startswith("vllm:request_success_total")
    )


def wait_until_it_answers(server):
    """That it holds blocks of somebody's prompts, it says by 200 and this."""
    while server.post("/reset_prefix_cache") != {"success": False}:
        time.sleep(0.05)


def test_two_addresses_of_one_server_are_seen_before_and_after_anything_was_pushed(pair, models, tmp_path):
    one, other = pair
    again = one.url.replace("127.0.0.1", "localhost")
    for _ in range(2):
        assert server_mistakes([one.url, other.url]) == []
        (mistake,) = server_mistakes([one.url, other.url, again])
        assert mistake == f"execution.engine_servers: {one.url} and {again} are one server; name it once"
        with both(pair, files(models / "tied", tmp_path)):
            pass


def test_what_is_looked_at_before_a_run_disturbs_none_that_samples(pair, models, tmp_path):
    with both(pair, files(models / "tied", tmp_path)) as engine:
        assert server_mistakes([server.url for server in pair]) == []
        draw(engine)


def test_each_push_reaches_both_and_rows_are_dealt_by_their_seeds(pair, models, tmp_path):
    for name in ("other_tied", "tied"):
        with both(pair, files(models / name, tmp_path)) as engine:
            before = [num_asked(server) for server in pair]
            batch = draw(engine, samples_per_prompt=8)
            asked = [num_asked(server) - n for server, n in zip(pair, before, strict=True)]
            assert furthest(batch, models / name) < ROUNDING
            first = [order_of_servers(seed, 2)[0] for seed in range(8 * len(PROMPTS))]
            assert asked == [first.count(0), first.count(1)]
            one, other = (draw(replica, samples_per_prompt=8) for replica in engine.replicas.values())
            assert furthest(one, models / name) < ROUNDING
            assert tokens(one) == tokens(other) == tokens(batch)
    assert not list(tmp_path.iterdir())


def test_rows_of_a_server_that_is_killed_in_the_middle_go_to_the_other(pair, models, tmp_path):
    warnings, policy = [], files(models / "other_tied", tmp_path)
    with both(pair, policy) as engine:
        untroubled = draw(engine, **LONG)
    with both(pair, policy, warnings.append) as engine, ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(draw, engine, **LONG)
        wait_until_it_answers(pair[1])
        pair[1].kill()
        batch = drawn.result()
    assert tokens(batch) == tokens(untroubled)
    assert furthest(batch, models / "other_tied") < ROUNDING
    (warning,) = warnings
    assert pair[1].url in warning
    assert "was not answered" in warning
    # It is away, and told of at each push, until it is back.
    with both(pair, policy, warnings.append) as engine:
        assert tokens(draw(engine, **LONG)) == tokens(untroubled)
    assert len(warnings) == 2
    (mistake,) = server_mistakes([server.url for server in pair])
    assert mistake.startswith(f"execution.engine_servers {pair[1].url}: GET /version was not answered")
    pair[1].start()
    with both(pair, policy) as engine:
        assert furthest(draw(list(engine.replicas.values())[1]), models / "other_tied") < ROUNDING


def test_a_run_whose_server_is_given_other_weights_by_another_run_stops_and_both_are_told(pair, models, tmp_path):
    shared = pair[:1]
    with both(shared, files(models / "tied", tmp_path)) as engine, ThreadPoolExecutor(1) as beside:
        drawn = beside.submit(draw, engine, **LONG)
        wait_until_it_answers(shared[0])
        try:
            with both(shared, files(models / "other_tied", tmp_path)):
                told = None
        except TransientError as error:
            told = str(error)
        with pytest.raises(ServerError, match=r"was given other weights while it sampled .* serves one run at a time"):
            drawn.result()
    assert told is None or "keeps its prefix cache while it answers others" in told
    # The other run's next attempt.
    with both(shared, files(models / "other_tied", tmp_path)) as engine:
        assert furthest(draw(engine), models / "other_tied") < ROUNDING


def test_three_iterations_over_a_tied_model_one_server_killed_after_the_first(pair, models, tmp_path):
    def after_the_first_update(call):
        if call.stage == "update_policy" and call.place.iteration == 1:
            pair[0].kill()

    run, rollouts = three_iterations(
        tmp_path, "run", models / "tied", addresses(pair), after_stage=after_the_first_update
    )
    table = differences("two servers, tied, one killed", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING
    assert moved(run) > 0.01


def test_three_iterations_over_an_untied_model(serving, models, tmp_path):
    pair = serving.several(2, models / "untied")
    _, rollouts = three_iterations(tmp_path, "run", models / "untied", addresses(pair))
    table = differences("two servers, untied", rollouts)
    assert max(largest for _, largest in table.values()) < ROUNDING


def test_three_iterations_of_adapters_over_a_tied_model(serving, models, tmp_path):
    options = "--enable-lora", "--max-lora-rank", "8"
    pair = serving.several(2, models / "tied", *options, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True")
    _, rollouts = three_iterations(tmp_path, "run", models / "tied", addresses(pair), "model.lora={rank: 4}")
    table = differences("two servers, adapters over tied", rollouts)
    assert sorted(table) == [1, 2, 3]
    assert max(largest for _, largest in table.values()) < ROUNDING
