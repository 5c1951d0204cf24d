"""Measure the page of `ecgbyte serve`: the first sheet, the findings, and the list, in headless Chromium.

    python examples/benchmarks/bench_page.py FOLDER [--runs 5] [--browser /usr/bin/chromium]

Needs playwright. The server runs in a process of its own. Times are the browser's own clock, from the beginning of each
visit; the first visit, in which the model is loaded, does not count.
"""

import argparse
import shutil
import statistics
import subprocess
import sys

from playwright.sync_api import Page, sync_playwright

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
WAIT_MS = 300_000
MARK = "name => performance.getEntriesByName(name)[0].startTime"
LIST = "performance.getEntriesByType('resource').find(one => one.name.includes('api/records?')).responseEnd"


def times_of(page: Page, address: str) -> dict[str, float]:
    """Visit the page; return the times of the list, the sheet and the findings, in ms."""
    page.goto(address)
    page.locator(".bars").first.wait_for()
    sheet, findings = (page.evaluate(MARK, name) for name in ("sheet", "findings"))
    return {"list": page.evaluate(LIST), "sheet": sheet, "findings after the sheet": findings - sheet}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="recordings")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--browser", default=shutil.which("chromium"))
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "ecgbyte_cli",
        "serve",
        options.folder,
        "--model",
        "ptbxl",
        "--port",
        "0",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        try:
            assert server.stdout
            address = server.stdout.readline().split()[0]
            browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS, timeout=WAIT_MS)
            visits = []
            for _ in range(options.runs + 1):
                page = browser.new_page()
                page.set_default_timeout(WAIT_MS)
                visits.append(times_of(page, address))
                page.close()
            for name in visits[0]:
                counted = [visit[name] for visit in visits[1:]]
                print(f"{name}: best {min(counted):.0f} ms, median {statistics.median(counted):.0f} ms")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
