"""Recordings as hospitals export them: read, refused with the right reason, and without anybody's name."""

import base64
import os
import random
import re
import struct
import time
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli import readers
from ecgbyte_cli.readers import hospital
from ecgbyte_cli.readers.recording import Unusable

ecgdatakit = pytest.importorskip("ecgdatakit")
LEADS = ["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]
STEP = 4.88e-3  # mV
MUTATIONS = int(os.environ.get("ECGBYTE_MUTATIONS", 150))


def wave(leads=8, seconds=10, fs=500, seed=0):
    """Something like an ECG: float32 (leads, samples), mV."""
    t = np.arange(seconds * fs) / fs
    rng = np.random.default_rng(seed)
    beat = np.exp(-(((t % 0.8) - 0.3) ** 2) / 2e-4) + 0.2 * np.exp(-(((t % 0.8) - 0.55) ** 2) / 2e-3)
    return (rng.uniform(0.4, 1.5, (leads, 1)) * beat + rng.normal(0, 0.01, (leads, t.size))).astype(
        np.float32
    )


def muse(signal, fs=500, rhythm="Rhythm", units="MICROVOLTS", median=None, extra=""):
    """A GE MUSE export as RestingECG.dtd has it; lead data as base64 of little-endian int16."""

    def waveform(kind, rows):
        data = ""
        for name, row in zip(LEADS, np.round(rows / STEP).astype("<i2"), strict=True):
            data += (
                f"<LeadData><LeadByteCountTotal>{2 * row.size}</LeadByteCountTotal>"
                f"<LeadSampleCountTotal>{row.size}</LeadSampleCountTotal>"
                f"<LeadAmplitudeUnitsPerBit>4.88</LeadAmplitudeUnitsPerBit>"
                f"<LeadAmplitudeUnits>{units}</LeadAmplitudeUnits><LeadID>{name}</LeadID>"
                f"<WaveFormData>{base64.b64encode(row.tobytes()).decode()}</WaveFormData></LeadData>"
            )
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>{fs}</SampleBase>"
            f"<SampleExponent>0</SampleExponent>{data}</Waveform>"
        )

    return (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<RestingECG><MuseInfo><MuseVersion>9</MuseVersion></MuseInfo>'
        "<PatientDemographics><PatientID>44556677</PatientID><PatientAge>61</PatientAge><AgeUnits>YEARS</AgeUnits><Gender>FEMALE</Gender>"
        "<DateofBirth>03-09-1959</DateofBirth><PatientLastName>Umlauf</PatientLastName>"
        "<PatientFirstName>Erna</PatientFirstName></PatientDemographics>"
        "<Diagnosis><DiagnosisStatement><StmtText>Sinus rhythm</StmtText></DiagnosisStatement>"
        "<DiagnosisStatement><StmtText>Confirmed by Weiss MD, Otto (12)</StmtText></DiagnosisStatement></Diagnosis>"
        + (waveform("Median", median) if median is not None else "")
        + waveform(rhythm, signal)
        + f"{extra}</RestingECG>"
    ).encode("latin-1")


def aecg(signal, fs=500):
    """An HL7 aECG (ANSI/HL7 V3 ECG, R1) with one rhythm series; 5 uV a step."""
    sequences = (
        "<component><sequence><code code='TIME_ABSOLUTE' codeSystem='2.16.840.1.113883.5.4'/>"
        "<value xsi:type='GLIST_TS'><head value='20210503101112.000'/>"
        f"<increment value='{1 / fs}' unit='s'/></value></sequence></component>"
    )
    for name, row in zip(LEADS, signal, strict=True):
        digits = " ".join(str(int(v)) for v in np.round(row / 0.005))
        sequences += (
            f"<component><sequence><code code='MDC_ECG_LEAD_{name}' codeSystem='2.16.840.1.113883.6.24'/>"
            "<value xsi:type='SLIST_PQ'><origin value='0' unit='uV'/><scale value='5' unit='uV'/>"
            f"<digits>{digits}</digits></value></sequence></component>"
        )
    return (
        "<?xml version='1.0' encoding='UTF-8'?><AnnotatedECG xmlns='urn:hl7-org:v3' "
        "xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'><id root='1.2.3'/>"
        "<code code='93000' codeSystem='2.16.840.1.113883.6.12'/><component><series><id root='1.2.4'/>"
        "<code code='RHYTHM' codeSystem='2.16.840.1.113883.5.4'/><component><sequenceSet>"
        f"{sequences}</sequenceSet></component></series></component></AnnotatedECG>"
    ).encode()


def reason(path):
    with pytest.raises(Unusable) as caught:
        readers.read_recording(path)
    return caught.value.message


@pytest.fixture
def hospital_data(real_data):
    return real_data / "hospital"


# ---- the real files


def test_the_same_ecg_in_three_formats(hospital_data):
    """As SCP-ECG, aECG and DICOM: equal to the sample."""
    scp, aecg, dicom = (
        readers.read_recording(hospital_data / name)
        for name in ("ecgtoolkit_Example.scp", "fda_subject1_0.xml", "ecgtoolkit_Example.dcm")
    )
    assert scp.fs == aecg.fs == dicom.fs == 500 and scp.signal.shape == (12, 5000)
    for other in (aecg, dicom):
        order = [[readers.lead_name(name) for name in other.leads].index(name) for name in scp.leads]
        np.testing.assert_allclose(other.signal[order], scp.signal, atol=1e-6)


def test_muse_against_numbers_decoded_here(hospital_data):
    text = (hospital_data / "muse_example.xml").read_text(encoding="latin-1")
    rhythm = next(w for w in text.split("<Waveform>")[1:] if "<WaveformType>Rhythm" in w)
    read = readers.read_recording(hospital_data / "muse_example.xml")
    seen = 0
    for lead in rhythm.split("<LeadData>")[1:]:
        name, scale, data = (
            re.search(rf"<{tag}>(.*?)</{tag}>", lead, re.DOTALL)[1]
            for tag in ("LeadID", "LeadAmplitudeUnitsPerBit", "WaveFormData")
        )
        assert "<LeadAmplitudeUnits>MICROVOLTS" in lead
        ours = np.frombuffer(base64.b64decode("".join(data.split())), "<i2") * float(scale) / 1000
        np.testing.assert_allclose(read.signal[read.leads.index(name)], ours, atol=1e-6)
        seen += 1
    assert seen == 8 == len(read.leads) and read.fs == 500


def test_a_whole_folder_of_exports(hospital_data, tmp_path, ecgbyte):
    result = ecgbyte("symbolize", hospital_data, "--json", work=tmp_path / "work")
    assert result.exit_code == 0, result.stderr
    from ecgbyte_cli.storage.files import read_table

    used = read_table(tmp_path / "work" / "symbols" / "segments.parquet")
    names = set(used["record"])
    skipped = read_table(tmp_path / "work" / "symbols" / "skipped.parquet")
    skipped = {Path(path).name: why for path, why in zip(skipped["path"], skipped["reason"], strict=True)}
    assert len(set(used["path"])) + len(skipped) == len(list(hospital_data.iterdir()))
    assert {"muse_example", "muse_braveheart1", "fda_subject1_0", "cvrg_hl7aecg-Example2"} <= names
    assert {"sierra_104_demo", "ecgtoolkit_Example"} <= names
    assert "sample range" in skipped["scp_demo_raw.scp"]


def test_nobody_is_named(hospital_data, tmp_path, ecgbyte):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "muse.xml").write_bytes((hospital_data / "muse_example.xml").read_bytes())
    work = tmp_path / "work"
    chain = ["symbolize", tmp_path / "data", "learn", "--vocab", 60, "--split", "all", "encode", "decode"]
    assert ecgbyte(*chain, work=work).exit_code == 0
    for kind in ("ecg", "tokens"):
        assert (
            ecgbyte(
                "plot", kind, tmp_path / "data" / "muse.xml", "--out", work / f"{kind}.svg", work=work
            ).exit_code
            == 0
        )
    files = [path for path in work.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for word in (
            b"TESTONE",
            b"201700237",
            b"1980-06-10",
            b"06-10-1980",
            b"19800610",
            b"GARG",
            b"Garg",
            b"FITZGERALD",
            b"CEDARS",
        ):
            assert word not in content, (path, word)
    # the device's own words and the age are told
    header = next((work / "decoded").glob("*.hea")).read_text()
    assert "Sinus bradycardia" in header and "Age: 40" in header and "Sex: Male" in header


# ---- written here


@pytest.mark.parametrize(("name", "write", "step"), [("muse", muse, STEP), ("aecg", aecg, 0.005)])
def test_round_trip(tmp_path, name, write, step):
    signal = wave()
    (tmp_path / f"{name}.xml").write_bytes(write(signal))
    read = readers.read_recording(tmp_path / f"{name}.xml")
    assert read.leads == LEADS and read.fs == 500 and read.signal.shape == signal.shape
    assert np.abs(read.signal - signal).max() <= step / 2 + 1e-6


def test_the_rhythm_is_read_and_not_the_median_beat(tmp_path):
    signal = wave()
    (tmp_path / "both.xml").write_bytes(muse(signal, median=np.ones((8, 600), np.float32)))
    assert readers.read_recording(tmp_path / "both.xml").signal.shape == signal.shape
    (tmp_path / "median.xml").write_bytes(muse(wave(seconds=1), rhythm="Median"))
    assert reason(tmp_path / "median.xml")


def test_what_is_told_and_what_is_not(tmp_path):
    (tmp_path / "m.xml").write_bytes(muse(wave()))
    read = readers.read_recording(tmp_path / "m.xml")
    assert read.comments == ["Age: 61", "Sex: Female", "Statement: Sinus rhythm"]
    assert read.identity["Patient"] == "44556677" and read.identity["Birth date"] == "1959-03-09"


def test_leads_without_a_unit_are_refused(tmp_path):
    (tmp_path / "m.xml").write_bytes(muse(wave(), units="COUNTS"))
    assert reason(tmp_path / "m.xml").startswith("unit missing")


def test_entities_are_neither_expanded_nor_fetched(tmp_path):
    """A billion laughs, and an entity that names a file."""
    laughs = "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
    (tmp_path / "secret").write_text("SECRET")
    for declared in (f"<!ENTITY a0 'ha'>{laughs}", f"<!ENTITY a9 SYSTEM 'file://{tmp_path}/secret'>"):
        text = muse(wave(), extra="<Note>&a9;</Note>").replace(
            b"<RestingECG>", f"<!DOCTYPE r [{declared}]><RestingECG>".encode(), 1
        )
        (tmp_path / "m.xml").write_bytes(text)
        began = time.process_time()
        assert "SECRET" not in reason(tmp_path / "m.xml")
        assert time.process_time() - began < 10


def test_recognised_by_what_is_in_it(tmp_path):
    assert hospital.form_of(muse(wave())[:4096]) == "GE MUSE XML"
    assert hospital.form_of(aecg(wave())[:4096]) == "HL7 aECG"
    assert hospital.form_of(muse(wave()).decode("latin-1").encode("utf-16")[:4096]) == "GE MUSE XML"
    assert hospital.form_of(b"<html><body>RestingECG</body></html>") is None
    assert hospital.form_of(b"") is None and hospital.form_of(bytes(4096)) is None
    (tmp_path / "export").write_bytes(muse(wave()))
    (tmp_path / "page.xml").write_text("<html/>")
    (tmp_path / "notes").write_text("nothing")
    (tmp_path / "x.ecg").write_text("ECG of monday")
    found, skipped = readers.find(tmp_path)
    assert [Path(path).name for path in found] == ["export"] and not skipped


def test_mutated_exports_are_read_or_refused(tmp_path, real_data):
    """Bytes changed, cut, doubled; tags and numbers swapped: nothing but a refusal, and at once."""
    rng = random.Random(0)
    sources = [muse(wave(seconds=2)), aecg(wave(seconds=2))]
    sources += [path.read_bytes() for path in sorted((real_data / "hospital").glob("*.scp"))]
    sources += [(real_data / "hospital" / "sierra_104_demo.xml").read_bytes()]
    slowest = 0.0
    for number in range(MUTATIONS):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.choice([1, 4, 100, len(data)])]
            elif kind == 2:
                data[at:at] = data[at : at + rng.choice([4, 100, 5000])]
            elif kind == 3:
                data[at : at + 4] = rng.choice(
                    [b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"1e99"]
                )
            else:
                numbers = list(re.finditer(rb"\d+", bytes(data[:200_000])))
                if numbers:
                    found = rng.choice(numbers)
                    data[found.start() : found.end()] = rng.choice(
                        [b"-1", b"0", b"99999999999", b"nan", b"1e308"]
                    )
            if not data:
                data = bytearray(b"<")
        path = tmp_path / f"m{number % 4}{rng.choice(['.xml', '.scp'])}"
        path.write_bytes(data)
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                read = readers.read_recording(path)
            assert read.signal.dtype == np.float32 and len(read.leads) == len(read.signal)
        except Unusable as error:
            assert error.message and "\n" not in error.message
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 5


# ---- a file's own times


CODES = dict(zip(LEADS, [1, 2, *range(3, 9)], strict=True))  # of SCP-ECG and of MFER


def scp(rows, starts, flags=None, interval=2000):
    """An SCP-ECG record (EN 1064) with sections 0, 1, 3 and 6, 1 uV a step; `starts` are the first samples."""

    def with_crc(data):
        crc = 0xFFFF
        for byte in data:
            crc ^= byte << 8
            for _ in range(8):
                crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
        return struct.pack("<H", crc) + data

    def section(number, body, mark=bytes(6)):
        body += bytes(len(body) % 2)
        return with_crc(struct.pack("<HIBB6s", number, 16 + len(body), 13, 13, mark) + body)

    flags = len(rows) << 3 | 4 * (len(set(starts)) == 1) if flags is None else flags
    defined = b"".join(
        struct.pack("<IIB", start, start + len(row) - 1, CODES[name])
        for name, row, start in zip(LEADS, rows, starts, strict=False)
    )
    sections = {
        1: section(1, b"\xff\0\0"),
        3: section(3, bytes([len(rows), flags]) + defined),
        6: section(
            6,
            struct.pack("<HHBB", 1000, interval, 0, 0)
            + struct.pack(f"<{len(rows)}H", *(2 * len(row) for row in rows))
            + b"".join(np.round(row * 1000).astype("<i2").tobytes() for row in rows),
        ),
    }
    pointers, at = struct.pack("<HII", 0, 136, 7), 6 + 136 + 1
    for number in range(1, 12):
        size = len(sections.get(number, b""))
        pointers += struct.pack("<HII", number, size, at if size else 0)
        at += size
    body = section(0, pointers, b"SCPECG") + b"".join(sections.values())
    return with_crc(struct.pack("<I", len(body) + 6) + body)


def mfer(frames, pointers, skew=0, step=(0, -6, 1), kinds=(1, 1, 1)):
    """An MFER file (ISO 22077-1) of 500 Hz: a frame of each signal, where it begins in samples, and its type."""

    def entry(tag, value):
        length = bytes([len(value)]) if len(value) < 128 else b"\x84" + struct.pack(">I", len(value))
        return bytes([tag]) + length + value

    data = entry(0x40, b"MFR made".ljust(32)) + entry(1, b"\1") + entry(8, b"\1") + entry(10, b"\0")
    data += entry(11, b"\1\xfd" + struct.pack("<H", 2)) + entry(0x43, struct.pack("<I", skew))
    for number, (rows, pointer) in enumerate(zip(frames, pointers, strict=True)):
        unit, exponent, mantissa = (0, -6, 1) if number == 0 else step
        data += entry(12, struct.pack("<BbH", unit, exponent, mantissa))
        data += entry(8, bytes([kinds[number]]))
        data += entry(7, struct.pack("<I", pointer)) + entry(4, struct.pack("<I", rows.shape[1]))
        data += entry(5, bytes([len(rows)])) + entry(6, struct.pack("<I", 1))
        for i, name in zip(range(len(rows)), LEADS, strict=False):
            data += b"\x3f" + bytes([i, 3]) + entry(9, bytes([CODES[name]]))
        data += entry(0x1E, np.round(rows * 1000).astype("<i2").tobytes())
    return data + b"\x80\0"


def test_scp_leads_are_at_their_own_times(tmp_path):
    """Recorded one group after the other, of unlike lengths; together; later than the file begins."""
    signal, path = wave(4, 4), tmp_path / "r.scp"
    parts = [signal[0, :500], signal[1, :500], signal[2, 500:1200], signal[3, 600:1000]]
    path.write_bytes(scp(parts, [1, 1, 501, 601]))
    read = readers.read_recording(path)
    assert read.signal.shape == (4, 1200) and read.leads == LEADS[:4]
    for row, whole, (begin, end) in zip(
        read.signal, signal, [(0, 500), (0, 500), (500, 1200), (600, 1000)], strict=True
    ):
        assert np.flatnonzero(np.isfinite(row)).tolist() == list(range(begin, end))
        assert np.abs(row[begin:end] - whole[begin:end]).max() < 6e-4
    path.write_bytes(scp(list(signal), [301] * 4))
    assert np.isfinite(readers.read_recording(path).signal).all()
    path.write_bytes(scp([row[:10] for row in signal], [1, 1, 1, 2**31]))
    assert reason(path).startswith("too large")
    # three at a time, says the file, and not which
    path.write_bytes(scp(list(signal), [1] * 4, flags=3 << 3))
    assert reason(path).startswith("leads not together")


def test_rates_are_read_as_the_file_says_them(tmp_path):
    (tmp_path / "r.scp").write_bytes(scp(list(wave(2, 2)), [1, 1], interval=3000))
    assert readers.read_recording(tmp_path / "r.scp").fs == pytest.approx(1000 / 3)
    (tmp_path / "r.xml").write_bytes(aecg(wave(), fs=250.5))
    assert readers.read_recording(tmp_path / "r.xml").fs == pytest.approx(250.5)


@pytest.mark.parametrize("second", [4000, 5000, 400, 0])
def test_mfer_frames_that_do_not_follow_each_other_are_refused(tmp_path, second):
    signal, path = wave(8, 4), tmp_path / "r.mwf"
    path.write_bytes(mfer([signal[:, :1000], signal[:, 1000:]], [0, second]))
    assert "without a gap" in reason(path)


def test_mfer_frames(tmp_path):
    signal, path = wave(8, 4), tmp_path / "r.mwf"
    path.write_bytes(mfer([signal[:, :1000], signal[:, 1000:]], [0, 1000]))
    read = readers.read_recording(path)
    assert read.fs == 500 and np.abs(read.signal - signal).max() < 6e-4
    path.write_bytes(mfer([signal[:, :1000], signal[:, 1000:]], [0, 1000], step=(0, -6, 2)))
    assert "are not loaded" in reason(path)
    three = [signal[:, :1000], signal[:, :300], signal[:, 1000:]]  # the second is of a beat
    path.write_bytes(mfer(three, [0, 1000, 1300], kinds=(1, 9, 1)))
    assert reason(path).startswith("samples missing")
    path.write_bytes(mfer([signal], [0], skew=1000))
    assert readers.read_recording(path).signal.shape == signal.shape
    path.write_bytes(mfer([signal], [0], skew=500_000))
    assert reason(path).startswith("leads not together")


@pytest.mark.parametrize("tag", ["FirstSampleBaseline", "LeadOffsetFirstSample"])
@pytest.mark.parametrize("leads", [1, 8])
def test_an_offset_of_muse_is_refused_however_many_leads_have_it(tmp_path, tag, leads):
    text = muse(wave(), median=wave(seconds=1)).decode("latin-1")
    for name in LEADS[:leads]:
        text = text.replace(f"<LeadID>{name}<", f"<{tag}>205</{tag}><LeadID>{name}<")
    (tmp_path / "m.xml").write_text(text)
    assert "cannot be read as it is meant" in reason(tmp_path / "m.xml")


def test_leads_of_muse_at_unlike_times(tmp_path):
    text = muse(wave()).decode("latin-1")
    late = text.replace("<LeadID>V", "<LeadTimeOffset>2500</LeadTimeOffset><LeadID>V")
    (tmp_path / "m.xml").write_text(late)
    assert reason(tmp_path / "m.xml").startswith("leads not together")
    (tmp_path / "m.xml").write_text(text.replace("<LeadID>", "<LeadTimeOffset>0</LeadTimeOffset><LeadID>"))
    assert readers.read_recording(tmp_path / "m.xml").signal.shape == (8, 5000)
    both = text.replace("</RestingECG>", text[text.index("<Waveform>") : text.index("</RestingECG>") + 13])
    (tmp_path / "m.xml").write_text(both)
    assert "Additional rhythm" in reason(tmp_path / "m.xml")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("(?s)<component><series>.*</series></component>", "rhythm series"),
        ("(?s)<component><sequenceSet>.*</sequenceSet></component>", "sequence sets"),
    ],
)
def test_an_aecg_of_several_parts_is_refused(tmp_path, pattern, expected):
    text = aecg(wave(seconds=2)).decode()
    (tmp_path / "a.xml").write_text(re.sub(pattern, lambda found: 2 * found[0], text))
    assert expected in reason(tmp_path / "a.xml") and "only the first is read" in reason(tmp_path / "a.xml")


def test_an_aecg_with_a_second_time_axis_is_refused(tmp_path):
    text = aecg(wave(seconds=2)).decode()
    axis = re.search("<component><sequence><code code='TIME_ABSOLUTE'.*?</component>", text)[0]
    chest = "<component><sequence><code code='MDC_ECG_LEAD_V1'"
    (tmp_path / "a.xml").write_text(text.replace(chest, axis.replace("101112", "101122") + chest))
    assert "more than one time axis" in reason(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text(text.replace(chest, axis.replace("ABSOLUTE", "RELATIVE") + chest))
    assert readers.read_recording(tmp_path / "a.xml").signal.shape == (8, 1000)


def test_warnings_that_are_not_known_refuse_a_file(tmp_path, monkeypatch):
    """Those of a later ecgdatakit, too; what concerns no sample does not, nor what is about the code."""
    from ecgdatakit import FileParser

    (tmp_path / "m.xml").write_bytes(muse(wave()))
    parse = FileParser.parse

    def warn(text, category=UserWarning):
        def warned(path):
            warnings.warn(text, category, stacklevel=1)
            return parse(path)

        monkeypatch.setattr(FileParser, "parse", staticmethod(warned))

    warn("GE MUSE: something of a new kind")
    assert "of a new kind" in reason(tmp_path / "m.xml")
    for text in (
        "Unit 'bmp' of MDC_ECG_HEART_RATE not recognised; value ignored",
        "Mortara TYPICAL_CYCLE has no scale",
    ):
        warn(text)
        assert readers.read_recording(tmp_path / "m.xml").fs == 500
    warn("soon to go", DeprecationWarning)
    assert readers.read_recording(tmp_path / "m.xml").fs == 500


def test_samples_of_a_lead_that_came_off_are_missing(tmp_path):
    """ISHNE marks them with -32768."""
    counts = np.round(wave(2, 2) * 1000).astype("<i2").T.copy()
    counts[100:300, 1] = -32768
    head = bytearray(522)
    head[:8] = b"ISHNE1.0"
    struct.pack_into("<iiii", head, 10, 0, len(counts), 522, 522)
    struct.pack_into("<h12h12h12h", head, 156, 2, 1, 2, *[-9] * 10, *[1] * 12, *[1000] * 12)
    struct.pack_into("<h", head, 272, 500)
    (tmp_path / "h.ecg").write_bytes(bytes(head) + counts.tobytes())
    read = readers.read_recording(tmp_path / "h.ecg")
    assert np.flatnonzero(np.isnan(read.signal[1])).tolist() == list(range(100, 300))
    assert (
        np.abs(np.delete(read.signal, range(100, 300), 1) - np.delete(wave(2, 2), range(100, 300), 1)).max()
        < 6e-4
    )


# ---- whose they are


def test_a_patient_is_a_hash_that_the_key_decides(tmp_path, ecgbyte):
    """Two recordings of one patient stay one; another key, another name; --keep-identity keeps the number."""
    from ecgbyte_cli.storage.files import read_table
    from ecgbyte_cli.storage.workdir import WorkDir

    (tmp_path / "data").mkdir()
    for i in range(2):
        (tmp_path / "data" / f"m{i}.xml").write_bytes(muse(wave(seed=i)))

    def patients(work, *options):
        result = ecgbyte("symbolize", tmp_path / "data", "--leads", "I,II,V1", *options, work=tmp_path / work)
        assert result.exit_code == 0, result.stderr
        return set(read_table(WorkDir(tmp_path / work).symbol_segments)["patient"])

    own, keyed, again, kept = (
        patients("a"),
        patients("b", "--patient-salt", "k"),
        patients("c", "--patient-salt", "k"),
        patients("d", "--keep-identity"),
    )
    assert len(own) == len(keyed) == 1 and own != keyed == again and kept == {"44556677"}
    assert re.fullmatch("[0-9a-f]{16}", *own) and (tmp_path / "a" / "patient_salt").stat().st_mode & 0o77 == 0
    assert b"44556677" not in b"".join(p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file())


def test_identity_is_told_to_who_asks_for_it(tmp_path):
    (tmp_path / "m.xml").write_bytes(muse(wave()))
    kept = readers.read_recording(tmp_path / "m.xml", keep_identity=True)
    assert (
        "Patient: 44556677" in kept.comments and "Name: Erna Umlauf" in kept.comments and kept.identity == {}
    )


# ---- DICOM's own ways


@pytest.fixture
def dicom(tmp_path):
    """The DICOM file that comes with pydicom, changed by a function: a path."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    def write(change):
        data = pydicom.dcmread(get_testdata_file("waveform_ecg.dcm", download=False))
        change(data.WaveformSequence[0])
        data.save_as(tmp_path / "x.dcm")
        return tmp_path / "x.dcm"

    return write


@pytest.mark.parametrize("size", [1000, 3000, 145_000])
def test_a_file_that_is_cut_short_is_damaged(dicom, size):
    path = dicom(lambda group: None)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(readers.Unusable, match="damaged: the DICOM file is cut short"):
        readers.read_recording(path)


def test_single_samples_of_the_padding_value_are_signal(dicom):
    """A run at an end, or a long gap, is padding; a zero crossing is none."""

    def change(group):
        samples = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12).copy()
        samples[samples == 0] = 1
        samples[[100, 200, 300]] = 0  # crossings
        samples[:50, 1] = samples[5000:5400, 2] = 0  # the beginning of II, 0.4 s within III
        group.add_new(0x5400100A, "OW", bytes(2))
        group.WaveformData = samples.tobytes()

    missing = np.isnan(readers.read_recording(dicom(change)).signal)
    assert missing.sum(axis=1).tolist() == [0, 50, 400, *[0] * 9]


@pytest.mark.parametrize("form", ["5.6.3-9-{}", "2:{}"])
def test_leads_are_named_by_their_codes_where_words_are_missing(dicom, form):
    numbers = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)

    def change(group):
        for channel, number in zip(group.ChannelDefinitionSequence, numbers, strict=True):
            channel.ChannelSourceSequence[0].CodeMeaning = "a channel"
            channel.ChannelSourceSequence[0].CodeValue = form.format(number)

    assert readers.read_recording(dicom(change)).leads == [*"I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()]


TWELVE = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()


@pytest.fixture
def grouped(tmp_path):
    """Write a DICOM file: a function of groups (leads, signal in mV, elements of the group or of all its channels)."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

    def coded(value):
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "UCUM", value
        return item

    def write(groups, big=False, kind="SS", form="i2", vr="OW", zero=0):
        sequence = []
        for leads, rows, more in groups:
            group = pydicom.Dataset()
            group.WaveformOriginality, group.SamplingFrequency = "ORIGINAL", "500"
            group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = rows.shape
            group.WaveformSampleInterpretation, group.WaveformBitsAllocated = (
                kind,
                8 * np.dtype(form).itemsize,
            )
            group.ChannelDefinitionSequence = []
            for lead in leads:
                channel = pydicom.Dataset()
                channel.ChannelSourceSequence, channel.ChannelSensitivityUnitsSequence = (
                    [coded(lead)],
                    [coded("uV")],
                )
                step = 1 if np.dtype(form).itemsize > 1 else 20
                channel.ChannelSensitivity, channel.ChannelBaseline = str(step), str(-zero * step)
                group.ChannelDefinitionSequence.append(channel)
            for name, value in more.items():
                for item in group.ChannelDefinitionSequence if name.startswith("Channel") else [group]:
                    setattr(item, name, value)
            counts = np.round(rows.T * 1000 / step) + zero
            data = np.where(np.isnan(counts), 7, counts).astype((">" if big else "<") + form).tobytes()
            group.add_new(0x54001010, vr, data + bytes(len(data) % 2))
            if np.isnan(counts).any():
                padding = np.array([7, 7], (">" if big else "<") + form)
                group.add_new(0x5400100A, vr, padding.tobytes()[: max(2, padding.itemsize)])
            sequence.append(group)
        data = pydicom.Dataset()
        data.WaveformSequence, data.PatientID = sequence, "p"
        data.AcquisitionDateTime = "20200101000000"
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRBigEndian if big else ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.preamble = bytes(128)
        pydicom.dcmwrite(tmp_path / "g.dcm", data, implicit_vr=False, little_endian=not big)
        return tmp_path / "g.dcm"

    return write


def test_leads_in_several_groups_are_one_recording(grouped):
    signal = wave(12, 4)
    at = {"MultiplexGroupTimeOffset": "0"}
    path = grouped([(TWELVE[:6], signal[:6], at), (TWELVE[6:], signal[6:], at)])
    read = readers.read_recording(path)
    assert read.leads == TWELVE and np.abs(read.signal - signal).max() < 6e-4
    path = grouped([(TWELVE[:6], signal[:6], {}), (TWELVE[6:], signal[6:], {})])  # no group says when
    assert readers.read_recording(path).leads == TWELVE
    # a longer strip of one lead, and beats under their name or as what is derived, are left out
    strip, beat = np.tile(signal[1:2], 3), signal[:, :600]
    for other in (
        (["II"], strip, {"MultiplexGroupLabel": "RHYTHM STRIP"}),
        (TWELVE, beat, {"MultiplexGroupLabel": "MEDIAN BEAT"}),
        ([*TWELVE, "X"], beat.repeat(2, 0)[:13], {"WaveformOriginality": "DERIVED"}),
    ):
        for groups in ([(TWELVE, signal, at), other], [other, (TWELVE, signal, at)]):
            read = readers.read_recording(grouped(groups))
            assert read.leads == TWELVE and np.abs(read.signal - signal).max() < 6e-4
    assert "representative beats" in reason(grouped([(TWELVE, beat, {"MultiplexGroupLabel": "Median Beat"})]))


def test_groups_are_at_their_own_times(grouped):
    """Three leads after another, and a strip of all the time."""
    signal = wave(12, 4)
    groups = [
        (
            TWELVE[i : i + 3],
            signal[i : i + 3, 500 * j : 500 * (j + 1)],
            {"MultiplexGroupTimeOffset": f"{1000 * j}"},
        )
        for j, i in enumerate(range(0, 12, 3))
    ]
    read = readers.read_recording(
        grouped([*groups, (["II"], signal[1:2], {"MultiplexGroupTimeOffset": "0.3"})])
    )
    assert sorted(read.leads) == sorted(TWELVE) and read.signal.shape == signal.shape
    for name, row in zip(read.leads, read.signal, strict=True):
        place = TWELVE.index(name)
        begin, end = (0, 2000) if name == "II" else (place // 3 * 500, place // 3 * 500 + 500)
        assert np.flatnonzero(np.isfinite(row)).tolist() == list(range(begin, end))
        assert np.abs(row[begin:end] - signal[place, begin:end]).max() < 6e-4
    for late in ("0.001", "1e12"):
        path = grouped([groups[0], (groups[1][0], groups[1][1][:, :300], {"MultiplexGroupTimeOffset": late})])
        assert (
            late == "0.001"
            and readers.read_recording(path).signal.shape == (6, 500)
            or "too large" in reason(path)
        )
    read = readers.read_recording(grouped([groups[3]]))
    assert read.start == datetime(2020, 1, 1, 0, 0, 3) and np.isfinite(read.signal).all()
    path = grouped([groups[0], (groups[1][0], groups[1][1], {})])
    assert "do not say when they begin" in reason(path)


@pytest.mark.parametrize(
    "skew", [{"ChannelSampleSkew": "10"}, {"ChannelTimeSkew": "0.02"}, {"ChannelTimeSkew": "-0.002"}]
)
def test_a_channel_that_is_late_is_refused(grouped, skew):
    signal = wave(12, 1)
    assert "skewed by" in reason(grouped([(TWELVE, signal, skew)]))
    small = {key: str(float(value) / 20) for key, value in skew.items()}
    assert readers.read_recording(grouped([(TWELVE, signal, small)])).signal.shape == signal.shape


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("kind", "form", "vr", "zero"),
    [
        ("SS", "i2", "OW", 0),
        ("US", "u2", "OW", 30000),
        ("SB", "i1", "OB", 0),
        ("UB", "u1", "OB", 100),
        ("SL", "i4", "OW", 0),
    ],
)
def test_samples_in_either_byte_order(grouped, big, kind, form, vr, zero):
    signal = wave(12, 1)
    signal[3, 300:500] = np.nan  # as the padding value
    read = readers.read_recording(
        grouped([(TWELVE, signal, {})], big=big, kind=kind, form=form, vr=vr, zero=zero)
    )
    assert np.array_equal(np.isnan(read.signal), np.isnan(signal))
    assert np.nanmax(np.abs(read.signal - signal)) < (6e-4 if form[1] == "2" else 0.011)


def test_samples_of_no_known_kind_are_refused(grouped):
    signal = wave(12, 1)
    for kind, form, vr, big in (
        ("SS", "i1", "OB", False),
        ("MB", "u1", "OB", False),
        ("UB", "u1", "OW", True),
    ):
        assert re.search(
            "samples of|companded",
            reason(grouped([(TWELVE, signal, {})], big, kind, form, vr, 100 if form == "u1" else 0)),
        )
    path = grouped([(TWELVE, signal, {"NumberOfWaveformSamples": 501})])
    assert "truncated" in reason(path)


def test_dicom_names_nobody(dicom):
    read = readers.read_recording(dicom(lambda group: None))
    assert not any(word in line for line in read.comments for word in ("642341", "Patient", "Name"))
    assert read.identity["Patient"] == "642341"
    bare = dicom(lambda group: None).rename(dicom(lambda group: None).with_suffix(""))
    assert readers.read_recording(bare).leads == read.leads  # recognised without an ending
