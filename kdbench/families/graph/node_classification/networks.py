"""Students of the graph family: message-passing networks whose every layer leaves a unit-length state to tap."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn import Linear as GlorotLinear

from kdbench.errors import UsageError
from kdbench.families.graph import templates  # noqa: F401  (before the first layer is made)
from kdbench.families.graph.node_classification.options import NodeStudent

HEADS = 4


class Block(nn.Module):
    """Linear or convolution, batch norm, dropout, PReLU and row-wise L2 normalisation: ``[n, in] -> [n, width]``."""

    def __init__(self, layer: nn.Module, width: int, dropout: float, convolution: bool) -> None:
        super().__init__()
        self.layer, self.convolution = layer, convolution
        self.after = nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(dropout), nn.PReLU())

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.layer(x, edges) if self.convolution else self.layer(x)
        return F.normalize(self.after(x), dim=-1)


def convolution(name: str, width: int) -> nn.Module:
    """A message-passing layer ``[n, width] -> [n, width]`` of PyG."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "gcn": lambda: GCNConv(width, width, cached=True),
        "gat": lambda: GATConv(width, width // HEADS, heads=HEADS),
        "sage": lambda: SAGEConv(width, width),
        "gin": lambda: GINConv(nn.Sequential(nn.Linear(width, width), nn.PReLU(), nn.Linear(width, width))),
    }
    return makers[name]()


class GNN(nn.Module):
    """``states[0]`` is a linear block on the input (hop 0), ``states[l]`` the l-th convolution block (hop l).

    The head reads one more linear block on the last state. Layout of the released LinguGKD students
    (arXiv 2402.05894) with the hop-0 state made explicit.
    """

    def __init__(self, inputs: int, classes: int, options: NodeStudent) -> None:
        super().__init__()
        width, dropout = options.width, options.dropout
        layers = [Block(nn.Linear(inputs, width), width, dropout, convolution=False)]
        layers += [
            Block(convolution(options.name, width), width, dropout, convolution=True) for _ in range(options.layers)
        ]
        self.states = nn.ModuleList(layers)
        self.post = Block(nn.Linear(width, width), width, dropout, convolution=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for features ``x`` ``[n, inputs]`` and ``edges`` int64 ``[2, e]``."""
        for state in self.states:
            x = state(x, edges)
        logits: Tensor = self.head(self.post(x, edges))
        return logits


class PlainGNN(nn.Module):
    """``states[0]`` projects the words, ``states[l]`` is the l-th convolution, ReLU and dropout between; linear head.

    ``z = W_h conv_k( drop(relu( … conv_1( W_0 drop(x) ) )) )``. With a GCN it is the network of Kipf and Welling
    (arXiv 1609.02907): W_0 is the first convolution's own weight, as with a GAT, and the last state has a head of its
    own, so that all states have one width.
    """

    def __init__(self, inputs: int, classes: int, options: NodeStudent) -> None:
        super().__init__()
        convolutions = [convolution(options.name, options.width) for _ in range(options.layers)]
        projection = GlorotLinear(inputs, options.width, weight_initializer="glorot", bias_initializer="zeros")
        if options.name in ("gcn", "gat"):
            convolutions[0].lin = nn.Identity()
        self.states = nn.ModuleList([projection, *convolutions])
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.width, classes)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Logits ``[n, classes]`` for features ``x`` ``[n, inputs]`` and ``edges`` int64 ``[2, e]``."""
        projection, first, *others = self.states
        x = first(projection(self.dropout(x)), edges)
        for state in others:
            x = state(self.dropout(x.relu()), edges)
        logits: Tensor = self.head(x)
        return logits


LAYOUTS: dict[str, type[GNN | PlainGNN]] = {"blocks": GNN, "plain": PlainGNN}


def network(inputs: int, classes: int, options: NodeStudent) -> GNN | PlainGNN:
    """A freshly initialised student in the layout of its options."""
    if options.name == "gat" and options.width % HEADS:
        raise UsageError(f"student.width={options.width} must be a multiple of {HEADS} for gat.")
    return LAYOUTS[options.layout](inputs, classes, options)


def normalised_adjacency(edges: Tensor, nodes: int) -> Tensor:
    """``S = D^-½ (A + I) D^-½`` as a sparse CSR matrix ``[n, n]``, D the degrees of A + I."""
    loops = torch.arange(nodes).expand(2, -1)
    rows, columns = torch.cat([edges, loops], dim=1)
    scale = torch.bincount(rows, minlength=nodes).float().rsqrt()
    values = scale[rows] * scale[columns]
    indices = torch.stack([rows, columns])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its CSR layout beta
        return (
            torch.sparse_coo_tensor(indices, values, (nodes, nodes), check_invariants=True).coalesce().to_sparse_csr()
        )
