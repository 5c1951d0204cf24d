"""Files compared between machines."""

import os

import pytest

from ecgbyte_cli.storage.stamps import file_stamps, find_changed


def test_files_that_are_the_same_do_not_differ(tmp_path):
    (tmp_path / "a").write_bytes(b"ab")
    known = file_stamps([tmp_path / "a", tmp_path / "a", tmp_path / "missing"])
    assert [*known] == [str(tmp_path / "a"), str(tmp_path / "missing")]
    assert known[str(tmp_path / "missing")] is None and find_changed(known) is None


@pytest.mark.parametrize("change", ["gone", "longer", "newer", "a pipe"])
def test_files_that_differ_are_named(tmp_path, change):
    path = tmp_path / "a"
    path.write_bytes(b"ab")
    known, about = file_stamps([path]), os.stat(path)
    if change == "longer":
        path.write_bytes(b"abc")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    elif change == "newer":
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    else:
        path.unlink()
        if change == "a pipe":
            os.mkfifo(path)
    seen = f"sees a different {path}" if change in ("longer", "newer") else f"does not see {path}"
    assert find_changed(known).startswith(seen) and f"the folder {tmp_path} must" in find_changed(known)


def test_a_file_that_only_the_other_machine_lacks_differs(tmp_path):
    known = file_stamps([tmp_path / "a"])
    (tmp_path / "a").touch()
    assert find_changed(known).startswith("sees a different")
