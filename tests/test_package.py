"""The wheel and the source archive that would be published: what is in them, and that the wheel works by itself."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from ecgbyte_cli import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source archive and the wheel."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", out, ROOT]
    made = subprocess.run(command, capture_output=True, text=True, cwd=out)
    printed = made.stdout + made.stderr
    assert made.returncode == 0 and "Package would be ignored" not in printed, printed
    return out


@pytest.fixture(scope="module")
def wheel(built):
    [path] = built.glob("*.whl")
    return path


def files_of(kernels):
    """The files of the package, with a name for the folder of the kernels."""
    return {
        f"{name}/{path.relative_to(ROOT / folder).as_posix()}"
        for name, folder in (("ecgbyte_cli", "ecgbyte_cli"), (kernels, "kernels"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.slow
def test_what_is_in_the_wheel(wheel):
    names, code = set(zipfile.ZipFile(wheel).namelist()), files_of("ecgbyte_kernels")
    assert code <= names and "ecgbyte_cli/py.typed" in names and "ecgbyte_kernels/py.typed" in names
    [info] = {name.split("/")[0] for name in names - code}
    assert info.endswith(".dist-info") and f"{info}/licenses/LICENSE" in names
    # `kernels` would overwrite the package that Transformers looks for
    assert {name.split("/")[0] for name in names} == {"ecgbyte_cli", "ecgbyte_kernels", info}
    assert wheel.stat().st_size < 14e6


@pytest.mark.slow
def test_what_is_in_the_source_archive(built):
    """No suite: its data, its helpers and the pages that it reads are not in it."""
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {one.name.partition("/")[2] for one in archive if one.isfile()}
    made = {name for name in names if name.startswith("ecgbyte.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    beside = {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
    }
    assert names - made == files_of("kernels") | beside


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= cited.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert project["version"] == __version__
    dated = re.findall(r"^## ([\d.]+) - ([\d-]+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert (cited["version"], str(cited["date-released"])) == dated[0]
    [paper] = cited["references"]
    assert paper["url"] == "https://arxiv.org/abs/2412.14373" and len(paper["authors"]) == 5


@pytest.mark.slow
def test_a_registry_would_take_both(built):
    command = [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout + checked.stderr


@pytest.mark.slow
def test_the_wheel_alone_runs(wheel, tmp_path):
    """From another folder, and not the checkout's files; as plain Python, as compiling takes longer."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "alone")

    def run(*args):
        code = "import ecgbyte_cli.__main__ as m, sys; print(m.__file__, file=sys.stderr); m.main()"
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "alone"), "NUMBA_DISABLE_JIT": "1"},
        )

    assert "symbolize" in run("--help").stdout
    chain = ["synth", "data", "--records", 8, "--fs", 100, "symbolize", "data", "--jobs", 1, "--leads", "II"]
    chain += ["--fs", 100, "--profile", "resample", "learn", "--vocab", 60]
    result = run(*chain, "--split", "all", "encode", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith(str(tmp_path / "alone"))
    assert json.loads(result.stdout)["encode"]["segments"] == 8
