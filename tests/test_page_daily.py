"""The page in daily use, with the included model: lists, findings, two ECGs, addresses, export, uploads, axe."""

import io
import re
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install ecgbyte[web]")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install ecgbyte[web]")

from browsing import WIDTHS, ask, ready  # noqa: E402
from serving import running, service  # noqa: E402

from ecgbyte_cli.inference.session import Session  # noqa: E402
from ecgbyte_cli.web import recordings  # noqa: E402

FIBRILLATION, OTHER = "ward/10", "ward/2"


@pytest.fixture(scope="module")
def session():
    """The model that comes with the package."""
    opened = Session.open("ptbxl", device="cpu", loader=recordings.SharedReader)
    opened.load()
    return opened


@pytest.fixture(scope="module")
def folder(real_data, tmp_path_factory):
    """Three recordings in two folders, and a table that is none."""
    made = tmp_path_factory.mktemp("served")
    for name, place in (("110", FIBRILLATION), ("2", OTHER), ("4", "clinic/3")):
        for extension in ("hea", "dat"):
            path = made / f"{place}.{extension}"
            path.parent.mkdir(exist_ok=True)
            content = (real_data / "ludb" / "data" / f"{name}.{extension}").read_bytes()
            renamed = re.sub(rf"(?m)^{name}(?=[. ])".encode(), path.stem.encode(), content)
            path.write_bytes(renamed if extension == "hea" else content)
    (made / "labels.csv").write_text("record,label\n1,AF\n2,SR\n3,SR\n")
    return made


@pytest.fixture(scope="module")
def address(folder, session):
    with running(service(folder, session)) as address:
        yield address


def answered(page, number=0):
    """Wait for the note below an answer, and return its text."""
    page.locator("#log .note").nth(number).wait_for()
    return page.locator("#log .note").nth(number).inner_text()


def open_record(page, name):
    page.locator(f"#records .open[title='{name}']").click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    ready(page)


def listed(page):
    return [row.get_attribute("title") for row in page.locator("#records .open").all()]


def show_list(page):
    if not page.evaluate("document.querySelector('#list').open"):
        page.locator("#list > summary").click()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_is_in_natural_order_and_filtered(visit, address, width):
    page = ready(visit(address, width))
    show_list(page)
    page.locator("#records .open").nth(2).wait_for()
    assert listed(page) == ["clinic/3", OTHER, FIBRILLATION]
    page.select_option("#folder", "ward")
    page.locator("#total", has_text="(2)").wait_for()
    page.fill("#find", "none such")
    page.get_by_text("Nothing found.").wait_for()
    page.fill("#find", "")
    page.locator("#total", has_text="(2)").wait_for()
    page.select_option("#finding", "atrial fibrillation")
    page.locator("#total", has_text="(1)").wait_for()
    assert listed(page) == [FIBRILLATION]
    page.select_option("#finding", "")
    page.select_option("#rhythm", "sinus bradycardia")
    page.get_by_text("Nothing found").wait_for()


def test_arrow_keys_go_through_the_recordings(visit, address):
    page = ready(visit(address))
    assert page.locator("h2").inner_text() == "clinic/3"
    page.locator("#records .open").first.focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("heading", name=OTHER, exact=True).wait_for()
    assert page.evaluate("document.activeElement.title") == OTHER
    ready(page).locator(".scroll").focus()
    page.keyboard.press("ArrowDown")
    page.get_by_role("heading", name=FIBRILLATION, exact=True).wait_for()


def test_twenty_thousand_recordings_are_listed_as_far_as_they_are_in_view(visit, folder, session):
    of = service(folder, session)
    first = next(iter(of.recordings.found))
    many = {f"{i:016x}": f"{folder}/many/{i}.hea" for i in range(20_000)}
    of.recordings.found = {first: of.recordings.found[first], **many}
    with running(of) as address:
        page = ready(visit(address, expected=["404", "422"]))
        page.locator("#total", has_text="(20,001)").wait_for()
        assert page.locator("#records .row").count() < 40
        page.evaluate("document.querySelector('#scroller').scrollTop = 1e9")
        page.locator(".open[title='many/19999']").wait_for()
        assert page.locator("#records .row").count() < 40
        took = page.evaluate(
            "performance.getEntriesByType('resource').filter(r => r.name.includes('api/records?'))[0].duration"
        )
        print(f"the first rows of 20,000 recordings in {took:.0f} ms")


@pytest.mark.parametrize("width", WIDTHS)
def test_findings_are_bars_that_can_be_asked_for(visit, address, width, tmp_path):
    page = ready(visit(address, width))
    show_list(page)
    open_record(page, FIBRILLATION)
    bar = page.locator(".bars button", has_text="atrial fibrillation").last
    bar.wait_for()
    assert re.search(r"\d\d %", bar.inner_text()) and "heart rate" in page.locator(".values").inner_text()
    bar.click()
    note = answered(page)
    assert page.locator("#log .q").inner_text() == "Is there atrial fibrillation?"
    assert page.locator("#log .a").inner_text() == "yes"
    assert re.search(
        r"probability of yes: (over )?\d+ %; threshold for yes: \d+ % · "
        r"without the ECG: no, \d+ %; with a flat line: no, \d+ %",
        note,
    )
    page.locator(".share").first.wait_for(state="attached")
    drew = page.locator("#drew").inner_text()
    assert "What “yes” to “Is there atrial fibrillation?” drew on" in drew and "<" not in drew
    with page.expect_download() as saved:
        page.click("#table")
    rows = Path(saved.value.path()).read_text().splitlines()
    assert (
        rows[0] == "record,kind,finding,probability"
        and f'"{FIBRILLATION}","rhythm","atrial fibrillation"' in rows[1]
    )
    assert len(rows) == 1 + 12 + 18
    page.locator("#chips button", has_text="Describe this ECG.").click()
    answered(page, 1)
    assert page.locator("#log .a").last.inner_text().startswith("The rhythm is atrial fibrillation")


def test_show_belongs_to_the_last_answer(visit, address):
    page = ready(visit(address))
    assert page.locator("#looked").is_disabled()
    ask(page, "Afib?")
    answered(page)
    assert page.locator("#looked").get_attribute("title") == "Show what the answer to “Afib?” drew on"
    for i, question in enumerate(("Hyperkalemia?", "Heart rate?", "Is this dangerous?")):
        ask(page, question)
        answered(page, i + 1)
        assert page.locator("#looked").is_disabled()


def test_an_answer_that_does_not_depend_on_the_ecg_says_so(visit, address):
    page = ready(visit(address))
    open_record(page, FIBRILLATION)
    ask(page, "LVH?")
    answered(page)
    page.get_by_text("the model gives this answer without the ECG too").wait_for()


@pytest.mark.parametrize("width", WIDTHS)
def test_two_ecgs_are_asked_about_side_by_side(visit, address, width):
    page = ready(visit(address, width))
    show_list(page)
    open_record(page, FIBRILLATION)
    show_list(page)
    page.get_by_role("button", name=f"Compare with {OTHER}").click()
    page.get_by_text("each is asked about separately").wait_for()
    page.locator(".card").nth(1).wait_for()
    ask(ready(page), "Afib?")
    answered(page)
    columns = page.locator("#log .column").all_inner_texts()
    assert [re.split(r"\s*\n\s*", text)[:2] for text in columns] == [["10", "yes"], ["2", "no"]]
    assert all(" %" in text for text in columns)
    with page.expect_download() as saved:
        page.click("#save")
    text = zipfile.ZipFile(io.BytesIO(Path(saved.value.path()).read_bytes())).read("conversation.md").decode()
    assert re.search(r"10: yes \(.* %.*\)\n2: no \(.* %.*\)", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_address_restores_what_was_shown(visit, address, width):
    page = ready(visit(address, width))
    show_list(page)
    open_record(page, FIBRILLATION)
    page.select_option("#gain", "20")
    page.locator("svg[data-gain='20']").wait_for()
    ask(page, "Afib?")
    answered(page)
    show_list(page)
    open_record(page, OTHER)
    page.go_back()
    page.get_by_role("heading", name=FIBRILLATION, exact=True).wait_for()
    page.locator("#log .a", has_text="yes").wait_for()
    page.locator("svg[data-gain='20']").wait_for()
    link = page.url
    page.go_back()
    page.locator("svg[data-gain='10']").wait_for()
    page.go_forward()
    page.locator("svg[data-gain='20']").wait_for()
    page.locator("#log .a", has_text="yes").wait_for()
    page.reload()
    page.locator("#log .a", has_text="yes").wait_for()
    # a link that is pasted elsewhere; and one whose conversation the server has forgotten: it is asked again
    for pasted in (link, re.sub(r"&c=\w+", "&c=0123", link)):
        other = visit(pasted, width, expected=["404"])
        other.locator("#log .a", has_text="yes").wait_for()
        assert other.locator("h2").inner_text() == FIBRILLATION
        assert other.locator("svg.sheet").get_attribute("data-gain") == "20"
        assert other.locator("#log .q").all_inner_texts() == ["Afib?"]


def test_an_error_stays_until_it_is_read(visit, address):
    page = ready(visit(address, expected=["403", "404"]))
    page.fill("#find", "../../etc/passwd")
    page.keyboard.press("Enter")
    error = page.get_by_text("outside the served folder")
    error.wait_for()
    page.fill("#find", "")
    page.locator("#total", has_text="(3)").wait_for()
    page.click("#in")
    page.wait_for_timeout(1200)
    assert error.is_visible()
    page.click("#error-close")
    assert not error.is_visible()


def test_a_question_stays_when_the_server_is_gone(visit, folder, session):
    with running(service(folder, session)) as address:
        page = ready(visit(address, expected=["ERR_", "Failed to load"]))
        ask(page, "Heart rate?")
        answered(page)
    page.set_viewport_size({"width": 1440, "height": 450})
    ask(page, "Afib?")
    said = page.get_by_text("The server does not answer")
    said.wait_for()
    shown, panel, box = (
        place.bounding_box() for place in (said, page.locator("#talk"), page.locator("#asking"))
    )
    assert panel["y"] <= shown["y"] and shown["y"] + shown["height"] <= box["y"] + 1  # scrolled to
    assert page.input_value("#question") == "Afib?"
    page.fill("#question", "")
    page.focus("#question")
    for expected in ("Afib?", "Heart rate?"):
        page.keyboard.press("ArrowUp")
        assert page.input_value("#question") == expected


def test_an_upload_that_fails_leaves_the_list(visit, address):
    page = ready(visit(address, expected=["422"]))
    page.set_input_files("#files", files=[{"name": "broken.edf", "mimeType": "", "buffer": b"0" * 300}])
    page.locator("#error-text", has_text="broken.edf cannot be read as EDF").wait_for()
    assert not any("broken" in name for name in listed(page))
    assert page.locator("#total").inner_text() == "(3)"


def test_the_sheet_is_saved_as_png_svg_and_pdf(visit, address):
    page = ready(visit(address))
    beginnings = {"PNG": b"\x89PNG", "SVG": b"<svg ", "PDF": b"%PDF-1.4"}
    for name, beginning in beginnings.items():
        with page.expect_download() as saved:
            page.get_by_role("button", name=name, exact=True).click()
        content = Path(saved.value.path()).read_bytes()
        assert content.startswith(beginning) and saved.value.suggested_filename == f"3.{name.lower()}"
        if name == "PDF":  # true to scale: the sheet's millimetres as points
            width = float(page.locator("svg.sheet").get_attribute("width").removesuffix("mm"))
            box = re.search(rb"/MediaBox\[0 0 ([\d.]+)", content)
            assert float(box[1]) == pytest.approx(width * 72 / 25.4, abs=0.01)
            start = int(re.search(rb"startxref\n(\d+)", content)[1])
            assert content[start:].startswith(b"xref\n0 6\n")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Heart rate?")
    answered(page)
    page.get_by_role("button", name="Copy the answer to Heart rate?").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith("Heart rate?\nheart rate ")


def test_the_sheet_has_room_and_names_stay_in_view(visit, address):
    page = ready(visit(address))
    for width in (768, 1024, 1251, 1440, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        box = page.locator("svg.sheet").bounding_box()
        assert box["width"] >= 640 and page.evaluate("document.documentElement.scrollWidth") <= width
    page.select_option("#layout", "12x1")
    page.locator("svg[data-layout='12x1']").wait_for()
    page.wait_for_function("document.querySelector('svg.sheet').getBoundingClientRect().height <= 0.77 * 800")
    page.select_option("#layout", "3x4")
    page.locator("svg[data-layout='3x4']").wait_for()
    for _ in range(3):
        page.click("#in")
    page.evaluate("document.querySelector('.scroll').scrollLeft = 200")
    page.wait_for_function(
        """() => {
            const left = document.querySelector('.scroll').getBoundingClientRect().left;
            const parts = ["g.lead[data-lead='I'] .name", ".pulse"].map((part) => document.querySelector(part));
            return parts.every((part) => part.getBoundingClientRect().left >= left);
        }"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(visit, address, width, scheme):
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    script = (files(axe.__name__) / "axe.min.js").read_text()
    page = ready(visit(address, width, scheme, expected=["403"]))
    page.locator(".bars").first.wait_for()

    def check(state):
        page.evaluate(script)
        found = page.evaluate(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html + n.failureSummary)]))"
        )
        assert found == [], f"{state}: {found}"

    check("open")
    ask(page, "Afib?")
    answered(page)
    page.click("#looked")
    page.get_by_text("drew on (").wait_for()
    page.click("#tokens")
    page.click("#calipers")
    page.locator(".caliper").first.wait_for()
    show_list(page)
    check("asked, with attribution, tokens and calipers")
    page.fill("#find", "../none")
    page.keyboard.press("Enter")
    page.locator("#error").wait_for()
    page.locator(".ecg .close").click()
    page.get_by_text("Choose a recording").wait_for()
    check("closed, with an error")


def test_skip_links_reach_the_list_the_sheet_and_the_question(visit, address):
    page = ready(visit(address))
    before = page.url
    for skip, reached in (("find", "find"), ("ecgs", "scroll"), ("question", "question")):
        page.locator(f"[data-skip={skip}]").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id || document.activeElement.className") == reached
    assert page.url == before
