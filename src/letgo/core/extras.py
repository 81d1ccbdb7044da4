"""Libraries not installed with letgo itself: imported where they are used, and named where they are missing."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, requires
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
        raise UserError(f"{what or module} needs {error.name}: {installing(extra)}") from error


def installing(extra: str) -> str:
    """The line that installs what an extra names. It names the packages themselves: of a letgo that was installed from
    a checkout, an index has no `letgo[…]`."""
    packages = _packages(extra)
    line = f"pip install {' '.join(packages)}" if packages else f"in letgo's checkout, pip install '.[{extra}]'"
    return f"{line} (letgo[{extra}])"


def _packages(extra: str) -> list[str]:
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires("letgo") or ()]
    except PackageNotFoundError:
        return []
    packages = []
    for each in wanted:
        if each.marker is None or not each.marker.evaluate({"extra": extra}) or each.marker.evaluate({"extra": ""}):
            continue
        named = [f"'{each.name}{each.specifier}'"]
        packages += named if each.name != "letgo" else [name for other in each.extras for name in _packages(other)]
    return packages
