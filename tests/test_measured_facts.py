"""Measurements where people look: the panel, the line above a sheet, the picture of the median beat."""

from xml.etree import ElementTree

import numpy as np
import pytest
from test_measured_answers import NORMAL

from ecgbyte_cli import Failure, Measurement, Recording, measure, readers
from ecgbyte_cli.render.beat_figure import plot_beat
from ecgbyte_cli.render.measured_facts import measured_facts, sheet_line
from ecgbyte_cli.render.svg_sheet import svg_sheet
from ecgbyte_cli.signal.measure import measure_stretch


@pytest.fixture
def recording(small):
    return readers.read_recording(sorted((small / "data").rglob("*.hea"))[0])


def test_facts_of_the_panel():
    silent = Recording(
        np.zeros((1, 100), np.float32), 100.0, ["I"], "x", "x", comments=["Age: 59", "Sex: Female"]
    )
    assert measured_facts(silent, NORMAL) == {
        "heart rate": "72 per minute (mean over 0 beats)",
        "intervals": "PR 164 ms, QRS 94 ms, QT 388 ms, QTc 426 (Bazett), 413 ms (Fridericia)",
        "axis": "40 degrees (QRS)",
        "patient": "59 years, female",
    }
    measured = Measurement(
        rate_bpm=80.0, beats=9, qrs_ms=90.0, flags=["irregular", "flat V2"], quality={"pr_ms": "no P waves"}
    )
    assert measured_facts(silent, measured) == {
        "heart rate": "80 per minute (mean over 9 beats, irregular)",
        "intervals": "QRS 90 ms, no PR: no P waves",
        "remarks": "flat V2",
        "patient": "59 years, female",
    }
    assert measured_facts(silent, Measurement(quality={"all": "no beats: noise"}))["heart rate"] == (
        "not measurable: no beats: noise"
    )


def test_the_line_above_a_sheet_is_of_the_stretch_that_is_drawn(recording):
    measured = measure_stretch(recording, 0, 10)
    root = ElementTree.fromstring(svg_sheet(recording, 0))
    (line,) = [text.text for text in root.iter() if text.get("class") == "measured"]
    assert line == sheet_line(recording, 0) and f"{measured.rate_bpm:.0f}/min" in line
    assert f"QRS {measured.qrs_ms:.0f} ms" in line


def test_a_sheet_of_no_ecg_has_no_values():
    flat = Recording(np.zeros((1, 1000), np.float32), 100.0, ["I"], "x", "x")
    assert sheet_line(flat) == "" and "<svg" in svg_sheet(flat)


def test_a_median_beat_is_drawn_in_each_lead_with_the_boundaries_that_were_measured(recording):
    measured = measure(recording)
    axes = plot_beat(measured, "a$b").axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert [lead for lead in measured.median_leads if lead not in texts] == []
    assert texts.count("QRS") == len(measured.median_leads)
    assert texts.count("P") == (len(measured.median_leads) if "p_onset" in measured.boundaries else 0)
    line = axes.lines[0]  # of the first lead, whose onset is where the boundary is drawn
    onset = next(part for part in axes.collections if part.get_linestyle() != [(0, None)]).get_segments()[0][
        0
    ][0]
    names = [name for name in ("p_onset", "qrs_onset") if name in measured.boundaries]
    expected = line.get_xdata()[0] + (measured.boundaries[names[0]] - measured.median_times[0]) / 40
    assert onset == pytest.approx(expected)


def test_what_has_no_beats_has_no_picture():
    with pytest.raises(Failure, match="x has no median beat: too short: 1 s"):
        plot_beat(Measurement(quality={"all": "too short: 1 s"}), "x")


def test_plot_beat(recording, small, tmp_path, ecgbyte):
    out = tmp_path / "beat.svg"
    result = ecgbyte("plot", "beat", recording.path, "--out", out, work=small / "ecgbyte-work")
    assert result.stdout.strip() == str(out) and "<svg" in out.read_text()
