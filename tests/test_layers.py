"""Imports go down the tree only: read from the source, so that a lazy import counts too."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "mezzotint"
LAYERS = [  # a module may import from its own row and from rows above it
    {"errors", "cluster", "__init__"},
    {"diffusion"},
    {"nets"},
    {"formats", "models"},
    {
        "catalog",
        "codec",
        "labels",
        "mark",
        "origin",
        "extras",
        "prompt",
        "text",
        "told",
        "wardrobe",
        "request",
        "inputs",
        "exact",
        "engine",
        "precision",
    },
    {"pipeline", "memory", "tasks", "film", "heat", "bulk"},
    {"data"},
    {"training", "families", "metrics"},
    {"serve", "cli", "compat", "__main__"},
]
OUTSIDE = {
    "diffusion": {"torch"},
    "nets": {"torch"},
}  # packages that a part may import, where it is bound to few
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def part(file):
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(file):
    """Absolute dotted names of everything that a file imports, for our own down to the part."""
    package = ("mezzotint", *file.relative_to(SOURCE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            if module == ("mezzotint",):
                yield from (f"mezzotint.{alias.name}" for alias in node.names)
            else:
                yield ".".join(module)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_go_down_the_tree(file):
    if file == SOURCE / "__init__.py":
        return  # the front door: it opens what is asked for
    for name in imported(file):
        if name.startswith("mezzotint."):
            other = name.split(".")[1]
            other = other if other in LEVEL else "__init__"
            assert LEVEL[other] <= LEVEL[part(file)], f"{part(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_the_mathematics_and_the_nets_need_torch_alone(file):
    import sys

    for name in imported(file):
        top = name.split(".")[0]
        if part(file) in OUTSIDE and top != "mezzotint" and top not in sys.stdlib_module_names:
            assert top in OUTSIDE[part(file)], f"{part(file)} imports {name}"


def test_every_part_has_its_layer():
    assert {part(file) for file in FILES} <= LEVEL.keys()


def test_what_would_break_the_rule_is_found(tmp_path, monkeypatch):
    """The reader of imports sees relative, absolute and lazy ones."""
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    file = tmp_path / "nets" / "unet.py"
    file.parent.mkdir()
    file.write_text(
        "from ..errors import X\nimport mezzotint.cli.train\ndef f():\n    from .. import pipeline\n"
    )
    assert list(imported(file)) == ["mezzotint.errors", "mezzotint.cli.train", "mezzotint.pipeline"]
