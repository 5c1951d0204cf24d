"""How the parts depend on each other, as DESIGN has it: no circles, no stage on a stage, kernels on nothing."""

import ast
import inspect
from pathlib import Path

import pytest

import ecgbyte_cli

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join([name, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for name, folder in (("ecgbyte_cli", "ecgbyte_cli"), ("ecgbyte_kernels", "kernels"))
    for path in (ROOT / folder).rglob("*.py")
}


def imports(module):
    """Modules of the project that a module imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from package import name`: the module `name` where it is one, else the package itself
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module
                for alias in node.names
            }
    return found & FILES.keys()


# the public face imports nothing before it is asked for a name
IMPORTS = {module: imports(module) for module in FILES if module != "ecgbyte_cli"}


def test_no_module_imports_itself_through_others():
    def visit(module, above):
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for other in sorted(IMPORTS.get(module, ())):
                visit(other, [*above, module])
            done.add(module)

    done = set()
    for module in sorted(FILES):
        visit(module, [])


def test_the_walk_sees_imports_of_every_kind():
    assert "ecgbyte_cli.signal.preprocess" in IMPORTS["ecgbyte_cli.stages.symbolize"]  # a module of a package
    assert "ecgbyte_cli.readers.formats" in IMPORTS["ecgbyte_cli.readers.find"]  # a name of a module
    assert "ecgbyte_cli.model.model_folder" in IMPORTS["ecgbyte_cli.stages.generate"]  # inside a function


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("ecgbyte_cli.stages.")))
def test_no_stage_imports_a_stage(module):
    assert not [other for other in IMPORTS[module] if other.startswith("ecgbyte_cli.stages.")]
    assert len(FILES[module].read_text().splitlines()) <= 450


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("ecgbyte_kernels")))
def test_kernels_import_nothing_of_the_project(module):
    assert not [other for other in IMPORTS[module] if not other.startswith("ecgbyte_kernels")]


def public(name):
    """What a public name is made of: itself, and the methods of a class, with the name of each."""
    thing = getattr(ecgbyte_cli, name)
    if not inspect.isclass(thing):
        return [(name, thing)]
    own = [(f"{name}.{key}", value) for key, value in vars(thing).items() if not key.startswith("_")]
    own = [(key, getattr(value, "__func__", getattr(value, "fget", value))) for key, value in own]
    return [(key, value) for key, value in own if inspect.isfunction(value)]


@pytest.mark.parametrize("name", ecgbyte_cli.__all__)
def test_the_public_face_is_typed_and_documented(name):
    assert getattr(ecgbyte_cli, name).__doc__
    for key, function in public(name):
        if not key.endswith((".show", ".format_message")):  # Click's own
            signature = inspect.signature(function)
            bare = [
                p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"
            ]
            assert "cls" in bare or not bare, f"{key}: {bare}"
            assert signature.return_annotation is not signature.empty, f"{key} returns what?"


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'reed'"):
        ecgbyte_cli.reed  # noqa: B018
