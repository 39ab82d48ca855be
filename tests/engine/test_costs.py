"""Operations of a forward pass: dense and sparse products, and message passing as the sparse product that it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdbench.engine.costs import flops

NODES, EDGES, WIDTH = 7, 12, 5


def edges() -> Tensor:
    pairs = torch.randperm(NODES * NODES, generator=torch.Generator().manual_seed(0))[:EDGES]
    return torch.stack([pairs // NODES, pairs % NODES])


def adjacency() -> Tensor:
    return torch.sparse_coo_tensor(edges(), torch.ones(EDGES), (NODES, NODES), check_invariants=True).coalesce()


def test_a_dense_product_counts_two_operations_for_each_of_its_terms() -> None:
    layer, x = nn.Linear(3, 4), torch.ones(10, 3)
    assert flops(lambda: layer(x)) == 2 * 10 * 3 * 4
    first, second = torch.ones(10, 3), torch.ones(3, 4)
    assert flops(lambda: first @ second) == 2 * 10 * 3 * 4


@pytest.mark.parametrize(
    "passed",
    [
        lambda x, to, source: adjacency() @ x,
        lambda x, to, source: adjacency().to_sparse_csr() @ x,
        lambda x, to, source: torch.sparse.mm(adjacency(), x),
        lambda x, to, source: torch.addmm(x, adjacency(), x),
        lambda x, to, source: torch.zeros_like(x).index_add(0, to, x[source]),
        lambda x, to, source: torch.zeros_like(x).scatter_add_(0, to[:, None].expand(-1, WIDTH), x[source]),
        lambda x, to, source: torch.zeros_like(x).scatter_reduce(0, to[:, None].expand(-1, WIDTH), x[source], "mean"),
    ],
)
def test_every_way_to_pass_messages_counts_two_operations_for_each_edge_and_channel(
    passed: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> None:
    to, source = edges()
    assert flops(lambda: passed(torch.ones(NODES, WIDTH), to, source)) == 2 * EDGES * WIDTH


def test_the_largest_of_messages_is_no_product() -> None:
    to, source = edges()
    index, x = to[:, None].expand(-1, WIDTH), torch.ones(NODES, WIDTH)
    assert flops(lambda: torch.zeros_like(x).scatter_reduce(0, index, x[source], "amax")) == 0
