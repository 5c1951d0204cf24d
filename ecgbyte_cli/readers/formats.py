"""The formats that recordings come in: a line each in the table, a file each beside this one."""

import importlib
import os
import warnings

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import hospital
from ecgbyte_cli.readers.pulse import without_pulse
from ecgbyte_cli.readers.recording import Recording, Unusable, check_regular, open_regular, split_row

# extension to the module beside this one whose `read(path, fs, lead_names, units)` returns the Recording
FORMATS = {
    ".hea": "wfdb",
    ".edf": "edf",
    ".bdf": "edf",
    ".dcm": "dicom",
    ".csv": "delimited",
    ".tsv": "delimited",
    ".npy": "arrays",
    ".npz": "arrays",
    ".h5": "arrays",
    ".hdf5": "arrays",
}
# endings that say nothing: what is in the file decides
UNSURE = (".xml", ".scp", ".ecg", ".mwf", ".mfer", ".mfr", ".dat", ".dicom", ".ima", "")
EXTRAS = {"hospital": "hospital"}  # the extra whose packages a format needs, where it is not `formats`


def read(
    path: str | os.PathLike,
    fs: float | None = None,
    lead_names: list[str] | None = None,
    units: str | None = None,
    keep_identity: bool = False,
) -> Recording:
    """Read one recording of any known format.

    Parameters
    ----------
    path : str or Path
        The recording's file; for WFDB its header, or the record's name without extension.
    fs : float, optional
        Sampling rate in Hz, for formats that do not say it.
    lead_names : list of str, optional
        For formats that do not say them.
    units : {"uV", "mV", "V"}, optional
        For files that do not say them (CSV, NumPy, HDF5); they are in mV by default.
    keep_identity : bool
        Whether name, birth date and hospital number that a file holds shall stand among its comments.

    Returns
    -------
    Recording

    Raises
    ------
    Unusable
        If it cannot be read; the reason does not repeat the path.
    """
    path = file_of(os.fspath(path)) or os.fspath(path)
    file, _ = split_row(path)
    form = FORMATS.get(os.path.splitext(file)[1].lower())
    if form is None and not os.path.exists(file):
        raise Unusable("not a known format")
    try:
        check_regular(os.stat(file))
        form = form or form_within(file)
        if form is None:
            raise Unusable("not a known format")
        reader = importlib.import_module(f"ecgbyte_cli.readers.{form}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recording = without_pulse(reader.read(path, fs, lead_names, units))
    except Failure:
        raise
    except FileNotFoundError as error:
        raise Unusable(f"file missing: {os.path.basename(error.filename or path)}") from error
    except ImportError as error:
        extra = EXTRAS.get(form or "", "formats")
        raise Unusable(f"package missing: {error.name}; pip install ecgbyte[{extra}]") from error
    except Exception as error:  # libraries raise whatever a broken file makes them raise
        text = " ".join(str(error).split())[:200]
        raise Unusable(f"cannot be read: {text or type(error).__name__}") from error
    if not recording.leads:
        raise Unusable("no leads in volts")
    if recording.signal.shape[1] == 0:
        raise Unusable("no samples")
    if keep_identity:
        recording.comments += [f"{key}: {text}" for key, text in recording.identity.items()]
        recording.identity = {}
    return recording


def form_within(path):
    """The format of a file by its first bytes, where its ending says nothing; None if it is no recording."""
    with open_regular(path) as file:
        head = file.read(hospital.HEAD)
    if head[128:132] == b"DICM":
        return "dicom"
    return "hospital" if hospital.form_of(head) else None


def file_of(path):
    """The file of one recording, named with or without its extension, or by its signal file; None if there is none."""
    file = split_row(path)[0]
    stem, extension = os.path.splitext(file)
    if extension.lower() in FORMATS and os.path.isfile(file):
        return path
    names = [path + kind for kind in (*FORMATS, ".xml", ".scp", ".ecg")] + [stem + ".hea", path]
    return next((name for name in names if os.path.isfile(name)), None)
