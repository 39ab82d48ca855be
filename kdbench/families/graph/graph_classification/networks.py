"""Students that read whole graphs: label embeddings, message passing with edge labels, pooling, linear head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import GATConv
from torch_geometric.utils import scatter

from kdbench.errors import UsageError
from kdbench.families.graph.graph_classification.options import GraphStudent, GraphTeacher
from kdbench.families.graph.node_classification.networks import HEADS


class Labels(nn.Module):
    """The sum of one embedding for each column of categorical labels: int64 ``[n, k] -> [n, width]``."""

    def __init__(self, values: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, width) for count in values)

    def forward(self, labels: Tensor) -> Tensor:
        parts = [table(column) for table, column in zip(self.tables, labels.unbind(dim=1), strict=True)]
        return torch.stack(parts).sum(dim=0)


class GCN(nn.Module):
    """``h_v' = Σ_{u ∈ N(v) ∪ {v}} m_u / √(d_u d_v)``, ``m_u = relu(W h_u + e_uv)``; d counts the node itself.

    ``m_u = W h_u`` where there are no edge labels; e_vv = 0.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, edges: Tensor, embedded: Tensor | None) -> Tensor:
        x = self.linear(x)
        source, target = edges
        scale = (torch.bincount(target, minlength=len(x)) + 1).to(x.dtype).rsqrt()[:, None]
        own = x if embedded is None else x.relu()
        sent = messages(x, source, embedded) * scale[source]
        return scale * (own * scale).index_add(0, target, sent)


class GIN(nn.Module):
    """``h_v' = MLP( h_v + Σ_{u ∈ N(v)} m_u )``, ``m_u = relu(h_u + e_uv)``, or ``h_u`` without edge labels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, edges: Tensor, embedded: Tensor | None) -> Tensor:
        source, target = edges
        out: Tensor = self.mlp(x.index_add(0, target, messages(x, source, embedded)))
        return out


def messages(x: Tensor, source: Tensor, embedded: Tensor | None) -> Tensor:
    """``relu(x_u + e_uv)`` for each edge, or ``x_u`` without edge labels: ``[e, width]``, of the type of ``x``."""
    return x[source] if embedded is None else (x[source] + embedded).relu().to(x.dtype)


class GAT(nn.Module):
    """PyG's GATConv with four heads; edge labels take part in the attention."""

    def __init__(self, width: int, with_edges: bool) -> None:
        super().__init__()
        if width % HEADS:
            raise UsageError(f"student.width={width} must be a multiple of {HEADS} for gat.")
        self.layer = GATConv(width, width // HEADS, heads=HEADS, edge_dim=width if with_edges else None)

    def forward(self, x: Tensor, edges: Tensor, embedded: Tensor | None) -> Tensor:
        out: Tensor = self.layer(x, edges, embedded)
        return out


class GraphNet(nn.Module):
    """``states[l]`` are the convolutions, a ReLU between two; the pooled last state passes dropout and the head.

    ``norm`` puts batch or layer norm after every convolution; with ``readout=all`` the head reads the pooled states of
    all layers and of the labels' embedding, side by side (Xu et al., arXiv 1810.00826, section 4.2).
    """

    def __init__(
        self,
        node_values: Sequence[int],
        edge_values: Sequence[int],
        classes: int,
        options: GraphStudent | GraphTeacher,
    ) -> None:
        super().__init__()
        width = options.width
        self.nodes = Labels(node_values, width)
        self.edges = nn.ModuleList(Labels(edge_values, width) for _ in range(options.layers if edge_values else 0))
        makers: dict[str, Callable[[], nn.Module]] = {
            "gcn": lambda: GCN(width),
            "gat": lambda: GAT(width, bool(edge_values)),
            "gin": lambda: GIN(width),
        }
        self.states = nn.ModuleList(makers[options.name]() for _ in range(options.layers))
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        self.norms = nn.ModuleList(norms[options.norm](width) for _ in self.states if options.norm in norms)
        self.pool, self.dropout, self.all = options.pool, nn.Dropout(options.dropout), options.readout == "all"
        self.head = nn.Linear(width * (options.layers + 1 if self.all else 1), classes)

    def embed(self, batch: Batch) -> Tensor:
        """The nodes' states that are pooled: ``[n, width]``, or ``[n, (layers + 1) · width]`` for all of them."""
        x: Tensor = self.nodes(batch.x)
        states = [x]
        for place, state in enumerate(self.states):
            embedded = self.edges[place](batch.edge_attr) if self.edges else None
            x = state(x if place == 0 else x.relu(), batch.edge_index, embedded)
            x = self.norms[place](x) if self.norms else x
            states.append(x)
        return torch.cat(states, dim=1) if self.all else x

    def forward(self, batch: Batch) -> Tensor:
        """Logits ``[b, classes]``; where the batch says which nodes to ``read``, only those are pooled."""
        x, graph = self.embed(batch), batch.batch
        if "read" in batch:
            x, graph = x[batch.read], graph[batch.read]
        pooled = scatter(x, graph, dim=0, dim_size=len(batch.y), reduce=self.pool)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits
