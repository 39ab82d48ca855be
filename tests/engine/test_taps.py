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
