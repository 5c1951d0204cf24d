"""Recordings as CSV and TSV: whatever the dialect, the values are those that were written, or the table is refused."""

import csv
import io
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli import readers
from ecgbyte_cli.readers import delimited, limits

LEADS = ["I", "II", "V1"]
SIGNAL = (np.random.default_rng(1).normal(size=(3, 400)) * 0.5).round(4)


def table(
    separator=",",
    decimal=".",
    names=LEADS,
    signal=SIGNAL,
    above="",
    units="",
    end="\n",
    tail="",
    form="{:.4f}",
    quote="",
    times=None,
):
    """The text of a table; `times` gives the first cell of each row."""
    rows = [names if times is None else ["time", *names]]
    for i, values in enumerate(signal.T):
        cells = [form.format(value).replace(".", decimal) for value in values]
        rows.append([quote + cell + quote for cell in (cells if times is None else [times(i), *cells])])
    head, *body = (separator.join(row) + tail for row in rows)
    return above + end.join([head, *([units] if units else []), *body]) + end


def read(folder, text, fs=500, encoding="utf-8", **more):
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return readers.read_recording(path, fs, **more)


def refusal(folder, text, fs=500, **more):
    with pytest.raises(readers.Unusable) as error:
        read(folder, text, fs, **more)
    return error.value.message


def same(recording, signal, fs=500, leads=LEADS):
    assert recording.leads == leads and recording.fs == fs
    assert np.array_equal(recording.signal, np.asarray(signal).astype(np.float32), equal_nan=True)
    return True


DIALECTS = [
    (separator, decimal, end, encoding)
    for separator, decimal in itertools.product(",;\t|", ".,")
    for end, encoding in zip(
        ["\n", "\r\n", "\r", "\r\n", "\n"],
        ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-be"],
        strict=True,
    )
]
VALUES = st.floats(-9, 9, allow_nan=False).map(lambda value: round(value, 6))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES), min_size=12, max_size=30), st.booleans())
def test_a_table_is_the_same_in_all_dialects(tmp_path_factory, rows, exponent):
    folder = tmp_path_factory.mktemp("dialects")
    rows[3:3] = [(0.25, -0.5)]  # no thousands
    expected = np.array(rows, np.float32).T
    for separator, decimal, end, encoding in DIALECTS:
        out = io.StringIO()
        writer = csv.writer(out, delimiter=separator, lineterminator=end)
        writer.writerow(["I (mV)", "II [µV]"])
        form = "{!r}" if exponent else "{:.6f}"
        for one, other in rows:
            writer.writerow([form.format(v).replace(".", decimal) for v in (one, other)])
        recording = read(folder, out.getvalue(), encoding=encoding)
        assert recording.leads == ["I", "II"]
        assert np.array_equal(recording.signal[0], expected[0])
        assert np.allclose(recording.signal[1], expected[1] / 1000, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"above": "sep=;\n", "separator": ";", "decimal": ","},
        {"above": '"sep=,"\n'},
        {"above": "# made on a Monday\n# by someone, V1\n"},
        {"above": "# "},  # as NumPy's savetxt writes it
        {"above": "% ", "separator": "\t"},
        {"above": "# ", "separator": " "},
        {"above": "\n\n", "end": "\n\n"},
        {"above": "   \n", "end": "\n   \n"},
        {"above": "Name,Somebody\nGain,1000\nAge,63\n\n"},
        {"above": "Name;Somebody\nAge;63\n", "separator": ";", "decimal": ","},
        {"above": "A title\n", "separator": ";", "decimal": ","},
        {"tail": ","},
        {"tail": ";;", "separator": ";", "decimal": ","},
        {"quote": '"', "decimal": ","},
        {"separator": ", "},
        {"form": "{:10.4f}"},
        {"form": "{:+.4f}"},
        {"form": "{:.6e}"},
        {"form": "{:.6E}", "separator": ";", "decimal": ","},
        {"times": str},
    ],
)
def test_forms_of_a_table(tmp_path, change):
    assert same(read(tmp_path, table(**change)), SIGNAL)


def test_other_forms_of_cells(tmp_path):
    assert same(read(tmp_path, table().replace("-", "\N{MINUS SIGN}")), SIGNAL)
    assert same(read(tmp_path, table(";", ",") + ";;\n;;\n"), SIGNAL)  # as Excel ends tables
    assert same(read(tmp_path, table().replace("I,II,V1\n", "I,II,V1\n# begin\n") + "# end\n"), SIGNAL)
    assert same(
        read(tmp_path, table(names=["I", "II"], signal=SIGNAL[:2]).replace("\n", ",\n")),
        SIGNAL[:2],
        leads=LEADS[:2],
    )
    for cell in ("", "-", "NaN", "n/a"):
        lines = table().split("\n")
        lines[200] = f"0.1,{cell},0.3"
        expected = SIGNAL.copy()
        expected[:, 199] = 0.1, np.nan, 0.3
        assert same(read(tmp_path, "\n".join(lines)), expected)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_a_row_of_units(tmp_path, encoding):
    signal = np.vstack([SIGNAL[:2] * 1000, SIGNAL[2:]])
    text = table(";", ",", signal=signal, units="ms;µV;µV;mV", times=lambda i: str(4 * i))
    recording = read(tmp_path, text, None, encoding)
    assert recording.fs == 250 and np.allclose(recording.signal, SIGNAL, atol=1e-6)
    assert "no leads in volts" in refusal(tmp_path, table(units="counts,counts,counts"))


@pytest.mark.parametrize("decimal", ".,")
def test_a_single_column(tmp_path, decimal):
    text = table(names=["ECG"], signal=SIGNAL[:1], decimal=decimal)
    assert same(read(tmp_path, text), SIGNAL[:1], leads=["ECG"])
    text = table(names=["ECG"], signal=SIGNAL[:1], decimal=decimal, quote='"')
    assert same(read(tmp_path, text), SIGNAL[:1], leads=["ECG"])


def test_a_table_without_names(tmp_path):
    text = table().partition("\n")[2]
    assert same(read(tmp_path, text, lead_names=LEADS), SIGNAL)
    assert same(read(tmp_path, "0,1,2\n" + text, lead_names=LEADS), SIGNAL)  # as data frames are written
    assert "--lead-names" in refusal(tmp_path, text) and "--lead-names" in refusal(
        tmp_path, text, lead_names=["I"]
    )


@pytest.mark.parametrize(
    "line, cells, message",
    [
        (201, "0.1,abc,0.3", "not a number: 'abc' in line 201, column II"),
        (2, "0.1,abc,0.3", "not a number: 'abc' in line 2, column II"),
        (401, "0.1,0.2,1.2.3", "not a number: '1.2.3' in line 401, column V1"),
        (300, "0.1,0.2,1_000", "not a number: '1_000' in line 300, column V1"),
        (300, '0.1,0.2,"0,3"', "not a number: '0,3' in line 300, column V1"),
        (300, "0.1,0.2", "rows uneven: line 300 has 2 cells, but line 1 names 3"),
        (300, "0.1,0.2,0.3,0.4", "rows uneven: line 300 has 4 cells, but line 1 names 3"),
        (300, "the end", "rows uneven: line 300 has 1 cells, but line 1 names 3"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path, line, cells, message):
    lines = table().split("\n")
    lines[line - 1] = cells
    for end in ("\n", "\r\n", "\n\n"):
        shift = line - 1 if end == "\n\n" else 0
        assert message.replace(f"line {line}", f"line {line + shift}") in refusal(tmp_path, end.join(lines))


def test_a_bad_cell_in_other_dialects(tmp_path):
    lines = table(";", ",", above="sep=;\n", times=lambda i: f"{i / 500:.3f}".replace(".", ",")).split("\n")
    lines[300] = "0,596;0,1;1.234,5;0,3"
    assert refusal(tmp_path, "\n".join(lines)) == "not a number: '1.234,5' in line 301, column II"


@pytest.mark.parametrize(
    "text, message",
    [
        (
            table(decimal=","),
            "separator unclear: line 2 has 6 cells and line 1 3 names; decimal commas .* cannot be told apart",
        ),
        (
            "I;II\n" + "1,234;5,678\n" * 50,
            "decimal mark unclear: 1,234 in line 2 can be a decimal number or thousands",
        ),
        (
            "ECG\n" + "1,234\n" * 50,
            "decimal mark unclear: 1,234 in line 2 can be a decimal number or thousands",
        ),
        ("I;II\n" + "0,1;0.2\n" * 50, "decimal mark unclear: line 51 has points and commas"),
        ("I,Lead I\n" + "0.1,0.2\n" * 50, "two columns are lead I"),
        ("record,patient\na,b\nc,d\n", "no table of numbers"),
        ("I,II\n", "no table of numbers"),
        (b"PK\3\4 and more", "a spreadsheet or an archive; export it as CSV"),
        (b"I,II\n1,\0\n", "NUL"),
        ("", "no samples"),
        ("\n\n", "no samples"),
    ],
)
def test_what_is_not_sure_is_refused(tmp_path, text, message):
    assert re.search(message, refusal(tmp_path, text))


def test_notes_beside_the_leads_are_left_out(tmp_path):
    lines = table(names=["I", "II", "beat"]).split("\n")
    for i in range(1, 401, 7):
        lines[i] = lines[i].rpartition(",")[0] + ",N"
    assert same(read(tmp_path, "\n".join(lines)), SIGNAL[:2], leads=["I", "II"])


def test_long_tables_are_not_read_cell_by_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TABLE_CELLS_ONE_BY_ONE", 1000)
    assert "not a plain table of numbers" in refusal(tmp_path, table() + "a,b,c\n")
    monkeypatch.setattr(limits, "TABLE_CLOCKS", 100)
    assert "too large" in refusal(tmp_path, table(times=lambda i: f"0:{i / 500:06.3f}"))


# Times


def clock(rate, digits, missing=lambda i: 0):
    return lambda i: f"{(i + missing(i)) / rate:.{digits}f}"


@pytest.mark.parametrize("rate", [125, 128, 250, 257, 360, 500, 511.562, 512, 1000, 1024])
@pytest.mark.parametrize("digits", [3, 4, 6, 17])
def test_the_rate_comes_from_the_times(tmp_path, rate, digits):
    signal = np.tile(SIGNAL, 3)
    recording = read(tmp_path, table(times=clock(rate, digits), signal=signal), None)
    exact = rate != 511.562 or digits > 4
    assert recording.fs == rate if exact else abs(recording.fs - rate) < rate / 1000
    assert recording.signal.shape == signal.shape


@pytest.mark.parametrize(
    "times, name, fs",
    [
        (lambda i: str(2 * i), "time", None),  # ms, as no other unit fits
        (lambda i: str(2 * i), "Time (ms)", None),
        (lambda i: str(2 * i), "t_ms", None),
        (lambda i: str(2000 * i), "t [µs]", None),
        (lambda i: f"{2e-3 * i:.18e}", "Zeit [s]", None),
        (lambda i: f"{1_700_000_000 + i / 500:.3f}", "timestamp", None),
        (lambda i: f"'0:{i / 500:06.3f}'", "'Elapsed time'", None),
        (lambda i: f"2024-01-01 12:00:{i / 500:06.3f}", "datetime", None),
        (lambda i: f"{i / 500:.2f}", "time", 500),
        (str, "time", 500),
        (lambda i: str(1000 + i), "sample #", 500),
        (lambda i: str(i), "", 500),  # as data frames are written
    ],
)
def test_units_and_forms_of_times(tmp_path, times, name, fs):
    text = table(times=times).replace("time,", f"{name},", 1)
    assert same(read(tmp_path, text, fs), SIGNAL)


@pytest.mark.parametrize("rate", [250, 360, 500, 1000])
@pytest.mark.parametrize("length", [1, 100])
@pytest.mark.parametrize("digits", [3, 6])
def test_gaps_are_missing_samples(tmp_path, rate, length, digits):
    text = table(times=clock(rate, digits, lambda i: length * (i >= 150)))
    expected = np.insert(SIGNAL, [150] * length, np.nan, axis=1)
    assert same(read(tmp_path, text, None), expected, rate) and same(
        read(tmp_path, text, rate), expected, rate
    )


def test_gaps_in_the_numbers_of_the_samples(tmp_path):
    lines = table(times=str).replace("time,", ",", 1).split("\n")
    del lines[101:111]
    expected = SIGNAL.copy()
    expected[:, 100:110] = np.nan
    assert same(read(tmp_path, "\n".join(lines)), expected)


@pytest.mark.parametrize(
    "times, fs, message",
    [
        (
            clock(500, 4, lambda i: 100.4 * (i >= 150)),
            None,
            "line 152, column time: the times are not evenly",
        ),
        (clock(500, 4, lambda i: 0.3 * (-1) ** i), None, "not evenly spaced"),
        (clock(500, 3, lambda i: max(i - 200, 0)), None, "not evenly spaced"),
        (clock(500, 3, lambda i: -50 * (i >= 150)), 500, "line 152, column time: the time goes back"),
        (clock(500, 3, lambda i: -1 * (i >= 150)), 500, "line 152, column time: the times are not evenly"),
        (lambda i: "" if i == 150 else f"{i / 500:.3f}", 500, "line 152, column time: the time is missing"),
        (lambda i: "x" if i == 150 else f"{i / 500:.3f}", 500, "not a number: 'x' in line 152, column time"),
        (
            lambda i: f"2024-01-0{1 + i // 200} 0:00:{i / 500:06.3f}",
            500,
            "line 202, column time: the date changes",
        ),
        (clock(500, 3), 250, "500 Hz by the times, but --input-fs is 250 Hz"),
        (clock(500, 2), None, "too coarse"),
        (str, None, "may be samples or milliseconds"),
        (lambda i: str(10**9 * i), None, "not a step of an ECG"),
        (lambda i: "0", 500, "does not advance"),
    ],
)
def test_times_that_do_not_fit_are_refused(tmp_path, times, fs, message):
    assert message in refusal(tmp_path, table(times=times), fs)


def test_a_gap_of_years_is_refused_before_room_is_made_for_it(tmp_path):
    text = table(times=lambda i: str(2 * i + 10**11 * (i >= 150)))
    assert "too large" in refusal(tmp_path, text)


# Exports of watches


ENGLISH = (
    'Name,Somebody\nDate of Birth,"Jan 8, 2002"\nRecorded Date,2026-05-30 16:32:18 -0700\nClassification,Sinus Rhythm\n'
    'Symptoms,\nSoftware Version,1.90\nDevice,"Watch7,12"\nSample Rate,512 hertz\n\n\nLead,Lead I\nUnit,µV\n\n'
)
GERMAN = (
    'Name\nGeburtstag,"27.03.1987"\nAufzeichnungsdatum,2020-07-31 22:48:19 +0200\nKlassifizierung,Sinusrhythmus\n'
    'Symptome,\nSoftwareversion,1.13\nGerät,"Watch4,2"\nMessrate,511,562\N{NO-BREAK SPACE}Hertz\n\n\n'
    "Ableitung,Ableitung I\nEinheit,µV\n\n"
)


@pytest.mark.parametrize("head, decimal, fs", [(ENGLISH, ".", 512), (GERMAN, ",", 511.562)])
@pytest.mark.parametrize("digits", [1, 3])
def test_exports_of_a_watch(tmp_path, head, decimal, fs, digits):
    values = np.append(SIGNAL[0] * 1000, [12, -0.5]).round(digits)
    cells = [f"{value:.{digits}f}".rstrip("0").rstrip(".").replace(".", decimal) for value in values]
    recording = read(tmp_path, head + "\n".join(cells) + "\n", None)
    assert recording.leads == ["I"] and recording.fs == fs
    assert np.allclose(recording.signal[0], values / 1000, atol=1e-7)
    cells[100] = "abc"
    line = head.count("\n") + 101
    assert refusal(tmp_path, head + "\n".join(cells), None) == f"not a number: 'abc' in line {line}, column I"


def test_a_short_export_of_a_watch(tmp_path):
    recording = read(tmp_path, GERMAN.replace("511,562", "512") + "57,992\n62,414\n-66,502\n", None)
    assert recording.fs == 512 and np.allclose(recording.signal, [[0.057992, 0.062414, -0.066502]], atol=1e-9)


@pytest.mark.parametrize(
    "setting, fs",
    [
        ("Sample Rate,512 hertz", 512),
        ("Sampling frequency: 360 Hz", 360),
        ("# fs = 250", 250),
        ("Abtastrate;0,5 kHz", 500),
        ("Sampling rate: 1,000 Hz", 1000),
        ('"Samplingsfrekvens","256 Hz"', 256),
    ],
)
def test_a_rate_above_the_names(tmp_path, setting, fs):
    text = table(";", ",", above=setting + "\nNotch: 50 Hz\nSamples: 400\n")
    assert same(read(tmp_path, text, None), SIGNAL, fs)
    assert same(read(tmp_path, text, 100), SIGNAL, fs)  # what the file states goes before


def test_other_numbers_above_the_names_are_no_rate(tmp_path):
    text = table(above="Notch: 50 Hz\nSamples: 400\nSample rate: 60 bpm\n")
    assert "--input-fs" in refusal(tmp_path, text, None)
    assert "two ways" in refusal(tmp_path, table(above="Sample rate: 50,000 Hz\n"), None)


def test_a_unit_above_the_names(tmp_path):
    recording = read(tmp_path, table(above="Unit,µV\n", signal=SIGNAL * 1000))
    assert np.allclose(recording.signal, SIGNAL, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("record,label\n1,AF\n2,SR\n3,SR\n", True),
        ("ecg_id,age,report\n1,56,sinus rhythm\n2,19,\n3,37,sinus rhythm\n", True),
        (",description,form\nNDT,non-diagnostic,1.0\nNST_,non-specific,\nDIG,digitalis,1.0\n", True),
        ("time,I,II,note\n0.000,0.1,0.2,a\n0.002,0.1,0.2,b\n0.004,0.1,0.2,\n", False),
        ("time,ch1,note\n0.000,0.1,a\n0.002,0.1,b\n0.004,0.1,c\n", False),
        ("I,note\n0.1,a\n0.2,b\n0.3,c\n", False),
        ("ch1,ch2\n0.1,0.2\n0.1,0.3\n0.2,0.3\n", False),
        ("0:00.000,1\n0:00.002,2\n0:00.004,3\n", False),
        ("Name,X Y\nSample Rate,512 hertz\nLead,Lead I\nUnit,mV\n\n0.1\n0.2\n0.3\n0.4\n0.5\n0.6\n", False),
        ("", False),
    ],
)
def test_a_table_of_words_is_no_recording(tmp_path, text, is_list):
    (tmp_path / "table.csv").write_text(text)
    assert delimited.is_list(str(tmp_path / "table.csv")) == is_list
    (tmp_path / "rec.csv").write_text("time,I,II\n0.000,0.1,0.2\n0.002,0.1,0.2\n0.004,0.1,0.2\n")
    found, skipped = readers.find(tmp_path)
    assert [Path(path).name for path in found] == ["rec.csv", *([] if is_list else ["table.csv"])]
    assert ["a table of words" in reason for _, reason in skipped] == [True] * is_list
