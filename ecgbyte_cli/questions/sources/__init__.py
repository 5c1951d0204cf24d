"""The data sets that questions are generated from: a row each in `SOURCES`, a file each beside this one."""

from pathlib import Path

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.sources import csv_tables, ptbxl, wfdb_headers
from ecgbyte_cli.questions.sources.base import Source, SourceKind, column_names
from ecgbyte_cli.readers.find import find


def _read_headers(path: Path) -> Source:
    """Read the headers of the recordings in a folder, in a RECORDS file, of a pattern or of a name."""
    if not path.exists() and not any(mark in str(path) for mark in "*?["):
        if not Path(f"{path}.hea").exists():
            raise Failure(f"{path} is not there: name {KINDS}")
    found, _ = find(path)
    headers = [each for each in found if each.endswith(".hea")]
    if not headers:
        raise Failure(f"{path} is no source of questions: name {KINDS}")
    return wfdb_headers.read_headers(headers, path)


# a table is of the first kind whose columns it has; the kind without columns reads all other paths
SOURCES = (
    SourceKind(
        "PTB-XL's folder or ptbxl_database.csv", ptbxl.read_ptbxl, ptbxl.COLUMNS, "ptbxl_database.csv"
    ),
    SourceKind("CODE-15's exams.csv", csv_tables.read_code15, csv_tables.CODE15_COLUMNS, "exams.csv"),
    SourceKind("WFDB headers with `# Dx:` codes", _read_headers),
    SourceKind(
        "a CSV table of `record` and columns of yes and no", csv_tables.read_label_table, [{"record"}]
    ),
)
KINDS = f"{', '.join(kind.name for kind in SOURCES[:-1])}, or {SOURCES[-1].name}"


def read_source(path: Path) -> Source:
    """Read a data set, recognised by its files or its columns.

    Parameters
    ----------
    path : Path
        A folder, a table, a header, a RECORDS file or a pattern.

    Raises
    ------
    Failure
        If it is missing, of no known kind, or cannot be read.
    """
    table = _table_of(path)
    if table is None:
        return _read_headers(path)
    names = column_names(table, [columns for kind in SOURCES for columns in kind.columns])
    for kind in SOURCES:
        if any(columns <= {*names} for columns in kind.columns):
            return kind.read(table)
    first = f"; its first column is {names[0]!r}" if names else ""
    raise Failure(
        f"{table} has no column `record`, which a table of labels needs{first}. It is no source of questions: "
        f"name {KINDS}"
    )


def _table_of(path: Path) -> Path | None:
    """Return the table of a data set; None for headers."""
    if path.is_dir():
        tables = (path / kind.table for kind in SOURCES if kind.table)
        return next((table for table in tables if table.is_file()), None)
    if path.suffix.lower() == ".hea" or path.name == "RECORDS" or not path.exists():
        return None
    return path
