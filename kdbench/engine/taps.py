"""Taps: named places in a network whose outputs are read during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, unknown


class Taps:
    """Reads the outputs of named submodules while its ``with`` block lasts.

    ``places`` maps an alias to a module path (``{"state0": "layers.0"}``). In-place activations are made out-of-place
    inside the block, since they would overwrite the tapped tensor; what still overwrites one is reported on reading.
    """

    def __init__(self, network: nn.Module, places: Mapping[str, str]) -> None:
        modules = dict(network.named_modules())
        for path in places.values():
            if path not in modules:
                raise unknown(f"module of {type(network).__name__}", path, modules)
        self._network = network
        self._modules = {alias: modules[path] for alias, path in places.items()}
        self._outputs: dict[str, tuple[Tensor, int]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._inplace: list[nn.Module] = []

    def __enter__(self) -> Taps:
        for alias, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._reader(alias)))
        if self._modules:
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

    def _reader(self, alias: str) -> Callable[[nn.Module, object, Tensor], None]:
        def read(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._outputs[alias] = (output, output._version)

        return read

    def read(self) -> dict[str, Tensor]:
        """The outputs of the last forward pass, by alias; a missed or overwritten one raises :class:`KdbenchError`."""
        missed = self._modules.keys() - self._outputs.keys()
        if missed:
            raise KdbenchError(f"Taps not reached by the forward pass: {', '.join(sorted(missed))}.")
        for alias, (output, version) in self._outputs.items():
            if output._version != version:
                raise KdbenchError(f"Tap '{alias}' was overwritten in place after it was read.")
        return {alias: output for alias, (output, _) in self._outputs.items()}
