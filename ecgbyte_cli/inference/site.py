"""The site file: probabilities and thresholds of findings, calibrated with the site's own labels."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.operating_points import OperatingPoint
from ecgbyte_cli.storage.files import read_json, write_json
from ecgbyte_cli.storage.manifest import add_checksum, has_valid_checksum

FORMAT, FORMAT_VERSION = "ecgbyte-site", 1
MOST_BYTES = 2**22


def write_site(
    path: Path,
    model: str,
    points: Mapping[str, OperatingPoint],
    details: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> None:
    """Write a site file.

    Parameters
    ----------
    path : Path
        A file of another kind is not overwritten.
    model : str
        SHA-256 of the model's ecgbyte.json.
    points : mapping of str to OperatingPoint
        Keyed by the finding's short name.
    details : mapping of str to mapping
        How each point was determined.
    settings : mapping
        `max_error`, `confidence`, and counts of the labels.

    Raises
    ------
    Failure
        If the file cannot be written.
    """
    if path.exists() and read_json(path, MOST_BYTES).get("format") != FORMAT:
        raise Failure(f"{path} exists and is not a site file: name another file with --calibrate")
    contents = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "ecgbyte": __version__,
        "date": datetime.now(UTC).date().isoformat(),
        "model": model,
        **settings,
        "findings": {name: {"point": list(point), **details[name]} for name, point in points.items()},
    }
    write_json(path, add_checksum(contents), indent=1)


def read_site(path: Path, model: str) -> dict[str, OperatingPoint]:
    """Read the operating points of a site file, keyed by the finding's short name.

    Parameters
    ----------
    path : Path
    model : str
        SHA-256 of the current model's ecgbyte.json.

    Raises
    ------
    Failure
        If the file is damaged, or belongs to another model.
    """
    contents = read_json(path, MOST_BYTES)
    if contents.get("format") != FORMAT or contents.get("format_version") != FORMAT_VERSION:
        raise Failure(f"{path} is not a site file: make one with `ecgbyte findings … --calibrate`")
    findings = contents.get("findings")
    if (
        not has_valid_checksum(contents)
        or not isinstance(findings, dict)
        or not all(map(_is_point, findings.values()))
    ):
        raise Failure(f"{path} was changed or is damaged: calibrate again")
    if contents.get("model") != model:
        raise Failure(f"{path} belongs to another model: calibrate again with this one")
    return {name: OperatingPoint(*one["point"]) for name, one in findings.items()}


def _is_point(one: Any) -> bool:
    """Return whether an entry of `findings` holds the numbers of an operating point."""
    point = one.get("point") if isinstance(one, dict) else None
    if not isinstance(point, list) or len(point) != len(OperatingPoint._fields):
        return False
    *thresholds, slope, intercept = point
    numbers = [value for value in thresholds if value is not None] + [slope, intercept]
    return all(type(value) in (int, float) and abs(value) < 1e6 for value in numbers) and slope > 0
