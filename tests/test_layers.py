"""The order of the rooms, read from the source: who may import whom, and what from outside; short files."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hywu_core", "nodes")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 350
HEAVIEST = 32_000_000  # bytes of all embedded weights together

GROUND = {"errors", "storage"}
GENERATION = {"lora", "tokens", "conditions", "generator", "generate", "generation_cache"}
COMMAND = {"cli", "devices", "measure", "report"}
# What each room of hywu_core (and nodes) may import of hywu_core; a new room needs a line here.
MAY_SEE = {
    "__init__": set(),
    "errors": set(),
    "storage": {"errors"},
    "devices": {"errors"},
    "measure": set(),
    "report": GROUND,
    "cli": {"errors"},
    "images": GROUND,
    "lora": GROUND,
    "tokens": GROUND | {"lora"},
    "embedded": GROUND,
    "conditions": GROUND | {"embedded", "images"},
    "generator": GROUND | {"lora", "tokens", "conditions"},
    "generation_cache": GROUND | {"lora"},
    "generate": GROUND | GENERATION - {"generate"},
    "apply": GROUND | {"lora"},
    "heat_map": GROUND | {"lora"},
    "backbones": GROUND | {"embedded"},
    "data": GROUND | {"embedded", "images"},
    "pipeline": GROUND | GENERATION | {"apply", "backbones", "embedded"},
    "edit": GROUND | COMMAND | {"embedded", "images", "lora", "pipeline"},
    "train": GROUND
    | GENERATION
    | COMMAND
    | {"__init__", "apply", "backbones", "data", "embedded", "images", "pipeline"},
    "studies": GROUND
    | GENERATION
    | {"__init__", "devices", "apply", "backbones", "data", "embedded", "images", "pipeline", "train"},
    "study": GROUND | COMMAND | {"studies"},
    "bench": GROUND
    | GENERATION
    | COMMAND
    | {"apply", "backbones", "embedded", "images", "pipeline", "train"},
    "nodes": GROUND | GENERATION | {"heat_map", "apply", "embedded"},
}

INSIDE_COMFYUI = {"torch", "safetensors", "transformers", "einops", "numpy", "PIL"}
INSIDE_COMFYUI |= {"tokenizers", "huggingface_hub"}  # which transformers brings
# What some rooms may import beyond that; a bare ComfyUI never opens them (nodes it does, in its own company).
FROM_OUTSIDE = {
    "data": {"pyarrow", "tomli", "yaml"},
    "backbones": {"diffusers", "huggingface_hub", "torchao"},
    "train": {"diffusers", "tqdm", "matplotlib", "psutil", "sentencepiece", "wordfreq", "torchao"},
    "studies": {"tqdm", "matplotlib", "scipy", "sklearn", "skimage", "flip_evaluator"},
    "edit": {"tqdm"},
    "study": {"tqdm"},
    "nodes": {"comfy", "comfy_api", "folder_paths"},
}
COMFY_SIDE = (
    "hywu_core.apply.comfy",
    "hywu_core.bench.comfy_",
)  # how the names of files that see comfy begin


class Import(NamedTuple):
    """What an import statement asks for, and when it is run: "at once", "called" or "never" (for types)."""

    module: str
    relative: bool
    run: str
    line: int


def name_of(path: Path) -> str:
    """hywu_core/lora/spec.py -> hywu_core.lora.spec; a package by its own name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The folder or file directly under hywu_core, or nodes."""
    package, *rest = module.split(".")
    return package if package != "hywu_core" else (rest or ["__init__"])[0]


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    """All imports of one of our modules, wherever in the file."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(_imports(tree, path.relative_to(ROOT).parent.parts))


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[Import]:
    run = {id(node): "at once" for node in tree.body}
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            run |= {id(node): "never" for node in block.body}
    for node in ast.walk(tree):
        when = run.get(id(node), "called")
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, False, when, node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield Import(node.module, False, when, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:  # `from . import keys` names a module, `from .keys import K` does not
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in MODULES else base, True, when, node.lineno)


def places(broken: Iterator[tuple[str, Import]]) -> list[str]:
    """Readable findings, for the assertion to show."""
    return [f"{MODULES[name].relative_to(ROOT).as_posix()}:{i.line} {i.module}" for name, i in broken]


def ours() -> Iterator[tuple[str, Import]]:
    """(importing module, import) for every import of our own code."""
    return ((name, i) for name in MODULES for i in imports_of(name) if i.relative)


STANDARD = sys.stdlib_module_names | {"tomllib"}  # also under 3.10, where tomli stands in


def foreign() -> Iterator[tuple[str, Import]]:
    """(importing module, import) for every import of code that is neither ours nor the standard library's."""
    return (
        (name, i)
        for name in MODULES
        for i in imports_of(name)
        if not i.relative and i.module.split(".")[0] not in STANDARD
    )


def test_every_room_has_its_line():
    assert {room_of(name) for name in MODULES} == set(MAY_SEE)


def test_the_lines_themselves_have_an_order():
    try:
        TopologicalSorter(MAY_SEE).prepare()
    except CycleError as error:
        pytest.fail(f"these rooms see each other in a circle: {error.args[1]}")


def test_rooms_import_in_one_direction():
    assert not places(
        (name, i)
        for name, i in ours()
        if room_of(i.module) != room_of(name) and room_of(i.module) not in MAY_SEE[room_of(name)]
    )


def test_what_is_imported_exists():
    assert not places((name, i) for name, i in ours() if i.module not in MODULES)


def test_no_file_takes_part_in_a_circle():
    graph = {
        name: {i.module for i in imports_of(name) if i.relative and i.run != "never"} - {name}
        for name in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imported in a circle: {' -> '.join(error.args[1])}")


def test_our_packages_are_never_imported_by_absolute_name():
    """ComfyUI opens the pack under a name of its own: an absolute import would load the library twice."""
    assert not places((name, i) for name, i in foreign() if i.module.split(".")[0] in PACKAGES)


def test_nothing_beyond_what_comfyui_brings_is_imported():
    assert not places(
        (name, i)
        for name, i in foreign()
        if i.module.split(".")[0] not in INSIDE_COMFYUI | FROM_OUTSIDE.get(room_of(name), set())
        and not (name.startswith(COMFY_SIDE) and i.module.split(".")[0] in ("comfy", "comfyui_version"))
    )


def test_diffusers_is_imported_only_when_a_model_is_built():
    assert not places(
        (name, i) for name, i in foreign() if i.module.startswith("diffusers") and i.run == "at once"
    )


def test_comfyui_is_met_through_the_nodes_alone():
    meetings = [(n, i) for n, i in ours() if i.module.startswith(COMFY_SIDE)]
    assert not places((n, i) for n, i in meetings if room_of(n) != "nodes" and not n.startswith(COMFY_SIDE))
    assert meetings, f"{COMFY_SIDE} is not there, or nobody uses it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_embedded_weights_are_small():
    weights = list((ROOT / "hywu_core" / "embedded").rglob("*.safetensors"))
    assert weights
    assert sum(path.stat().st_size for path in weights) <= HEAVIEST
