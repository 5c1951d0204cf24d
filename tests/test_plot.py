"""Pictures: written in the format asked for, of what was asked for."""

import json
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_cli.failure import printable
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.render import figures
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir


@pytest.fixture
def record(small):
    return small / "data" / "synth00001"


def test_the_pictures_are_of_the_size_to_be_read(small, record, tmp_path, ecgbyte):
    for kind in ("ecg", "tokens"):
        result = ecgbyte(
            "plot", kind, record, "--out", tmp_path / "x.png", "--json", work=small / "ecgbyte-work"
        )
        assert json.loads(result.stdout)["picture"] == str(tmp_path / "x.png")
        head = (tmp_path / "x.png").read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", head[16:20])[0] >= 1200


def test_the_default_place_is_the_work_folder(small, record, ecgbyte):
    result = ecgbyte("plot", "ecg", record, work=small / "ecgbyte-work")
    assert result.stdout.strip() == str(small / "ecgbyte-work" / "pictures" / "synth00001-ecg.png")


def test_the_tokens_picture_draws_every_token_of_the_lead(small, record, ecgbyte, monkeypatch):
    drawn = {}
    real = figures.plot_tokens

    def spy(signal, decoded, fs, lead, ids, starts, stops, title):
        drawn.update(signal=signal, fs=fs, lead=lead, ids=ids, starts=starts, stops=stops)
        return real(signal, decoded, fs, lead, ids, starts, stops, title)

    monkeypatch.setattr(figures, "plot_tokens", spy)
    result = ecgbyte("plot", "tokens", record, "--lead", "V1", "--json", work=small / "ecgbyte-work")
    assert json.loads(result.stdout)["tokens"] == len(drawn["ids"])
    assert drawn["lead"] == "V1" and drawn["signal"].shape == (1000,) and drawn["fs"] == 100
    assert drawn["starts"][0] == 0 and drawn["stops"][-1] == 1000
    assert (drawn["starts"][1:] == drawn["stops"][:-1]).all()


def test_twelve_leads_make_the_usual_sheet(small, record):
    from ecgbyte_cli import readers

    recording = readers.read_recording(record)
    axes = figures.plot_sheet(recording.signal, recording.fs, recording.leads, "title").axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert [lead for row in figures.SHEET for lead in row] == shown[:12] and shown[12] == "II"
    assert "25 mm/s" in shown[13]
    two = figures.plot_sheet(recording.signal[:2], recording.fs, ["I", "II"], "title").axes[0]
    assert [text.get_text() for text in two.texts][:2] == ["I", "II"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ecg", "nowhere"], "nowhere"),
        (["tokens", "RECORD", "--lead", "V6"], "no lead V6"),
        (["ecg", "RECORD", "--start", "99"], "outside"),
        (["ecg", "RECORD", "--out", "x.bmp"], "x.bmp"),
        (["distribution", "nobody"], "nobody"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(small, record, ecgbyte, args, said):
    result = ecgbyte("plot", *[record if a == "RECORD" else a for a in args], work=small / "ecgbyte-work")
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_distribution_counts_the_tokens_of_a_record_or_of_all(
    small, record, tmp_path, ecgbyte, monkeypatch
):
    work = WorkDir(small / "ecgbyte-work")
    tokens, places = read_array(work.tokens), read_table(work.token_segments)
    lengths = ECGTokenizer.from_file(work.ecg_tokenizer).lengths
    drawn = []
    real = figures.plot_token_distribution
    monkeypatch.setattr(figures, "plot_token_distribution", lambda *args: drawn.append(args) or real(*args))
    for name, segments in (("all", 64), ("synth00001", 1)):
        out = tmp_path / f"{name}.svg"
        result = ecgbyte("plot", "distribution", name, "--out", out, "--json", work=work.root)
        assert result.exit_code == 0 and "<svg" in out.read_text()[:1000]
        told = json.loads(result.stdout)
        counts, milliseconds, per_segment, _ = drawn[-1]
        # every segment has 2 leads of 10 s
        assert (counts * milliseconds).sum() == segments * 20_000 and np.array_equal(
            milliseconds, 10 * lengths
        )
        assert told["tokens"] == counts.sum() == per_segment.sum() and told["segments"] == segments
        assert told["different"] == (counts > 0).sum()
    assert np.array_equal(drawn[0][0], np.bincount(tokens, minlength=200))
    i = read_table(work.symbol_segments)["record"].index("synth00001")
    own = tokens[places["offset"][i] :][: places["length"][i]]
    assert np.array_equal(drawn[1][0], np.bincount(own, minlength=200))


# Names are what they are ---------------------------------------------------------------------------------------

ODD = [
    "a$\\frac$",
    "$x$",
    "a_b^{c}$$",
    "\\$",
    "x\ny",
    "\x1b[31mred",
    "<b>&amp;",
    "\u202ereversed",
    "%s{}",
    "$" * 3,
]


def with_names(leads, name):
    """A figure of each kind: several leads and words, and a title."""
    signal = np.random.default_rng(0).normal(0, 0.3, (len(leads), 500))
    density, values = np.full(signal.shape, 1 / signal.size), np.full(len(leads), 0.4)
    places = np.array([3]), np.array([0]), np.array([500])
    return [
        figures.plot_attribution(signal, 100.0, leads, density, leads, values, name),
        figures.plot_tokens(signal[0], signal[0], 100.0, name, *places, name),
        figures.plot_token_distribution(np.array([3, 1]), np.array([10.0, 20.0]), np.array([4]), name),
    ]


def texts_of(drawn, name):
    """The texts of figures, and those with a name, none of which is read as mathematics."""
    shown = [
        text for figure in drawn for text in figure.findobj(match=lambda x: hasattr(x, "get_parse_math"))
    ]
    named = [text for text in shown if printable(name) in text.get_text()]
    assert not any(text.get_parse_math() for text in named)
    assert all(text.get_text().replace("\n", "").isprintable() for text in shown)
    return named


@pytest.mark.parametrize("name", ODD)
def test_names_of_every_kind_are_drawn_as_they_are(name, tmp_path):
    drawn = with_names([name, "V1"], name)
    assert len(texts_of(drawn, name)) >= 5
    for figure in drawn:
        figures.save_figure(figure, tmp_path / "x.svg")


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_names_of_every_kind_are_drawn_in_every_format(ending, tmp_path):
    drawn = with_names(ODD, " ".join(ODD))
    assert all(texts_of(drawn, name) for name in ODD)
    for figure in drawn:
        figures.save_figure(figure, tmp_path / f"x.{ending}")


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0\n\r"), min_size=1, max_size=12))
def test_a_question_of_any_text_can_be_drawn(tmp_path_factory, text):
    signal, density = np.zeros((1, 100)), np.ones((1, 100)) / 100
    figure = figures.plot_attribution(signal, 100.0, ["II"], density, [text], np.array([0.5]), f"r: {text}")
    figures.save_figure(figure, tmp_path_factory.mktemp("drawn") / "x.png")


@pytest.mark.parametrize("kind", ["ecg", "tokens", "attention"])
def test_a_recording_with_an_odd_name_is_drawn(small, tmp_path, ecgbyte, kind):
    # the header names its signal file, so that the record may be called otherwise
    shutil.copy(small / "data" / "synth00001.dat", tmp_path)
    shutil.copy(small / "data" / "synth00001.hea", tmp_path / "a$\\frac$ [b].hea")
    out = tmp_path / "x.svg"
    # odd, and still a question that the model was trained on
    args = [tmp_path / "a$\\frac$ [b].hea", "--out", out, "-q", "is the $rhythm$ [what] \x1b[it]?"]
    result = ecgbyte("plot", kind, *args, work=small / "ecgbyte-work")
    assert result.exit_code == 0, result.stderr
    assert out.exists() and "\x1b" not in result.output


# Recordings are read as symbolize was told ----------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Two leads as CSV and as NumPy, which say neither rate nor unit: 10 s at 250 Hz, in microvolts."""
    time = np.arange(2500) / 250
    signal = 1000 * np.exp(-(((time % 1) - 0.5) ** 2) / (2 * 0.02**2))
    signal = np.stack([signal, -signal])
    np.savetxt(tmp_path / "c.csv", signal.T, delimiter=",", header="II,V1", comments="")
    np.save(tmp_path / "n.npy", signal)
    return tmp_path


def drawn_signal(monkeypatch):
    seen, real = {}, figures.plot_sheet
    monkeypatch.setattr(
        figures,
        "plot_sheet",
        lambda *args: seen.update(zip(("mv", "fs", "leads"), args[:3], strict=True)) or real(*args),
    )
    return seen


@pytest.mark.parametrize("name", ["c.csv", "n.npy"])
def test_what_a_file_does_not_say_is_told_by_options(table, ecgbyte, monkeypatch, name):
    seen = drawn_signal(monkeypatch)
    options = ["--input-fs", 250, "--units", "uV", "--lead-names", "II, V1", "--out", table / "x.png"]
    result = ecgbyte("plot", "ecg", table / name, *options)
    assert result.exit_code == 0, result.stderr
    assert (
        seen["fs"] == 250 and seen["leads"] == ["II", "V1"] and seen["mv"].max() == pytest.approx(1, abs=0.01)
    )
    assert "--input-fs" in ecgbyte("plot", "ecg", table / "c.csv", "--out", table / "x.png").stderr


def test_a_recording_is_read_with_the_options_that_symbolize_was_given(table, small, ecgbyte, monkeypatch):
    work = table / "work"
    told = ["--input-fs", 250, "--units", "uV", "--lead-names", "II,V1"]
    (table / "in").mkdir()
    shutil.move(table / "n.npy", table / "in" / "n.npy")
    run = ecgbyte(
        *(
            "symbolize",
            table / "in",
            *told,
            "--profile",
            "resample",
            "--fs",
            100,
            "--leads",
            "II,V1",
            "--range",
            -2,
            2,
        ),
        work=work,
    )
    assert run.exit_code == 0, run.stderr
    seen = drawn_signal(monkeypatch)
    result = ecgbyte("plot", "ecg", table / "in" / "n.npy", "--out", table / "x.png", work=work)
    assert result.exit_code == 0 and seen["mv"].max() == pytest.approx(1, abs=0.01), result.stderr
    # what is said again wins
    ecgbyte("plot", "ecg", table / "in" / "n.npy", "--out", table / "x.png", "--input-fs", 500, work=work)
    assert seen["fs"] == 500 and seen["leads"] == ["II", "V1"]
    shutil.copytree(small / "ecgbyte-work" / "model", work / "model")
    ecg = Session.open(work=WorkDir(work)).read(table / "in" / "n.npy")
    assert ecg.recording.fs == 250 and ecg.recording.signal.max() == pytest.approx(1, abs=0.01)


# Segmenters -----------------------------------------------------------------------------------------------------


def test_tokens_are_cut_as_the_model_or_the_work_folder_has_them(small, record, tmp_path, ecgbyte):
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("model", "training"))

    def said(*args):
        result = ecgbyte("plot", "tokens", record, "--out", tmp_path / "x.png", *args, "--json", work=work)
        return json.loads(result.stdout) if result.exit_code == 0 else result.stderr

    counts = {}
    for segmenter in ("longest", "bpe", "fewest"):
        assert ecgbyte("encode", "--segmenter", segmenter, "--overwrite", work=work).exit_code == 0
        assert said()["segmenter"] == segmenter
        counts[segmenter] = said()["tokens"]
    assert counts["fewest"] <= counts["longest"] and len(set(counts.values())) > 1
    model = shutil.copytree(small / "ecgbyte-work" / "model", tmp_path / "model")
    assert said("--model", model)["tokens"] == counts["longest"]  # whatever the tokens beside are
    about = json.loads((model / "ecgbyte.json").read_text())
    (model / "ecgbyte.json").write_text(json.dumps(about | {"segmenter": "bpe"}))
    assert said("--model", model)["tokens"] == counts["bpe"]
    (model / "ecgbyte.json").write_text(json.dumps({"format": "ecgbyte-export"}))
    assert "does not state the segmenter" in said("--model", model)
    assert ecgbyte("learn", "--vocab", 100, "--overwrite", work=work).exit_code == 0
    assert "ecgbyte encode` again" in said()
    shutil.rmtree(work / "tokens")
    assert said()["segmenter"] == "longest"
