"""Parts of a stage's work: whole or not there, of one set of settings, and never believed when damaged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.partial_results import PartialResults

ARRAYS = st.lists(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int64, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
    ),
    min_size=1,
    max_size=4,
)


def write(parts, number, *arrays):
    with parts.new(number) as add:
        for array in arrays:
            add(array)


@settings(max_examples=50, deadline=None)
@given(arrays=ARRAYS)
def test_arrays_come_back(tmp_path_factory, arrays):
    parts = PartialResults(tmp_path_factory.mktemp("w") / "parts", {"fs": 1})
    write(parts, 0, *arrays)
    for which in (slice(None), slice(-1, None), slice(-1), slice(1), slice(1, 2)):
        read = list(parts.read(0, which))
        assert len(read) == len(arrays[which])
        for a, b in zip(read, arrays[which], strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype == np.float32)


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 400), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_part_is_refused(tmp_path_factory, at, bit, cut):
    parts = PartialResults(tmp_path_factory.mktemp("w") / "parts", {"fs": 1})
    write(parts, 3, np.arange(20), np.arange(7, dtype=np.float32))
    content = bytearray(parts.path(3).read_bytes())
    at %= len(content)
    content = content[:at] if cut and at else content
    if not cut or not at:
        content[at] ^= 1 << bit
    parts.path(3).write_bytes(content)
    with pytest.raises(Failure, match="damaged.*remove it"):
        list(parts.read(3))


def test_parts_of_other_settings_are_never_joined(tmp_path):
    ours = PartialResults(tmp_path / "parts", {"data": "a"})
    write(ours, 0, np.zeros(3))
    with pytest.raises(Failure, match="other settings.*--overwrite"):
        PartialResults(tmp_path / "parts", {"data": "b"})
    assert PartialResults(tmp_path / "parts", {"data": "a"}).missing(2) == [1]
    # also where nothing but their names is left to tell: half of an older set
    write(ours, 1, np.zeros(3))
    other = PartialResults(tmp_path / "parts", {"data": "b"}, overwrite=True)
    assert other.missing(2) == [0, 1] and not list(tmp_path.rglob("*.part"))


def test_parts_of_an_older_version_are_not_believed(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0000000.part").write_bytes(b"x")
    with pytest.raises(Failure, match="other settings"):
        PartialResults(tmp_path / "parts", {})


def test_a_set_is_taken_away_as_a_whole(tmp_path, monkeypatch):
    parts = PartialResults(tmp_path / "parts", {})
    write(parts, 0, np.zeros(3))
    write(parts, 1, np.zeros(3))
    monkeypatch.setattr(
        "shutil.rmtree", lambda folder: (folder / parts.path(0).name).unlink()
    )  # killed there
    parts.remove()
    assert not parts.folder.exists() and PartialResults(tmp_path / "parts", {}).missing(2) == [0, 1]


def test_nothing_half_written_stays(tmp_path):
    parts = PartialResults(tmp_path / "parts", {})
    with pytest.raises(RuntimeError), parts.new(0) as add:
        add(np.zeros(3))
        raise RuntimeError
    assert not list(parts.folder.iterdir())
