"""Gradient descent as warm-up and reward model share it, against PyTorch's own loop written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppo_core.errors import NonFiniteError
from tasks.models.training import adamw, descend, learning_rate_factor, shuffled


class Quadratic(nn.Module):
    """Mean of ``(w - target)² / 2`` over the rows of a batch."""

    def __init__(self, start=(0.0, 0.0)):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))
        self.targets = torch.tensor([[1.0, -2.0], [3.0, -2.0], [2.0, -5.0], [2.0, 1.0]])

    def loss(self, batch):
        return 0.5 * (self.w - self.targets[list(batch)]).square().sum(1).mean()

    def backward(self, batch):
        loss = self.loss(batch)
        loss.backward()
        return float(loss.detach())


def halves(epoch):
    return [[0, 1], [2, 3]] if epoch % 2 == 0 else [[3, 1], [2, 0]]


def train(model, *, batches=halves, backward=None, on_step=lambda *_: None, **changes):
    options = {"epochs": 3, "learning_rate": 0.1, "warmup_share": 0.2, "max_grad_norm": 1.0, **changes}
    own = backward or model.backward
    return descend(list(model.parameters()), batches, lambda batch: [lambda _: own(batch)], on_step=on_step, **options)


# The schedule


def test_the_learning_rate_worked_by_hand():
    # Two of eight steps rise to 1; then six steps of a cosine from 1 towards 0.1: cos 0, cos 30°, 60°, 90°, 120°, 150°.
    rates = [learning_rate_factor(step, 8, warmup_share=0.25) for step in range(8)]
    root = math.sqrt(3) / 2
    assert rates == pytest.approx([0.5, 1.0] + [0.1 + 0.45 * (1 + c) for c in (1, root, 0.5, 0, -0.5, -root)])


@pytest.mark.parametrize(
    ("num_steps", "share", "expected"),
    [
        (1, 0.0, [1.0]),
        (1, 0.05, [1.0]),
        (2, 0.0, [1.0, 0.55]),
        # A share of a step is a whole step.
        (3, 0.05, [1.0, 1.0, 0.55]),
        (4, 0.9, [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_short_schedules_worked_by_hand(num_steps, share, expected):
    assert [learning_rate_factor(s, num_steps, warmup_share=share) for s in range(num_steps)] == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(0, 0.99))
def test_the_rate_rises_to_1_and_then_never_rises_again_nor_falls_below_a_tenth(num_steps, share):
    rates = [learning_rate_factor(step, num_steps, warmup_share=share) for step in range(num_steps)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(1.0)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates[top:]) >= 0.1
    assert min(rates) > 0


# The order of the rows


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 2**62), st.integers(0, 50))
def test_a_shuffle_is_a_permutation_and_a_function_of_seed_and_epoch(num_items, seed, epoch):
    order = shuffled(num_items, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(num_items))
    torch.rand(1)
    assert shuffled(num_items, seed=seed, epoch=epoch) == order


def test_every_seed_and_every_epoch_shuffles_anew():
    orders = [tuple(shuffled(50, seed=seed, epoch=epoch)) for seed in range(20) for epoch in range(20)]
    assert len(set(orders)) == 400


def test_every_item_comes_first_equally_often():
    # 2000 draws of one of 5: each 400 times, with standard deviation sqrt(2000 * 0.16) = 18.
    firsts = [shuffled(5, seed=seed, epoch=0)[0] for seed in range(2000)]
    assert all(abs(firsts.count(item) - 400) < 5 * 18 for item in range(5))


def test_a_shuffle_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shuffled(10, seed=1, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)


# Descent


def test_descent_finds_the_minimum_of_a_quadratic():
    model = Quadratic()
    losses = train(model, batches=lambda _: [[0, 1, 2, 3]], epochs=400, max_grad_norm=math.inf)
    # The mean of the targets; there the loss is half the mean squared distance to it, (1 + 1 + 9 + 9) / 4 / 2.
    assert model.w.tolist() == pytest.approx([2.0, -2.0], abs=1e-3)
    assert losses[-1] == pytest.approx(2.5, abs=1e-5)
    assert len(losses) == 400


@pytest.mark.parametrize("max_grad_norm", [0.5, 100.0])
def test_descent_is_pytorchs_adamw_with_the_schedule_and_clipping(max_grad_norm):
    ours, theirs = Quadratic(), Quadratic()
    losses = train(ours, max_grad_norm=max_grad_norm)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    # Six steps, of which ceil(0.2 * 6) = 2 rise; the other four are a cosine's cos 0, 45°, 90° and 135°.
    half = math.sqrt(0.5)
    factors = [0.5, 1.0, *(0.1 + 0.45 * (1 + c) for c in (1, half, 0, -half))]
    expected = []
    for factor, batch in zip(factors, halves(0) + halves(1) + halves(2), strict=True):
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        optimizer.zero_grad()
        loss = theirs.loss(batch)
        loss.backward()
        norm = theirs.w.grad.norm()
        if norm > max_grad_norm:
            theirs.w.grad.mul_(max_grad_norm / norm)
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    assert ours.w.tolist() == pytest.approx(theirs.w.tolist(), abs=1e-5)


def test_clipping_changes_the_way():
    # Adam's steps do not depend on the scale of all gradients, but they do on that of one against another's.
    tight, loose = Quadratic(), Quadratic()
    train(tight, max_grad_norm=0.5)
    train(loose, max_grad_norm=100.0)
    assert tight.w.tolist() != pytest.approx(loose.w.tolist(), abs=1e-3)


def test_every_step_is_told_with_its_number_of_how_many_and_its_loss():
    told = []
    losses = train(Quadratic(), on_step=lambda *step: told.append(step))
    assert told == [(number, 6, loss) for number, loss in enumerate(losses, start=1)]


def test_epochs_may_have_numbers_of_batches_of_their_own():
    told = []
    unequal = lambda epoch: [[0, 1], [2], [3]][: epoch + 1]  # noqa: E731
    losses = train(Quadratic(), batches=unequal, on_step=lambda *step: told.append(step))
    # 1 + 2 + 3 steps, and all of them known from the first on.
    assert [(number, of) for number, of, _ in told] == [(number, 6) for number in range(1, 7)]
    assert len(losses) == 6


def test_gradients_of_one_batch_do_not_leak_into_the_next():
    seen = []
    model = Quadratic()

    def backward(batch):
        seen.append(model.w.grad)
        return model.backward(batch)

    train(model, backward=backward)
    assert seen == [None] * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_never_taken(bad, where):
    model = Quadratic((0.5, 0.5))
    untouched = []

    def backward(batch):
        loss = model.backward(batch)
        if len(untouched) == 2:
            if where == "loss":
                loss = bad
            else:
                model.w.grad[0] = bad
        untouched.append(model.w.tolist())
        return loss

    with pytest.raises(NonFiniteError, match=r"step 2: loss .*, gradient norm .*; lower the learning rate \(0\.1\)"):
        train(model, backward=backward)
    assert len(untouched) == 3
    assert model.w.tolist() == untouched[2] != untouched[1] != untouched[0]


def test_weights_that_the_last_step_spoiled_are_refused():
    model = Quadratic((0.5, 0.5))
    with pytest.raises(
        NonFiniteError, match=r"weights after the last of 1 steps at a learning rate of 1e\+300 are not"
    ):
        train(model, batches=lambda epoch: [[0]], epochs=1, learning_rate=1e300)


def test_weight_decay_is_off_unless_asked_for():
    (group,) = adamw([{"params": Quadratic().parameters(), "lr": 0.01}]).param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.01, (0.9, 0.95), 1e-8, 0.0)
    (group,) = adamw([{"params": Quadratic().parameters(), "lr": 0.01}], weight_decay=0.3).param_groups
    assert group["weight_decay"] == 0.3
