"""The bookkeeping itself has no order of its own: an exact model loses the same in every order, to the last digits.

The exact model is the joint table of all windows of a few tokens over a small vocabulary, factorised in the order of
reading. All factorisations give every window the same probability; so after windows, BOS, permuting, batching and
bringing the losses back into text order, the totals must agree: window by window, and whatever the table.
"""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from modules.data.orders import Reading, positions
from modules.data.token_file import open_tokens
from modules.data.windows import Cut, split
from modules.measurement import arrow
from modules.models.evaluate import held_out_losses

VOCABULARY = 5  # BOS, which is no text, and four tokens
LENGTH = 3


class TableModel(nn.Module):
    """-ln P(token | tokens read before it), from a table of the probabilities of whole windows in the direction of
    reading. [V, V, V]"""

    def __init__(self, table: np.ndarray):
        super().__init__()
        first, pair = table.sum(axis=(1, 2)), table.sum(axis=2)
        self.nats = [
            torch.from_numpy(-np.log(conditional))
            for conditional in (first, pair / first[:, None], table / pair[:, :, None])
        ]

    def losses(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        bos, a, b = inputs_BT.T
        assert (bos == 0).all()
        x, y, z = targets_BT.T - 1
        assert torch.equal(x, a - 1) and torch.equal(y, b - 1)
        return torch.stack([self.nats[0][x], self.nats[1][x, y], self.nats[2][x, y, z]], dim=1)


def token_file(path, tokens: np.ndarray):
    with h5py.File(path, "w") as file:
        file["tokens"] = tokens.astype(np.uint16)
    return open_tokens(path)


def both_directions(tokens_file, table: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out losses of the two exact models, through the project's own windows."""
    both = []
    for order, model in (("forward", TableModel(table)), ("backward", TableModel(table.transpose(2, 1, 0)))):
        _, windows = split(tokens_file, Cut(LENGTH, 1, held_out, 1), Reading((order,)))
        both.append(held_out_losses(model, windows, 7, torch.device("cpu"), progress=False).astype(np.float64))
    return both[0], both[1]


@given(seed=st.integers(0, 10_000), held_out=st.integers(2, 300), rest=st.integers(3, 20))
@settings(max_examples=30, deadline=None)
def test_exact_models_lose_the_same_forward_and_backward(tmp_path_factory, seed, held_out, rest):
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full((VOCABULARY - 1) ** LENGTH, 0.3)).clip(1e-12).reshape([VOCABULARY - 1] * LENGTH)
    table /= table.sum()
    tokens = random.integers(1, VOCABULARY, size=LENGTH * held_out + rest)
    forward, backward = both_directions(token_file(tmp_path_factory.mktemp("data") / "t.h5", tokens), table, held_out)

    held_out_text = tokens[-LENGTH * held_out :].reshape(-1, LENGTH) - 1
    truth = -np.log(table[tuple(held_out_text.T)])
    assert forward.sum(axis=1) == pytest.approx(truth, abs=1e-9)
    assert backward.sum(axis=1) == pytest.approx(truth, abs=1e-9)
    assert abs(forward.sum() - backward.sum()) / forward.size < 1e-9
    assert arrow.measure(forward, backward).nats.value == pytest.approx(0, abs=1e-9)


def test_the_losses_are_those_of_the_same_text_tokens(tmp_path):
    """Where only the middle token is uncertain, only the middle column costs anything, in both directions."""
    table = np.full([VOCABULARY - 1] * LENGTH, 1e-300)
    table[0, :2, 3] = 0.25, 0.75
    tokens = np.array([1, 1, 4, 1, 2, 4] * 10)  # the middle is token 1, then token 2, ...
    for losses in both_directions(token_file(tmp_path / "t.h5", tokens), table, held_out=16):
        assert losses[:, [0, 2]] == pytest.approx(0, abs=1e-9)
        assert losses[:, 1] == pytest.approx(np.tile(-np.log([0.25, 0.75]), 8))


# Any order
# ----------------------------------------------------------------------------------------------------------------------

ORDERS = ["forward", "backward", "middle_out", "ends_in", "even_odd", "odd_even", "halves:backward,forward", "chunks:2"]
ORDERS += ["random:3", "mallows:0.5,1", (2, 0, 3, 1), "fresh_random"]


class AnyOrderModel(nn.Module):
    """-ln P(token | tokens read before it, at their places), by summing a table of the probabilities of windows of four
    in text order [V, V, V, V]. It knows the places as a trained model does: from its order, its start token, or by
    being told."""

    def __init__(self, table: np.ndarray, orders: tuple):
        super().__init__()
        self.table, self.orders = table, orders

    def losses(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        losses = np.empty(targets_BT.shape)
        for row, (inputs, targets) in enumerate(zip(inputs_BT.numpy(), targets_BT.numpy(), strict=True)):
            if inputs.ndim == 2:
                read, places = inputs.T
            else:
                read, order = inputs, self.orders[max(0, inputs[0] - VOCABULARY)]
                places = positions(order, 4)
            assert (read[1:] == targets[:-1]).all()
            known, before = [slice(None)] * 4, 1.0
            for step, (place, token) in enumerate(zip(places, targets, strict=True)):
                known[place] = token - 1
                after = self.table[tuple(known)].sum()
                losses[row, step] = -np.log(after / before)
                before = after
        return torch.from_numpy(losses)


@given(seed=st.integers(0, 10_000), held_out=st.integers(2, 25))
@settings(max_examples=10, deadline=None)
def test_an_exact_model_loses_the_same_in_every_order(tmp_path_factory, seed, held_out):
    random = np.random.default_rng(seed)
    table = random.dirichlet(np.full((VOCABULARY - 1) ** 4, 0.3)).clip(1e-12).reshape([VOCABULARY - 1] * 4)
    table /= table.sum()
    tokens = random.integers(1, VOCABULARY, size=4 * held_out + 9)
    file = token_file(tmp_path_factory.mktemp("data") / "t.h5", tokens)
    truth = -np.log(table[tuple((tokens[-4 * held_out :].reshape(-1, 4) - 1).T)])
    for orders in [(order,) for order in ORDERS] + [("forward", "backward", "random:3")]:
        model = AnyOrderModel(table, orders)
        _, windows = split(file, Cut(4, 2, held_out, 1), Reading.of(orders, VOCABULARY))
        for one in windows.in_each_order():
            losses = held_out_losses(model, one, 7, torch.device("cpu"), progress=False)
            assert losses.sum(axis=1) == pytest.approx(truth, abs=1e-9), orders


class BlindModel(nn.Module):
    """What it loses on a token is the token's alone."""

    def losses(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(targets_BT.double())


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_a_model_that_ignores_its_input_loses_the_same_token_by_token(tmp_path, order):
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, size=400)
    _, windows = split(token_file(tmp_path / "t.h5", tokens), Cut(4, 2, 90, 1), Reading((order,)))
    losses = held_out_losses(BlindModel(), windows, 7, torch.device("cpu"), progress=False)
    assert np.array_equal(losses, np.sqrt(tokens[-360:].reshape(90, 4)))
