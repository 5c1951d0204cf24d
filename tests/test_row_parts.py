"""What is said of a finished table of recordings that other files or settings would change."""

import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.row_parts import finished_table, settings_file, skipped_file
from ecgbyte_cli.storage.files import write_json
from ecgbyte_cli.storage.row_table import row_writer, write_skipped


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("found", "said"),
    [
        (["/in/a", "/in/bad", "/in/b"], r"from other files \(1 more, 0 fewer\): add --overwrite"),
        (["/in/b"], r"from other files \(1 more, 1 fewer\)"),
        (["/in/a", "/in/bad"], r"from other files \(some have changed\)"),
    ],
)
def test_other_files_are_counted(tmp_path, ending, found, said):
    out = tmp_path / f"t.{ending}"
    with row_writer(out, {"path": str}) as write:
        write([{"path": "/in/a"}])
    write_skipped(skipped_file(out), [("/in/bad", "no archive")])
    write_json(settings_file(out), {"settings": {"input": "1", "salt": "1", "questions": 1}})
    with pytest.raises(Failure, match=said):
        finished_table(out, {"input": "2", "salt": "2", "questions": 1}, False, found)
    with pytest.raises(Failure, match=r"other settings \(input files, questions\)"):
        finished_table(out, {"input": "2", "salt": "2", "questions": 2}, False, found)
