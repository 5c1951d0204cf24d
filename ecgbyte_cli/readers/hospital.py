"""What hospital systems export, through the package ecgdatakit.

GE MUSE, HL7 aECG, Philips Sierra and Mortara ELI XML; SCP-ECG, ISHNE and MFER.
"""

import re
import warnings

import numpy as np

from ecgbyte_cli.readers.recording import Recording, Unusable, stem

HEAD = 4096  # bytes by which a format is recognised
ROOTS = (  # of the XML formats, the first that fits
    ("Philips Sierra XML", r"<restingecgdata\b"),
    ("GE MUSE XML", r"<(RestingECG|MuseInfo)\b"),
    ("HL7 aECG", r"<([\w.-]+:)?AnnotatedECG\b"),
    ("Mortara ELI XML", r"<ECG\b[^>]*>.*(MORTARA|TYPICAL_CYCLE|<CHANNEL\b)"),
)
# ecgdatakit reads on after these, and what it gives then is not what the file says
WRONG = re.compile(r"not applied|not an integer|truncated|no reference|scale .* not stated", re.IGNORECASE)
SEX = {"M": "Male", "F": "Female"}


def form_of(head: bytes) -> str | None:
    """The name of the format that a file's first bytes show, or None for all others.

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


def read(path, fs, lead_names, units=None):
    """Read an export. The rhythm is read, and neither representative beats nor measurements.

    What names a person (patient, physician, technician, hospital) stays in `Recording.identity`.
    """
    from ecgdatakit import ChecksumWarning, ECGDataKitError, FileParser

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            record = FileParser.parse(path)
        except ECGDataKitError as error:
            raise Unusable(f"cannot be read: {' '.join(str(error).split())[:200]}") from error
    for warning in caught:
        text = " ".join(str(warning.message).split())[:200]
        if issubclass(warning.category, ChecksumWarning):
            raise Unusable(f"checksum wrong: {text}")
        if WRONG.search(text):
            raise Unusable(f"cannot be read as it is meant: {text}")
    raw = [lead.label for lead in record.leads if lead.is_raw]
    if raw:
        raise Unusable(
            f"unit missing: {', '.join(raw)} are numbers of the recorder, and the file does not say of what"
        )
    leads = [lead for lead in record.leads if lead.units == "mV"]
    if len({(lead.sampling_rate, len(lead.samples)) for lead in leads}) > 1:
        raise Unusable("leads at unlike rates, or of unlike length")
    if not leads:
        raise Unusable("no leads in volts")
    signal = np.array([lead.samples for lead in leads], np.float32)
    return Recording(
        signal,
        float(leads[0].sampling_rate),
        [lead.label for lead in leads],
        stem(path),
        path,
        _comments(record),
        record.recording.date,
        identity=_identity(record),
    )


def _identity(record):
    """What says whose recording it is: name of the entry to text."""
    patient = record.patient
    known = {
        "Patient": patient.patient_id,
        "Name": f"{patient.first_name} {patient.last_name}".strip(),
        "Birth date": f"{patient.birth_date:%Y-%m-%d}" if patient.birth_date else "",
        "Physician": record.recording.referring_physician or record.interpretation.interpreter,
        "Institution": record.recording.device.institution,
    }
    return {key: str(text).strip() for key, text in known.items() if str(text).strip()}


def _comments(record):
    """Age, sex and the device's statements, under the names that WFDB headers use, and nothing that names anyone."""
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
