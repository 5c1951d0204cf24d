"""The page's server: what its API says, whom it refuses, and that it lives through what is thrown at it."""

import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb

pytest.importorskip("starlette", reason="starlette is not installed: pip install ecgbyte[web]")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install ecgbyte[web]")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from serving import WAIT, running, service, stand_in  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

import ecgbyte_cli  # noqa: E402
from ecgbyte_cli import readers  # noqa: E402
from ecgbyte_cli.inference import certainty  # noqa: E402
from ecgbyte_cli.inference.session import Session  # noqa: E402
from ecgbyte_cli.inference.turn import Turn  # noqa: E402
from ecgbyte_cli.inference.witness import percent  # noqa: E402
from ecgbyte_cli.render import svg_sheet  # noqa: E402
from ecgbyte_cli.stages.serve import listen  # noqa: E402
from ecgbyte_cli.web import app, conversations, middleware, recordings  # noqa: E402

QUESTION = "What is the rhythm?"
PAGE = Path(ecgbyte_cli.__file__).parent / "web" / "page"


@pytest.fixture(scope="module")
def tiny(small):
    """A trained model as `serve` loads it."""
    folder = small / "ecgbyte-work" / "model"
    session = Session.open(folder, device="cpu", max_new=24, loader=recordings.SharedReader)
    session.about["folder"] = "m"
    session.loaded = session.load()._replace(certainty=None)
    return session


@pytest.fixture
def folder(small, tmp_path):
    """Three records in a folder."""
    made = tmp_path / "served"
    made.mkdir()
    for header in sorted((small / "data").rglob("*.hea"))[:3]:
        shutil.copy(header, made)
        shutil.copy(header.with_suffix(".dat"), made)
    return made


def client_of(of, **options):
    return TestClient(
        app.build_app(of, **options), base_url="http://127.0.0.1:8765", raise_server_exceptions=False
    )


@pytest.fixture
def client(folder, tiny):
    with client_of(service(folder, tiny)) as client:
        yield client


@pytest.fixture
def bare(folder):
    """Without a model."""
    with client_of(service(folder)) as client:
        yield client


def ids(client):
    return [one["id"] for one in client.get("/api/records").json()["records"]]


# ---- recordings


def test_the_page_is_small_and_loads_nothing_from_elsewhere(bare):
    answers = [bare.get(f"/{file.name}") for file in PAGE.iterdir()]
    assert {answer.status_code for answer in answers} == {200} and len(answers) > 3
    assert sum(len(answer.content) for answer in answers) <= 88 * 1024
    assert bare.get("/").text == (PAGE / "index.html").read_text()
    for file in PAGE.iterdir():
        foreign = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", file.read_text()))
        assert foreign <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'self'" in bare.get("/").headers["content-security-policy"]
    assert "unsafe" not in bare.get("/").headers["content-security-policy"]
    assert "Research use only" in bare.get("/").text


def test_records_are_listed_and_found(bare, folder):
    told = bare.get("/api/records").json()
    names = sorted(path.stem for path in folder.glob("*.hea"))
    assert (told["total"], [one["name"] for one in told["records"]]) == (3, names)
    assert bare.get("/api/records", params={"find": names[1]}).json()["total"] == 1
    assert [one["name"] for one in bare.get("/api/records?offset=2&limit=5").json()["records"]] == names[2:]
    for path in (
        names[1],
        names[1] + ".hea",
        names[1] + ".dat",
        str(folder / names[1]),
        f"../served/{names[1]}",
    ):
        assert bare.get("/api/records", params={"path": path}).json()["name"] == names[1]


def test_a_recording_is_told_as_it_was_read(bare, folder):
    number = ids(bare)[0]
    recording = readers.read_recording(sorted(folder.glob("*.hea"))[0])
    told = bare.get(f"/api/records/{number}").json()
    assert (told["leads"], told["fs"], told["comments"]) == (
        recording.leads,
        recording.fs,
        recording.comments,
    )
    answer = bare.get(f"/api/records/{number}/signal?start=2&seconds=3&leads=II,V1")
    told = json.loads(answer.headers["x-ecg"])
    got = np.frombuffer(answer.content, "<f4").reshape(2, told["samples"])
    a, b = round(2 * recording.fs), round(5 * recording.fs)
    rows = [recording.leads.index(lead) for lead in ("II", "V1")]
    np.testing.assert_array_equal(got, recording.signal[rows, a:b])
    drawn = bare.get(f"/api/records/{number}/sheet.svg?layout=6x2&speed=50&gain=20&start=1&seconds=4")
    assert drawn.headers["content-type"].startswith("image/svg+xml")
    name = sorted(folder.glob("*.hea"))[0].stem
    assert 'data-layout="6x2"' in drawn.text and 'data-start="1"' in drawn.text and name in drawn.text
    assert drawn.text.count('class="lead"') == 12
    assert bare.get(f"/api/records/{number}/thumbnail.svg").status_code == 200


def test_a_sheet_draws_the_stretch_that_is_asked_for(bare, folder):
    number = ids(bare)[0]
    recording = readers.read_recording(sorted(folder.glob("*.hea"))[0])
    name = sorted(folder.glob("*.hea"))[0].stem
    got = bare.get(f"/api/records/{number}/sheet.svg?start=3&seconds=5").text
    assert got == svg_sheet.svg_sheet(recording, 3, 5, title=name)


def test_tokens_tile_the_segment(client, tiny):
    told = client.get(f"/api/records/{ids(client)[0]}/tokens").json()
    tokenizer = tiny.reader.tokenizer
    for lead in range(len(told["leads"])):
        rows = [row for row in told["spans"] if row[1] == lead]
        assert rows[0][2] == 0 and rows[-1][3] == tokenizer.signal["samples"]
        assert all(a[3] == b[2] for a, b in zip(rows, rows[1:], strict=False))
    for number, _, start, stop, low, high in told["spans"]:
        assert len(told["letters"][str(number)]) == stop - start == tokenizer.lengths[number]
        assert low <= high
    assert told["count"] == len(told["spans"])


@pytest.mark.parametrize(
    "path, status",
    [
        ("/api/records/nonsense", 404),
        ("/api/records/{id}/tokens?segment=9", 404),
        ("/api/records/{id}/sheet.svg?start=x", 400),
        ("/api/records/{id}/sheet.svg?start=nan", 400),
        ("/api/records/{id}/sheet.svg?start=1e9", 422),
        ("/api/records/{id}/sheet.svg?leads=<b>", 422),
        ("/api/records/{id}/sheet.svg?speed=1e300", 422),
        ("/api/records/{id}/sheet.svg?layout=<b>", 422),
        ("/api/records/{id}/signal?leads=<b>", 404),
        ("/api/records/{id}/beat.png?start=x", 400),
        ("/api/records/nonsense/beat.png", 404),
        ("/api/records/{id}/nothing", 404),
        ("/api/records?offset=x", 400),
        ("/api/save?conversation=x", 404),
        ("/../../etc/passwd", 404),
        ("/page.py", 404),
    ],
)
def test_what_cannot_be_had_is_said(client, path, status):
    answer = client.get(path.replace("{id}", ids(client)[0]))
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_recording_that_cannot_be_read_is_named_once_with_the_reason(folder, tiny):
    (folder / "broken.npy").write_bytes(b"\x93NUMPY no array")
    with client_of(service(folder, tiny)) as client:
        number = client.get("/api/records", params={"path": "broken"}).json()["id"]
        for path in ("", "/sheet.svg", "/thumbnail.svg"):
            answer = client.get(f"/api/records/{number}{path}")
            assert answer.status_code == 422
            assert re.match(r"broken\.npy cannot be read: (?!cannot)", answer.json()["error"])
        told = client.post("/api/conversation", json={"record": number}).json()["error"]
        assert re.search(r"broken\.npy cannot be read: (?!cannot)", told)


def test_flat_leads_are_not_among_those_that_a_model_of_any_leads_reads(tiny, folder, tmp_path):
    settings = json.loads((tiny.folder / "ecg_tokenizer.json").read_text())
    settings["signal"]["any_leads"] = True
    (tmp_path / "ecg_tokenizer.json").write_text(json.dumps(settings))
    first = sorted(folder.glob("*.hea"))[0]
    record = wfdb.rdrecord(str(first.with_suffix("")))
    signal = record.p_signal.copy()
    signal[:, record.sig_name.index("V1")] = 0
    wfdb.wrsamp(
        "flat", record.fs, ["mV"] * 12, record.sig_name, signal, fmt=["16"] * 12, write_dir=str(folder)
    )
    with client_of(service(folder, stand_in(tmp_path / "ecg_tokenizer.json", "yes"))) as client:
        for name, leads in (("flat", ["II"]), (first.stem, ["II", "V1"])):
            number = client.get("/api/records", params={"path": name}).json()["id"]
            (ecg,) = client.post("/api/conversation", json={"record": number}).json()["ecgs"]
            tokens = client.get(f"/api/records/{number}/tokens").json()
            assert ecg["leads"] == tokens["read"] == leads and tokens["leads"] == ["II", "V1"]


def test_the_heart_rate_over_a_recording_comes_as_it_is_measured(bare):
    number, until = ids(bare)[0], time.monotonic() + WAIT
    while len(reply := bare.get(f"/api/records/{number}/overview").json()["rates"]) < 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    about = bare.get(f"/api/records/{number}/overview?first=1").json()
    assert about == {"step": 10, "measured": 10, "steps": 1, "first": 1, "rates": []}
    assert 20 < reply[0] < 250
    assert bare.get("/api/records/none/overview").status_code == 404


def test_the_median_beat_is_a_picture_or_a_reason(bare):
    number = ids(bare)[0]
    answer = bare.get(f"/api/records/{number}/beat.png?start=0")
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG") and len(answer.content) > 10_000
    late = bare.get(f"/api/records/{number}/beat.png?start=99")
    assert late.status_code == 422 and "has no median beat: too short" in late.json()["error"]


# ---- paths


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../outside/secret", "..", "a/../../outside/secret.hea", "/"]
)
def test_paths_outside_are_refused(bare, folder, path):
    (folder.parent / "outside").mkdir()
    shutil.copy(sorted(folder.glob("*.hea"))[0], folder.parent / "outside" / "secret.hea")
    answer = bare.get("/api/records", params={"path": path})
    assert answer.status_code == 403
    assert "outside the served folder" in answer.json()["error"]


def test_odd_paths_are_refused(bare):
    assert bare.get("/api/records", params={"path": "a\0b"}).status_code == 400
    assert bare.get("/api/records", params={"path": " "}).status_code == 400
    assert bare.get("/api/records", params={"path": "x" * 5000}).status_code == 404


def test_links_out_are_refused_and_links_inside_are_followed(folder, tmp_path):
    header = sorted(folder.glob("*.hea"))[0]
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in (header, header.with_suffix(".dat")):
        shutil.copy(file, outside)
    (folder / "linked").symlink_to(outside)
    (folder / "other.hea").symlink_to(outside / header.name)
    (folder / "own.hea").symlink_to(sorted(folder.glob("*.hea"))[1])
    # a record of its own whose signal file is a link out
    text = header.read_text().replace(header.stem, "lured")
    (folder / "lured.hea").write_text(text)
    (folder / "lured.dat").symlink_to(outside / f"{header.stem}.dat")
    with client_of(service(folder)) as client:
        named = {one["name"]: one["id"] for one in client.get("/api/records").json()["records"]}
        assert "own" in named or len(named) >= 3
        assert not [name for name in named if name.startswith(("linked", "other"))]
        assert client.get(f"/api/records/{named['lured']}").status_code == 403
        assert client.get("/api/records", params={"path": f"linked/{header.stem}"}).status_code == 404


def test_one_recording_alone_can_be_served(folder):
    first, second, _ = sorted(folder.glob("*.hea"))
    with client_of(service(first.with_suffix(""))) as client:
        assert [one["name"] for one in client.get("/api/records").json()["records"]] == [first.stem]
        assert client.get("/api/records", params={"path": second.stem}).status_code == 404


def test_nothing_need_be_served():
    with client_of(service(None)) as client:
        assert client.get("/api/records").json()["total"] == 0
        assert client.get("/api/records", params={"path": "x"}).status_code == 403


# ---- who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "[::1", "a@b:c"]
)
def test_other_names_of_this_machine_are_refused(bare, host):
    assert bare.get("/api", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8765", "LOCALHOST"])
def test_its_own_names_are_not(bare, host):
    assert bare.get("/api", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}, 200),
        ({}, 200),
    ],
)
def test_other_sites_are_refused(client, headers, status):
    told = {"record": ids(client)[0], "question": QUESTION}
    assert client.post("/api/ask", json=told, headers=headers).status_code == status
    # and a form of theirs, which needs no leave, is no JSON
    text = {"content-type": "text/plain"} | headers
    assert (
        client.post("/api/ask", content=json.dumps(told), headers=text).status_code == max(status, 415) or 403
    )


def test_where_others_reach_it_a_token_is_needed(folder):
    with client_of(service(folder), host="0.0.0.0", token="s3cret") as client:
        assert client.get("/api").status_code == 401
        assert client.get("/?token=wrong").status_code == 401
        assert client.get("/api?token=s3cret").status_code == 401  # the page's address alone takes it
        assert client.get("/api", headers={"authorization": "Bearer s3cret"}).status_code == 200
        answer = client.get("/?token=s3cret", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path" not in cookie
        assert client.get("/api").status_code == 200  # by the cookie
        assert client.get("/api", headers={"host": "evil.example"}).status_code == 403


PROXY = [("ecg.example.org", None), ("hub.example.org", 8443), ("2001:db8::1", None)]


@pytest.mark.parametrize(
    "host, origin, status",
    [
        ("ecg.example.org", "https://ecg.example.org", 404),  # a name that the proxy hands on
        ("ECG.example.org:444", "http://Ecg.Example.org:81", 404),  # any case, any port
        ("127.0.0.1:8765", "https://ecg.example.org", 404),  # nginx by itself: the address behind it
        ("hub.example.org", "https://hub.example.org:8443", 404),  # without the port, as nginx's $host
        ("hub.example.org:8443", "https://hub.example.org:8443", 404),
        ("[2001:DB8:0::1]:80", "https://[2001:db8::1]", 404),
        ("hub.example.org:80", None, 403),
        ("hub.example.org", "https://hub.example.org", 403),  # 443 is not 8443
        ("127.0.0.1:8765", "https://hub.example.org:444", 403),
        ("127.0.0.1:8765", "ftp://ecg.example.org", 403),
        ("127.0.0.1:8765", "https://a@ecg.example.org", 403),
        ("127.0.0.1:8765", "https://ecg.example.org.evil.example", 403),
        ("127.0.0.1:8765", "null", 403),
        ("sub.ecg.example.org", None, 403),
        ("ecg.example.org.evil.example", None, 403),
        ("evil.example", "http://evil.example", 403),
        ("evil.example", "https://ecg.example.org", 403),
        ("ecg.example.org", "http://evil.example", 403),
        ("a@ecg.example.org", None, 403),
    ],
)
def test_the_name_of_a_proxy_is_accepted_where_it_is_allowed(bare_behind_proxy, host, origin, status):
    # 404: there is no such conversation
    headers = {"host": host, "authorization": "Bearer s3cret"} | ({"origin": origin} if origin else {})
    assert (
        bare_behind_proxy.post("/api/stop", json={"conversation": "x"}, headers=headers).status_code == status
    )
    forwarded = {"x-forwarded-host": "ecg.example.org", "forwarded": "host=ecg.example.org"}
    assert (
        bare_behind_proxy.post(
            "/api/stop", json={"conversation": "x"}, headers=headers | forwarded
        ).status_code
        == status
    )


@pytest.fixture(scope="module")
def bare_behind_proxy():
    with client_of(service(None), token="s3cret", allowed=PROXY) as client:
        yield client


@pytest.mark.parametrize(
    "text, host",
    [
        ("ecg.example.org", ("ecg.example.org", None)),
        ("ECG.Example.org:8443", ("ecg.example.org", 8443)),
        ("https://ecg.example.org/", ("ecg.example.org", None)),
        ("http://ecg_1", ("ecg_1", None)),
        ("élan.example", ("xn--lan-9la.example", None)),
        ("10.0.0.5:80", ("10.0.0.5", 80)),
        ("2001:DB8::1", ("2001:db8::1", None)),
        ("[2001:db8:0::1]:80", ("2001:db8::1", 80)),
    ],
)
def test_a_host_to_allow_is_a_name_or_an_address(text, host):
    assert middleware.allowed_host(text) == host


@pytest.mark.parametrize(
    "text",
    ["", "*", "*.example.org", ".example.org", "example.org.", "a..b", "a b", "a@b", "https://", "a:b", "a:0"]
    + [
        "a:65536",
        "a:",
        "a/b",
        "https://a/b",
        "ftp://a",
        "-a.b",
        "10.0.0",
        "1234",
        "[::1",
        "fe80::1%eth0",
        "[a]",
    ],
)
def test_what_is_no_host_is_refused(ecgbyte, text):
    with pytest.raises(ValueError, match="as in ecg.example.org"):
        middleware.allowed_host(text)
    assert ecgbyte("serve", "--port", 0, "--allow-host", text).exit_code == 2


def test_every_cookie_of_the_name_is_looked_at():
    # a browser sends the cookie of a server at another path of the host too
    with client_of(service(None), host="0.0.0.0", token="s3cret") as client:
        for value in (
            "ecgbyte_token=other; ecgbyte_token=s3cret",
            "ecgbyte_token=s3cret; ecgbyte_token=other",
        ):
            assert client.get("/api", headers={"cookie": value}).status_code == 200
        for value in ("ecgbyte_token=other", "x_ecgbyte_token=s3cret", "s3cret", ""):
            assert client.get("/api", headers={"cookie": value}).status_code == 401


def test_the_page_names_nothing_from_the_root_of_its_host():
    # a proxy may give it a path of its own
    for file in PAGE.iterdir():
        for quoted in re.findall(r"[\"'`(]/[\w$]", file.read_text()):
            raise AssertionError(f"{file.name}: {quoted}")


# ---- questions


def test_answers_are_those_of_chat(client, tiny, folder):
    expected = []
    for header in sorted(folder.glob("*.hea")):
        expected.append(tiny.ask(tiny.read(header), QUESTION).answer)
    told = [client.post("/api/ask", json={"record": i, "question": QUESTION}).json() for i in ids(client)]
    assert [one["answer"] for one in told] == expected
    assert all(one["probability"] is None for one in told) or all("probability" in one for one in told)
    streamed = client.post("/api/ask", json={"record": ids(client)[0], "question": QUESTION, "stream": True})
    events = [json.loads(part.removeprefix("data: ")) for part in streamed.text.strip().split("\n\n")]
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert "".join(one["piece"] for one in events[:-1]) == expected[0] == events[-1]["done"]["answer"]


def test_twenty_at_once_are_answered_alike(tiny, folder):
    with running(service(folder, tiny)) as address, httpx.Client(base_url=address, timeout=WAIT) as http:
        number = ids(http)[0]
        told = {"record": number, "question": QUESTION}
        first = http.post("/api/ask", json=told).json()["answer"]

        def browse(i):
            paths = (f"/api/records/{number}/sheet.svg", f"/api/records/{number}/tokens", "/api/records", "/")
            assert all(http.get(path).status_code == 200 for path in paths)
            answer = http.post("/api/ask", json=told | {"stream": i % 2 == 0})
            if i % 2:
                return answer.json()["answer"]
            return json.loads(answer.text.strip().split("data: ")[-1])["done"]["answer"]

        with ThreadPoolExecutor(20) as pool:
            assert set(pool.map(browse, range(20))) == {first}


def test_a_conversation_does_what_chat_can(small, folder):
    of = service(folder, stand_in(small / "ecgbyte-work" / "model" / "ecg_tokenizer.json", "sinus é"))
    with client_of(of) as client:
        first, second, third = ids(client)
        state = client.post("/api/conversation", json={"record": first}).json()
        talk = {"conversation": state["conversation"]}
        assert [one["record"] for one in state["ecgs"]] == [first]
        assert state["ecgs"][0]["facts"]["read"].startswith("0 to 10 s")
        assert client.post("/api/ask", json=talk | {"question": " a? "}).json()["answer"] == "sinus é"
        state = client.post("/api/conversation", json=talk | {"record": second}).json()
        assert [one["record"] for one in state["ecgs"]] == [first, second]
        client.post("/api/ask", json=talk | {"question": "b?"})
        assert [
            len(t.ecgs)
            for t in of.conversations.sessions[talk["conversation"]].conversation.log
            if isinstance(t, Turn)
        ] == [1, 2]
        state = client.post("/api/conversation", json=talk | {"do": "segment", "number": 1}).json()
        assert [turn["question"] for turn in state["turns"]] == ["a?", "b?"]
        wrong = client.post("/api/conversation", json=talk | {"do": "segment", "number": 7})
        assert wrong.status_code == 422 and "segments 1 to 1" in wrong.json()["error"]
        saved = zipfile.ZipFile(io.BytesIO(client.get("/api/save", params=talk).content))
        assert sorted(saved.namelist()) == ["conversation.md", "ecg1.svg", "ecg2.svg"]
        text = saved.read("conversation.md").decode()
        assert "**b?**\n\nsinus é" in text and "Research use only" in text and "![" in text
        state = client.post("/api/conversation", json=talk | {"do": "clear"}).json()
        assert [one["record"] for one in state["ecgs"]] == [second]
        for _ in range(3):
            client.post("/api/conversation", json=talk | {"record": third})
        assert client.post("/api/conversation", json=talk | {"record": third}).status_code == 409


def test_an_answer_is_stopped_and_what_there_is_is_kept(small, folder):
    tokenizer = small / "ecgbyte-work" / "model" / "ecg_tokenizer.json"
    of = service(folder, stand_in(tokenizer, "word " * 300, 0.1))
    with running(of) as address, httpx.Client(base_url=address, timeout=WAIT) as http:
        talk = {
            "conversation": http.post("/api/conversation", json={"record": ids(http)[0]}).json()[
                "conversation"
            ]
        }
        with http.stream("POST", "/api/ask", json=talk | {"question": "q", "stream": True}) as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines)[6:])["piece"]
            assert http.post("/api/stop", json=talk).json() == {"stopped": True}
            done = json.loads([line for line in lines if line][-1][6:])["done"]
        assert done["stopped"] and 0 < len(done["answer"]) < 1000
        # a page that goes away stops its answer too, and the next one is asked at once
        with http.stream("POST", "/api/ask", json=talk | {"question": "q", "stream": True}) as answer:
            next(answer.iter_lines())
        start = time.monotonic()
        assert http.post("/api/conversation", json=talk | {"do": "clear"}).status_code == 200
        assert time.monotonic() - start < 60  # the whole answer takes 150 s
        assert http.post("/api/stop", json={"conversation": "x"}).status_code == 404


def test_the_probability_is_told(client):
    told = client.post("/api/ask", json={"record": ids(client)[0], "question": QUESTION}).json()
    assert 0 < told["probability"] <= 1


@pytest.fixture
def sure(tiny, small):
    """The same model, with what it was trained to answer."""
    known = certainty.read_certainty(small / "ecgbyte-work" / "model", tiny.tokenizer.vocab_size)
    return replace(tiny, loaded=tiny.loaded._replace(certainty=known))


def test_it_is_told_how_sure_an_answer_is(sure, folder):
    with client_of(service(folder, sure)) as client:
        told = client.post("/api/ask", json={"record": ids(client)[0], "question": QUESTION}).json()
        assert 0 < told["runner_up"]["probability"] <= told["probability"] <= 1
        assert f"{percent(told['probability'])}; or " in told["certainty"]
        assert told["certainty"].startswith("not sure: ") is (told["sure"] is False)
        asked = {"record": ids(client)[0], "question": "How old is the dog?"}
        told = client.post("/api/ask", json=asked).json()
        assert told["declined"] and "not trained" in told["answer"] and told["probability"] is None


def test_a_recording_unlike_those_trained_on_is_said_to_be(sure, folder, monkeypatch):
    with client_of(service(folder, sure)) as client:
        one = {"record": ids(client)[0]}
        monkeypatch.setattr(certainty.Certainty, "unlike", lambda *_: [])
        assert client.post("/api/conversation", json=one).json()["unlike"] == []
        monkeypatch.setattr(certainty.Certainty, "unlike", lambda *_: ["lead II flat"])
        (line,) = client.post("/api/conversation", json=one).json()["unlike"]
        assert "lead II flat" in line and "unlike the recordings" in line


def test_another_segment_gets_its_own_line_about_being_unlike():
    lines = iter([["a is unlike the recordings"], []])
    ecg = SimpleNamespace(recording=SimpleNamespace(name="a"))
    conversation = SimpleNamespace(ecgs=[ecg], unlike=lambda: next(lines), segment=lambda number: ecg)
    session = conversations.ChatSession("1", conversation)
    assert session.unlike() == ["a is unlike the recordings"]
    session.segment(2)
    assert session.unlike() == []


@pytest.mark.parametrize("method", app.METHODS)
def test_what_an_answer_drew_on(client, method, coarse_integral):
    of = {
        "conversation": client.post("/api/conversation", json={"record": ids(client)[0]}).json()[
            "conversation"
        ]
    }
    assert client.post("/api/attribution", json=of).status_code == 422  # nothing was asked
    answer = client.post("/api/ask", json=of | {"question": QUESTION}).json()["answer"]
    if not answer:
        pytest.skip("the small model answers nothing here")
    answer = client.post("/api/attribution", json=of | {"method": method})
    told = answer.json()
    assert answer.status_code == 200, told
    assert told["verdict"] == app.METHODS[method]
    shares = np.array(told["shares"])
    assert shares.shape == (2, 500) and shares.min() >= 0 and shares.sum() == pytest.approx(1, abs=1e-3)
    assert bool(told["words"]) == (method != "occlusion") == (told["on_text"] is not None)
    assert client.post("/api/attribution", json=of | {"method": "guess"}).status_code == 400


def test_without_a_model_there_are_ecgs_alone(bare, small, folder):
    assert bare.get("/api").json()["model"] is None
    number = ids(bare)[0]
    assert bare.get(f"/api/records/{number}/tokens").status_code == 404
    for path in ("ask", "conversation", "attribution", "stop"):
        answer = bare.post(f"/api/{path}", json={"record": number, "question": "q", "conversation": "x"})
        assert answer.status_code == 404 and "no model" in answer.json()["error"]
    # a tokenizer alone shows its tokens
    tokenizer = ecgbyte_cli.ECGTokenizer.from_file(
        small / "ecgbyte-work" / "tokenizer" / "ecg_tokenizer.json"
    )
    with client_of(service(folder, reader=recordings.SharedReader(tokenizer, "longest"))) as client:
        assert client.get(f"/api/records/{number}/tokens").json()["count"] > 10


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 60000, 400),
        (b"{}", 400),
        (b'{"question": 3}', 400),
        (b'{"question": "q"}', 400),
        (b'{"question": "q", "record": ["x"]}', 400),
        (b'{"question": "q", "record": "x"}', 404),
        (b'{"question": "q", "conversation": {"a": 1}}', 404),
        (b'{"question": "' + b"q" * 5000 + b'", "record": "x"}', 413),
        (b'{"question": "' + b"q" * 70000 + b'"}', 413),
    ],
)
def test_bodies_that_are_no_question(client, body, status):
    answer = client.post("/api/ask", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]


def test_memory_is_bounded(small, folder, monkeypatch):
    of = service(folder, stand_in(small / "ecgbyte-work" / "model" / "ecg_tokenizer.json", "yes"))
    monkeypatch.setattr(conversations, "MOST_CONVERSATIONS", 5)
    with client_of(of) as client:
        first, *_ = numbers = ids(client)
        opened = [client.post("/api/conversation", json={"record": first}).json() for _ in range(9)]
        assert len(of.conversations.sessions) == 5
        old = {"conversation": opened[0]["conversation"], "question": "q"}
        assert client.post("/api/ask", json=old).status_code == 404
        talks = of.conversations.sessions.values()
        assert len({id(talk.conversation.session.cache) for talk in talks}) == 1
        assert len({id(talk.conversation.ecgs[0].recording) for talk in talks}) == 1
        monkeypatch.setattr(conversations, "MOST_BYTES", 1)
        client.post("/api/conversation", json={"record": first})
        assert len(of.conversations.sessions) == 1
        monkeypatch.setattr(recordings, "CACHE_BYTES", 1)
        for number in numbers:
            client.get(f"/api/records/{number}")
        assert len(of.recordings.cache) == 1
        of.conversations.waiting = conversations.MOST_WAITING
        assert client.post("/api/ask", json={"record": first, "question": "q"}).status_code == 503


# ---- files that are dropped


def test_files_are_dropped_and_gone_at_the_end(folder, tmp_path):
    of = service(folder)
    header = sorted(folder.glob("*.hea"))[0]
    place = Path(of.recordings.upload_folder.name)
    with client_of(of) as client:
        signal_file = header.with_suffix(".dat")
        told = client.put(f"/api/upload/{signal_file.name}", content=signal_file.read_bytes()).json()
        assert told["records"] == []  # a signal file has no header yet
        told = client.put(
            f"/api/upload/{header.name}?into={told['into']}", content=header.read_bytes()
        ).json()
        number = told["records"][0]["id"]
        assert client.get(f"/api/records/{number}").json()["name"] == header.stem
        assert client.get("/api/records").json()["records"][0]["id"] == number
        assert place.stat().st_mode & 0o077 == 0
        for name in ("..%2Fx.hea", ".hidden", "a%5Cb.hea", "a%00b", "C:x.hea", "x" * 200 + ".hea"):
            assert client.put(f"/api/upload/{name}", content=b"x").status_code in (400, 404)
        assert client.put("/api/upload/x.hea?into=nothing", content=b"x").status_code == 404
        lure = b"lure 1 500 10\n../../../../etc/passwd 16 200 16 0 0 0 0 I\n"
        told = client.put("/api/upload/lure.hea", content=lure).json()
        answer = client.get(f"/api/records/{told['records'][0]['id']}")
        assert answer.status_code == 422 and "outside its folder" in answer.json()["error"]
    assert not place.exists()


def test_drops_are_bounded(monkeypatch):
    of = service(None, upload_bytes=1000)
    monkeypatch.setattr(recordings, "MOST_UPLOADS", 3)
    monkeypatch.setattr(recordings, "MOST_FILES", 2)
    with client_of(of) as client:
        assert client.put("/api/upload/a.csv", content=b"x" * 1001).status_code == 413

        def pieces():  # without Content-Length
            for _ in range(20):
                yield b"x" * 100

        assert client.put("/api/upload/a.csv", content=pieces()).status_code == 413
        for _ in range(9):
            into = client.put("/api/upload/a.csv", content=b"x" * 900).json()["into"]
        assert len(of.recordings.uploads) <= 3
        assert client.put(f"/api/upload/b.csv?into={into}", content=b"x").status_code == 201
        assert client.put(f"/api/upload/c.csv?into={into}", content=b"x").status_code == 413
        kept = sum(f.stat().st_size for f in Path(of.recordings.upload_folder.name).rglob("*") if f.is_file())
        assert kept <= 4000


# ---- what is thrown at it


def raw(address, data):
    """What the server says to bytes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as link:
        link.sendall(data)
        answer = b""
        try:
            while part := link.recv(65536):
                answer += part
        except (TimeoutError, ConnectionError):
            pass
        return answer


def test_a_body_of_a_gigabyte_is_refused_before_it_comes(folder):
    with running(service(folder)) as address:
        head = b"PUT /api/upload/x.edf HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1073741824\r\n\r\n"
        start = time.monotonic()
        assert raw(address, head + b"x" * 100_000).startswith(b"HTTP/1.1 413")
        assert time.monotonic() - start < 60
        assert raw(address, head.replace(b"1073741824", b"9" * 30)).startswith(b"HTTP/1.1 4")
        assert httpx.get(address + "/api", timeout=WAIT).status_code == 200


def test_slow_clients_are_let_go(folder, monkeypatch):
    monkeypatch.setattr(middleware, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(middleware, "CHUNK_SECONDS", 0.3)
    with running(service(folder)) as address:
        assert raw(address, b"GET / HT").startswith(b"HTTP/1.1 408")
        assert raw(address, b"").startswith(b"HTTP/1.1 408")
        head = b"PUT /api/upload/x.edf HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nabc"
        assert raw(address, head).startswith(b"HTTP/1.1 408")
        # between two requests of one connection too
        monkeypatch.setattr(
            middleware, "HEAD_SECONDS", 60
        )  # the first of them is in time, however busy the machine
        with socket.create_connection(address.removeprefix("http://").split(":"), timeout=WAIT) as link:
            link.sendall(b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += link.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            monkeypatch.setattr(middleware, "HEAD_SECONDS", 0.3)
            link.sendall(b"GET /")
            assert link.recv(65536).startswith(b"HTTP/1.1 408")
        assert httpx.get(address + "/api", timeout=WAIT).status_code == 200


def test_malformed_requests_get_a_status_and_the_server_lives(folder):
    lines = [
        b"GET",
        b"POST /api/ask",
        b"\x00\x01",
        b"GET /%ff%00 HTTP/1.1",
        b"PUT /api/upload/%2e%2e HTTP/1.1",
    ]
    lines += [b"GET / HTTP/9.9", b"GET http://[ HTTP/1.1", b"DELETE /api HTTP/1.1", b"GET /" + b"a" * 70000]
    lines += [
        b"GET /api HTTP/1.1\r\nContent-Length: -1",
        b"GET /api HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
    ]
    lines += [
        b"POST /api/ask HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ",
        b"GET /api HTTP/1.1\r\nUpgrade: x",
    ]
    random.seed(0)
    with running(service(folder)) as address:

        def throw(i):
            line = lines[i % len(lines)] if i % 3 else random.randbytes(random.randint(1, 300))
            host = b"\r\nHost: 127.0.0.1" if i % 2 else b""
            return raw(address, line + host + b"\r\nConnection: close\r\n\r\n")

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(throw, range(400)))
        assert all(re.match(rb"HTTP/1.1 [2345]\d\d", answer) for answer in answers)
        assert not [answer for answer in answers if answer.startswith(b"HTTP/1.1 500")]
        assert httpx.get(address + "/api", timeout=WAIT).status_code == 200


def test_an_error_within_is_one_line(folder, monkeypatch):
    of = service(folder)
    monkeypatch.setattr(of.recordings, "listed", lambda *_: 1 / 0)
    with client_of(of) as client:
        answer = client.get("/api/records")
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "the server failed (ZeroDivisionError)"},
        )
        assert client.get("/api").status_code == 200


# ---- the command


def serve(*args, **options):
    """The command, where the libraries that a model needs are not installed."""
    code = """import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "torch" else found(name)
from ecgbyte_cli.__main__ import main  # noqa: E402
main()"""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_behind_a_proxy_a_token_is_needed_even_on_loopback(folder, tmp_path):
    options = ("--port", 0, "--allow-host", "ecg.example.org", "--json")
    with serve("--work", tmp_path / "none", "serve", folder, *options) as process:
        said = ""
        while not (match := re.search(r"(http://\S+)\?token=(\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        address, token = match[1], match[2]
        name = {"host": "ecg.example.org"}
        assert httpx.get(address + "api", headers=name).status_code == 401
        assert (
            httpx.get(address + "api", headers=name | {"authorization": f"Bearer {token}"}).status_code == 200
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert "ecg.example.org" in said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_ended(small, folder, tmp_path, how):
    with serve("--work", tmp_path / "none", "serve", folder, "--port", 0, "--json") as process:
        said = ""
        while "http://" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        address = re.search(r"http://\S+", said)[0]
        assert httpx.get(address + "api", timeout=WAIT).json()["model"] is None
        process.send_signal(how)
        out, err = process.communicate(timeout=WAIT)
        assert process.returncode == 0, err
        told = json.loads(out)
        assert (told["records"], told["model"], told["address"]) == (3, None, address)
        assert "only shows ECGs" in said + err and "Traceback" not in err


def test_the_body_of_a_response_does_not_wait_for_its_head_to_be_acknowledged():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_stands_in_the_way_is_one_line(ecgbyte, folder, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = ecgbyte("serve", folder, "--port", taken.getsockname()[1])
    assert result.exit_code == 1 and "cannot listen at 127.0.0.1" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert ecgbyte("serve", tmp_path / "nothing").exit_code == 1
    result = ecgbyte("serve", folder, "--port", 0, "--model", tmp_path / "nothing")
    assert result.exit_code == 1 and "has no model" in result.stderr
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = ecgbyte("serve", folder)
    assert result.exit_code == 1 and "pip install ecgbyte[web]" in result.stderr


def test_the_documentation_names_every_route():
    text = (Path(__file__).parents[1] / "docs" / "page-api.md").read_text()
    paths = {
        route.path for route in app.build_app(service(None)).routes if f"{route.path}/".startswith("/api/")
    }
    assert [
        path
        for path in paths
        if path.replace("{id}", "ID").replace("{name}", "NAME").replace("{into}", "UPLOAD") not in text
    ] == []


def test_the_page_loads_its_modules_at_once():
    """A module that is not named in the page would be fetched only after those that import it."""
    page = Path(ecgbyte_cli.__file__).parent / "web" / "page"
    named = re.findall(r'<link rel="modulepreload" href="(.*)">', (page / "index.html").read_text())
    assert sorted([*named, "main.js"]) == sorted(path.name for path in page.glob("*.js"))


def test_the_page_is_there_without_importing_torch():
    code = "import ecgbyte_cli.web.app, sys; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}).returncode == 0
