"""Networks of a user's own: ``module:Class`` where an option names a network, found in the working folder too."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class OrOwn:
    """Lets an option of network names take ``module:Class`` too: ``Annotated[Literal["gcn", "gat"], OrOwn()]``."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        *names, last = map(repr, get_args(source))
        listed = f"{', '.join(names)} or {last}" if names else last
        return core_schema.union_schema(
            [handler(source), core_schema.str_schema(pattern=f"^{_OWN.pattern}$")],
            custom_error_type="network",
            custom_error_message=f"Input should be {listed}, or a network of your own: module:Class",
        )


def module_of(name: str) -> str | None:
    """The module of ``module:Class``; None for the name of a network that is ours."""
    return name.partition(":")[0] if ":" in name else None


def modules(*options: Any) -> tuple[str, ...]:
    """Modules of the networks of a user's own that these options name, if any."""
    named = (module_of(getattr(one, "name", "")) for one in options)
    return tuple(module for module in named if module)


def search_working_folder() -> None:
    """Let Python look for modules in the working folder, after all other places."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append("")
