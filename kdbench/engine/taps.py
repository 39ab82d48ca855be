"""Taps: named places in a network whose outputs are read during a forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, unknown

_PLACE = re.compile(r"(.*?)(?:\[(\d+)\])?")


def _parts(place: str) -> tuple[str, int | None]:
    """Module path and item of ``layers.0[1]``."""
    found = _PLACE.fullmatch(place)
    path, item = found.groups() if found else (place, None)
    return path, None if item is None else int(item)


def _version(value: object) -> int | None:
    """How often a tensor has been changed in place."""
    return value._version if isinstance(value, Tensor) else None


class Taps:
    """Reads the outputs of named submodules while its ``with`` block lasts.

    ``places`` maps an alias to a module path (``{"state0": "layers.0"}``); ``layers.0[1]`` is the second item of an
    output that is a tuple or a list. A module that is called more than once in a forward pass, or whose output is no
    tensor, is refused by name. In-place activations are made out-of-place
    inside the block, since they would overwrite the tapped tensor; what still overwrites one is reported on reading.
    """

    def __init__(self, network: nn.Module, places: Mapping[str, str]) -> None:
        modules = dict(network.named_modules())
        self._network = network
        self._modules: dict[str, nn.Module] = {}
        self._items: dict[str, int | None] = {}
        for alias, place in places.items():
            path, item = _parts(place)
            if path not in modules:
                raise unknown(f"module of {type(network).__name__}", place, modules)
            self._modules[alias], self._items[alias] = modules[path], item
        self._outputs: dict[str, list[tuple[Any, Any]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._inplace: list[nn.Module] = []

    def __enter__(self) -> Taps:
        for alias, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._reader(alias)))
        if self._modules:
            self._handles.append(self._network.register_forward_pre_hook(lambda *_: self._outputs.clear()))
            self._inplace = [m for m in self._network.modules() if getattr(m, "inplace", False) is True]
            for module in self._inplace:
                module.inplace = False  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._inplace:
            module.inplace = True  # type: ignore[assignment]
        self._handles, self._inplace = [], []
        self._outputs.clear()

    def _reader(self, alias: str) -> Callable[[nn.Module, object, Any], None]:
        def read(module: nn.Module, inputs: object, output: Any) -> None:
            several = isinstance(output, tuple | list)
            version = [_version(item) for item in output] if several else _version(output)
            self._outputs.setdefault(alias, []).append((output, version))

        return read

    def read(self) -> dict[str, Tensor]:
        """The outputs of the last forward pass, by alias, in the order in which they came.

        :class:`KdbenchError` names a tap that was missed, overwritten, called more than once or that gives no tensor.
        """
        missed = self._modules.keys() - self._outputs.keys()
        if missed:
            raise KdbenchError(f"Taps not reached by the forward pass: {', '.join(sorted(missed))}.")
        return {alias: self._read(alias) for alias in self._outputs}

    def _read(self, alias: str) -> Tensor:
        (output, version), *more = self._outputs[alias]
        if more:
            raise KdbenchError(f"Tap '{alias}': its module is called {1 + len(more)} times in a forward pass.")
        item = self._items[alias]
        if isinstance(output, tuple | list):
            if item is None or item >= len(output):
                raise KdbenchError(
                    f"Tap '{alias}': its module gives {len(output)} items; a path that ends in '[0]' picks the first."
                )
            output, version = output[item], version[item]
        elif item is not None:
            raise KdbenchError(f"Tap '{alias}': its module gives one {type(output).__name__}, with no items to pick.")
        if not isinstance(output, Tensor):
            raise KdbenchError(f"Tap '{alias}': its module gives a {type(output).__name__}, not a tensor.")
        if output._version != version:
            raise KdbenchError(f"Tap '{alias}' was overwritten in place after it was read.")
        return output
