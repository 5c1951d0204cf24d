"""Models of the Hugging Face Hub: what is downloaded and checked, what an upload holds, and errors in one line.

The Hub is the one of hub_server.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
from huggingface_hub import constants
from test_folder import edit, write_base
from test_prompt import CHATML

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model import base_model, ecg_lm, hub_upload, model_folder, model_names
from ecgbyte_cli.model.folder_checks import SHIPPED, model_sha256, read_about
from ecgbyte_cli.model.hub import HubName, model_files, name_in_cache
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import finetune
from ecgbyte_cli.storage.files import read_json, sha256_of
from ecgbyte_cli.storage.workdir import WorkDir

OWN = read_json(SHIPPED / "ecgbyte.json")


@pytest.fixture(scope="module")
def server():
    with hub_server.running() as hub:
        yield hub


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The Hub, without repositories, as this process and its children see it; their cache is empty."""
    server.repositories.clear()
    server.objects.clear()
    server.log.clear()
    server.broken = server.page = False
    reach(monkeypatch, server.address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "cache" / "token"))
    return server


def reach(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)


def with_about(**values):
    """The ecgbyte.json of the shipped model with other entries, as a file of a repository."""
    return {"ecgbyte.json": json.dumps({**OWN, **values}).encode()}


def refused(name, said):
    with pytest.raises(Failure, match=said) as error:
        model_names.resolve_model_folder(name)
    assert "\n" not in error.value.message


# Download ----------------------------------------------------------------------------------------------------


def test_only_the_files_of_a_model_are_downloaded(hub, capsys):
    unwanted = ["setup.py", "pytorch_model.bin", "more.json", "base/more.safetensors", "base/modeling.py"]
    made = hub.add("me/ptbxl", SHIPPED, files=dict.fromkeys(unwanted, b"x"))
    folder = model_names.resolve_model_folder("me/ptbxl")
    assert sorted(hub.downloads()) == sorted([*OWN["files"], "ecgbyte.json", "README.md"])
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*hub.downloads()}
    commit = made.refs["main"]
    assert model_names.display_name(folder) == f"me/ptbxl@{commit}"
    assert model_names.model_identity(folder) == {
        "model": model_sha256(SHIPPED),
        "hub": f"me/ptbxl@{commit}",
    }
    assert f"me/ptbxl at revision {commit}" in capsys.readouterr().err
    # again: one question to the Hub, no download, nothing to say
    hub.log.clear()
    assert model_names.resolve_model_folder("me/ptbxl") == folder and len(hub.log) == 1
    assert capsys.readouterr().err == ""


def test_a_path_is_always_a_folder(hub, tmp_path, monkeypatch):
    hub.add("me/ptbxl", SHIPPED)
    monkeypatch.chdir(tmp_path)
    assert model_names.resolve_model_folder(Path("me/ptbxl")) == Path("me/ptbxl")
    Path("me/ptbxl").mkdir(parents=True)
    assert model_names.resolve_model_folder("me/ptbxl") == Path("me/ptbxl")
    for name in ("./me/other", "/me/other", "me/more/other", "me\\other", "other"):
        assert model_names.resolve_model_folder(name) == Path(name)
    assert hub.log == [] and name_in_cache(Path("me/ptbxl")) is None


def test_a_revision_is_a_branch_or_a_commit(hub, capsys):
    made = hub.add("me/ptbxl", SHIPPED)
    first = made.refs["main"]
    second = made.commit(with_about(date="2026-01-01"))
    third = made.commit(with_about(date="2026-02-02"), "old/one")
    for name, commit in (
        ("me/ptbxl", second),
        (f"me/ptbxl@{first}", first),
        ("me/ptbxl@old/one", third),
    ):
        assert model_names.resolve_model_folder(name).name == commit
    hub.log.clear()
    assert model_names.resolve_model_folder(f"me/ptbxl@{first}").name == first
    assert hub.log == []  # a commit never changes
    hub.broken, _ = True, capsys.readouterr()
    assert model_names.resolve_model_folder("me/ptbxl@old/one").name == third
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be reached: using me/ptbxl" in line and third in line


@pytest.mark.parametrize("how", ["broken", "page", "no server", "offline"])
def test_without_the_hub_an_earlier_download_is_used_if_it_is_whole(hub, monkeypatch, capsys, how):
    hub.add("me/ptbxl", SHIPPED)
    folder = model_names.resolve_model_folder("me/ptbxl")
    hub.broken, hub.page, _ = how == "broken", how == "page", capsys.readouterr()
    if how == "no server":
        reach(monkeypatch, "http://127.0.0.1:9")
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert model_names.resolve_model_folder("me/ptbxl") == folder
    [line] = capsys.readouterr().err.splitlines()
    assert f"using me/ptbxl at revision {folder.name}" in line
    refused("me/other", "cannot be reached|failed at the Hugging Face Hub")
    (folder / "certainty.json").unlink()  # as after an interrupted download
    refused("me/ptbxl", "cannot be reached|failed at the Hugging Face Hub")


def test_what_is_missing_or_private_is_one_line(hub, ecgbyte, monkeypatch):
    hub.add("me/ptbxl", SHIPPED)
    hub.add("me/own", SHIPPED, private=True)
    hub.add("me/asked", SHIPPED, gated=True)
    hub.add("me/base", files={"config.json": b"{}"})
    for name, said in (
        (
            "me/nothing",
            "no folder has this name, and the Hugging Face Hub has no such model, or it is private",
        ),
        ("me/own", "private: log in with `hf auth login`"),
        ("me/asked", "is a gated repository"),
        ("me/ptbxl@v9", "me/ptbxl has no revision v9"),
        ("me/base", "no ecgbyte model: it has no ecgbyte.json"),
        ("me/a--b", "no model of the Hugging Face Hub can have this name"),
    ):
        result = ecgbyte("info", "--model", name)
        [line] = result.stderr.splitlines()
        assert result.exit_code == 1 and said in line, line
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
    assert model_names.resolve_model_folder("me/own").is_dir()


def test_sizes_are_checked_before_a_download(hub):
    for file, size, said in (
        ("ecgbyte.json", 2**40, "ecgbyte.json is too large"),
        ("base/tokenizer.json", 2**28, "base/tokenizer.json is too large"),
        ("README.md", 2**21, "README.md is too large"),
        ("base/model.safetensors", 2**60, "free some space"),
        ("certainty.json", None, "it has no certainty.json"),
    ):
        made = hub.add("me/ptbxl", SHIPPED)
        made.sizes[file] = size
        hub.log.clear()
        refused("me/ptbxl", said)
        assert set(hub.downloads()) <= {"ecgbyte.json"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            with_about(files={**OWN["files"], "base/modeling.py": "0"}),
            "modeling.py: only safetensors and JSON",
        ),
        (with_about(files={**OWN["files"], "../x.json": "0"}), "x.json: only safetensors and JSON"),
        (with_about(files={**OWN["files"], "base/.x/y.json": "0"}), "y.json: only safetensors and JSON"),
        (with_about(files={**OWN["files"], "more.json": "0"}), "is incomplete: it has no more.json"),
        (with_about(files={"ecg_tokenizer.json": "0"}), "not whole: its ecgbyte.json lacks base/config.json"),
        (with_about(files=None), "no checksums"),
        (with_about(format="ecgbyte-export"), "is an export"),
        ({"ecgbyte.json": b"[" * 10**5}, "not valid JSON"),
        ({"ecg_rows.safetensors": b"other"}, "ecg_rows.safetensors differs from its checksum"),
    ],
)
def test_wrong_files_are_refused(hub, files, said):
    hub.add("me/ptbxl", SHIPPED, files=files)
    refused("me/ptbxl", said)
    assert not [path for path in hub.downloads() if path.endswith(".py")]


def test_commands_and_python_take_the_name(hub, ecgbyte, small, tmp_path):
    commit = hub.add("me/ptbxl", SHIPPED).refs["main"]
    named, record = f"me/ptbxl@{commit}", small / "data" / "synth00001.hea"
    assert Session.open("me/ptbxl").about["folder"] == named
    result = ecgbyte("chat", record, "--model", "me/ptbxl", "-q", "What is the rhythm?", "--json")
    assert result.exit_code == 0 and len(json.loads(result.stdout)["turns"]) == 1, result.stderr
    result = ecgbyte("info", "--model", named, "--json")
    assert json.loads(result.stdout)["model"] == named
    result = ecgbyte("plot", "tokens", record, "--model", "me/ptbxl", "--out", tmp_path / "tokens.png")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    asked = [line for line in lines if line["question"] == "What is the rhythm?"]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    chain = ["symbolize", small / "data", "--like", "me/ptbxl", "encode", "generate", "--model", "me/ptbxl"]
    result = ecgbyte(*chain, "--qa", tmp_path / "qa.jsonl", "--no-controls", "--limit", 2)
    assert result.exit_code == 0, result.stderr
    settings = read_json(tmp_path / "work" / "answers" / "metrics.json")["settings"]
    assert (settings["hub"], settings["model"]) == (named, model_sha256(SHIPPED))


def test_the_environment_names_the_hub(hub, tmp_path):
    """As a user sets it, in a process of its own."""
    hub.add("me/ptbxl", SHIPPED)
    command = [
        sys.executable,
        "-m",
        "ecgbyte_cli",
        "--work",
        tmp_path / "none",
        "info",
        "--model",
        "me/ptbxl",
    ]
    run = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert run.stdout.strip() == (SHIPPED / "README.md").read_text().strip(), run.stderr
    assert len(run.stderr.splitlines()) == 1 and (tmp_path / "cache" / "hub" / "models--me--ptbxl").is_dir()


# Base models -------------------------------------------------------------------------------------------------


def test_a_base_model_is_told_apart_from_a_model(hub, tmp_path, monkeypatch):
    hub.add("me/ptbxl", SHIPPED)
    hub.add("me/base", files={"config.json": b"{}"})
    monkeypatch.chdir(tmp_path)
    Path("own/base").mkdir(parents=True)
    for name in ("me/base", "me/base@main", "own/base", "gpt2", "tiny"):
        assert model_names.resolve_base_model(name) == name
    assert "/models--me--ptbxl/" in model_names.resolve_base_model("me/ptbxl")
    assert model_names.resolve_base_model("ptbxl") == str(SHIPPED)
    assert model_names.split_revision("me/base@v1") == ("me/base", "v1")
    assert model_names.split_revision("own/base") == ("own/base", None)
    with pytest.raises(Failure, match="no such model"):
        model_names.resolve_base_model("me/nothing")
    hub.broken = True
    assert model_names.resolve_base_model("me/base") == "me/base"  # it may be in the cache


def test_an_adapter_is_shared_and_used_with_its_base_model(hub, login, ecgbyte, small, tmp_path, monkeypatch):
    """The whole way: a base model of the Hub at a revision, an adapter, its upload, and the adapter from there."""
    made = hub.add("me/base", write_base(tmp_path / "base"))
    first = made.refs["main"]
    made.commit({"config.json": b"{}"})  # the newest one is damaged
    work, model = WorkDir(small / "ecgbyte-work"), tmp_path / "model"
    shown = ["--qa", small / "data" / "qa.jsonl", "--method", "lora", "--show", 1]
    result = ecgbyte("finetune", *shown, "--model", f"me/base@{first}", work=work.root)
    assert result.exit_code == 0, result.stderr
    base, text_tokenizer = base_model.load_base("me/base", "lora", "cpu", first)
    lm = ecg_lm.ECGLM(base_model.add_adapter(base), ECGTokenizer.from_file(work.ecg_tokenizer).vocab_size)
    about = {"base": "me/base", "method": "lora", "qa": str(small / "data" / "qa.jsonl")}
    model.mkdir()
    model_folder.save_model(model, lm, text_tokenizer, work.ecg_tokenizer, about)
    result = ecgbyte("push", model, "me/adapter", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["private"], result.stderr
    commit, files = hub.repositories["me/adapter"].at("main")
    about = json.loads(files["ecgbyte.json"])
    assert (about["base"], about["base_revision"], about["qa"]) == ("me/base", first, "qa.jsonl")
    assert str(tmp_path.parent).encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert 'base_model: "me/base"' in card and "--model me/adapter" in card
    # on another machine
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    hub.log.clear()
    folder = model_names.resolve_model_folder("me/adapter")
    assert model_folder.load_model(folder, "cpu")[0].offset == 259
    assert f"/me/base/resolve/{first}/model.safetensors" in [path for _, path in hub.log]
    # trained further, it says what it began with
    options = finetune.FinetuneOptions(model=model_names.resolve_base_model("me/adapter"), pretrain=True)
    settings = finetune.training_settings(work, options, "lora", 1)
    assert settings["hub"] == f"me/adapter@{commit}" and settings["begun_with"] == model_sha256(folder)


# Upload ------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "model")


def test_an_upload_comes_back_the_same(hub, login, ecgbyte, model):
    """Weights go up as large files. A repository that is there keeps its visibility and gets a commit."""
    result = ecgbyte("push", model, "me/shared", "--public")
    revision = hub.repositories["me/shared"].refs["main"]
    assert result.exit_code == 0 and f"{hub.address}/me/shared: public, 11 files" in result.stdout, (
        result.stderr
    )
    assert revision in result.stdout and len(hub.objects) == 3
    folder = model_names.resolve_model_folder("me/shared")
    assert folder.name == revision
    for file in OWN["files"]:
        assert sha256_of(folder / file) == sha256_of(SHIPPED / file)
    assert model_sha256(folder) == model_sha256(SHIPPED)
    edit(model / "ecgbyte.json", date="2026-01-01")
    result = ecgbyte("push", model, "me/shared", "--json")
    again = json.loads(result.stdout)
    assert not again["private"] and again["revision"] != revision
    assert model_names.resolve_model_folder("me/shared").name == again["revision"]


def test_a_model_with_a_chat_template_is_json_and_safetensors(small, tmp_path):
    lm, text_tokenizer, *_ = model_folder.load_model(small / "ecgbyte-work" / "model", "cpu")
    text_tokenizer.chat_template = CHATML
    tokenizer = WorkDir(small / "ecgbyte-work").ecg_tokenizer
    model_folder.save_model(tmp_path, lm, text_tokenizer, tokenizer, {"base": "tiny", "method": "full"})
    files = model_files("model", read_about(tmp_path))
    assert {Path(file).suffix for file in files} == {".json", ".safetensors"}
    assert model_folder.load_model(tmp_path, "cpu")[1].chat_template == CHATML


def test_a_card_that_has_metadata_keeps_it(model):
    text = "---\nlicense: mit\n---\nUse THIS_FOLDER\n"
    assert hub_upload.card(text, HubName("me/x", None), OWN) == text.replace("THIS_FOLDER", "me/x")


def test_paths_become_names():
    cached = f"/home/me/hub/models--me--ptbxl/snapshots/{'0' * 40}"
    given = {"qa": ["/data/a.jsonl", "b.jsonl"], "settings": {"base": cached, "lr": 1.0}, "base": "me/base"}
    assert hub_upload.without_paths(given) == {
        "qa": ["a.jsonl", "b.jsonl"],
        "settings": {"base": "me/ptbxl@" + "0" * 40, "lr": 1.0},
        "base": "me/base",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: (m / "certainty.json").unlink(), "certainty.json is missing"),
        (lambda m: (m / "ecg_rows.safetensors").write_bytes(b"x"), "ecg_rows.safetensors is damaged"),
        (lambda m: (m / "base" / "more.json").write_text("{}"), "more.json is not of this model"),
        (lambda m: (m / "README.md").unlink(), "README.md"),
        (lambda m: (m / "ecgbyte.json").unlink(), "has no model"),
        (lambda m: edit(m / "ecgbyte.json", files={}), "is not whole"),
        (lambda m: edit(m / "ecgbyte.json", files=None), "no checksums"),
        (lambda m: edit(m / "ecgbyte.json", method="lora", base="/gone"), "is not whole"),
    ],
)
def test_a_folder_that_is_not_whole_is_not_uploaded(hub, login, ecgbyte, model, change, said):
    change(model)
    result = ecgbyte("push", model, "me/shared")
    [line] = result.stderr.splitlines()
    assert result.exit_code == 1 and said in line and hub.log == []


def test_a_base_model_that_others_lack_is_named_anew(model):
    about = {**OWN, "method": "lora", "base": str(model)}
    with pytest.raises(Failure, match="which others do not have: .* --base OWNER/NAME"):
        hub_upload.shared_about(model, about, None)
    assert hub_upload.shared_about(model, about, "me/base")["base"] == "me/base"
    with pytest.raises(Failure, match="remove --base"):
        hub_upload.shared_about(model, OWN, "me/base")


def test_who_may_not_upload_is_told_in_one_line(hub, ecgbyte, model, monkeypatch):
    result = ecgbyte("push", model, "me/shared")
    [line] = result.stderr.splitlines()
    assert result.exit_code == 1 and "log in with `hf auth login`" in line
    monkeypatch.setenv("HF_TOKEN", hub_server.WRITER)
    [line] = ecgbyte("push", model, "others/shared").stderr.splitlines()
    assert "refuses the upload" in line
    hub.broken = True
    [line] = ecgbyte("push", model, "me/shared").stderr.splitlines()
    assert "failed at the Hugging Face Hub" in line and hub.repositories == {}


@pytest.mark.parametrize("name", ["shared", "me/shared@v1", "me/", "a/b/c"])
def test_the_repository_is_owner_and_name(ecgbyte, model, name):
    result = ecgbyte("push", model, name)
    assert result.exit_code == 2 and "is not OWNER/NAME" in result.stderr
