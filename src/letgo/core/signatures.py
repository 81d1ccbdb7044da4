"""What a class or a function of a source file takes, read from its text: nothing is imported, so that a mistake in a
name or a value is told before torch is loaded."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from letgo.core import values

Function = TypeVar("Function", bound=Callable[..., Any])

Kinds = Mapping[str, Any]
"""Name -> the type that the annotation names; Any where it can't be told."""


@functools.cache
def keywords(target: str) -> Kinds | None:
    """The keyword arguments of "package.module:attribute", a function or a class of letgo's own; None where the text
    does not tell them (another library's, an inherited constructor)."""
    module, _, attribute = target.partition(":")
    root, *parts = module.split(".")
    if root != "letgo":
        return None
    tree = _tree(Path(__file__).parents[1].joinpath(*parts).with_suffix(".py"))
    node = None if tree is None else _definition(tree, attribute)
    if tree is None or node is None:
        return None
    if isinstance(node, ast.ClassDef):
        if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            return _fields(node, tree)
        node = _definition(node, "__init__")
        if node is None:
            return None
    assert isinstance(node, ast.FunctionDef)
    own = {each.arg: _kind(each.annotation, tree) for each in (*node.args.args, *node.args.kwonlyargs)}
    if not node.args.kwarg:
        return own
    # The settings of another callable, handed on.
    taken = _taken(node, tree)
    return None if taken is None else {**taken, **own}


def taking(other: Callable[..., Any]) -> Callable[[Function], Function]:
    """A decorator of a function that hands its `**` arguments on to another: it shows the keyword arguments of both, as
    if it repeated the other's. `keywords` reads the same from the text."""

    def mark(function: Function) -> Function:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        theirs = [
            p
            for name, p in inspect.signature(other).parameters.items()
            if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in own.parameters
        ]
        keyword_only = [p for p in kept if p.kind is inspect.Parameter.KEYWORD_ONLY]
        first = kept[: len(kept) - len(keyword_only)]
        function.__signature__ = own.replace(parameters=[*first, *theirs, *keyword_only])  # type: ignore[attr-defined]
        shown = {p.name for p in kept} | {"return"}
        function.__annotations__ = values.annotations_of(other) | {
            name: kind for name, kind in function.__annotations__.items() if name in shown
        }
        function.__taken__ = other  # type: ignore[attr-defined]
        return function

    return mark


def _taken(node: ast.FunctionDef, tree: ast.Module) -> Kinds | None:
    """The keyword arguments of what a function is decorated to be `taking` from another module."""
    named = [each.args[0] for each in node.decorator_list if isinstance(each, ast.Call) and len(each.args) == 1]
    names = {each.id for each in named if isinstance(each, ast.Name)}
    for each in tree.body:
        if isinstance(each, ast.ImportFrom):
            for alias in each.names:
                if (alias.asname or alias.name) in names:
                    return keywords(f"{each.module}:{alias.name}")
    return None


@functools.cache
def dataclass_fields(path: Path, name: str) -> Kinds | None:
    """The fields of a dataclass in a file that its constructor takes, without those that it inherits; None where the
    file has no such class."""
    tree = _tree(path) if path.is_file() else None
    node = None if tree is None else _definition(tree, name)
    return _fields(node, tree) if tree is not None and isinstance(node, ast.ClassDef) else None


@functools.cache
def dataclass_defaults(path: Path, name: str) -> Mapping[str, Any]:
    """The plain values that a dataclass in a file gives its fields where none is given."""
    tree = _tree(path) if path.is_file() else None
    node = None if tree is None else _definition(tree, name)
    defaults = {}
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            words = each.value.keywords if isinstance(each.value, ast.Call) else []
            value = next((word.value for word in words if word.arg == "default"), each.value)
            with contextlib.suppress(TypeError, ValueError):
                defaults[each.target.id] = ast.literal_eval(value)  # type: ignore[arg-type]
    return defaults


@functools.cache
def _tree(path: Path) -> ast.Module | None:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _definition(inside: ast.Module | ast.ClassDef, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    found = (each for each in inside.body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == name)
    return next(found, None)


def _fields(node: ast.ClassDef, tree: ast.Module) -> Kinds:
    fields = {}
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not _left_out(each.value):
            fields[each.target.id] = _kind(each.annotation, tree)
    return fields


def _left_out(value: ast.expr | None) -> bool:
    """Whether a field is not the constructor's: `field(init=False)`."""
    words = value.keywords if isinstance(value, ast.Call) else []
    return any(word.arg == "init" and isinstance(word.value, ast.Constant) and not word.value.value for word in words)


@functools.cache
def _imported(tree: ast.Module) -> frozenset[str]:
    """What a module imports from elsewhere, perhaps under a name that means something else here."""
    ours = (values.__name__, "typing", "collections.abc")
    froms = [each for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) and each.module not in ours]
    return frozenset(alias.asname or alias.name for each in froms for alias in each.names)


@functools.cache
def _assigned(tree: ast.Module) -> Mapping[str, ast.expr]:
    """The names that a module gives to types of its own."""
    assigns = [each for each in tree.body if isinstance(each, ast.Assign)]
    return {each.targets[0].id: each.value for each in assigns if isinstance(each.targets[0], ast.Name)}


def _kind(annotation: ast.expr | None, tree: ast.Module) -> Any:
    """The type that an annotation names, by builtins, typing, `letgo.core.values` and what its own module defines in
    these words."""
    if annotation is None:
        return Any
    known: dict[str, Any] = {**vars(builtins), **vars(typing), **vars(values), "Mapping": Mapping, "Sequence": Sequence}
    own = _assigned(tree)
    names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
    for name in names & _imported(tree):
        known.pop(name, None)
    try:
        for name in names - set(known):
            known[name] = eval(ast.unparse(own[name]), known)
        return eval(ast.unparse(annotation), known)
    except Exception:
        return Any
