"""The page in a real browser: what is seen, pointed at, dragged, dropped, asked and read."""

import base64
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import wfdb

pytest.importorskip("starlette", reason="starlette is not installed: pip install ecgbyte[web]")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install ecgbyte[web]")

from browsing import WIDTHS, ask, ready  # noqa: E402
from serving import WAIT, proxied, running, service, stand_in  # noqa: E402

from ecgbyte_cli.inference import certainty
from ecgbyte_cli.inference.session import Session  # noqa: E402
from ecgbyte_cli.signal.preprocess import LEADS  # noqa: E402
from ecgbyte_cli.web import app, recordings  # noqa: E402

QUESTION = "What is the rhythm?"


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    """Four records in a folder."""
    made = tmp_path_factory.mktemp("served")
    for header in sorted((small / "data").rglob("*.hea"))[:4]:
        shutil.copy(header, made)
        shutil.copy(header.with_suffix(".dat"), made)
    return made


@pytest.fixture(scope="module")
def tokenizer(small):
    return small / "ecgbyte-work" / "model" / "ecg_tokenizer.json"


@pytest.fixture(scope="module")
def tiny(small):
    """The trained model."""
    model = small / "ecgbyte-work" / "model"
    session = Session.open(model, device="cpu", max_new=24, loader=recordings.SharedReader)
    session.about["folder"] = "model"
    session.loaded = session.load()._replace(certainty=None)
    return session


@pytest.fixture(scope="module")
def address(folder, tokenizer):
    """A server whose stand-in model answers "atrial fibrillation <b>no</b>"."""
    with running(service(folder, stand_in(tokenizer, "atrial fibrillation <b>no</b>"))) as address:
        yield address


def test_a_sheet_that_comes_late_is_not_taken_for_the_newest(visit, address):
    page, held = ready(visit(address)), []
    page.route("**/sheet.svg?*speed=50&gain=10*", lambda route: held.append(route))
    page.select_option("#speed", "50")
    page.select_option("#gain", "20")
    page.locator("svg[data-speed='50'][data-gain='20']").wait_for()
    with page.expect_response("**/sheet.svg?*speed=50&gain=10*") as late:
        held[0].continue_()
    late.value.finished()
    page.wait_for_timeout(200)
    sheet = page.locator("svg.sheet")
    assert sheet.get_attribute("data-gain") == "20"
    width = sheet.bounding_box()["width"]
    page.click("#in")
    assert sheet.bounding_box()["width"] == pytest.approx(1.5 * width, abs=2)


def test_a_question_waits_for_the_ecg_that_is_shown(visit, address):
    page, held = ready(visit(address)), []
    page.route("**/api/conversation", lambda route: held.append(route))
    second, third = page.locator("#records .open").nth(1), page.locator("#records .open").nth(2)
    for i, record in enumerate((second, third)):
        record.click()
        page.locator("h2", has_text=record.get_attribute("title")).wait_for()
        until = time.monotonic() + WAIT
        while len(held) <= i and time.monotonic() < until:
            page.wait_for_timeout(50)
        assert page.locator("#question").is_disabled()
    # a conversation that comes late, about the ECG before, is not taken for the newest
    with page.expect_response("**/api/conversation") as late:
        held[0].continue_()
    late.value.finished()
    page.wait_for_timeout(200)
    assert page.locator("#question").is_disabled()
    held[1].continue_()
    ready(page)


def test_a_record_is_drawn(visit, address, folder):
    page = ready(visit(address))
    name = sorted(folder.glob("*.hea"))[0].stem
    assert page.locator("h2").inner_text() == name
    groups = page.locator("svg.sheet g.lead")
    assert groups.count() == page.locator("svg.sheet path.trace").count() == 13
    names = page.locator("svg.sheet text.name").all_text_contents()
    assert set(names) == set(LEADS) and names.count("II") == 2
    assert page.locator("#records .open").count() == 4
    page.select_option("#layout", "6x2")
    page.locator("svg[data-layout='6x2']").wait_for()
    assert groups.count() == 12
    page.select_option("#layout", "lead V2")
    page.locator("svg[data-layout='12x1']").wait_for()
    assert page.locator("svg text.name").all_text_contents() == ["V2"]
    page.select_option("#speed", "50")
    page.select_option("#gain", "20")
    page.locator("svg[data-speed='50'][data-gain='20']").wait_for()
    # zoom: the sheet is wider than its frame, and 0 takes it back
    frame, sheet = page.locator(".scroll"), page.locator("svg.sheet")
    width = sheet.bounding_box()["width"]
    page.click("#in")
    assert sheet.bounding_box()["width"] == pytest.approx(1.5 * width, abs=2)
    frame.focus()
    page.keyboard.press("0")
    assert sheet.bounding_box()["width"] == pytest.approx(width, abs=2)


def test_the_median_beat_is_drawn_when_its_panel_is_opened(visit, address):
    page = ready(visit(address))
    image = page.locator(".beat img").first
    assert image.get_attribute("src") is None
    page.locator(".beat summary").first.click()
    page.locator(".beat p", has_text="ten seconds").first.wait_for()
    assert image.is_visible() and image.evaluate("image => image.naturalWidth") > 300


def test_the_first_paint_is_soon(visit, address):
    """Within 300 ms of a processor, the page's and the server's, and before anything that it does not need."""
    page = ready(visit(address))
    number = page.locator("#records .open").first.get_attribute("data-id")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent():
        told = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return told["TaskDuration"] + time.process_time()

    took, seen = [], []
    for _ in range(8):
        page.goto("about:blank")
        before = spent()
        page.goto(f"{address}/#{number}")
        page.locator("svg.sheet").wait_for()
        took.append(1000 * (spent() - before))
        seen.append(page.evaluate("performance.getEntriesByName('sheet')[0].startTime"))
        asked = page.evaluate(
            "performance.getEntriesByType('resource').filter(r => r.startTime < "
            "performance.getEntriesByName('sheet')[0].startTime).map(r => r.name)"
        )
        assert not [url for url in asked if "thumbnail" in url or "find=" in url]
    print(f"sheet after {min(seen):.0f} ms at best, of which {min(took):.0f} ms of a processor")
    assert 0 < min(took) <= 300


def test_a_token_tells_what_it_is(visit, address):
    page = ready(visit(address))
    page.click("#tokens")
    bands = page.locator(".band")
    bands.first.wait_for()
    bands.nth(3).hover(force=True)
    told = page.locator("#token").inner_text()
    found = re.fullmatch(
        r"token (\d+) on (II|V1): (\w+), ([\d.]+) ms \(([\d.]+) to ([\d.]+) s\), (-?[\d.]+) to (-?[\d.]+) mV",
        told,
    )
    assert found, told
    assert len(found[3]) * 10 == float(found[4])  # letters at 100 Hz
    assert float(found[6]) - float(found[5]) == pytest.approx(float(found[4]) / 1000, abs=1e-3)
    # the bands lie on the leads that the model reads, and tile them
    boxes = page.evaluate(
        "[...document.querySelectorAll('.band')].map(b => ['x', 'y', 'width'].map(k => +b.getAttribute(k)))"
    )
    rows = {}
    for x, y, width in boxes:
        rows.setdefault(y, []).append((x, x + width))
    assert len(rows) == 3  # V1, II, and II again as the rhythm
    for spans in rows.values():
        spans.sort()
        assert all(a[1] == pytest.approx(b[0], abs=0.01) for a, b in zip(spans, spans[1:], strict=False))
    page.locator(".scroll").focus()
    page.keyboard.press("]")
    assert page.locator("#token").inner_text() != told
    page.keyboard.press("t")
    assert bands.count() == 0


def test_how_sure_an_answer_is_stands_below_it(visit, folder, tiny, small, monkeypatch):
    known = certainty.read_certainty(small / "ecgbyte-work" / "model", tiny.tokenizer.vocab_size)
    session = replace(tiny, loaded=tiny.loaded._replace(certainty=known))
    monkeypatch.setattr(certainty.Certainty, "unlike", lambda *_: ["lead II flat"])
    with running(service(folder, session)) as address:
        page = ready(visit(address))
        page.locator("#log .bad", has_text="unlike the recordings").wait_for()
        for i, question in enumerate((QUESTION, "How old is the dog?")):
            ask(page, question)
            page.locator("#log .note").nth(i).wait_for()
        notes = page.locator("#log .note").all_text_contents()
        assert re.search(r"\d %; or .+, .*\d %", notes[0]) and "%" not in notes[1]
        assert page.locator("#log .a").last.inner_text().startswith("I was not trained on this question")


def test_a_question_is_answered_as_in_chat(visit, folder, tiny, coarse_integral):
    header = sorted(folder.glob("*.hea"))[0]
    chat = tiny.conversation([tiny.read(header)])
    expected = [chat.ask(question).answer for question in (QUESTION, "And now?")]
    with running(service(folder, tiny)) as address:
        page = ready(visit(address))
        for i, question in enumerate((QUESTION, "And now?")):
            ask(page, question)
            page.locator("#log .note").nth(i).wait_for()
        answers = page.locator("#log .a").all_text_contents()
        assert answers == [answer or "(no answer)" for answer in expected]
        if expected[-1]:
            page.click("#looked")
            page.locator("#drew .word").first.wait_for()
            assert app.METHODS["integrated"] in page.locator("#drew").inner_text()
            assert page.locator(".share").count() > 5
        page.click("#clear")
        page.locator("#log .a").first.wait_for(state="detached")


def test_answers_names_and_headers_are_text(visit, folder, tokenizer, tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    header = sorted(folder.glob("*.hea"))[0]
    text = header.read_text().replace(header.stem, "bad", 1).replace(header.stem + ".dat", "bad.dat")
    (tmp_path / f"{bad}.hea").write_text(text.replace(header.stem, "bad") + f"# {bad}\n# </script>\n")
    shutil.copy(header.with_suffix(".dat"), tmp_path / "bad.dat")
    with running(service(tmp_path, stand_in(tokenizer, f"{bad} <b>bold</b>"))) as address:
        page = ready(visit(address))
        assert page.locator("h2").inner_text() == bad
        ask(page, "<i>q</i>")
        page.locator("#log .note").wait_for()
        assert page.locator("#log .a").inner_text() == f"{bad} <b>bold</b>"
        assert page.locator("#log .q").inner_text() == "<i>q</i>"
        assert bad in page.locator("dl").inner_text()
        assert page.locator("img[src='x'], #log b, #log i").count() == 0
        assert page.locator("svg text.title").text_content() == bad


def test_two_ecgs_are_compared(visit, address):
    page = ready(visit(address))
    page.locator("#records li button").nth(3).click()
    page.locator("svg.sheet").nth(1).wait_for()
    page.get_by_text("Questions are about both ECGs").wait_for()
    assert page.locator("h2").count() == 2
    ready(page)
    ask(page, "What differs?")
    page.locator("#log .note").wait_for()
    assert page.locator("#log .a").inner_text() == "atrial fibrillation <b>no</b>"
    page.locator(".ecg .close").first.click()
    page.locator("svg.sheet").nth(1).wait_for(state="detached")
    # the address opens the same again
    page.reload()
    ready(page)
    assert page.locator("svg.sheet").count() == 1


def test_a_file_is_dropped(visit, address):
    pydicom = pytest.importorskip("pydicom")
    path = Path(pydicom.data.get_testdata_file("waveform_ecg.dcm"))
    page = ready(visit(address))
    data = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        "([name, data]) => { const t = new DataTransfer();"
        "t.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name)); return t; }",
        [path.name, data],
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    page.get_by_role("heading", name="waveform_ecg.dcm").wait_for()
    assert page.locator("svg path.trace").count() == 13
    assert "1000 Hz" in page.locator("dl").inner_text()
    # what is none says so
    page.set_input_files("#files", files=[{"name": "x.dat", "mimeType": "", "buffer": b"x"}])
    page.get_by_text("is no recording that can be read").wait_for()
    assert page.locator("h2").inner_text() == "waveform_ecg.dcm"


def test_nothing_stays_of_the_recording_before_one_that_cannot_be_read(visit, folder, tokenizer, tmp_path):
    first = sorted(folder.glob("*.hea"))[0]
    for path in (first, first.with_suffix(".dat")):
        shutil.copy(path, tmp_path)
    (tmp_path / "z.npy").write_bytes(b"\x93NUMPY no array")
    with running(service(tmp_path, stand_in(tokenizer, "yes"))) as address:
        page = ready(visit(address, expected=["422"]))
        ask(page, QUESTION)
        page.locator("#log .note").wait_for()
        page.click("#calipers")
        page.locator("#records .open[title='z.npy'], #records .open[title='z']").click()
        page.locator("#ecgs .bad", has_text="cannot be read: ").wait_for()
        assert page.locator("svg.sheet, .facts, .beat, #log *, #findings *").count() == 0
        assert page.locator("#measure").inner_text() == "" and page.locator("#question").is_disabled()
        assert page.locator("#records .open[aria-current='true'] .name").inner_text().startswith("z")
        page.locator("#records img[hidden]").wait_for(state="attached")
        page.go_back()
        ready(page)
        assert page.locator("h2").inner_text() == first.stem and page.locator("#log .q").count() == 1


def test_calipers_measure(visit, address):
    page = ready(visit(address))
    page.click("#calipers")
    page.locator(".caliper").nth(1).wait_for()
    sheet = page.locator("svg.sheet").bounding_box()
    millimetre = sheet["width"] / float(page.locator("svg.sheet").get_attribute("viewBox").split()[2])

    def middle(i):
        x, y = (
            page.locator(".caliper")
            .nth(i)
            .evaluate("c => { const m = c.getScreenCTM(); return [m.e, m.f]; }")
        )
        return x, y

    (x, y), (u, v) = middle(0), middle(1)
    page.mouse.move(u, v + 30)
    page.mouse.down()
    page.mouse.move(x + 40, v + 30)
    page.mouse.move(x + 5 * millimetre, y + 30 + 10 * millimetre)  # 5 mm at 25 mm/s, 10 mm at 10 mm/mV
    page.mouse.up()
    page.mouse.move(10, 10)
    told = page.locator("#measure").inner_text()
    found = re.fullmatch(r"Calipers: (\d+) ms, (\d+) a minute, ([\d.]+) mV", told)
    assert found and abs(int(found[1]) - 200) <= 2 and abs(float(found[3]) - 1) <= 0.02, told
    assert abs(int(found[2]) - 300) <= 3
    # by keys: 20 ms a step, finely 2 ms
    page.locator(".caliper").nth(1).focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert int(re.search(r"(\d+) ms", page.locator("#measure").inner_text())[1]) == int(found[1]) + 200
    page.keyboard.press("Shift+ArrowLeft")
    told = page.locator("#measure").inner_text()
    assert int(re.search(r"(\d+) ms", told)[1]) == pytest.approx(int(found[1]) + 198, abs=1)
    assert told.removeprefix("Calipers: ") == page.locator(".caliper").nth(1).get_attribute("aria-valuetext")


def test_a_path_outside_is_refused(visit, address, folder):
    page = ready(visit(address, expected=["403"]))
    second = sorted(folder.glob("*.hea"))[1].stem
    page.fill("#find", f"{second}.hea")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=second).wait_for()
    page.fill("#find", "../../etc/passwd")
    page.keyboard.press("Enter")
    page.get_by_text("outside the served folder").wait_for()
    assert page.locator("h2").inner_text() == second


def test_behind_a_proxy_that_gives_it_a_name_and_a_path(visit, folder, tokenizer):
    of, path = service(folder, stand_in(tokenizer, "sinus rhythm")), "/user/x/proxy/8765/"
    with (
        running(of, token="s3cret", allowed=[("ecg.localhost", None)]) as behind,
        proxied(behind, path) as port,
    ):
        page = ready(visit(f"http://ecg.localhost:{port}{path}?token=s3cret"))
        assert urlsplit(page.url)._replace(fragment="").geturl() == f"http://ecg.localhost:{port}{path}"
        [cookie] = page.context.cookies()
        assert (cookie["value"], cookie["path"]) == ("s3cret", path[:-1])
        page.locator("svg.sheet").wait_for()
        ask(page, "What is the rhythm?")
        page.locator("#log .a", has_text="sinus rhythm").wait_for()
        page.wait_for_function("[...document.querySelectorAll('#records img')].every((i) => i.complete)")
        with page.expect_download() as saved:
            page.click("#save")
        assert saved.value.suggested_filename.endswith(".zip")


def test_an_answer_is_stopped(visit, folder, tokenizer):
    with running(service(folder, stand_in(tokenizer, "word " * 300, 0.1))) as address:
        page = ready(visit(address))
        ask(page, "a long one?")
        page.locator("#stop").wait_for()
        page.locator("#log .a", has_text="word").wait_for()
        page.click("#stop")
        page.locator("#log .note", has_text="stopped").wait_for()
        assert 4 <= len(page.locator("#log .a").inner_text()) < 1400


def test_a_server_that_dies_is_told(visit, folder, tokenizer):
    command = [sys.executable, str(Path(__file__).with_name("serving.py")), folder, tokenizer]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip()
            page = ready(visit(address, expected=["ERR_", "Failed to load"]))
            ask(page, "a long one?")
            page.locator("#log .a", has_text="a long answer").wait_for()
            server.kill()
            page.get_by_text("The server has stopped in the middle of this answer").wait_for()
            assert page.locator("#log .a").inner_text().startswith("a long answer")
            ready(page)
            ask(page, "and now?")
            page.get_by_text("The server does not answer").wait_for()
        finally:
            server.kill()


def test_a_long_recording_is_loaded_as_far_as_it_is_in_view(visit, tmp_path, tokenizer):
    time_of = np.arange(1800 * 360) / 360
    beat = np.exp(-(((time_of % 1) - 0.5) ** 2) / (2 * 0.02**2))
    wfdb.wrsamp("long", 360, ["mV"] * 2, ["II", "V1"], np.stack([beat, -beat], 1), fmt=["16"] * 2,
                adc_gain=[1000.0] * 2, baseline=[0] * 2, write_dir=str(tmp_path))  # fmt: skip
    with running(service(tmp_path, stand_in(tokenizer, "yes"))) as address:
        page, sizes, asked = visit(address), [], []
        page.on("response", lambda r: sizes.append(int(r.headers.get("content-length", 0))))
        page.on("request", lambda r: asked.append(r.url))
        ready(page)
        page.click("#tokens")
        page.locator(".band").first.wait_for()
        start = time.monotonic()
        page.locator(".rates", has_text="median 60").wait_for()
        assert page.locator(".overview .rate").get_attribute("d").startswith("M0.00 ")
        strip = page.locator(".overview").bounding_box()
        page.mouse.click(strip["x"] + strip["width"] / 2, strip["y"] + 20)
        page.locator("svg[data-start^='89']").wait_for()  # around the middle
        page.get_by_label("Second that the sheet begins with").fill("1200")
        page.locator("svg[data-start='1200']").wait_for()
        print(f"20 minutes on in {1000 * (time.monotonic() - start):.0f} ms")
        page.locator(".band").first.wait_for()
        assert page.get_by_text("1200 to 1210 of 1800 s").count() == 1
        page.locator(".scroll").focus()
        page.keyboard.press("ArrowRight")
        page.locator("svg[data-start='1201']").wait_for()
        page.get_by_label("The model reads").select_option("121")
        page.get_by_text("earlier turns are forgotten").wait_for()
        page.locator("svg[data-start='1200']").wait_for()
        assert sum(sizes) < 2e6  # of 2.6 MB a lead
        assert sum("/tokens" in url for url in asked) <= 6


def test_a_recording_of_hours_is_read_in_parts(visit, tmp_path, tokenizer, monkeypatch):
    second = np.arange(3700 * 250) % 250
    beat = np.where(np.abs(second - 100) < 4, 1000, 0).astype("<i2")
    np.stack([beat, -beat], 1).tofile(tmp_path / "holter.dat")
    lines = "".join(f"holter.dat 16 1000 16 0 0 0 0 {lead}\n" for lead in ("II", "V1"))
    (tmp_path / "holter.hea").write_text(f"holter 2 250 {len(beat)}\n{lines}")
    monkeypatch.setattr("ecgbyte_cli.readers.formats.without_pulse", None)  # nothing is read as a whole
    with running(service(tmp_path, stand_in(tokenizer, "yes"))) as address:
        page = ready(visit(address))
        page.get_by_text("0:00:00 to 0:00:10 of 1:01:40").wait_for()
        page.get_by_label("Second that the sheet begins with").fill("3600")
        page.locator("svg[data-start='3600']").wait_for()
        page.get_by_text("1:00:00 to 1:00:10 of 1:01:40").wait_for()


def test_without_a_model_ecgs_are_shown(visit, folder):
    with running(service(folder)) as address:
        page = visit(address)
        page.locator("svg.sheet").wait_for()
        page.get_by_text("There is no model to ask").wait_for()
        assert page.locator("#question").is_disabled() and page.locator("#tokens").is_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_screen_and_says_what_it_is(visit, address, width, scheme):
    page = ready(visit(address, width, scheme))
    ask(page, QUESTION)
    page.locator("#log .note").wait_for()
    page.click("#calipers")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    notice = page.locator("#notice")
    assert "not a medical device" in notice.inner_text()
    box = notice.bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] < WIDTHS[width]  # in view wherever one is
    # dark: light ink on dark paper
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.querySelector('svg .{part}')).{what}")
        for part, what in (("trace", "stroke"), ("paper", "fill"))
    )
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (bright[0] > bright[1]) == (scheme == "dark")


def test_everything_has_a_name_and_is_reached_by_keys(visit, address):
    page = ready(visit(address))
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea, [tabindex]')].filter(e =>"
        "!(e.getAttribute('aria-label') || e.innerText || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    wanted = {
        "find",
        "files",
        "layout",
        "speed",
        "gain",
        "seconds",
        "tokens",
        "calipers",
        "print",
        "question",
    }
    wanted |= {"clear", "save", "in", "out", "fit"}
    reached = set()
    page.evaluate("document.body.focus()")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert wanted - reached == set()
    assert "scroll" in reached


def test_print_is_at_scale(visit, address, tmp_path):
    page = ready(visit(address))
    page.emulate_media(media="print")
    box = page.locator("svg.sheet").bounding_box()
    millimetres = float(page.locator("svg.sheet").get_attribute("width").removesuffix("mm"))
    page.set_viewport_size({"width": 1600, "height": 900})
    box = page.locator("svg.sheet").bounding_box()
    assert box["width"] == pytest.approx(millimetres * 96 / 25.4, abs=1)
    assert not page.locator("#ask").is_visible() and page.locator("#notice").is_visible()
    assert not page.locator(".beat").is_visible()  # as it is closed
    pages = page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pages)) == 1
