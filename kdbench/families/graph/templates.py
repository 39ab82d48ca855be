"""PyTorch Geometric's generated code without the file that it leaves in the temporary folder at every start.

Its layers write their ``propagate`` from a template to a file that nothing removes, and import that. Here the same text
is compiled where it is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch_geometric import template
from torch_geometric.nn.conv import message_passing


def in_memory(module_name: str, template_path: str, tmp_dirname: str, **values: Any) -> ModuleType:
    """``torch_geometric.template.module_from_template``: the module of that name, made from the template if need be."""
    if module_name not in sys.modules:
        path = Path(template_path)
        source = template.Environment(loader=template.FileSystemLoader(path.parent)).get_template(path.name)
        sys.modules[module_name] = module = ModuleType(module_name)
        exec(compile(source.render(**values), f"<{module_name}>", "exec"), module.__dict__)
    return sys.modules[module_name]


message_passing.module_from_template = in_memory
