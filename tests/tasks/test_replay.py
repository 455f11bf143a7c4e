"""Replay: what comes out the same says so, and what does not is named by quantity, row and token."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import LENGTH, advantages, an_update, generate, make_world, rows, score

from tasks import compute_advantages
from tasks.store.digests import digest_file
from tasks.store.manifest import Manifest
from tasks.worker.replay import replay, tensor_differences


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def experience(world):
    bench, base, data, _ = world
    return advantages(bench, [score(bench, base, generate(bench, base, data)[0], LENGTH)], base, whiten=False)


def replayed(bench, ref):
    return replay(ref, bench.store, bench.execution, bench.models, lambda event: None)


def test_what_is_made_of_the_same_inputs_is_identical(world, experience):
    bench, base, data, _ = world
    update = an_update(bench, base, data, experience=experience)
    for ref in (experience, update):
        assert replayed(bench, ref).differences == []
    assert not list(bench.store.root.glob("scratch/replay-*"))


def test_the_first_token_that_differs_is_named_with_the_largest_difference(world, experience, monkeypatch):
    bench, *_ = world
    gae = compute_advantages.gae

    def another(*arguments, **settings):
        values, returns = gae(*arguments, **settings)
        values[1, 2] += 0.5
        values[3, 0] -= 2.0
        return values, returns

    monkeypatch.setattr(compute_advantages, "gae", another)
    differences = {found.quantity: found for found in replayed(bench, experience).differences}
    # The metric that is made of them differs as well; nothing else does.
    assert set(differences) == {"advantages", "advantages/std_before_whitening"}
    found = differences["advantages"]
    row = rows(experience)[1]
    assert (found.row, found.position, found.count) == (row["rollout_id"], 2, 2)
    assert found.stored == row["advantages"][2]
    assert found.replayed == pytest.approx(found.stored + 0.5, abs=1e-6)
    assert found.largest == pytest.approx(2.0, abs=1e-6)


def test_of_weights_the_tensor_and_the_entry_are_named(tmp_path):
    before = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    after = {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0, 1.5, 0.0])}
    save_file(before, tmp_path / "before.safetensors")
    save_file(after, tmp_path / "after.safetensors")
    (found,) = tensor_differences(tmp_path / "before.safetensors", tmp_path / "after.safetensors", "policy")
    assert found == {
        "quantity": "policy", "row": "b", "position": 2, "stored": 1.0, "replayed": 1.5, "largest": 1.0, "count": 2
    }  # fmt: skip


def test_an_update_that_was_made_otherwise_is_noticed_by_its_weights(world, experience):
    bench, base, data, _ = world
    checkpoint = an_update(bench, base, data, experience=experience, learning_rate=3e-3)
    path = checkpoint.directory / "policy" / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    weights[name].view(-1)[5] += 0.25
    save_file(weights, path, metadata={"format": "pt"})
    manifest = Manifest.read(checkpoint.directory)
    manifest.files["policy/model.safetensors"]["sha256"] = digest_file(path)
    manifest.write(checkpoint.directory)
    (found,) = replayed(bench, checkpoint).differences
    assert (found.quantity, found.row, found.position) == ("policy/model.safetensors", name, 5)
    assert found.largest == pytest.approx(0.25, abs=1e-6)
