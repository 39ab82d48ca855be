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


def test_features_come_in_the_order_of_the_forward_pass() -> None:
    network = Network()
    with Taps(network, {"z": "last", "f": "first"}) as taps:
        network(torch.randn(5, 3))
        assert list(taps.read()) == ["f", "z"]


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
        assert len(network.first._forward_hooks) == 1 and len(network._forward_pre_hooks) == 1
    assert len(network.first._forward_hooks) == 0 and len(network._forward_pre_hooks) == 0


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        return self.one(x), {"two": self.two(x)}, None


class Repeats(nn.Module):
    """Calls ``pair`` once and ``shared`` twice a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.shared = Pair(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(self.pair(x)[0]))


def test_an_item_of_a_tuple_is_picked_by_its_place() -> None:
    network, x = Repeats(), torch.randn(5, 3)
    with Taps(network, {"z": "pair[0]"}) as taps:
        network(x)
        assert torch.equal(taps.read()["z"], network.pair.one(x))


def test_an_item_of_a_mapping_is_picked_by_its_name() -> None:
    class Named(Pair):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"hidden": self.one(x), "logits": self.two(x)}

    network, x = nn.Sequential(Named()), torch.randn(5, 3)
    with Taps(network, {"z": "0[logits]"}) as taps:
        network(x)
        assert torch.equal(taps.read()["z"], network[0].two(x))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("pair", r"'pair' is a tuple, and a tap reads a tensor; take one of pair\[0\]\.$"),
        ("pair[1]", r"'pair\[1\]' is a dict"),
        ("pair[2]", r"'pair\[2\]' is a NoneType"),
        ("pair[3]", r"item of the output of 'pair' '3'"),
        ("shared[0]", r"The output of 'shared' is one Tensor, with no items to pick"),
        ("shared", "'z': the forward pass calls 'shared' 2 times; choose a call, 'shared@0' to 'shared@1'"),
        ("shared@2", "'shared' has no call 2; the pass calls it 2 times"),
        ("shared@-3", "'shared' has no call -3"),
    ],
)
def test_what_is_no_one_tensor_is_refused_by_name(place: str, message: str) -> None:
    network = Repeats()
    with Taps(network, {"z": place}) as taps, pytest.raises(KdbenchError, match=message):
        network(torch.randn(5, 3))
        taps.read()


def test_a_call_is_picked_by_its_number_of_the_last_forward_pass_alone() -> None:
    network, x = Repeats(), torch.randn(5, 3)
    with Taps(network, {"first": "shared@0", "last": "shared@-1"}) as taps:
        network(torch.randn(5, 3))
        output = network(x)
        read = taps.read()
        assert torch.equal(read["last"], output)
        assert torch.equal(network.shared(read["first"]), output)


def test_attention_gives_its_values_and_its_weights() -> None:
    network, x = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True)), torch.randn(3, 5, 4)
    attend = network[0]
    network.forward = lambda x: attend(x, x, x)[0]  # type: ignore[method-assign]
    with Taps(network, {"values": "0[0]", "weights": "0[1]"}) as taps:
        network(x)
        read = taps.read()
    values, weights = attend(x, x, x)
    assert torch.equal(read["values"], values) and torch.equal(read["weights"], weights)
