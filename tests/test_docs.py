"""The documents: the command reference is fresh, links lead somewhere, code and command lines are right."""

import ast
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import ecgbyte_cli
from ecgbyte_cli.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += ["examples/experiments/LOG.md", "examples/experiments/EVIDENCE.md"]
PAGES += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES)
LINES = runpy.run_path(str(ROOT / "docs" / "command_lines.py"))


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page):
    return [code for language, code in FENCED.findall(text_of(page)) if language == "python"]


def anchors_of(path):
    """The anchors of a page's headings, as GitHub makes them."""
    prose = FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_command_reference_is_fresh():
    made = runpy.run_path(str(ROOT / "docs" / "commands.py"))
    assert made["page"]() == text_of("docs/commands.md"), "run `python docs/commands.py`"


def test_the_tables_of_scale_are_computed_from_the_stored_rates():
    script = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "bench_scale.py"))
    tables = script["tables"](json.loads(script["STORED"].read_text()))
    page = text_of("docs/scale.md")
    assert page.partition("<!-- scale -->")[2].partition("<!-- /scale -->")[0].strip() == tables
    assert len([word for word in page.split() if word.strip("|-:")]) < 900


def test_learning_takes_the_measured_times():
    script = runpy.run_path(str(ROOT / "examples" / "benchmarks" / "bench_scale.py"))
    for seconds, letters in script["LEARN"]:
        assert script["learn_seconds"](letters) == pytest.approx(seconds)
    assert script["hours"](script["learn_seconds"](12e9)) == "3 min"
    assert [script["hours"](s) for s in (89, 90, 5399, 7200)] == ["89 s", "2 min", "90 min", "2.0 h"]
    assert [script["size"](g) for g in (0.0194, 0.1, 62)] == ["19 MB", "0.1 GB", "62 GB"]


def test_the_readme_has_every_command_and_is_short():
    text = text_of("README.md")
    missing = [name for name in COMMANDS if not re.search(rf"^\| `ecgbyte {name}[ `]", text, re.MULTILINE)]
    assert missing == []
    assert len(text.splitlines()) <= 170


def test_pages_are_short():
    """All but the reference, in words as `wc -w` counts them."""
    reference = {"docs/commands.md", "docs/formats-on-disk.md"}
    words = {page: len(text_of(page).split()) for page in PAGES if page.startswith("docs/")}
    assert {page: n for page, n in words.items() if n > 1500 and page not in reference} == {}


def test_the_index_has_every_page():
    text = text_of("docs/README.md")
    pages = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    assert [page for page in pages if page != "README.md" and f"]({page})" not in text] == []


@each_page
def test_links_and_pictures_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):  # elsewhere
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", LINES["PAGES"])
def test_command_lines_of_blocks_could_run(page):
    assert LINES["wrong_lines"](page) == []


@pytest.mark.parametrize(
    "line, reason",
    [
        ("ecgbyte symbolize data/ learn --vocb 3", "No such option '--vocb'"),
        ("ecgbyte --work w fintune", "No such command 'fintune'"),
        ("ecgbyte continue", "Missing argument"),
        ("ecgbyte learn --vocab -3", "not in the range"),
        ("torchrun --n 2 -m ecgbyte_cli finetune --qq a.jsonl", "No such option '--qq'"),
        ("OMP_NUM_THREADS=1 python examples/missing.py", "no such script"),
        ("python examples/experiments/promises.py --missing", "no option --missing"),
        ("make tets", "no such target"),
        ("pip install 'ecgbyte[missing]'", "no such extra"),
        ("ecgbtye info", "no such program"),
    ],
)
def test_wrong_command_lines_are_found(line, reason):
    (words,) = LINES["split"](line)
    assert reason in LINES["wrong_with"](words)


def test_lines_are_split_into_commands():
    """Pipelines, comments, redirections, assignments, continued lines and transcripts."""
    page = "a\n\n    $ x=1 ecgbyte info --json > o.json | jq .  # c\n    out\n\n"
    page += "    id=$(ecgbyte \\\n        info)\n\nb\n"
    lines = list(LINES["lines_of"](page))
    assert [LINES["split"](line) for line in lines] == [
        [["ecgbyte", "info", "--json"], ["jq", "."]],
        [["ecgbyte", "info"]],
    ]


@each_page
def test_commands_in_the_text_have_options_that_exist(page):
    wrong = []
    for line in re.findall(r"`(ecgbyte [^`]*)`", FENCED.sub("", text_of(page))):
        words = shlex.split(line, comments=True)[1:]
        named = [word for word in words if re.fullmatch("[a-z-]+", word) and not word.startswith("-")]
        commands = [command for word in named if (command := main.get_command(None, word))]
        known = {"--work", "--verify", "--version", "--help", "-h", "--"}
        known |= {name for command in commands for p in command.params for name in p.opts + p.secondary_opts}
        if any(word.startswith("-") and word not in known for word in words) or (named and not commands):
            wrong.append(line)
    assert wrong == []


@each_page
def test_python_code_imports_what_is_public(page):
    for code in python_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "ecgbyte_cli":
                assert {name.name for name in node.names} <= set(ecgbyte_cli.__all__)


def test_the_python_page_names_the_whole_public_face():
    text = text_of("docs/python.md")
    assert [name for name in ecgbyte_cli.__all__ if f"`{name}`" not in text] == []


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """A folder in which the command lines of the Python page have been run."""
    folder = tmp_path_factory.mktemp("python page")
    lines = re.findall(r"^ {4}ecgbyte (.*)$", text_of("docs/python.md"), re.MULTILINE)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for line in lines:
            result = CliRunner().invoke(main, shlex.split(line))
            assert result.exit_code == 0, (line, result.stderr)
    return folder


def test_python_code_runs(worked, monkeypatch):
    monkeypatch.chdir(worked)
    names = {}
    for code in python_of("docs/python.md"):
        exec(compile(code, "docs/python.md", "exec"), names)
    assert names["told"].unit == "ms"
    assert names["result"]["exact_match"] == 100
    # a prompt has the ids that the model was trained with and that a conversation has: with the marks of leads
    lm, (ecg, *_), tokenizer = names["lm"], names["conversation"].ecgs, names["tokenizer"]
    assert lm.layout.marks == len(tokenizer.signal["leads"])
    begin = names["ids"].tolist().index(lm.offset)
    block = lm.layout.block(ecg.tokens)
    assert names["ids"][begin : begin + len(block)].tolist() == block.tolist()


def test_no_other_page_has_python_code_that_is_not_run():
    assert [page for page in PAGES if python_of(page)] == ["docs/python.md"]
