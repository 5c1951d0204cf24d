"""Exports of hospital systems, read with the package ecgdatakit.

GE MUSE, HL7 aECG, Philips Sierra and Mortara ELI XML; SCP-ECG, ISHNE and MFER.
"""

import itertools
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli.readers.recording import (
    DERIVED,
    Recording,
    Unusable,
    check_promise,
    lead_name,
    open_regular,
    record_name,
)

if TYPE_CHECKING:
    from ecgdatakit.models import ECGRecord, Lead

EXTENSIONS = (".xml", ".scp", ".ecg", ".mwf", ".mfer", ".mfr", ".dat")
ROOTS = (  # root elements of the XML formats; the first match decides
    ("Philips Sierra XML", r"<restingecgdata\b"),
    ("GE MUSE XML", r"<(RestingECG|MuseInfo)\b"),
    ("HL7 aECG", r"<([\w.-]+:)?AnnotatedECG\b"),
    ("Mortara ELI XML", r"<ECG\b[^>]*>.*(MORTARA|TYPICAL_CYCLE|<CHANNEL\b)"),
)
# warnings of ecgdatakit after which the rhythm is complete, with the units, times and gaps of the file; any other
# warning refuses the file, including those of later releases
HARMLESS = re.compile(
    r"Unit .* not recognised; value ignored"  # of a measurement
    r"|Sampling rate .* Hz is not an integer; rounded"  # the exact one is read
    r"|Unrecognised sequences ignored"  # channels other than ECG
    r"|\d+ (representative beat series|sequence sets in the median series)"
    r"|Additional (?!rhythm )"  # a second median beat
    r"|Leads .* are not in a voltage unit"
    r"|MFER: (invalid (birth date|measurement time)|no sampling interval)"  # the standard has a default interval
    r"|MFER: waveform data shorter than the frame definition, \d+ missing sample"
    r"|SCP-ECG: Section 1 has a wrong tag length"
    r"|SCP-ECG: Section ([1789]|1[01]) length is"  # of a section without samples
    r"|SCP-ECG: (Section 4 QRS subtraction zones are truncated, ignored|reference beat length|Section 5 )"
    r"|ISHNE: variable block offset"  # of the comments
    r"|Sierra XML: (representative beats compressed|<repbeats> has no)"
    r"|Mortara TYPICAL_CYCLE"
)
BEAT = 9  # the waveform type of MFER's representative beats
FAULT = -32768  # ISHNE's sample of a lead that came off
SEX = {"M": "Male", "F": "Female"}


def form_of(head: bytes) -> str | None:
    """Return the name of the hospital format of a file's first bytes, None for other files.

    MUSE, aECG, Sierra and Mortara by their XML root; SCP-ECG by its section 0 (EN 1064, 5.3); ISHNE by its magic
    number (Badilini 1998); MFER by its preamble (ISO 22077-1).
    """
    if head[:8] == b"ISHNE1.0":
        return "ISHNE"
    if head[:1] == b"\x40" and head[2:6] == b"MFR ":
        return "MFER"
    # two bytes of checksum, four of size; then section 0: checksum, id 0, and a pointer to itself at byte 7
    if len(head) > 32 and head[8:10] == b"\0\0" and head[22:24] == b"\0\0" and head[28:32] == b"\7\0\0\0":
        return "SCP-ECG"
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = head.decode(encoding, "ignore")
    if "<" not in text[:100]:
        return None
    return next((name for name, root in ROOTS if re.search(root, text, re.IGNORECASE | re.DOTALL)), None)


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read the rhythm of an export, without representative beats and measurements.

    Names of people and hospitals are only in `Recording.identity`.
    """
    from ecgdatakit import ECGDataKitError, FileParser

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record = FileParser.parse(path)
        except ECGDataKitError as error:
            raise Unusable(f"cannot be read: {' '.join(str(error).split())[:200]}") from error
    raw = [lead.label for lead in record.leads if lead.is_raw]
    if raw:
        raise Unusable(
            f"unit missing: {', '.join(raw)} are numbers of the recorder, and the file does not say of what"
        )
    _check_warnings(caught)
    leads = [lead for lead in record.leads if lead.units == "mV"]
    if not leads:
        raise Unusable("no leads in volts")
    rate = _rate(record, leads)
    if record.source_format == "hl7_aecg":
        _check_sequence_sets(path)
    _check_together(record, leads, rate)
    return Recording(
        _placed(record, leads),
        rate,
        [lead.label for lead in leads],
        record_name(path),
        path,
        _comments(record),
        record.recording.date,
        identity=_identity(record),
    )


def _check_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Reject a file if ecgdatakit warns that it may have read it wrongly."""
    from ecgdatakit import ChecksumWarning

    for warning in caught:
        text = " ".join(str(warning.message).split())
        if issubclass(warning.category, ChecksumWarning):
            raise Unusable(f"checksum wrong: {text[:200]}")
        # other categories than UserWarning concern the code, not the file
        if issubclass(warning.category, UserWarning) and not HARMLESS.match(text):
            raise Unusable(f"cannot be read as it is meant: {text[:200]}")


def _rate(record: "ECGRecord", leads: list["Lead"]) -> float:
    """Return the exact sampling rate, Hz: ecgdatakit rounds that of a lead to an integer."""
    raw = record.raw_metadata
    rates = {float(lead.sampling_rate) for lead in leads}
    if raw.get("rhythm_sample_interval_us"):
        rates = {1e6 / raw["rhythm_sample_interval_us"]}
    elif "sampling_rate_exact" in raw.get("rhythm_time", {}):
        rates = {raw["rhythm_time"]["sampling_rate_exact"]}
    elif raw.get("sampling_rates"):
        rates = set(raw["sampling_rates"])
    if len(rates) > 1:
        raise Unusable("leads at unlike rates, or of unlike length")
    return round(rates.pop(), 6)


def _check_sequence_sets(path: str) -> None:
    """Reject an aECG with two time axes in a sequence set: ecgdatakit uses the first for all leads."""
    with open_regular(path) as file:
        content = file.read()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = content.decode(encoding, "ignore")
    for after in re.split(r"<(?:[\w.-]+:)?sequenceSet\b", text)[1:]:
        inside = re.split(r"</(?:[\w.-]+:)?sequenceSet\b", after, maxsplit=1)[0]
        codes = re.findall(r"""code\s*=\s*["'](TIME_\w+)["']""", inside, re.IGNORECASE)
        if len(set(map(str.upper, codes))) < len(codes):
            raise Unusable("leads not together: a sequence set has more than one time axis")


def _check_together(record: "ECGRecord", leads: list["Lead"], rate: float) -> None:
    """Reject leads that were not recorded at the same time, if their times are unknown."""
    # MUSE; the unit of the offset is not documented
    late = {lead.annotations.get("LeadTimeOffset", "0").strip() for lead in leads}
    if len(late) > 1:
        raise Unusable(f"leads not together: their LeadTimeOffset is {' or '.join(sorted(late))[:80]}")
    skew = max(record.raw_metadata.get("sample_skew_ns", [0]))  # MFER: between neighbouring channels
    if skew * 1e-9 * rate * (len(leads) - 1) >= 1:
        raise Unusable(f"leads not together: each channel is {skew} ns later than the previous one")
    _check_frames([f for f in record.raw_metadata.get("frames", []) if f["waveform_type"] != BEAT])
    # SCP-ECG; derived leads were not recorded
    recorded = [lead for lead in leads if lead_name(lead.label) not in DERIVED]
    starts = [lead.annotations.get("start_sample") for lead in recorded]
    most = max(map(starts.count, starts), default=0)
    if 0 < record.raw_metadata.get("simultaneous_leads", 0) < most:
        count = record.raw_metadata["simultaneous_leads"]
        raise Unusable(f"leads not together: {most} begin at one sample, and {count} at a time were recorded")


def _check_frames(frames: list[dict]) -> None:
    """Reject MFER frames of the rhythm with a gap between them: ecgdatakit fills it with the frames of a beat."""
    for before, after in itertools.pairwise(frames):
        if after["pointer"] != before["pointer"] + before["samples"]:
            raise Unusable(
                f"samples missing: a frame that begins at sample {after['pointer']} follows another"
            )


def _placed(record: "ECGRecord", leads: list["Lead"]) -> np.ndarray:
    """Return the leads at their times: float32 (leads, samples), mV, NaN if a lead was not recorded.

    SCP-ECG states the first and the last sample of each lead (EN 1064, 5.6). In the other formats all leads begin and
    end together.
    """
    starts = [int(lead.annotations.get("start_sample", 1)) for lead in leads]
    ends = [start + len(lead.samples) for start, lead in zip(starts, leads, strict=True)]
    if record.source_format != "scp_ecg" and len(set(ends)) > 1:
        raise Unusable("leads at unlike rates, or of unlike length")
    first = min(starts)
    check_promise(len(leads), max(ends) - first)
    signal = np.full((len(leads), max(ends) - first), np.nan, np.float32)
    for row, start, end, lead in zip(signal, starts, ends, leads, strict=True):
        row[start - first : end - first] = lead.samples
        if record.source_format == "ishne_holter":
            row[np.isclose(lead.samples, FAULT * lead.resolution / 1000)] = np.nan  # the resolution is in uV
    return signal


def _identity(record: "ECGRecord") -> dict[str, str]:
    """Return the personal data; see `Recording.identity`."""
    patient = record.patient
    known = {
        "Patient": patient.patient_id,
        "Name": f"{patient.first_name} {patient.last_name}".strip(),
        "Birth date": f"{patient.birth_date:%Y-%m-%d}" if patient.birth_date else "",
        "Physician": record.recording.referring_physician or record.interpretation.interpreter,
        "Institution": record.recording.device.institution,
    }
    return {key: str(text).strip() for key, text in known.items() if str(text).strip()}


def _comments(record: "ECGRecord") -> list[str]:
    """Return age, sex and the device's statements, under the names in WFDB headers, without names of people."""
    lines = []
    if record.patient.age is not None:
        lines.append(f"Age: {record.patient.age}")
    if record.patient.sex:
        lines.append(f"Sex: {SEX.get(record.patient.sex, record.patient.sex)}")
    people = [record.patient.first_name, record.patient.last_name, record.patient.patient_id]
    people += [
        record.recording.referring_physician,
        record.recording.technician,
        record.interpretation.interpreter,
    ]
    words = {word.lower() for name in people for word in re.findall(r"\w{3,}", str(name))}
    for statement in record.interpretation.statements:
        text = " ".join(" ".join(part for part in statement if part).split())
        signed = re.search(r"\b(by|dr|md|m\.d)\b", text, re.IGNORECASE)
        if text and not signed and not words & set(re.findall(r"\w{3,}", text.lower())):
            lines.append(f"Statement: {text}")
    return lines
