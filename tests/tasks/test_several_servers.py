"""Several servers as one engine: who samples which row, one that dies, and what no run could sample by.

The stand-ins do what ``tests/engines/test_several_servers.py`` sees vLLM do.
"""

import itertools
import socket
from types import SimpleNamespace

import pytest
from small_world import SAMPLING, Workbench, generate, make_world, rows
from vllm_stand_in import serving

from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.contract.failures import classify
from tasks.errors import ServerError, TransientError, UnhealthyError
from tasks.sampling.engines import vllm_push, vllm_server
from tasks.sampling.engines.vllm_push import server_mistakes
from tasks.sampling.engines.vllm_servers import order_of_servers


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def pair(world):
    with serving(world[1].directory) as one, serving(world[1].directory) as other:
        yield one, other


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    for module in (vllm_push, vllm_server):
        monkeypatch.setattr(module, "DELAYS_S", (0.0, 0.0))


def a_bench(root, servers):
    bench = Workbench(root)
    bench.execution = ExecutionConfig(device="cpu", engine_servers=tuple(server.url for server in servers))
    bench.health = HealthConfig()
    return bench


def sampled(bench, world, **changes):
    return generate(bench, world[1], world[2], engine="vllm", samples_per_prompt=2, sampling=SAMPLING, **changes)


def seeds(server):
    return {body["seed"] for body in server.drawn}


def warnings(bench):
    return [event["warning"] for event in bench.events if "warning" in event]


def nowhere():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return SimpleNamespace(url=f"http://127.0.0.1:{free.getsockname()[1]}")


# Who samples which row


def test_each_order_of_servers_is_that_of_as_many_rows_as_any_other():
    orders = [tuple(order_of_servers(seed, 3)) for seed in range(6 * 7)]
    assert {order: orders.count(order) for order in orders} == dict.fromkeys(itertools.permutations(range(3)), 7)
    assert order_of_servers(2**63 - 1, 1) == [0]


def test_both_are_given_the_weights_and_proven_and_a_row_goes_where_its_seed_says(world, pair, tmp_path):
    (ref,) = sampled(a_bench(tmp_path / "run", pair), world)
    for server in pair:
        assert server.loaded[1:] == [str(world[1].directory)]
        assert len(server.tried) == 8
        assert {body["cache_salt"] for body in server.bodies("/v1/completions")} == {world[1].digest}
    one, other = map(seeds, pair)
    assert {seed % 2 for seed in one} == {0}
    assert {seed % 2 for seed in other} == {1}
    assert len(one | other) == 12
    # In other shards, and by one server alone, they are the same rows.
    with serving(world[1].directory) as third:
        (alone,) = sampled(a_bench(tmp_path / "alone", [third]), world)
    assert rows(alone) == rows(ref)
    sampled(a_bench(tmp_path / "shards", pair), world, shards=2)
    assert (seeds(pair[0]), seeds(pair[1])) == (one, other)
    assert len(pair[0].drawn) == 2 * len(one)


def test_one_that_keeps_other_weights_is_refused_by_its_address(world, pair, tmp_path):
    pair[1].bias = 0.5
    with pytest.raises(UnhealthyError, match=f"the engine at {pair[1].url} does not hold this policy"):
        sampled(a_bench(tmp_path, pair), world)
    assert not pair[0].drawn


# One that dies


def test_rows_of_one_that_dies_in_the_middle_go_to_the_others_and_are_the_same(world, pair, tmp_path):
    (untroubled,) = sampled(a_bench(tmp_path / "untroubled", pair), world)
    # Its third row and all that follow meet closed connections.
    bench = a_bench(tmp_path / "run", pair)
    complete, before = pair[1].complete, len(pair[1].drawn)

    def dies(body):
        return complete(body) if len(pair[1].drawn) < before + 3 else None

    pair[1].complete = dies
    (ref,) = sampled(bench, world)
    assert rows(ref) == rows(untroubled)
    assert seeds(pair[1]) < seeds(pair[0]) | seeds(pair[1])
    (warning,) = warnings(bench)
    assert warning.startswith(f"execution.engine_servers {pair[1].url}: POST /v1/completions was not answered (")
    assert warning.endswith("; start the server, or correct the address; until then the other servers sample its rows")


def test_one_that_is_away_is_told_and_left_out_and_all_away_is_worth_another_attempt(world, pair, tmp_path):
    bench, gone = a_bench(tmp_path / "run", [pair[0], nowhere()]), [nowhere(), nowhere()]
    (ref,) = sampled(bench, world)
    assert len(pair[0].drawn) == len(rows(ref)) == 12
    (warning,) = warnings(bench)
    assert "GET /version was not answered" in warning
    with pytest.raises(TransientError, match=r"start the server, or correct the address$"):
        sampled(a_bench(tmp_path / "gone", gone), world)


def test_one_that_answers_and_cannot_load_the_weights_is_not_left_out(world, pair, tmp_path):
    pair[1].answers["/collective_rpc"] = [(500, "[Errno 2] No such file")] * 2
    with pytest.raises(TransientError, match="it has to see /"):
        sampled(a_bench(tmp_path, pair), world)


# Two runs on one server


def test_a_row_that_may_be_of_another_runs_weights_stops_the_stage(world, pair, tmp_path):
    complete = pair[1].complete

    def taken(body):
        answer = complete(body)
        if len(pair[1].drawn) > 2:
            pair[1].label = "of-another-run"
        return answer

    pair[1].complete = taken
    with pytest.raises(
        ServerError,
        match=r"it was given other weights while it sampled for this run \(its label is of-another-run, not",
    ) as caught:
        sampled(a_bench(tmp_path, pair), world)
    assert str(caught.value).startswith(f"execution.engine_servers {pair[1].url}: ")
    assert str(caught.value).endswith("so stop the other one, or give each a server of its own")
    assert classify(caught.value) == "user"


def test_an_adapter_that_another_run_has_unloaded_is_told_as_that(world, pair, tmp_path):
    def gone(body):
        pair[1].label = "of-another-run"
        return 404, {"error": {"message": "The model does not exist."}}

    pair[1].complete = gone
    with pytest.raises(ServerError, match="it was given other weights while it sampled"):
        sampled(a_bench(tmp_path, pair), world)


def test_labels_of_two_pushes_differ_and_one_is_set_before_the_weights_change(world, pair, tmp_path):
    server, labels = pair[0], []
    for name in ("one", "two"):
        server.asked.clear()
        sampled(a_bench(tmp_path / name, [server]), world)
        paths = server.paths()
        sets = [i for i, path in enumerate(paths) if path == "/update_weight_version"]
        assert sets[0] < paths.index("/collective_rpc") < paths.index("/reset_prefix_cache") < sets[1]
        first, second = (body["new_version"] for body in server.bodies("/update_weight_version"))
        assert first == second
        assert first.startswith(f"rlhf-rounds-{world[1].digest}-")
        # Once a row.
        assert paths.count("/weight_info") == paths.count("/v1/completions") == 8 + 12
        labels.append(first)
    assert labels[0] != labels[1]


def test_a_server_without_labels_samples_without_them(world, pair, tmp_path):
    pair[0].has_labels = False
    sampled(a_bench(tmp_path, pair[:1]), world)
    assert len(pair[0].drawn) == 12
    assert "/weight_info" not in pair[0].paths()


# Before anything is spent


def test_servers_that_a_run_can_sample_by_are_no_mistakes_and_keep_their_labels(pair):
    pair[0].label = "of-another-run"
    assert server_mistakes([server.url for server in pair]) == []
    assert pair[0].label == "of-another-run"
    assert {path for server in pair for path in server.paths()} == {
        "/version",
        "/weight_info",
        "/update_weight_version",
    }
    for server in pair:
        server.is_vllm = False
    assert server_mistakes([server.url for server in pair]) == []


def test_another_vllm_one_that_is_away_and_two_addresses_of_one_are_a_sentence_each(pair):
    away, again = nowhere().url, pair[0].url.replace("127.0.0.1", "localhost")
    pair[1].version = "0.19.1"
    first, second, third = server_mistakes([pair[0].url, pair[1].url, away, again])
    assert first == (
        f"execution.engine_servers {pair[1].url}: it is vLLM 0.19.1, and only 0.32.* was tested; install vllm==0.32.* there"
    )
    assert second.startswith(f"execution.engine_servers {away}: GET /version was not answered (ConnectError")
    assert third == f"execution.engine_servers: {pair[0].url} and {again} are one server; name it once"


def test_a_stage_refuses_another_vllm_before_it_gives_it_weights(world, pair, tmp_path):
    pair[1].version = "0.33.0"
    with pytest.raises(ServerError, match=r"it is vLLM 0\.33\.0, and only 0\.32\.\* was tested"):
        sampled(a_bench(tmp_path, pair), world)
    assert not pair[1].bodies("/collective_rpc")


@pytest.mark.parametrize("again", ["http://host:8000", "http://host:8000/", "http://host:8000/v1"])
def test_one_address_named_twice_is_refused(again):
    with pytest.raises(ValueError, match="http://host:8000 is named twice; name it once"):
        ExecutionConfig(engine_servers=("http://host:8000", again))
