"""Files are written whole or not at all, and read back without pickle."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage import files, locks, manifest
from ecgbyte_cli.storage.workdir import WorkDir


def test_whole_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "sub" / "file"
    with files.atomic_write(path) as beside:
        beside.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), files.atomic_write(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_new_folder_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "model"
    for text in ("one", "two"):
        with files.atomic_folder(path) as folder:
            (folder / "x").write_text(text)
    with pytest.raises(RuntimeError), files.atomic_folder(path) as folder:
        raise RuntimeError
    assert (path / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("sizes", [[], [0], [3], [2, 0, 5]])
def test_arrays(tmp_path, sizes):
    with files.array_writer(tmp_path / "a.npy", np.uint16, sum(sizes)) as write:
        for size in sizes:
            write(np.full(size, 7))
    read = files.read_array(tmp_path / "a.npy")
    assert read.dtype == np.uint16 and read.shape == (sum(sizes),) and (read == 7).all()


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    work, runs = WorkDir(tmp_path), []

    def run():
        assert (work.root / ".decoded.lock").exists()
        runs.append(len(runs))
        result = {"runs": len(runs)}
        files.write_json(work.decode_settings, {"settings": {"limit": 3}, "result": result})
        return result

    def once(settings, overwrite=False):
        return work.run_once("decoded", work.decode_settings, settings, overwrite, "recordings", run)

    assert once({"limit": 3}) == once({"limit": 3}) == {"runs": 1}
    assert capsys.readouterr().err.endswith(
        "already holds recordings made with these settings: nothing to do\n"
    )
    with pytest.raises(Failure, match=r"other settings \(limit\): add --overwrite"):
        once({"limit": 4})
    assert once({"limit": 3}, overwrite=True) == {"runs": 2}


def test_a_run_that_finished_meanwhile_is_taken(tmp_path, monkeypatch):
    work, result = WorkDir(tmp_path), {"settings": {}, "result": {"segments": 3}}
    making = work.making

    def meanwhile(name):
        files.write_json(work.decode_settings, result)  # by another process, before the lock
        return making(name)

    monkeypatch.setattr(work, "making", meanwhile)
    fails = lambda: pytest.fail("it ran again")  # noqa: E731
    assert work.run_once("decoded", work.decode_settings, {}, False, "recordings", fails) == {"segments": 3}


@pytest.mark.parametrize("written", [2, 4])
def test_an_array_of_another_size_is_rejected(tmp_path, written):
    with (
        pytest.raises(ValueError, match="expected 3 values"),
        files.array_writer(tmp_path / "a.npy", np.uint8, 3) as write,
    ):
        write(np.zeros(written, np.uint8))
    assert not list(tmp_path.iterdir())


def test_an_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Failure, match="cannot be read"):
        files.read_array(tmp_path / "a.npy")


def test_tables(tmp_path):
    columns = {"record": ["a", "b"], "offset": np.array([0, 5]), "lo": np.array([0.5, 1], np.float32)}
    files.write_table(tmp_path / "t.parquet", columns)
    read = files.read_table(tmp_path / "t.parquet")
    assert read["record"] == ["a", "b"]
    assert read["offset"].tolist() == [0, 5] and read["lo"].dtype == np.float32
    files.write_table(tmp_path / "empty.parquet", {"path": []})
    assert files.read_table(tmp_path / "empty.parquet") == {"path": []}
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(Failure, match="bad.parquet"):
        files.read_table(tmp_path / "bad.parquet")


def test_finished(tmp_path):
    path = tmp_path / "symbols" / "settings.json"
    assert manifest.completed_result(path, {"fs": 250}, False, "letters") is None
    files.write_json(path, {"settings": {"fs": 250, "leads": ["I"]}, "result": {"records": 3}})
    assert manifest.completed_result(path, {"fs": 250, "leads": ("I",)}, False, "letters") == {"records": 3}
    assert manifest.completed_result(path, {"fs": 100}, True, "letters") is None
    with pytest.raises(Failure, match=r"other settings \(fs\).*--overwrite"):
        manifest.completed_result(path, {"fs": 100, "leads": ["I"]}, False, "letters")


def test_an_option_that_there_was_not_yet_makes_no_difference(tmp_path):
    path = tmp_path / "settings.json"
    files.write_json(path, {"settings": {"fs": 250}, "result": {"records": 3}})
    assert manifest.completed_result(path, {"fs": 250, "units": None}, False, "letters") == {"records": 3}
    with pytest.raises(Failure, match=r"other settings \(units\)"):
        manifest.completed_result(path, {"fs": 250, "units": "uV"}, False, "letters")


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_goes_into_files_and_back(tmp_path_factory, text):
    """File names that are no UTF-8 have lone surrogates in Python."""
    folder = tmp_path_factory.mktemp("w")
    files.write_json(folder / "t.json", {text: [text]})
    assert files.read_json(folder / "t.json") == {text: [text]}
    files.write_table(folder / "t.parquet", {"name": [text]})
    with files.table_writer(folder / "n.parquet", {"name": str}) as write:
        write([[text]])
    for name in ("t.parquet", "n.parquet"):
        (read,) = files.read_table(folder / name)["name"]
        assert read == text.encode(errors="backslashreplace").decode()


@pytest.mark.parametrize("reads", [files.read_json, files.read_table, files.read_array, files.sha256_of])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, reads):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path, "/dev/zero"):
        with pytest.raises(Failure, match="not a regular file"):
            reads(path)


def test_json_of_any_size_is_not_read(tmp_path):
    with open(tmp_path / "t.json", "wb") as file:
        file.truncate(files.MOST_JSON + 1)
    with pytest.raises(Failure, match="too large"):
        files.read_json(tmp_path / "t.json")


# A full disk: a limit on the size of a file gives the same errors as no room


@pytest.mark.parametrize(
    "code",
    [
        "with files.array_writer(path, np.uint8, 10**6) as write: write(np.zeros(10**6))",
        "with files.atomic_write(path) as beside: np.save(open(beside, 'wb'), np.zeros(10**6))",
        "files.write_json(path, {'a': 'x' * 10**6})",
        "files.write_table(path, {'a': np.random.default_rng(0).random(10**6)})",
        "with files.atomic_folder(path) as folder: (folder / 'file').write_bytes(bytes(10**6))",
        "from safetensors.numpy import save_file\n"
        "with files.atomic_folder(path) as folder: save_file({'a': np.zeros(10**6)}, folder / 'file')",
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, code):
    head = (
        "import resource, sys, numpy as np; from ecgbyte_cli.storage import files; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); path = Path(sys.argv[1])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", head + code, tmp_path / "file"], capture_output=True, text=True
    )
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and "Failure" in last and f"{tmp_path / 'file'} cannot be written: " in last, (
        run
    )
    if "safetensors" not in code:  # mapped into memory, it may say another reason
        assert "File too large; free some space" in last or "requested" in last
    assert not list(tmp_path.iterdir())


def test_errors_about_other_files_are_not_taken_for_ours(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_write(tmp_path / "a"):
        open(tmp_path / "b" / "gone")
    with (
        pytest.raises(Failure, match="cannot be written: Not a directory"),
        files.atomic_write(tmp_path / "c" / "a"),
    ):
        raise NotADirectoryError(20, "Not a directory", str(tmp_path / "c"))


# One run at a time


def in_another_process(work, code, *names):
    """Start a process that holds folders until its input ends."""
    code = (
        f"from ecgbyte_cli.storage.workdir import WorkDir\nwith WorkDir({str(work.root)!r}).{code}(*{names}):\n"
        " print('held', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def let_go(process, kill=False):
    if kill:
        process.kill()
    process.communicate(b"\n")


@pytest.mark.parametrize("kill", [False, True])
def test_a_second_run_is_refused_in_one_line(tmp_path, kill):
    work = WorkDir(tmp_path / "w")
    held = in_another_process(work, "making", "answers")
    for way in (work.making, work.checked):
        (work.root / "answers").mkdir(exist_ok=True)
        with pytest.raises(Failure, match=f"using {work.root}/answers"), way("answers"):
            pass
    with work.making("tokens"):  # another folder
        pass
    let_go(held, kill)
    with work.making("answers"):
        pass
    assert not list(work.root.glob(".*"))


def test_readers_do_not_keep_each_other_out_but_who_replaces(tmp_path):
    work = WorkDir(tmp_path / "w")
    (work.root / "answers").mkdir(parents=True)
    held = in_another_process(work, "checked", "answers")
    with work.checked("answers"):
        pass
    with pytest.raises(Failure, match="using"), work.making("answers"):
        pass
    let_go(held)
    with work.making("answers"):
        pass
    assert not list(work.root.glob(".*"))


def test_a_folder_without_locks_is_used_without(tmp_path, monkeypatch):
    work = WorkDir(tmp_path / "w")
    (work.root / "answers").mkdir(parents=True)
    monkeypatch.setattr(locks, "fcntl", None)  # Windows
    with work.making("answers"), work.checked("answers"):
        pass
    monkeypatch.undo()

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with work.making("answers"), work.checked("answers"), files.atomic_folder(work.root / "x") as folder:
        (folder / "a").touch()
    assert (work.root / "x" / "a").exists()


def test_of_several_processes_of_one_training_the_first_holds(tmp_path, monkeypatch):
    work = WorkDir(tmp_path / "w")
    held = in_another_process(work, "making", "model")
    monkeypatch.setenv("RANK", "1")
    with work.making("model"):
        pass
    let_go(held)


# Leftovers


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["first", "own"])
def test_leftovers_of_killed_runs_are_cleared(tmp_path, pid):
    work = WorkDir(tmp_path / "w")
    (work.root / "decoded").mkdir(parents=True)
    (work.root / "decoded" / "kept").touch()
    (work.root / "decoded" / ".config.old").touch()  # somebody else's
    (work.root / f".decoded.{pid}.part").mkdir()  # as older versions call it
    (work.root / ".decoded.0123456789ab.old").mkdir()
    (work.root / "decoded" / ".x.0123456789ab.part").touch()
    (work.root / "decoded" / "parts").mkdir()
    (work.root / "decoded" / "parts" / ".0000000.part.0123456789ab.part").touch()
    (work.root / "decoded" / ".parts.0123456789ab.old").mkdir()
    with work.making("decoded"):
        assert {path.name for path in work.root.rglob(".*")} == {".decoded.lock", ".config.old"}
        (work.root / "decoded" / ".y.0123456789ab.part").touch()  # of a worker that was stopped
    left = {str(path.relative_to(work.root)) for path in work.root.rglob("*")}
    assert left == {"decoded", "decoded/kept", "decoded/.config.old", "decoded/parts"}


def test_a_folder_that_was_being_replaced_is_put_back(tmp_path):
    work = WorkDir(tmp_path)
    (tmp_path / ".model.0123456789ab.old").mkdir()
    (tmp_path / ".model.0123456789ab.old" / "weights").write_text("before")
    (tmp_path / ".model.0123456789ab.part").mkdir()
    with work.making("model"):
        pass
    assert (work.model / "weights").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_new_folder_clears_what_is_left_and_not_what_is_written(tmp_path):
    path = tmp_path / "a[b]"
    (tmp_path / ".a[b].1.part").mkdir()
    with files.atomic_folder(path) as one, files.atomic_folder(path) as two:
        assert {p.name for p in tmp_path.iterdir()} == {one.name, two.name}
        (one / "x").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["a[b]"] and (path / "x").exists()


# Checksums


@pytest.fixture
def copy(small, tmp_path):
    shutil.copytree(
        small / "ecgbyte-work", tmp_path / "work", ignore=shutil.ignore_patterns("model", "answers")
    )
    return WorkDir(tmp_path / "work")


def damage(path, how):
    """Damage a file; `same size` also keeps the time."""
    content, stat = path.read_bytes(), path.stat()
    middle = len(content) // 2
    if how == "cut":
        path.write_bytes(content[:-5])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    if how == "same time":
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("how", ["cut", "empty", "gone", "flipped"])
@pytest.mark.parametrize("name", ["symbols", "symbol_segments", "tokens", "token_segments"])
def test_damaged_files_are_refused(copy, name, how):
    with copy.checked("tokens"):
        pass
    path = getattr(copy, name)
    damage(path, how)
    command = "symbolize" if "symbol" in name else "encode"
    with pytest.raises(Failure, match=f"{path} is .*`ecgbyte {command} --overwrite`"), copy.checked("tokens"):
        pass
    if "token" in name:
        with copy.checked("symbols"):
            pass


def test_settings_that_were_edited_are_refused(copy):
    about = files.read_json(copy.symbol_settings)
    about["signal"]["quantizer"]["hi"] += 1
    files.write_json(copy.symbol_settings, about)
    with pytest.raises(Failure, match="settings.json is damaged"), copy.checked("symbols"):
        pass


def test_what_is_hashed(copy, monkeypatch):
    real, hashed = manifest.sha256_of, []
    monkeypatch.setattr(manifest, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    with copy.checked("tokens"):
        assert hashed == []  # size and time are as they were written
    os.utime(copy.symbols)  # as a copy has it
    with copy.checked("tokens"):
        assert hashed == ["symbols.npy"]
    damage(copy.tokens, "same time")
    with copy.checked("tokens"):
        pass
    with pytest.raises(Failure, match="tokens.npy"), WorkDir(copy.root, "all").checked("tokens"):
        pass
    damage(copy.tokens, "cut")
    with WorkDir(copy.root, "none").checked("tokens"):
        pass


def test_ids_of_other_letters_are_refused(copy, ecgbyte, small):
    again = ecgbyte(
        "symbolize", small / "data", "--profile", "resample", "--fs", 50, "--leads", "II,V1", "--overwrite"
    )
    assert again.exit_code == 0, again.stderr
    with (
        pytest.raises(Failure, match="not made from the letters.*encode --overwrite"),
        copy.checked("tokens"),
    ):
        pass


@pytest.fixture
def old(copy):
    """As versions left it that wrote no checksums."""
    for path in (copy.symbol_settings, copy.token_settings):
        about = json.loads(path.read_text())
        del about["files"], about["sha256"]
        path.write_text(json.dumps(about))
    return copy


def test_an_old_folder_is_accepted_with_a_word(old, capsys):
    for name in ("symbols", "tokens"):
        with old.checked(name):
            pass
        assert capsys.readouterr().err == f"{old.root}: written by an older version without checksums\n"


def change(path, values):
    array = np.load(path)
    values(array)
    np.save(path, array)


@pytest.mark.parametrize(
    "broken",
    [
        lambda work: change(work.symbols, lambda a: a.__setitem__(70_000, (a[70_000] + 1) % 26)),
        lambda work: change(work.tokens, lambda a: a.__setitem__(slice(None), a[::-1].copy())),
        lambda work: change(work.tokens, lambda a: a.__setitem__(100, 9999)),
        lambda work: np.save(work.tokens, np.load(work.tokens)[:-1]),
        lambda work: files.write_table(
            work.token_segments,
            {k: v[::-1].copy() for k, v in files.read_table(work.token_segments).items()},
        ),
        lambda work: files.write_table(work.token_segments, {"segment": np.arange(64)}),
    ],
)
@pytest.mark.parametrize("name", ["symbols", "tokens"])
def test_an_old_folder_whose_letters_and_ids_disagree_is_refused(old, broken, name):
    broken(old)
    with pytest.raises(Failure, match="do not agree.*symbolize --overwrite"), old.checked(name):
        pass


def test_an_old_folder_with_ids_of_other_merges_may_be_encoded_again(old, ecgbyte):
    assert ecgbyte("learn", "--vocab", 60, "--overwrite", "encode", "--overwrite").exit_code == 0
    assert "files" in files.read_json(old.token_settings)
