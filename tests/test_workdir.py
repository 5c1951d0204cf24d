"""Files are written whole or not at all, and read back without pickle."""

import numpy as np
import pytest

from ecgbyte_cli import workdir
from ecgbyte_cli.failure import Failure


def test_whole_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "sub" / "file"
    with workdir.whole(path) as beside:
        beside.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), workdir.whole(path) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_new_folder_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "model"
    for text in ("one", "two"):
        with workdir.new_folder(path) as folder:
            (folder / "x").write_text(text)
    with pytest.raises(RuntimeError), workdir.new_folder(path) as folder:
        raise RuntimeError
    assert (path / "x").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("shape", [0, 3, (2, 0), (2, 3)])
def test_arrays(tmp_path, shape):
    with workdir.new_array(tmp_path / "a.npy", np.uint16, shape) as array:
        array[...] = 7
    read = workdir.read_array(tmp_path / "a.npy")
    assert read.dtype == np.uint16 and (read == 7).all() and read.shape == np.empty(shape).shape


def test_an_array_of_objects_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(Failure, match="cannot be read"):
        workdir.read_array(tmp_path / "a.npy")


def test_tables(tmp_path):
    columns = {"record": ["a", "b"], "offset": np.array([0, 5]), "lo": np.array([0.5, 1], np.float32)}
    workdir.write_table(tmp_path / "t.parquet", columns)
    read = workdir.read_table(tmp_path / "t.parquet")
    assert read["record"] == ["a", "b"]
    assert read["offset"].tolist() == [0, 5] and read["lo"].dtype == np.float32
    workdir.write_table(tmp_path / "empty.parquet", {"path": []})
    assert workdir.read_table(tmp_path / "empty.parquet") == {"path": []}
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(Failure, match="bad.parquet"):
        workdir.read_table(tmp_path / "bad.parquet")


def test_finished(tmp_path):
    path = tmp_path / "symbols" / "settings.json"
    assert workdir.finished(path, {"fs": 250}, False, "letters") is None
    workdir.write_json(path, {"settings": {"fs": 250, "leads": ["I"]}, "result": {"records": 3}})
    assert workdir.finished(path, {"fs": 250, "leads": ("I",)}, False, "letters") == {"records": 3}
    assert workdir.finished(path, {"fs": 100}, True, "letters") is None
    with pytest.raises(Failure, match=r"other settings \(fs\).*--overwrite"):
        workdir.finished(path, {"fs": 100, "leads": ["I"]}, False, "letters")
