"""What of a model lies in parts where processes train it together; here by a group of one process, whose part is all."""

import pytest
import torch
from small_world import Workbench, a_model
from torch import distributed, nn

from ppo_core import Sharing, add_gradients, inside, shard, sharded, whole
from ppo_core.clipping import scale_gradients, total_norm
from ppo_core.sharded import is_in_parts
from tasks.config.execution import ExecutionConfig, HealthConfig
from tasks.config.model_access import AdapterConfig, ModelAccess
from tasks.contract.stage import StageContext
from tasks.models import access as access_module
from tasks.models.access import Models
from tasks.models.loading import load_policy, with_empty_weights
from tasks.models.parts import POLICY, part_directory
from tasks.store import Place

TEXT = torch.tensor([[5, 9, 250, 17]])
LORA = AdapterConfig(rank=2, alpha=4, target_modules=("q_proj",))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return a_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def group(monkeypatch):
    """This process alone, as one of those that train together."""
    monkeypatch.setattr(sharded, "_roots", {})
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD
    distributed.destroy_process_group()


def models_of(tmp_path, base, *, rank=0, shares=1, lora=None, shared_trunk=False):
    bench = Workbench(tmp_path)
    context = StageContext(
        output=tmp_path / "output",
        place=Place(1, 1),
        run_seed=7,
        execution=ExecutionConfig(device="cpu", train_processes=2, sharded=True, shares=shares),
        health=HealthConfig(),
        resident=bench.models,
        report=bench.events.append,
        lora_base=base if lora else None,
        rank=rank,
    )
    return Models(context, ModelAccess(lora=lora, shared_trunk=shared_trunk))


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("lora", [None, LORA])
def test_all_that_is_large_lies_in_parts_and_adapters_and_a_head_are_whole(group, tmp_path, base, lora, shared_trunk):
    models = models_of(tmp_path, base, lora=lora, shared_trunk=shared_trunk)
    policy = models.take_policy(base)
    critic = models.take_critic(base, policy.model)
    assert all(is_in_parts(x) != (".lora_" in name) for name, x in policy.model.named_parameters())
    assert {is_in_parts(parameter) for parameter in policy.parameters} == {lora is None}
    assert {is_in_parts(parameter) for parameter in critic.parameters} == {lora is None and not shared_trunk}
    assert models.sharing.in_parts


@pytest.mark.parametrize("lora", [None, LORA])
def test_weights_are_together_inside_alone_and_say_what_the_whole_model_says(group, tmp_path, base, lora):
    models = models_of(tmp_path, base, lora=lora)
    policy = models.take_policy(base).model
    whole = load_policy(part_directory(base, POLICY))

    def logits():
        assert not is_in_parts(policy.get_output_embeddings().weight)
        return policy(TEXT).logits

    with torch.no_grad():
        assert torch.equal(inside(policy, logits), whole(TEXT).logits)
    # Without a gradient no backward pass parts them again.
    assert is_in_parts(policy.get_output_embeddings().weight)
    # A model beside it is none of them.
    assert inside(whole, lambda: is_in_parts(policy.get_output_embeddings().weight))


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_first_process_alone_reads_weights(group, tmp_path, base, lora, monkeypatch):
    read = []

    def load(directory, **options):
        read.append(not options["weightless"])
        return load_policy(directory, **options)

    monkeypatch.setattr(access_module, "load_policy", load)
    for rank in (0, 1):
        models_of(tmp_path, base, rank=rank, lora=lora).take_policy(base)
    assert read == [True, False]


@pytest.mark.parametrize(("shares", "in_order"), [(1, False), (2, True)])
def test_with_shares_gradients_of_parts_are_added_in_one_order(group, tmp_path, base, monkeypatch, shares, in_order):
    asked = []
    monkeypatch.setattr(access_module, "shard", lambda *_, **options: asked.append(options["in_order"]))
    monkeypatch.setattr(Models, "_tried", lambda _, model: model)
    models_of(tmp_path, base, shares=shares).take_policy(base)
    assert asked == [in_order]


def test_a_model_with_empty_weights_is_tied_where_the_model_is(base):
    model = with_empty_weights(load_policy(part_directory(base, POLICY), weightless=True))
    whole = load_policy(part_directory(base, POLICY))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for own, other in (
        (model.named_parameters(), whole.named_parameters()),
        (model.named_buffers(), whole.named_buffers()),
    ):
        assert [(name, x.shape, x.dtype, x.device) for name, x in own] == [
            (name, x.shape, x.dtype, x.device) for name, x in other
        ]
    with torch.device("meta"):
        alone = nn.Linear(2, 2)
    assert not with_empty_weights(alone).weight.is_meta
    # Nobody could find it to fill it.
    alone.table = torch.ones(2, device="meta")
    assert with_empty_weights(alone) is None


def test_processes_whose_models_lie_in_parts_make_equally_many_passes_of_which_some_count_nothing(group):
    weight = nn.Parameter(torch.tensor([2.0]))

    def factors(in_parts):
        made = []

        def one(factor):
            made.append(factor)
            (weight * 3.0 * factor).sum().backward()

        weight.grad = None
        add_gradients([weight], [one, one], Sharing(group, 4, in_parts))
        assert weight.grad.tolist() == [6.0]
        return made

    assert factors(True) == [1.0, 1.0, 0.0, 0.0]
    assert factors(False) == [1.0, 1.0]


@pytest.mark.parametrize("shares", [1, 2])
def test_gradients_in_parts_and_whole_ones_have_one_norm_and_are_scaled_by_one_factor(group, shares):
    sharing = Sharing(group, shares, in_parts=True)
    large, small = nn.Linear(1, 2, bias=False), nn.Parameter(torch.zeros(1))
    shard(large, [], torch.device("cpu"))
    inside(large, lambda: large(torch.tensor([[2.0]])).sum()).backward()
    (3.0 * small).sum().backward()
    parameters = [large.weight, small]
    # Of 2, 2 and 3: the root of 17.
    norm = total_norm([parameter.grad for parameter in parameters], sharing)
    assert float(norm) == pytest.approx(17**0.5)
    scale_gradients(parameters, 1.0, norm)
    assert whole(large.weight.grad).flatten().tolist() == pytest.approx([2 / 17**0.5] * 2, abs=1e-6)
    assert small.grad.tolist() == pytest.approx([3 / 17**0.5], abs=1e-6)
    # A limit above the norm changes nothing.
    scale_gradients(parameters, 5.0, total_norm([parameter.grad for parameter in parameters], sharing))
    assert small.grad.tolist() == pytest.approx([3 / 17**0.5], abs=1e-6)
