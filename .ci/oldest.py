"""Install the oldest versions that pyproject.toml allows in a fresh virtual environment, and run a part of the suite.

    python .ci/oldest.py [--newest NAME]… [--python PYTHON] [TEST]…

--newest leaves a package at the newest version, for one whose oldest version cannot be had here. The environment is
build/oldest; the packages of the extra `test` are not pinned. Prints the versions, then runs the tests.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "oldest"
EXTRAS = ("llm", "formats", "eval", "hospital", "cluster", "web")
# quick ones that together import every dependency
TESTS = (
    *(
        "test_quantize.py",
        "test_tokenizer.py",
        "test_preprocess.py",
        "test_readers.py",
        "test_import_tokenizer.py",
    ),
    *(
        "test_text_table.py",
        "test_plot.py",
        "test_prompt.py",
        "test_ecg_lm.py",
        "test_metrics.py",
        "test_hospital.py",
    ),
    *("test_weigh.py", "test_hub.py", "test_completion.py"),
)


def oldest(newest: list[str]) -> list[str]:
    """Return a requirement for each dependency: the lower bound, exactly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in EXTRAS for one in project["optional-dependencies"][extra]),
    ]
    pins = []
    for requirement in wanted:
        found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?", requirement)
        if not found:
            raise SystemExit(f"{requirement} has no lower bound")
        pins.append(requirement if found[1] in newest else f"{found[1]}=={found[2]}")
    return pins


def main() -> None:
    """Build the environment, and run the tests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", metavar="TEST", help="files in tests/, instead of the usual ones")
    parser.add_argument("--newest", action="append", default=[], metavar="NAME")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    pins = oldest(options.newest)
    subprocess.run([options.python, "-m", "venv", "--clear", FOLDER], check=True)
    python = FOLDER / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # not editable, which would take the checkout's kernels/ for another package
    if subprocess.call([*pip, *pins, "pytest>=8", "hypothesis>=6.100", "httpx>=0.27", ROOT]):
        raise SystemExit(
            "raise the lower bounds that conflict, or leave out what cannot be had with --newest"
        )
    subprocess.run([python, "-m", "pip", "freeze", "--exclude", "ecgbyte"], check=True)
    tests = [ROOT / "tests" / name for name in options.tests or TESTS]
    # from another folder, so that the installed package is tested
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-c", ROOT / "pyproject.toml"]
    raise SystemExit(
        subprocess.call([*command, *tests], cwd=FOLDER, env=os.environ | {"OMP_NUM_THREADS": "1"})
    )


if __name__ == "__main__":
    main()
