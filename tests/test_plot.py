"""Pictures: written in the format asked for, of what was asked for."""

import json
import struct

import numpy as np
import pytest

from ecgbyte_cli import pictures
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.workdir import WorkDir, read_array, read_table


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
    real = pictures.tokens

    def spy(signal, decoded, fs, lead, ids, starts, stops, title):
        drawn.update(signal=signal, fs=fs, lead=lead, ids=ids, starts=starts, stops=stops)
        return real(signal, decoded, fs, lead, ids, starts, stops, title)

    monkeypatch.setattr(pictures, "tokens", spy)
    result = ecgbyte("plot", "tokens", record, "--lead", "V1", "--json", work=small / "ecgbyte-work")
    assert json.loads(result.stdout)["tokens"] == len(drawn["ids"])
    assert drawn["lead"] == "V1" and drawn["signal"].shape == (1000,) and drawn["fs"] == 100
    assert drawn["starts"][0] == 0 and drawn["stops"][-1] == 1000
    assert (drawn["starts"][1:] == drawn["stops"][:-1]).all()


def test_twelve_leads_make_the_usual_sheet(small, record):
    from ecgbyte_cli import readers

    recording = readers.read(record)
    axes = pictures.sheet(recording.signal, recording.fs, recording.leads, "title").axes[0]
    shown = [text.get_text() for text in axes.texts]
    assert [lead for row in pictures.SHEET for lead in row] == shown[:12] and shown[12] == "II"
    assert "25 mm/s" in shown[13]
    two = pictures.sheet(recording.signal[:2], recording.fs, ["I", "II"], "title").axes[0]
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
    real = pictures.distribution
    monkeypatch.setattr(pictures, "distribution", lambda *args: drawn.append(args) or real(*args))
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
