"""The layout: which part may import which, no import cycles, and how long files and functions may be."""

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


def nodes(tree):
    """Yield all nodes of a tree, except imports for type checkers alone."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            yield from nodes(child)


def imports(module):
    """Return the modules of the project that a module imports, at its top or inside its functions."""
    found = set()
    for node in nodes(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from package import name`: the module `name` where it is one, else the package itself
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module
                for alias in node.names
            }
    return found & FILES.keys()


# the package itself imports lazily
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
    assert "ecgbyte_cli.training.setup" in IMPORTS["ecgbyte_cli.stages.finetune"]  # inside a function


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("ecgbyte_cli.stages.", "ecgbyte_cli.stages."),
        ("ecgbyte_cli.model.", "ecgbyte_cli.training."),
        ("ecgbyte_cli.model.", "ecgbyte_cli.inference."),
        ("ecgbyte_kernels", "ecgbyte_cli"),
    ],
)
def test_no_part_imports_a_part_above_it(importer, imported):
    modules = [module for module in IMPORTS if module.startswith(importer)]
    assert modules
    wrong = {m: [o for o in IMPORTS[m] if o.startswith(imported)] for m in modules}
    assert {m: others for m, others in wrong.items() if others} == {}


def test_only_cli_and_stages_import_click():
    users = {
        module
        for module, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "click" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "click")
    }
    assert "ecgbyte_cli.cli.app" in users
    assert {u for u in users if not u.startswith(("ecgbyte_cli.cli.", "ecgbyte_cli.stages."))} == set()


def too_long(module):
    """Yield the names and lines of a module and its functions that are over the limits."""
    text, limit = FILES[module].read_text(), 100 if module.startswith("ecgbyte_kernels") else 60
    if (lines := len(text.splitlines())) > 450:
        yield module, lines
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > limit:
                yield f"{module}.{node.name}", lines


def test_files_and_functions_are_short():
    assert dict(long for module in FILES for long in too_long(module)) == {}


def public(name):
    """Return the callables of a public name, each with its name: itself, or the methods of a class."""
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
        signature = inspect.signature(function)
        bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert "cls" in bare or not bare, f"{key}: {bare}"
        assert signature.return_annotation is not signature.empty, f"{key} returns what?"


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'reed'"):
        ecgbyte_cli.reed  # noqa: B018
