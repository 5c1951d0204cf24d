"""The formats of recordings: one row each in `FORMATS`, and one module each in this package."""

import os
import warnings
from collections.abc import Callable
from typing import NamedTuple

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import arrays, delimited, dicom, edf, hdf5, hospital, wfdb
from ecgbyte_cli.readers.pulse import without_pulse
from ecgbyte_cli.readers.recording import HDF5, Recording, Unusable, check_regular, open_regular, split_row

HEAD_BYTES = 4096  # bytes by which the content of a file is recognised

Reader = Callable[[str, float | None, list[str] | None, str | None], Recording]


class Format(NamedTuple):
    """A format of recordings.

    Attributes
    ----------
    read : callable
        Takes path, sampling rate, lead names and units, the last three as of `read_recording`; returns a Recording.
    extensions : tuple of str
        Every file with one of these is in this format.
    extra : str
        The extra of the distribution whose packages it needs, "" for none.
    shared_extensions : tuple of str
        A file with one of these may be in this format: `recognises` decides.
    recognises : callable, optional
        Takes the first `HEAD_BYTES` of a file; true if they are of this format.
    open_long : callable, optional
        Takes a path; returns a long recording whose signal stays in its file, or None where `read` should read it.
    """

    read: Reader
    extensions: tuple[str, ...]
    extra: str = ""
    shared_extensions: tuple[str, ...] = ()
    recognises: Callable[[bytes], object] | None = None
    open_long: Callable[[str], Recording | None] | None = None


FORMATS = (
    Format(wfdb.read, (".hea",), open_long=wfdb.open_long),
    Format(edf.read, (".edf", ".bdf"), open_long=edf.open_long),
    Format(dicom.read, (".dcm",), "formats", (".dicom", ".ima", ""), dicom.is_dicom),
    Format(delimited.read, (".csv", ".tsv")),
    Format(arrays.read, (".npy", ".npz")),
    Format(hdf5.read, HDF5, "formats"),
    Format(hospital.read, (), "hospital", hospital.EXTENSIONS, hospital.form_of),
)
EXTENSIONS = {extension: form for form in FORMATS for extension in form.extensions}
SHARED_EXTENSIONS = tuple(extension for form in FORMATS for extension in form.shared_extensions)
# endings to try if a recording is named without its ending; "rec.dat" is the signal file of "rec.hea"
TRIED = (*EXTENSIONS, *(extension for extension in SHARED_EXTENSIONS if extension not in ("", ".dat")))


def read_recording(
    path: str | os.PathLike,
    fs: float | None = None,
    lead_names: list[str] | None = None,
    units: str | None = None,
    keep_identity: bool = False,
    parts: bool = False,
) -> Recording:
    """Read one recording of any known format.

    Parameters
    ----------
    path : str or Path
        The recording's file; for WFDB its header, or the record's name without extension.
    fs : float, optional
        Sampling rate in Hz, for formats that do not state it.
    lead_names : list of str, optional
        For formats that do not state them.
    units : {"uV", "mV", "V"}, optional
        For files that do not state them (CSV, NumPy, HDF5); mV by default.
    keep_identity : bool
        Add the name, birth date and hospital number stored in the file to the comments.
    parts : bool
        Leave the signal of a long recording (WFDB, EDF, BDF; see `stored.is_long`) in its file, as a `StoredSignal`:
        take parts of it.

    Returns
    -------
    Recording

    Raises
    ------
    Unusable
        If it cannot be read; the reason does not repeat the path.
    """
    path = file_of(os.fspath(path)) or os.fspath(path)
    recording = _read(path, fs, lead_names, units, parts)
    if not recording.leads:
        raise Unusable("no leads in volts")
    if recording.signal.shape[1] == 0:
        raise Unusable("no samples")
    if keep_identity:
        recording.comments += [f"{key}: {text}" for key, text in recording.identity.items()]
        recording.identity = {}
    return recording


def _read(
    path: str, fs: float | None, lead_names: list[str] | None, units: str | None, parts: bool
) -> Recording:
    """Read a file by its format; every error becomes an `Unusable` with the reason."""
    file, _ = split_row(path)
    form = EXTENSIONS.get(os.path.splitext(file)[1].lower())
    if form is None and not os.path.exists(file):
        raise Unusable("not a known format")
    try:
        check_regular(os.stat(file))
        form = form or format_of_content(file)
        if form is None:
            raise Unusable("not a known format")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            long = form.open_long(path) if parts and form.open_long else None
            return long or without_pulse(form.read(path, fs, lead_names, units))
    except Failure:
        raise
    except FileNotFoundError as error:
        raise Unusable(f"file missing: {os.path.basename(error.filename or path)}") from error
    except ImportError as error:
        extra = form and form.extra or "formats"
        raise Unusable(f"package missing: {error.name}; pip install ecgbyte[{extra}]") from error
    except Exception as error:  # libraries raise anything on a broken file
        text = " ".join(str(error).split())[:200]
        raise Unusable(f"cannot be read: {text or type(error).__name__}") from error


def format_of_content(path: str) -> Format | None:
    """Return the format of a file by its first bytes; None if they are of no known format."""
    with open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    return next((form for form in FORMATS if form.recognises and form.recognises(head)), None)


def file_of(path: str) -> str | None:
    """Return the file of a recording that is named with or without its extension, or by its WFDB signal file.

    None if the file does not exist.
    """
    file = split_row(path)[0]
    stem, extension = os.path.splitext(file)
    if extension.lower() in EXTENSIONS and os.path.isfile(file):
        return path
    names = [path + ending for ending in TRIED] + [stem + ".hea", path]
    return next((name for name in names if os.path.isfile(name)), None)
