"""The list of recordings that the page shows: order, folders, filters and uploads that cannot be read."""

import numpy as np
import pytest
import wfdb

pytest.importorskip("starlette", reason="starlette is not installed: pip install ecgbyte[web]")

from starlette.testclient import TestClient  # noqa: E402

from ecgbyte_cli.web import app, findings_index, recordings  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    """Recordings whose names sort otherwise by letters, and a table of labels."""
    for place in ("b/10", "b/2", "a/deep/1", "12", "3"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        wfdb.wrsamp(path.name, 100, ["mV"], ["II"], np.ones((1000, 1)), fmt=["16"], adc_gain=[1000.0], baseline=[0],
                    write_dir=str(path.parent))  # fmt: skip
    (tmp_path / "labels.csv").write_text("record,label\n1,AF\n2,SR\n3,SR\n")
    return tmp_path


@pytest.fixture
def client(folder):
    service = app.Service(recordings.RecordingList(folder, 2**20), None, None)
    with TestClient(app.build_app(service), base_url="http://127.0.0.1") as client:
        client.service = service
        yield client


def names(reply):
    return [record["name"] for record in reply.json()["records"]]


@pytest.mark.parametrize(
    ("shuffled", "ordered"),
    [
        (["10", "9", "1"], ["1", "9", "10"]),
        (["b10a", "b2", "B1"], ["B1", "b2", "b10a"]),
        (["a", "1", ""], ["", "1", "a"]),
        (["2" * 5000, "1"], ["1", "2" * 5000]),
        (["²", "3", "1"], ["1", "3", "²"]),
    ],
)
def test_numbers_in_names_count_as_numbers(shuffled, ordered):
    assert sorted(shuffled, key=recordings.natural_key) == ordered


def test_the_list_is_in_natural_order_without_tables_of_labels(client):
    reply = client.get("/api/records")
    assert names(reply) == ["3", "12", "a/deep/1", "b/2", "b/10"]
    assert reply.json()["folders"] == [
        {"name": "a", "records": 1},
        {"name": "a/deep", "records": 1},
        {"name": "b", "records": 2},
    ]
    assert names(client.get("/api/records?folder=b")) == ["b/2", "b/10"]
    assert names(client.get("/api/records?folder=a")) == ["a/deep/1"]
    assert names(client.get("/api/records?folder=b&find=1")) == ["b/10"]
    page = client.get("/api/records?offset=2&limit=2").json()
    assert [one["name"] for one in page["records"]] == ["a/deep/1", "b/2"] and "folders" not in page
    assert client.get("/api/records?finding=atrial%20fibrillation").status_code == 404  # no model


def test_findings_are_read_in_the_background(client, monkeypatch):
    """A stand-in for the model: what it has read fits, and what it cannot read never does."""
    listed, asked = client.service.recordings, []
    conversations = client.service.conversations
    index = findings_index.FindingsIndex(listed, conversations)

    def read(number):
        asked.append(number)
        if len(asked) == 2:
            return findings_index.NOT_READ
        return findings_index.ReadFindings(frozenset({"atrial fibrillation"}), "atrial fibrillation")

    monkeypatch.setattr(index, "_read", read)
    index.want()
    index.thread.join(60)
    assert asked == listed.ids() and index.count() == 5
    fits = [index.fits(number, "atrial fibrillation", "") for number in listed.ids()]
    assert fits == [True, False, True, True, True]
    assert not index.fits(asked[0], "", "sinus rhythm") and index.fits(asked[0], "", "atrial fibrillation")
    assert not index.fits("unknown", "", "")
    index.want()  # nothing is read twice
    index.thread.join(60)
    assert len(asked) == 5


def test_reading_stops_once_nobody_filters(client, monkeypatch):
    index = findings_index.FindingsIndex(client.service.recordings, client.service.conversations)
    monkeypatch.setattr(findings_index, "LINGER", -1.0)
    monkeypatch.setattr(index, "_read", lambda number: pytest.fail("read"))
    index.want()
    index.thread.join(60)
    assert index.count() == 0
    monkeypatch.setattr(findings_index, "LINGER", 20.0)
    index.close()
    index.want()
    index.thread.join(60)
    assert index.count() == 0


def test_an_upload_that_cannot_be_read_leaves_the_list(client, tmp_path):
    def put(name, content, into=""):
        reply = client.put(f"/api/upload/{name}{into and '?into=' + into}", content=content)
        assert reply.status_code == 201, reply.text
        return reply.json()

    broken = put("broken.edf", b"0" * 300)
    assert len(broken["records"]) == 1
    reply = client.post(f"/api/upload/{broken['into']}/check").json()
    assert reply["read"] == [] and reply["failed"][0].startswith("broken.edf cannot be read as EDF: ")
    assert "broken.edf" not in names(client.get("/api/records"))
    assert client.post(f"/api/upload/{broken['into']}/check").status_code == 404
    good = put("good.csv", b"time,I,II\n" + b"".join(b"%.3f,0.1,0.2\n" % (i / 500) for i in range(5000)))
    put("bad.edf", b"0" * 300, good["into"])
    reply = client.post(f"/api/upload/{good['into']}/check").json()
    assert [one["name"] for one in reply["read"]] == ["good.csv"] and len(reply["failed"]) == 1
    assert names(client.get("/api/records"))[0] == "good.csv"


def test_a_recording_of_a_day_names_the_limit_and_the_remedy(client):
    folder = client.service.recordings.root
    with open(f"{folder}/day.hea", "w") as file:
        # format 8 stores differences, so that it cannot be read in parts
        file.write("day 2 250 21600000\nday.dat 8 1000/mV 0 0 0 0 0 II\nday.dat 8 1000/mV 0 0 0 0 0 V1\n")
    with open(f"{folder}/day.dat", "wb") as file:
        file.truncate(2 * 21_600_000)
    assert names(client.get("/api/records?look=1"))[-1] == "day"
    number = client.get("/api/records?path=day").json()["id"]
    reply = client.get(f"/api/records/{number}")
    assert reply.status_code == 422
    assert "33,554,432 samples" in reply.json()["error"] and "save a part of it" in reply.json()["error"]


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("a.edf", "cannot be read: invalid literal for int() with base 10: b'00'", "the file is damaged"),
        ("a.csv", "sampling rate unknown: give it with --input-fs", "sampling rate unknown"),
        ("a.xyz", "no samples", "a.xyz cannot be read as a recording: no samples."),
    ],
)
def test_a_reason_names_the_format_and_no_internals(name, reason, said):
    text = recordings.plain_reason(name, reason)
    assert said in text and "invalid literal" not in text and text.startswith(f"{name} cannot be read as ")
