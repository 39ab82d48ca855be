"""Taps read what they name, survive in-place activations, and say when they cannot."""

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.taps import Taps
from kdbench.errors import KdbenchError, UsageError


class Network(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=inplace)
        self.last = nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


def test_reads_the_output_before_an_inplace_activation() -> None:
    network, x = Network(), torch.randn(5, 3)
    with Taps(network, {"f": "first"}) as taps:
        network(x)
        assert torch.equal(taps.read()["f"], network.first(x))
    assert network.act.inplace
    network(x)
    with Taps(network, {}) as taps:
        assert taps.read() == {}


def test_gradients_flow_through_a_tap() -> None:
    network = Network()
    with Taps(network, {"f": "first"}) as taps:
        network(torch.randn(5, 3))
        taps.read()["f"].sum().backward()
    assert network.first.weight.grad is not None and network.last.weight.grad is None


def test_a_functional_overwrite_is_reported() -> None:
    class Overwrites(Network):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu_())

    network = Overwrites()
    with Taps(network, {"f": "first"}) as taps:
        network(torch.randn(5, 3))
        with pytest.raises(KdbenchError, match="'f' was overwritten"):
            taps.read()


def test_a_missed_tap_is_reported() -> None:
    network = Network()
    with Taps(network, {"u": "unused"}) as taps:
        network(torch.randn(5, 3))
        with pytest.raises(KdbenchError, match=r"not reached.*u"):
            taps.read()


def test_an_unknown_place_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'first'"):
        Taps(Network(), {"f": "frist"})


def test_no_hook_stays() -> None:
    network = Network()
    with Taps(network, {"f": "first"}):
        assert len(network.first._forward_hooks) == 1
    assert len(network.first._forward_hooks) == 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attend(x, x, x)
        return self.last(self.act(self.act(attended)))


def test_an_item_of_several_outputs_is_read_by_its_place() -> None:
    network, x = Attention(), torch.randn(3, 5, 4)
    with Taps(network, {"values": "attend[0]", "weights": "attend[1]"}) as taps:
        network(x)
        found = taps.read()
    values, weights = network.attend(x, x, x)
    assert torch.equal(found["values"], values) and torch.equal(found["weights"], weights)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("attend", "Tap 'f': its module gives 2 items; a path that ends in '[0]' picks the first"),
        ("attend[2]", "Tap 'f': its module gives 2 items"),
        ("last[0]", "Tap 'f': its module gives one Tensor, with no items to pick"),
        ("act", "Tap 'f': its module is called 2 times in a forward pass"),
    ],
)
def test_what_is_no_single_tensor_is_refused_by_name(place: str, said: str) -> None:
    network = Attention()
    with Taps(network, {"f": place}) as taps:
        network(torch.randn(3, 5, 4))
        with pytest.raises(KdbenchError) as caught:
            taps.read()
    assert said in str(caught.value)


def test_several_passes_in_one_block_leave_the_last() -> None:
    network, x = Network(), torch.randn(5, 3)
    with Taps(network, {"f": "first"}) as taps:
        network(torch.randn(2, 3))
        network(x)
        assert torch.equal(taps.read()["f"], network.first(x))


def test_no_item_is_no_module() -> None:
    with pytest.raises(UsageError, match="Unknown module of Network"):
        Taps(Network(), {"f": "first[x]"})


def test_features_come_in_the_order_of_the_forward_pass() -> None:
    with Taps(network := Network(), {"b": "last", "a": "first"}) as taps:
        network(torch.randn(5, 3))
        assert list(taps.read()) == ["a", "b"], "networks that are sized by them draw their weights in this order"
