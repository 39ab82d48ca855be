"""Weisfeiler–Leman subtree features: how often each computation tree is in a graph, as hashed colours.

``c_0(v) = hash(x_v)``, ``c_l(v) = hash(c_{l−1}(v), Σ_{u ∈ N(v)} hash(c_{l−1}(u), e_uv))`` in 64-bit integers that wrap
around: a sum does not depend on the order of its terms, so equal trees have equal colours on any machine, and a new
graph needs no table of the old ones. Two of a million trees share a colour with a probability of about 3e-8.

Source: Shervashidze et al., "Weisfeiler-Lehman Graph Kernels", JMLR 12, 2011; as a sum of hashes in Xu et al., "How
Powerful are Graph Neural Networks?", arXiv 1810.00826.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch_geometric.data import Batch

ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Multipliers of splitmix64, as signed integers."""


def mixed(values: Tensor) -> Tensor:
    """A bijection of int64 ``[…]`` that spreads every bit (splitmix64)."""
    values = values * ODD[0] + 1
    values = (values ^ _shifted(values, 30)) * ODD[1]
    values = (values ^ _shifted(values, 27)) * ODD[2]
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shifted to the right, zeros moved in."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def hashed_rows(labels: Tensor) -> Tensor:
    """One colour a row of labels, int64 ``[n, k] -> [n]``."""
    colours = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
    for column in labels.unbind(dim=1):
        colours = mixed(colours + mixed(column))
    return colours


def colours(batch: Batch, depth: int) -> Tensor:
    """Colours of every node after 0 … ``depth`` rounds, int64 ``[depth + 1, n]``; those of two rounds never match."""
    source, target = batch.edge_index
    edges = hashed_rows(batch.edge_attr)
    rounds = [hashed_rows(batch.x)]
    for number in range(depth):
        sent = mixed(rounds[-1][source] + mixed(edges))
        heard = torch.zeros_like(rounds[-1]).index_add(0, target, sent)
        rounds.append(mixed(mixed(rounds[-1] + number + 1) + heard))
    return torch.stack(rounds)


def counted(batch: Batch, vocabulary: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Graph, place in the ascending ``vocabulary`` ``[f]`` and number of each of its colours that a graph holds."""
    colour = colours(batch, depth).flatten()
    graph = batch.batch.repeat(depth + 1)
    place = torch.searchsorted(vocabulary, colour).clamp(max=len(vocabulary) - 1)
    known = vocabulary[place] == colour
    keys, counts = torch.unique(graph[known] * len(vocabulary) + place[known], return_counts=True)
    return keys // len(vocabulary), keys % len(vocabulary), counts


def features(batch: Batch, vocabulary: Tensor, depth: int) -> csr_matrix:
    """``log(1 + n)`` of the number n of each colour in each graph, float64 ``[b, f]``."""
    graph, place, counts = (part.numpy() for part in counted(batch, vocabulary, depth))
    return csr_matrix((np.log1p(counts), (graph, place)), shape=(len(batch.y), len(vocabulary)))


class SubtreeModel(nn.Module):
    """``z_G = Σ_c log(1 + n_c(G)) w_c + b`` over the colours c of the vocabulary: ``[b, classes]``."""

    vocabulary: Tensor

    def __init__(self, vocabulary: Tensor, classes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("vocabulary", vocabulary)
        self.weight = nn.Parameter(torch.zeros(len(vocabulary), classes))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, batch: Batch) -> Tensor:
        graph, place, counts = counted(batch, self.vocabulary, self.depth)
        terms = counts.to(self.weight.dtype).log1p()[:, None] * self.weight[place]
        logits: Tensor = self.bias.expand(len(batch.y), -1).index_add(0, graph, terms)
        return logits
