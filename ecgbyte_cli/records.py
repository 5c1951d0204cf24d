"""Recordings in files: where they are, and what they hold, in millivolts.

Every file is taken for hostile: it is read or refused with a reason, and nothing is allocated on the word of
a header alone.
"""

import glob
import hashlib
import os
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import numpy as np

from ecgbyte_cli.console import Failure

MOST_SAMPLES = 2**25  # of all leads together; half an hour of 12 leads at 1000 Hz is 2**24.4
MOST_LEADS = 512
STANDARD = {
    lead.lower(): lead for lead in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))
}
MILLIVOLTS = {"uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}


class Unusable(Failure):
    """A recording that cannot be used: "reason" or "reason: detail", without the file's name."""


@dataclass
class Recording:
    """One recording.

    Attributes
    ----------
    signal : numpy.ndarray
        float32 (leads, samples), mV; NaN where the file has no valid sample.
    fs : float
        Sampling rate, Hz.
    leads : list of str
        Names as in the file.
    name : str
        The record's name, without extension.
    path : str
        What `read` was given.
    comments : list of str
    start : datetime or None
    """

    signal: np.ndarray
    fs: float
    leads: list
    name: str
    path: str
    comments: list = field(default_factory=list)
    start: datetime | None = None

    def comment(self, key):
        """The text behind "key:" in the comments, or None."""
        for line in self.comments:
            name, colon, text = line.partition(":")
            if colon and name.strip().lower() == key:
                return text.strip()
        return None


def lead_name(name):
    """A lead's name in its usual spelling.

    "avr", "ECG aVR" and "Lead aVR (Goldberger)" are aVR, "DI" is I; what is no standard lead stays.
    """
    bare = re.sub(r"^((lead|ecg|ekg)[\s_]+)*|\s*\(.*\)$", "", name.strip(), flags=re.IGNORECASE)
    key = bare.lower()
    return STANDARD.get(key[1:] if key in ("di", "dii", "diii") else key, bare)


def patient_of(recording):
    """The patient: as the file says, else by the folders of PTB and MIMIC-IV-ECG, else the record itself."""
    for key in ("patient", "patient id", "subject"):
        if recording.comment(key):
            return recording.comment(key)
    for folder in reversed(str(recording.path).split(os.sep)[:-1]):
        match = re.fullmatch(r"p(\d{8})|(patient\d+)", folder)
        if match:
            return match[1] or match[2]
    return recording.name


def split_of(patient):
    """The side a patient is on, by the hash of the name: train (80 %), val or test (10 % each)."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def read_patients(path):
    """Read a table that says whose recordings are whose.

    Parameters
    ----------
    path : str or Path
        A CSV file: PTB-XL's ptbxl_database.csv, MIMIC-IV-ECG's record_list.csv, CODE-15 %'s exams.csv, or
        any with the columns `record` and `patient`, and `split` if it likes.

    Returns
    -------
    dict
        Record name to (patient, split); the split is None where the table does not say. PTB-XL's folds 1
        to 8 are train, 9 is val and 10 is test, as its authors advise.

    Raises
    ------
    Failure
        If the file cannot be read, or its columns are not known.
    """
    import pyarrow
    import pyarrow.csv

    known = [
        (["filename_hr", "filename_lr"], "patient_id"),  # PTB-XL
        (["path"], "subject_id"),  # MIMIC-IV-ECG
        (["exam_id"], "patient_id"),  # CODE-15 %
        (["record"], "patient"),
    ]
    try:
        columns = pyarrow.csv.read_csv(
            path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
        ).to_pydict()
    except (OSError, pyarrow.ArrowException) as error:
        raise Failure(f"{path} cannot be read as a CSV table: {' '.join(str(error).split())}") from error
    for record_columns, patient_column in known:
        if patient_column in columns and all(name in columns for name in record_columns):
            break
    else:
        raise Failure(f"{path} has no columns `record` and `patient`, and is no table of a known data set")
    folds = {9: "val", 10: "test"}
    splits = columns.get("split", [None] * len(columns[patient_column]))
    if "strat_fold" in columns:
        splits = [folds.get(fold, "train") for fold in columns["strat_fold"]]
    patients = {}
    for name in record_columns:
        for record, patient, split in zip(columns[name], columns[patient_column], splits, strict=True):
            if isinstance(patient, float) and patient.is_integer():
                patient = int(patient)  # PTB-XL writes 15709.0
            if record is not None and patient is not None:
                known_split = split if split in ("train", "val", "test") else None
                patients[str(record).rsplit("/", 1)[-1]] = (str(patient), known_split)
    return patients


# Where recordings are ------------------------------------------------------------------------------------


def find(source, without=None):
    """List the recordings that a folder, a RECORDS file, a glob pattern or a record's name stands for.

    Parameters
    ----------
    source : str or Path
    without : str or Path, optional
        A folder to leave out: the work folder, if it lies among the data.

    Returns
    -------
    found : list of str
        Absolute paths, none twice. A row of an HDF5 file is the file's path, "#" and the row.
    skipped : list of tuple
        (path, reason) of what is not to be read, such as a part of another record.

    Raises
    ------
    Failure
        If there is nothing at `source`.
    """
    source = str(source)
    if os.path.isdir(source):
        paths = list(_walk(source))
    elif os.path.basename(source) == "RECORDS" and os.path.isfile(source):
        paths = list(_follow(source))
    else:
        paths = [_one(source)]
        if paths == [None] and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            paths = [p for m in matches for p in (_walk(m) if os.path.isdir(m) else [_one(m)]) if p]
        if not paths or paths == [None]:
            raise Failure(f"{source}: no such folder or recording")
    # the same record may be named twice, by links or by patterns that overlap
    paths = list(dict.fromkeys(os.path.realpath(path) for path in paths))
    if without is not None:
        outside = os.path.join(os.path.realpath(without), "")
        paths = [path for path in paths if not path.startswith(outside)]
    if not paths:
        raise Failure(f"{source} holds no recordings ({', '.join(READERS)})")
    found, skipped = _without_parts(paths)
    return [row for path in found for row in _rows(path)], skipped


def _rows(path):
    """The recordings in a file: one, or the rows of an HDF5 file."""
    if os.path.splitext(path)[1].lower() not in HDF5:
        return [path]
    try:
        with _open_hdf5(path) as file:
            return [f"{path}#{row}" for row in range(_tracings(file).shape[0])]
    except Exception:  # `read` says what is wrong with it
        return [path]


def _walk(folder):
    """The recordings below a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in READERS and not name.startswith("."):
                yield os.path.join(place, name)


def _follow(records):
    """The recordings that a RECORDS file lists: records, or folders with a RECORDS file or recordings."""
    base = os.path.dirname(records)
    with open(records, encoding="utf-8", errors="replace") as file:
        names = [line.strip() for line in file if line.strip()]
    for name in names:
        path = os.path.join(base, name)
        if os.path.isdir(path):
            listed = os.path.join(path, "RECORDS")
            yield from _follow(listed) if os.path.isfile(listed) else _walk(path)
        else:
            yield _one(path) or path + ".hea"


def _one(path):
    """The file of one recording, named with or without its extension; None if there is none."""
    stem, extension = os.path.splitext(path)
    if os.path.isfile(stem + ".hea"):  # its header, or its signal file
        return stem + ".hea"
    if os.path.isfile(path) or (extension.partition("#")[0] in HDF5 and os.path.isfile(_file(path))):
        return path
    return next((path + kind for kind in READERS if os.path.isfile(path + kind)), None)


def _file(path):
    """The file that a recording is in: its path without the row of an HDF5 file."""
    return re.sub(r"#\d+$", "", path)


def _without_parts(paths):
    """Take out the segments of multi-segment records, and PTB-XL's 100 Hz copies of 500 Hz records."""
    part_of = {}
    for path in paths:
        if not path.endswith(".hea"):
            continue
        for segment in _segment_names(path):
            part_of[os.path.join(os.path.dirname(path), segment + ".hea")] = f"part of another record: {path}"
    everything = set(paths)
    for path in paths:
        if path.endswith("_lr.hea"):
            other = path.replace("records100", "records500")[: -len("_lr.hea")] + "_hr.hea"
            if other in everything:
                part_of[path] = f"copy of another record: {other}"
    found = [path for path in paths if path not in part_of]
    return found, [(path, part_of[path]) for path in paths if path in part_of]


def _segment_names(header):
    """The names of a multi-segment record's segments; none for other records."""
    try:
        with open(header, "rb") as file:
            first = b"#"
            while first.startswith(b"#") or (first and not first.strip()):
                first = file.readline(500)
            if b"/" not in first.split(b" ", 1)[0]:
                return []
            lines = file.read(2**20).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.split() and line[0] not in "#~"]


# What they hold ------------------------------------------------------------------------------------------


def read(path, fs=None, lead_names=None):
    """Read one recording of any known format.

    Parameters
    ----------
    path : str or Path
        The recording's file; for WFDB its header, or the record's name without extension.
    fs : float, optional
        Sampling rate in Hz, for formats that do not say it.
    lead_names : list of str, optional
        For formats that do not say them.

    Returns
    -------
    Recording

    Raises
    ------
    Unusable
        If it cannot be read; the reason does not repeat the path.
    """
    path = _one(str(path)) or str(path)
    reader = READERS.get(os.path.splitext(_file(path))[1].lower())
    if reader is None:
        raise Unusable("not a known format")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recording = reader(path, fs, lead_names)
    except Failure:
        raise
    except FileNotFoundError as error:
        raise Unusable(f"file missing: {os.path.basename(error.filename or path)}") from error
    except ImportError as error:
        raise Unusable(f"package missing: {error.name}; pip install ecgbyte[formats]") from error
    except Exception as error:  # libraries raise whatever a broken file makes them raise
        text = " ".join(str(error).split())[:200]
        raise Unusable(f"cannot be read: {text or type(error).__name__}") from error
    if not recording.leads:
        raise Unusable("no leads in volts")
    if recording.signal.shape[1] == 0:
        raise Unusable("no samples")
    return recording


# A line of a plain header: one sample a frame, no skew; anything else is left to wfdb
PLAIN_SIGNAL = re.compile(
    r"(?P<file>[^\s/\\:]+)[ \t]+16(?:x1)?(?:\+(?P<offset>\d{1,9}))?"
    r"(?:[ \t]+(?P<gain>-?\d+\.?\d*(?:[eE][+-]?\d+)?)(?:\((?P<baseline>-?\d{1,9})\))?(?:/(?P<unit>\S+))?)"
    r"[ \t]+\d+[ \t]+(?P<zero>-?\d{1,9})[ \t]+-?\d+[ \t]+-?\d+[ \t]+\d+(?:[ \t]+(?P<name>\S[^\t\r\n\f\v]*?))?\s*"
)
PLAIN_RECORD = re.compile(
    r"(?P<name>[-\w]+)[ \t]+(?P<leads>\d{1,4})[ \t]+(?P<fs>\d+\.?\d*)[ \t]+(?P<samples>\d{1,10})"
    r"(?:[ \t]+(?P<time>\d{1,2}:\d\d:\d\d)(?:\.\d*)?[ \t]+(?P<date>\d{1,2}/\d{1,2}/\d{4}))?\s*"
)


def _wfdb(path, fs, lead_names):
    """WFDB: plain format 16 directly, which is most of what there is; everything else through wfdb."""
    comments, lines = _header_lines(path)
    record = PLAIN_RECORD.fullmatch(lines[0])
    signals = [PLAIN_SIGNAL.fullmatch(line) for line in lines[1:]] if record else []
    if (
        not signals
        or not all(signals)
        or len(signals) != int(record["leads"])
        or len({(s["file"], s["offset"]) for s in signals}) != 1
    ):
        return _wfdb_any(path, comments)

    count, samples, offset = len(signals), int(record["samples"]), int(signals[0]["offset"] or 0)
    data = os.path.join(os.path.dirname(path), signals[0]["file"])
    _check_promise(count, samples)
    _check_length(data, offset + 2 * count * samples)
    digital = np.fromfile(data, "<i2", count * samples, offset=offset).reshape(samples, count)
    zero = [int(s["zero"] if s["baseline"] is None else s["baseline"]) for s in signals]
    gain = [float(s["gain"]) or 200.0 for s in signals]
    scales = [MILLIVOLTS.get((s["unit"] or "mV").lower()) for s in signals]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), samples), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = (digital[:, i] - float(zero[i])) * (scales[i] / gain[i])
        row[digital[:, i] == -32768] = np.nan  # the format's mark of a missing sample
    start = None
    if record["date"]:
        start = datetime.strptime(f"{record['date']} {record['time']}", "%d/%m/%Y %H:%M:%S")
    leads = [signals[i]["name"] or "" for i in keep]
    return Recording(signal, float(record["fs"]), leads, _stem(path), path, comments, start)


def _header_lines(path):
    """A header's comments, and its other lines, none of which names a file outside the header's folder."""
    if os.path.getsize(path) > 2**22:
        raise Unusable("header refused: larger than 4 MB")
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    comments = [line.strip(" \t#") for line in lines if line.startswith("#")]
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise Unusable("header empty")
    for line in lines[1:]:
        name = line.split()[0]
        if re.search(r"[/\\:]", name) or name in (".", ".."):
            raise Unusable(f"header refused: it points outside its folder ({name[:80]})")
    return comments, lines


def _wfdb_any(path, comments):
    """WFDB in any form that the wfdb package reads, once its promises are checked."""
    import wfdb

    stem = path[: -len(".hea")]
    header = _wfdb_header(stem)
    if isinstance(header, wfdb.MultiRecord):
        _check_promise(header.n_sig, header.sig_len)
        if header.n_seg != len(header.seg_name) or header.sig_len != sum(header.seg_len):
            raise Unusable("header refused: its segments are not as many or as long as it promises")
        for name, length in zip(header.seg_name, header.seg_len, strict=True):
            if name == "~":  # a gap
                continue
            part = _wfdb_header(os.path.join(os.path.dirname(path), name))
            if isinstance(part, wfdb.MultiRecord) or part.sig_len != length:
                raise Unusable(f"header refused: segment {name[:80]} is not what it promises")
    # from the local disk alone: without pn_dir, wfdb asks no server
    record = wfdb.rdrecord(stem, return_res=32)
    scales = [MILLIVOLTS.get((unit or "mV").lower()) for unit in record.units]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), record.sig_len), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = record.p_signal[:, i] * scales[i]
    leads = [record.sig_name[i] or "" for i in keep]
    return Recording(
        signal, float(record.fs), leads, _stem(path), path, comments, getattr(record, "base_datetime", None)
    )


def _wfdb_header(stem):
    """Read a header with wfdb, and check what it promises against the files that are there."""
    import wfdb
    from wfdb.io._signal import BYTES_PER_SAMPLE

    _header_lines(stem + ".hea")
    header = wfdb.rdheader(stem)
    if isinstance(header, wfdb.MultiRecord) or not header.n_sig:
        return header
    if len(header.file_name or []) != header.n_sig:
        raise Unusable(f"header refused: it promises {header.n_sig} leads and names others")
    needed = {}
    for name, form, frame, offset in zip(
        header.file_name, header.fmt, header.samps_per_frame, header.byte_offset, strict=True
    ):
        if name == "~":  # the layout of a record whose segments differ: it has no samples
            continue
        path = os.path.join(os.path.dirname(stem), name)
        size = BYTES_PER_SAMPLE.get(form, 0) * frame * (header.sig_len or 0)
        needed[path] = needed.get(path, offset or 0) + size
        _check_promise(header.n_sig * frame, header.sig_len or os.path.getsize(path))
    for path, size in needed.items():
        _check_length(path, int(size))
    return header


def _check_promise(leads, samples):
    """Refuse what would not fit into memory, before anything is allocated."""
    if leads > MOST_LEADS or leads * samples > MOST_SAMPLES:
        raise Unusable(f"too large: {leads} leads of {samples} samples are promised")


def _check_length(path, needed):
    """Refuse a signal file that is shorter than its header says."""
    if not os.path.isfile(path):
        raise Unusable(f"signal file missing: {os.path.basename(path)}")
    if os.path.getsize(path) < needed:
        raise Unusable(f"signal file truncated: {os.path.getsize(path)} of {needed} bytes")


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


def _edf(path, fs, lead_names):
    """EDF, EDF+ and BDF through edfio. Of several sampling rates the one that most leads share is taken."""
    import edfio

    if os.path.getsize(path) > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    warnings.simplefilter("error", UserWarning)  # edfio warns of a file shorter than its header says
    edf = (edfio.read_bdf if path.lower().endswith(".bdf") else edfio.read_edf)(path)
    if not edf.is_continuous:
        raise Unusable("samples missing: the recording is discontinuous (EDF+D)")
    scales = [(s, MILLIVOLTS.get(s.physical_dimension.strip().lower())) for s in edf.signals]
    scales = [(s, scale) for s, scale in scales if scale is not None]
    rates = [s.sampling_frequency for s, _ in scales]
    if not rates:
        raise Unusable("no leads in volts")
    rate = max(set(rates), key=lambda r: (rates.count(r), r))
    chosen = [(s, scale) for s, scale in scales if s.sampling_frequency == rate]
    _check_promise(len(chosen), len(chosen[0][0].digital))
    signal = np.array([s.data * scale for s, scale in chosen], np.float32)
    comments = []
    if edf.reserved[3:4] == "+" and edf.patient.code not in ("", "X"):
        comments.append(f"Patient: {edf.patient.code}")
    return Recording(signal, rate, [s.label for s, _ in chosen], _stem(path), path, comments, _edf_start(edf))


def _edf_start(edf):
    try:
        return edf.startdatetime
    except ValueError:  # anonymised
        return None


def _dicom(path, fs, lead_names):
    """DICOM waveforms (PS3.3 C.10.9) through pydicom; of several groups the longest, in the time it covers."""
    import pydicom

    if os.path.getsize(path) > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", "")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        raise Unusable("not a known format: deflated DICOM")  # its size is not known beforehand
    data = pydicom.dcmread(path)
    groups = data.get("WaveformSequence") or []
    if not groups:
        raise Unusable("not an ECG: the DICOM file holds no waveform")
    seconds = [g.NumberOfWaveformSamples / g.SamplingFrequency for g in groups]
    index = int(np.argmax(seconds))
    group = groups[index]
    _check_promise(group.NumberOfWaveformChannels, group.NumberOfWaveformSamples)
    raw = pydicom.waveforms.multiplex_array(data, index, as_raw=True)
    padding = group.get("WaveformPaddingValue")
    rows, leads = [], []
    for values, channel in zip(raw.T, group.ChannelDefinitionSequence, strict=True):
        units = channel.get("ChannelSensitivityUnitsSequence")
        scale = MILLIVOLTS.get(units[0].CodeValue.strip().lower()) if units else None
        if scale is None:
            continue
        step = float(channel.get("ChannelSensitivity", 1)) * float(
            channel.get("ChannelSensitivityCorrectionFactor", 1)
        )
        row = ((values * step + float(channel.get("ChannelBaseline", 0))) * scale).astype(np.float32)
        if padding is not None:
            row[values == np.frombuffer(padding, raw.dtype)[0]] = np.nan
        rows.append(row)
        leads.append(str(channel.ChannelSourceSequence[0].CodeMeaning))
    comments = [f"Patient: {data.PatientID}"] if data.get("PatientID") else []
    signal = np.array(rows, np.float32).reshape(len(rows), raw.shape[0])
    return Recording(signal, float(group.SamplingFrequency), leads, _stem(path), path, comments)


def _need_fs(fs):
    if fs is None:
        raise Unusable("sampling rate unknown: give it with --input-fs")
    return float(fs)


def _csv(path, fs, lead_names):
    """CSV and TSV in mV: a column for each lead under its name, a row for each sample."""
    import pyarrow
    import pyarrow.csv

    fs = _need_fs(fs)
    if os.path.getsize(path) > 8 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    mark = "\t" if path.lower().endswith(".tsv") else ","
    with open(path, "rb") as file:
        columns = file.readline(2**16).count(mark.encode()) + 1
    if columns > MOST_LEADS:
        raise Unusable(f"too large: {columns} columns")
    data = pyarrow.csv.read_csv(
        path, pyarrow.csv.ReadOptions(use_threads=False), pyarrow.csv.ParseOptions(delimiter=mark)
    )
    _check_promise(data.num_columns, data.num_rows)
    numeric = [
        (name, column)
        for name, column in zip(data.column_names, data.columns, strict=True)
        if pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)
    ]
    signal = np.array([column.to_numpy() for _, column in numeric], np.float32)
    signal = signal.reshape(len(numeric), data.num_rows)
    return Recording(signal, fs, [name for name, _ in numeric], _stem(path), path)


def _numpy(path, fs, lead_names):
    """A .npy array in mV, or the array `signal` (or the only one) of an .npz file.

    An .npz file may also hold `fs` and `leads`; else `--input-fs` and `--lead-names` say them. The axis
    that is as long as the list of names is that of the leads.
    """
    names = lead_names
    if path.lower().endswith(".npz"):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 8 * MOST_SAMPLES:
            raise Unusable(f"too large: {unpacked} bytes unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            fs = float(arrays["fs"]) if "fs" in arrays else fs
            names = [str(lead) for lead in arrays["leads"]] if "leads" in arrays else names
            keys = [key for key in arrays.files if key not in ("fs", "leads")]
            if "signal" not in keys and len(keys) != 1:
                raise Unusable("not a recording: the .npz file has no array called `signal`")
            array = arrays["signal" if "signal" in keys else keys[0]]
    else:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    fs, names = _need_fs(fs), names or list(STANDARD.values())
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise Unusable(f"not a recording: an array of {array.ndim} dimensions of {array.dtype}")
    if len(names) not in array.shape:
        raise Unusable(
            f"leads unknown: no axis of {array.shape} has {len(names)}; name them with --lead-names"
        )
    signal = array if array.shape[0] == len(names) else array.T
    _check_promise(*signal.shape)
    return Recording(np.array(signal, np.float32), fs, list(names), _stem(path), path)


def _hdf5(path, fs, lead_names):
    """A row of an HDF5 file as CODE-15 % has them: `tracings` (exams, samples, 12), mV, 400 Hz.

    The data set's own description calls the scale both 1e-4 V and V / 1000; its R waves say mV. Exams
    shorter than the array have zeros on both sides, which are cut off.
    """
    path, mark, row = path.rpartition("#") if "#" in path else (path, "", "0")
    stamp = os.stat(path)
    file = _kept_hdf5(path, stamp.st_size, stamp.st_mtime_ns)
    tracings = _tracings(file)
    if int(row) >= tracings.shape[0]:
        raise Unusable(f"no such row: {row} of {tracings.shape[0]}")
    _check_promise(tracings.shape[2], tracings.shape[1])
    names = lead_names or list(STANDARD.values())
    if tracings.shape[2] != len(names):
        raise Unusable(f"leads unknown: there are {tracings.shape[2]}; name them with --lead-names")
    signal = np.ascontiguousarray(tracings[int(row)].T, np.float32)
    used = np.flatnonzero(signal.any(axis=0))
    signal = signal[:, used[0] : used[-1] + 1] if used.size else signal[:, :0]
    exam = file.get("exam_id")
    name = str(exam[int(row)]) if exam is not None else f"{_stem(path)}_{row}"
    return Recording(signal, float(fs or 400), list(names), name, f"{path}#{row}" if mark else path)


def _open_hdf5(path):
    import h5py

    return h5py.File(path, "r", rdcc_nbytes=2**25)


@lru_cache(maxsize=1)
def _kept_hdf5(path, size, changed):
    return _open_hdf5(path)  # thousands of rows are read one after the other


def _tracings(file):
    """The array of exams in an open HDF5 file, if its data is in the file itself."""
    import h5py

    if not isinstance(file.get("tracings", getlink=True), h5py.HardLink):
        raise Unusable("not a recording: the HDF5 file has no array `tracings`")
    data = file["tracings"]
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind not in "fiu":
        raise Unusable("not a recording: `tracings` must be (exams, samples, leads)")
    if data.external or data.is_virtual:
        raise Unusable("header refused: it points outside its file")
    if data.chunks and np.prod(data.chunks, dtype=float) * data.dtype.itemsize > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: chunks of {data.chunks}")
    return data


HDF5 = (".h5", ".hdf5")
READERS = {
    ".hea": _wfdb,
    ".edf": _edf,
    ".bdf": _edf,
    ".dcm": _dicom,
    ".csv": _csv,
    ".tsv": _csv,
    ".npy": _numpy,
    ".npz": _numpy,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
