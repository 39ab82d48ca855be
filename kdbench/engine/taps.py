"""Taps: named places in a network whose outputs are read during a forward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, unknown

PLACE = re.compile(r"(?P<path>.*?)(?:@(?P<call>-?\d+))?(?:\[(?P<item>\w+)\])?")


@dataclass(frozen=True)
class Place:
    """Whose output is read: ``path``, ``path[item]`` of a tuple or mapping, ``path@call`` of a module called often."""

    path: str
    call: int | None
    item: str | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """The place that a text such as ``block.attention@-1[0]`` means."""
        parts = PLACE.fullmatch(text)
        assert parts is not None, "every text has a path"
        return cls(parts["path"], None if parts["call"] is None else int(parts["call"]), parts["item"])

    def pick(self, output: Any) -> Tensor:
        """The tensor at ``item`` of a module's output; :class:`KdbenchError` where it is none, naming the items."""
        items: dict[str, Any] = {}
        if isinstance(output, Mapping):
            items = {str(name): value for name, value in output.items()}
        elif isinstance(output, Sequence):
            items = {str(number): value for number, value in enumerate(output)}
        if self.item is not None:
            if isinstance(output, Tensor):
                raise KdbenchError(f"The output of '{self.path}' is one Tensor, with no items to pick.")
            if self.item not in items:
                raise unknown(f"item of the output of '{self.path}'", self.item, items)
            output = items[self.item]
        if isinstance(output, Tensor):
            return output
        offered = ", ".join(f"{self.path}[{name}]" for name, value in items.items() if isinstance(value, Tensor))
        which = self.path if self.item is None else f"{self.path}[{self.item}]"
        choice = f"; take one of {offered}" if offered else ""
        raise KdbenchError(f"The output of '{which}' is a {type(output).__name__}, and a tap reads a tensor{choice}.")


class Taps:
    """Reads the outputs of named submodules while its ``with`` block lasts.

    ``places`` maps an alias to a module path (``{"state0": "layers.0"}``). Where the module gives a tuple or a mapping,
    ``path[0]`` or ``path[name]`` picks an item; where one forward pass calls it several times, ``path@0`` picks the
    first call and ``path@-1`` the last. Without such a choice both are refused by name.

    In-place activations are made out-of-place inside the block, since they would overwrite the tapped tensor; what
    still overwrites one is reported on reading.
    """

    def __init__(self, network: nn.Module, places: Mapping[str, str]) -> None:
        modules = dict(network.named_modules())
        self._places = {alias: Place.parse(text) for alias, text in places.items()}
        for place in self._places.values():
            if place.path not in modules:
                raise unknown(f"module of {type(network).__name__}", place.path, modules)
        self._network = network
        self._modules = {alias: modules[place.path] for alias, place in self._places.items()}
        self._calls: dict[str, list[tuple[Tensor, int]]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._inplace: list[nn.Module] = []

    def __enter__(self) -> Taps:
        for alias, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._reader(alias)))
        if self._modules:
            self._handles.append(self._network.register_forward_pre_hook(self._begin))
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
        self._calls.clear()

    def _begin(self, module: nn.Module, inputs: object) -> None:
        """Forget what an earlier forward pass of the whole network left."""
        self._calls.clear()

    def _reader(self, alias: str) -> Callable[[nn.Module, object, Any], None]:
        def read(module: nn.Module, inputs: object, output: Any) -> None:
            value = self._places[alias].pick(output)
            self._calls.setdefault(alias, []).append((value, value._version))

        return read

    def read(self) -> dict[str, Tensor]:
        """The outputs of the last forward pass, by alias, in the order in which it reached them.

        Networks that a method sizes by them are initialised in that order.

        Raises :class:`KdbenchError` for one that was missed, overwritten, or is one of several calls' without a choice.
        """
        missed = self._modules.keys() - self._calls.keys()
        if missed:
            raise KdbenchError(f"Taps not reached by the forward pass: {', '.join(sorted(missed))}.")
        return {alias: self._chosen(alias) for alias in self._calls}

    def _chosen(self, alias: str) -> Tensor:
        place, calls = self._places[alias], self._calls[alias]
        if place.call is None and len(calls) > 1:
            raise KdbenchError(
                f"Tap '{alias}': the forward pass calls '{place.path}' {len(calls)} times; "
                f"choose a call, '{place.path}@0' to '{place.path}@{len(calls) - 1}'."
            )
        call = 0 if place.call is None else place.call
        if not -len(calls) <= call < len(calls):
            raise KdbenchError(
                f"Tap '{alias}': '{place.path}' has no call {call}; the pass calls it {len(calls)} times."
            )
        output, version = calls[call]
        if output._version != version:
            raise KdbenchError(f"Tap '{alias}' was overwritten in place after it was read.")
        return output
