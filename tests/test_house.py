"""The house's three rules, read from every import of the library: folders and floors, no circles, members on top."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from letgo.attacks import ATTACKS
from letgo.benchmarks import BENCHMARKS
from letgo.optim import OPTIMIZERS

LIBRARY = Path(__file__).parents[1] / "src" / "letgo"
FLOORS = (
    "core",
    "optim",
    "data",
    "models",
    "runs",
    "scoring",
    "metrics",
    "objectives",
    "benchmarks",
    "attacks",
    "analysis",
    "report",
    "training",
    "planning",
    "auditing",
    "sweep",
    "cli",
)
"""From the lowest to the highest."""
LOOSE = {"__init__", "__main__"}
MEMBERS = {"optim": OPTIMIZERS, "attacks": ATTACKS, "benchmarks": BENCHMARKS}
SHARED = {
    "optim": {
        "base",  # what every optimizer is built on
        "registry",  # the list of them
        "drive",  # how a trainer or an attack gives any member its closure
        "replay_log",  # a run of a zeroth-order member, to be run again
    },
    "attacks": {
        "displacement",  # how far quantizing, pruning and noise move the weights
    },
    "benchmarks": set(),
}
"""Beside the members: what their files share."""


def modules_of(library: Path) -> dict[str, Path]:
    """Dotted name -> file, of every module; a package is its `__init__`."""
    modules = {}
    for path in sorted(library.rglob("*.py")):
        parts = [library.name, *path.relative_to(library).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(path: Path, modules: Mapping[str, Path], name: str) -> Iterator[str]:
    """The modules of the library that a file imports, wherever in it: at the top, within functions, for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [name if name in modules else str(node.module) for name in inner]
        else:
            continue
        yield from (module for module in wanted if module != name and module.split(".")[0] == name.split(".")[0])


def graph_of(library: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    modules = modules_of(library)
    return {name: set(imports_of(path, modules, name)) for name, path in modules.items()}


def folder_of(module: str) -> str:
    """`letgo.optim.engine.noise` -> `optim`; "" of the library's own face."""
    return [*module.split("."), ""][1]


def wrong_places(library: Path) -> list[str]:
    """Modules outside the folders, and folders that are none of the house's."""
    loose = [path.name for path in library.glob("*.py") if path.stem not in LOOSE]
    folders = [path.parent.name for path in library.glob("*/*.py")]
    return sorted([*loose, *(set(folders) - set(FLOORS))])


def arrows_upwards(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Imports of a higher floor, or of the library's own face, by a folder's module."""
    floors = {folder: number for number, folder in enumerate(FLOORS)}
    wrong = []
    for module, imported in graph.items():
        here = folder_of(module)
        if here not in floors:
            continue
        for other in imported:
            if floors.get(folder_of(other), len(floors)) > floors[here]:
                wrong.append(f"{module} -> {other}")
    return sorted(wrong)


def circle_in(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def strangers(library: Path, folder: str, targets: Collection[str], shared: Collection[str]) -> list[str]:
    """What lies on a folder's top level though no record leads to it."""
    top = {path.stem for path in (library / folder).glob("*.py")}
    top |= {path.parent.name for path in (library / folder).glob("*/__init__.py")}
    prefixes = {target.partition(":")[0].removeprefix(f"{library.name}.{folder}.").split(".")[0] for target in targets}
    return sorted(top - {"__init__", "engine"} - prefixes - set(shared))


def test_every_file_lives_in_one_of_the_seventeen_folders():
    assert len(FLOORS) == 17
    assert wrong_places(LIBRARY) == []
    assert all((LIBRARY / folder / "__init__.py").is_file() for folder in FLOORS)


def test_no_file_is_too_long_to_be_read():
    lengths = {path.relative_to(LIBRARY): len(path.read_text("utf-8").splitlines()) for path in LIBRARY.rglob("*.py")}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}


def test_no_folder_imports_from_a_higher_floor():
    assert arrows_upwards(graph_of(LIBRARY)) == []


def test_no_files_import_each_other():
    assert circle_in(graph_of(LIBRARY)) == []


@pytest.mark.parametrize("folder", MEMBERS)
def test_the_top_level_of_an_axis_shows_its_members(folder):
    targets = [record.target for record in MEMBERS[folder]]
    assert strangers(LIBRARY, folder, targets, SHARED[folder]) == []
    assert SHARED[folder] <= {path.stem for path in (LIBRARY / folder).glob("*.py")}


# -- that the rules above can fail ------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path):
    """A small library that breaks none of them."""
    files = {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/errors.py": "",
        "core/files.py": "from letgo.core.errors import UserError\n",
        "optim/__init__.py": "",
        "optim/sgd.py": "from letgo.optim.engine import noise\n",
        "optim/engine/__init__.py": "",
        "optim/engine/noise.py": "import math\nfrom letgo.core import errors\n",
    }
    library = tmp_path / "letgo"
    for name, text in files.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text, encoding="utf-8")
    return library


def broken_rules(library):
    graph = graph_of(library)
    return wrong_places(library), arrows_upwards(graph), circle_in(graph), strangers(library, "optim", TARGETS, ())


TARGETS = ("letgo.optim.sgd:SGD", "torch.optim:Adam")


def test_a_sound_tree_breaks_no_rule(planted):
    assert broken_rules(planted) == ([], [], [], [])
    assert graph_of(planted)["letgo.optim.sgd"] == {"letgo.optim.engine.noise"}


def test_a_loose_file_and_a_strange_folder_are_seen(planted):
    (planted / "trainer.py").touch()
    (planted / "utils").mkdir()
    (planted / "utils" / "strings.py").touch()
    assert wrong_places(planted) == ["trainer.py", "utils"]


@pytest.mark.parametrize(
    "text",
    [
        "from letgo.optim.sgd import SGD\n",
        "import letgo.optim.sgd\n",
        "def late():\n    from letgo.optim import sgd\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from letgo.optim.sgd import SGD\n",
    ],
)
def test_an_arrow_upwards_is_seen_wherever_it_stands(planted, text):
    (planted / "core" / "errors.py").write_text(text, encoding="utf-8")
    assert arrows_upwards(graph_of(planted)) == ["letgo.core.errors -> letgo.optim.sgd"]


def test_an_import_of_the_face_is_an_arrow_upwards(planted):
    (planted / "optim" / "sgd.py").write_text("from letgo import unlearn\n", encoding="utf-8")
    assert arrows_upwards(graph_of(planted)) == ["letgo.optim.sgd -> letgo"]


def test_a_circle_is_seen_through_a_late_import_too(planted):
    (planted / "core" / "errors.py").write_text("def late():\n    import letgo.core.files\n", encoding="utf-8")
    circle = circle_in(graph_of(planted))
    assert circle[0] == circle[-1]
    assert set(circle) == {"letgo.core.errors", "letgo.core.files"}


def test_machinery_among_the_members_is_seen(planted):
    (planted / "optim" / "helpers.py").touch()
    assert strangers(planted, "optim", TARGETS, ()) == ["helpers"]
    assert strangers(planted, "optim", TARGETS, ("helpers",)) == []
