"""The ECG sheet: what an SVG of it says is what was recorded, where it lies is where paper has it."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import Recording
from ecgbyte_cli.render import svg_sheet
from ecgbyte_cli.signal.preprocess import LEADS

NS = {"s": "http://www.w3.org/2000/svg"}
FS = 250


@pytest.fixture
def signal():
    """12 s of twelve leads: a wave of 1.5 mV every second, each lead with an offset and a size of its own."""
    time = np.arange(12 * FS) / FS
    wave = np.exp(-(((time + 0.5) % 1 - 0.5) ** 2) / (2 * 0.02**2))
    return np.stack([0.1 * i + (0.5 + 0.1 * i) * wave for i in range(12)]).astype(np.float32)


def drawn(signal, leads=LEADS, title="record", fs=FS, **options):
    return ET.fromstring(svg_sheet.svg_sheet(Recording(signal, fs, list(leads), title, "r"), **options))


def groups(svg):
    return svg.findall("s:g[@class='lead']", NS)


def points(path):
    return np.array([[float(v) for v in p.split()] for p in re.split("[ML]", path.get("d"))[1:]])


def read_back(svg, group):
    """Times in s and values in mV of a lead, from nothing but the drawing."""
    xy, told = points(group.find("s:path", NS)), group.attrib
    seconds = float(told["data-start"]) + (xy[:, 0] - float(told["data-x"])) / float(svg.get("data-speed"))
    mv = float(told["data-baseline"]) + (float(told["data-y"]) - xy[:, 1]) / float(svg.get("data-gain"))
    return seconds, mv


@pytest.mark.parametrize(
    "layout, first, count",
    [("3x4", ["I", "aVR", "V1", "V4"], 13), ("6x2", ["I", "V1"], 12), ("12x1", ["I"], 12)],
)
def test_layouts(signal, layout, first, count):
    svg = drawn(signal, layout=layout)
    names = [group.get("data-lead") for group in groups(svg)]
    assert names[: len(first)] == first and len(names) == count and set(names) == set(LEADS)
    assert [group.find("s:text", NS).text for group in groups(svg)] == names
    assert svg.get("data-layout") == layout
    rows = {(group.get("data-top"), group.get("data-bottom")) for group in groups(svg)}
    assert len(rows) == {"3x4": 4, "6x2": 6, "12x1": 12}[layout]
    # a row lies under another
    edges = sorted((float(top), float(bottom)) for top, bottom in rows)
    assert all(bottom <= top for (_, bottom), (top, _) in zip(edges, edges[1:], strict=False))
    assert len(svg.findall("s:path[@class='pulse']", NS)) == len(rows)


@pytest.mark.parametrize("speed", svg_sheet.SPEEDS)
@pytest.mark.parametrize("gain", svg_sheet.GAINS)
def test_the_signal_can_be_read_back(signal, speed, gain):
    svg = drawn(signal, start=1.0, seconds=8.0, speed=speed, gain=gain)
    for group in groups(svg):
        seconds, mv = read_back(svg, group)
        start, length = float(group.get("data-start")), float(group.get("data-seconds"))
        assert start <= seconds[0] and seconds[-1] < start + length
        assert length == (8 if len(seconds) == 8 * FS else 2)
        at = np.round(seconds * FS).astype(int)
        assert np.abs(seconds * FS - at).max() < 0.1  # a hundredth of a millimetre
        np.testing.assert_allclose(
            mv, signal[LEADS.index(group.get("data-lead")), at], atol=0.006 / gain + 1e-3
        )


@pytest.mark.parametrize("speed, gain", [(25, 10), (50, 20)])
def test_a_unit_is_a_millimetre(signal, speed, gain):
    svg = drawn(signal, speed=speed, gain=gain)
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert (svg.get("width"), svg.get("height")) == (f"{width:g}mm", f"{height:g}mm")
    pulse = svg.find("s:path[@class='pulse']", NS).get("d")
    assert f"v-{gain}h{0.2 * speed:g}v{gain}" in pulse
    pattern = svg.find("s:defs/s:pattern", NS)
    assert (pattern.get("width"), pattern.get("height"), pattern.get("patternUnits")) == (
        "5",
        "5",
        "userSpaceOnUse",
    )
    # the first second begins on a strong line
    assert float(groups(svg)[0].get("data-x")) % 5 == 0
    assert f"{speed} mm/s" in "".join(svg.itertext()) and f"{gain} mm/mV" in svg.get("aria-label")


def test_close_points_keep_their_extremes(signal):
    fine = np.repeat(signal, 40, axis=1)  # 10 kHz
    fine[1, 12345] = 3.0
    svg = drawn(fine, fs=40 * FS, layout="12x1")
    seconds, mv = read_back(svg, groups(svg)[1])
    assert len(mv) < fine.shape[1] / 10
    assert mv.max() == pytest.approx(3.0, abs=0.01)
    assert seconds[mv.argmax()] == pytest.approx(12345 / (40 * FS), abs=0.002)


def test_gaps_are_not_bridged(signal):
    signal[1, 500:600] = np.nan
    signal[0] = np.nan
    svg = drawn(signal, layout="12x1")
    path = groups(svg)[1].find("s:path", NS)
    assert path.get("d").count("M") == 2
    seconds, _ = read_back(svg, groups(svg)[1])
    assert not np.any((seconds > 2.0) & (seconds < 2.39))
    assert groups(svg)[0].find("s:path", NS).get("d") == ""
    ET.fromstring(svg_sheet.svg_thumbnail(Recording(signal[:1], FS, ["I"], "r", "r")))


def test_what_is_far_off_stays_on_the_paper(signal):
    signal[2] *= 1e6
    svg = drawn(signal, layout="12x1")
    height = float(svg.get("viewBox").split()[3])
    assert height < 600
    assert points(groups(svg)[2].find("s:path", NS))[:, 1].max() < height


def test_other_leads_stand_one_under_another(signal):
    svg = drawn(signal[:3], ["MLII", "V5", "x"], layout="3x4")
    assert [group.get("data-lead") for group in groups(svg)] == ["MLII", "V5", "x"]
    assert svg.get("data-layout") == "12x1"
    assert len(groups(drawn(np.zeros((40, 500)), [f"c{i}" for i in range(40)]))) == svg_sheet.MOST_ROWS


def test_leads_can_be_chosen(signal):
    assert [g.get("data-lead") for g in groups(drawn(signal, leads=LEADS))] != ["V2", "II"]
    svg = ET.fromstring(
        svg_sheet.svg_sheet(Recording(signal, FS, LEADS, "r", "r"), leads=["V2", "II"], title="t")
    )
    assert [group.get("data-lead") for group in groups(svg)] == ["V2", "II"]
    np.testing.assert_allclose(read_back(svg, groups(svg)[0])[1], signal[7, : 10 * FS], atol=2e-3)


def test_the_last_stretch_may_be_short(signal):
    svg = drawn(signal, start=10.0)
    assert svg.get("data-seconds") == "2"
    seconds, _ = read_back(svg, groups(svg)[12])
    assert seconds[-1] == pytest.approx(12 - 1 / FS, abs=1e-3)


@pytest.mark.parametrize("name", ["<script>x</script>\"'&", "a\x00\x1bb", "]]>", "\u202e\ud800"])
def test_names_are_text(signal, name):
    made = svg_sheet.svg_sheet(Recording(signal[:2], FS, [name, "II"], name, "r"))
    svg = ET.fromstring(made)  # well-formed, whatever the name
    assert "<script" not in made and "\x00" not in made
    made.encode()
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    assert groups(svg)[0].get("data-lead") == shown
    assert svg.find("s:text[@class='title']", NS).text == shown


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "2x2"},
        {"speed": 30},
        {"gain": 0},
        {"start": 12.0},
        {"start": -1.0},
        {"seconds": 0.0},
        {"seconds": 1e9},
    ],
)
def test_what_cannot_be_drawn_is_said(signal, options):
    with pytest.raises(Failure):
        drawn(signal, **options)


def test_leads_that_follow_are_derived(signal):
    leads = ["i", "ii", "v1", "v2", "v3", "v4", "v5", "v6", "vx"]
    eight = Recording(signal[[0, 1, 6, 7, 8, 9, 10, 11, 2]], FS, leads, "r", "r")
    made, names = svg_sheet.drawable_leads(eight, 1.0, 2.0)
    assert names == [*LEADS, "vx"] and made.shape == (13, 2 * FS)
    np.testing.assert_allclose(made[2], signal[1, FS : 3 * FS] - signal[0, FS : 3 * FS], atol=1e-6)
    two = Recording(signal[:2], FS, ["MLII", "V5"], "r", "r")
    assert svg_sheet.drawable_leads(two)[1] == ["MLII", "V5"]
