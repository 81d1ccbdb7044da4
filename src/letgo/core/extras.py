"""Libraries not installed with letgo itself: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from letgo.core.errors import UserError


def need(module: str, extra: str, *, what: str | None = None) -> ModuleType:
    """Import a module that an extra brings.

    Args:
        module: its import name, such as "peft" or "lm_eval.tasks".
        extra: the extra of letgo that installs it.
        what: what needs it, for the message; the module's name by default.

    Raises:
        UserError: it is not installed; the message has the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module missing inside an installed library is that library's fault, not a missing extra.
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise UserError(f"{what or module} needs {error.name}: pip install 'letgo[{extra}]'") from error
