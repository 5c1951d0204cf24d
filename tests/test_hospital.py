"""Recordings as hospitals export them: read, refused with the right reason, and without anybody's name."""

import base64
import os
import random
import re
import time
import warnings
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
        readers.read(path)
    return caught.value.message


@pytest.fixture
def hospital_data(real_data):
    return real_data / "hospital"


# ---- the real files


def test_the_same_ecg_in_three_formats(hospital_data):
    """As SCP-ECG, aECG and DICOM: equal to the sample."""
    scp, aecg, dicom = (
        readers.read(hospital_data / name)
        for name in ("ecgtoolkit_Example.scp", "fda_subject1_0.xml", "ecgtoolkit_Example.dcm")
    )
    assert scp.fs == aecg.fs == dicom.fs == 500 and scp.signal.shape == (12, 5000)
    for other in (aecg, dicom):
        order = [[readers.lead_name(name) for name in other.leads].index(name) for name in scp.leads]
        np.testing.assert_allclose(other.signal[order], scp.signal, atol=1e-6)


def test_muse_against_numbers_decoded_here(hospital_data):
    text = (hospital_data / "muse_example.xml").read_text(encoding="latin-1")
    rhythm = next(w for w in text.split("<Waveform>")[1:] if "<WaveformType>Rhythm" in w)
    read = readers.read(hospital_data / "muse_example.xml")
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
    from ecgbyte_cli.workdir import read_table

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
    read = readers.read(tmp_path / f"{name}.xml")
    assert read.leads == LEADS and read.fs == 500 and read.signal.shape == signal.shape
    assert np.abs(read.signal - signal).max() <= step / 2 + 1e-6


def test_the_rhythm_is_read_and_not_the_median_beat(tmp_path):
    signal = wave()
    (tmp_path / "both.xml").write_bytes(muse(signal, median=np.ones((8, 600), np.float32)))
    assert readers.read(tmp_path / "both.xml").signal.shape == signal.shape
    (tmp_path / "median.xml").write_bytes(muse(wave(seconds=1), rhythm="Median"))
    assert reason(tmp_path / "median.xml")


def test_what_is_told_and_what_is_not(tmp_path):
    (tmp_path / "m.xml").write_bytes(muse(wave()))
    read = readers.read(tmp_path / "m.xml")
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
                read = readers.read(path)
            assert read.signal.dtype == np.float32 and len(read.leads) == len(read.signal)
        except Unusable as error:
            assert error.message and "\n" not in error.message
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 5


# ---- whose they are


def test_a_patient_is_a_hash_that_the_key_decides(tmp_path, ecgbyte):
    """Two recordings of one patient stay one; another key, another name; --keep-identity keeps the number."""
    from ecgbyte_cli.workdir import WorkDir, read_table

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
    kept = readers.read(tmp_path / "m.xml", keep_identity=True)
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


def test_single_samples_of_the_padding_value_are_signal(dicom):
    """A run at an end, or a long gap, is padding; a zero crossing is none."""

    def change(group):
        samples = np.frombuffer(group.WaveformData, "<i2").reshape(-1, 12).copy()
        samples[samples == 0] = 1
        samples[[100, 200, 300]] = 0  # crossings
        samples[:50, 1] = samples[5000:5400, 2] = 0  # the beginning of II, 0.4 s within III
        group.add_new(0x5400100A, "OW", bytes(2))
        group.WaveformData = samples.tobytes()

    missing = np.isnan(readers.read(dicom(change)).signal)
    assert missing.sum(axis=1).tolist() == [0, 50, 400, *[0] * 9]


@pytest.mark.parametrize("form", ["5.6.3-9-{}", "2:{}"])
def test_leads_are_named_by_their_codes_where_words_are_missing(dicom, form):
    numbers = (1, 2, 61, 62, 63, 64, 3, 4, 5, 6, 7, 8)

    def change(group):
        for channel, number in zip(group.ChannelDefinitionSequence, numbers, strict=True):
            channel.ChannelSourceSequence[0].CodeMeaning = "a channel"
            channel.ChannelSourceSequence[0].CodeValue = form.format(number)

    assert readers.read(dicom(change)).leads == [*"I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()]


def test_dicom_names_nobody(dicom):
    read = readers.read(dicom(lambda group: None))
    assert not any(word in line for line in read.comments for word in ("642341", "Patient", "Name"))
    assert read.identity["Patient"] == "642341"
    bare = dicom(lambda group: None).rename(dicom(lambda group: None).with_suffix(""))
    assert readers.read(bare).leads == read.leads  # recognised without an ending
