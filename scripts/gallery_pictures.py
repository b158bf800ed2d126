#!/usr/bin/env python
"""Makes a gallery, photographs it in a headless browser, and measures how soon a page of 200 samples shows.

    pip install -e ".[demo]" playwright && apt-get install chromium  # or, for a browser: playwright install chromium
    python scripts/gallery_pictures.py

writes ``outputs/gallery.html`` (``headrouter-pl gallery``, some minutes), ``docs/images/gallery.png`` and
``gallery_phone.png``, and ``docs/data/gallery_page.json``. With ``--page`` a page that is there already is taken.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import Any

from headrouter_pl.cli.tables import dump_figures, machine

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/gallery_pocket.yaml"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Times are the browser's, from the start of its navigation.
CLOCK = """
new MutationObserver(() => {
  if (document.body && document.body.dataset.ready !== undefined) window.readyAt ??= performance.now();
}).observe(document, { attributes: true, childList: true, subtree: true, attributeFilter: ["data-ready"] });
"""


def main() -> None:
    """Runs the steps above."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, help="a gallery to photograph; by default, one is made")
    parser.add_argument("--questions", type=int, default=12, help="of the gallery that is made")
    parser.add_argument(
        "--show", type=int, help="number of the sample to photograph; by default, the first with evidence"
    )
    parser.add_argument("--samples", type=int, default=200, help="of the page that is timed")
    parser.add_argument("--loads", type=int, default=5, help="of it, to take medians of; 0 times nothing")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of images/ and data/")
    given = parser.parse_args()
    page = given.page
    if page is None:
        page = ROOT / "outputs" / "gallery.html"
        options = ["--config", str(ROOT / CONFIG), "--max_questions", str(given.questions), "--output", str(page)]
        subprocess.run([sys.executable, "-m", "headrouter_pl", "gallery", *options], check=True)

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next(filter(None, map(which, BROWSERS)), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        photograph(browser, page, given.show, given.docs / "images")
        if given.loads:
            figures = time_loading(browser, page, given.samples, given.loads)
            (given.docs / "data" / "gallery_page.json").write_text(dump_figures(figures), encoding="utf-8")
            print(dump_figures(figures), end="")
        browser.close()


def photograph(browser: Any, page: Path, number: int | None, folder: Path) -> None:
    """Writes ``gallery.png`` and, of a phone's width, ``gallery_phone.png``, both in light colours."""
    number = first_with_evidence(page) if number is None else number
    for name, width, height in (("gallery", 1200, 1180), ("gallery_phone", 390, 900)):
        shot = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        shot.goto(f"{page.resolve().as_uri()}#{number}")
        shot.wait_for_selector(f"body[data-ready='{number - 1}']")
        shot.screenshot(path=folder / f"{name}.png")
        shot.close()
        print(folder / f"{name}.png")


def first_with_evidence(page: Path) -> int:
    """The number of the first sample of which it is known where the answer is; 1 if there is none."""
    blocks = re.findall(r'id="s(\d+)">(.*?)</script>', page.read_text(encoding="utf-8"))
    return next((int(number) + 1 for number, block in blocks if json.loads(block)["evidence"]), 1)


def time_loading(browser: Any, page: Path, samples: int, loads: int) -> dict[str, Any]:
    """Milliseconds until a page of many samples paints, and until its first one can be played: medians."""
    text, seconds = repeated(page.read_text(encoding="utf-8"), samples)
    paints, readies = [], []
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "large.html"
        large.write_text(text, encoding="utf-8")
        for _ in range(loads):
            context = browser.new_context()
            shot = context.new_page()
            shot.add_init_script(CLOCK)
            shot.goto(large.as_uri())
            shot.wait_for_selector("body[data-ready='0']")
            paints.append(shot.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            readies.append(shot.evaluate("window.readyAt"))
            context.close()
    return {
        "command": shlex.join(["python", "scripts/gallery_pictures.py", *sys.argv[1:]]),
        "machine": machine(),
        "browser": f"Chromium {browser.version}, headless",
        "samples": samples,
        "minutes_of_audio": round(seconds / 60, 1),
        "mebibytes": round(len(text.encode()) / 2**20, 1),
        "loads": loads,
        "first_paint_ms": round(statistics.median(paints)),
        "first_paint_ms_slowest": round(max(paints)),
        "first_sample_ready_ms": round(statistics.median(readies)),
        "first_sample_ready_ms_slowest": round(max(readies)),
    }


def repeated(text: str, samples: int) -> tuple[str, float]:
    """A page of as many samples, those of the given one by turns, each with its own audio; and its seconds of audio."""
    before, index, after = re.split(r'(?<=id="index">)(.*?)(?=</script>)', text, maxsplit=1, flags=re.DOTALL)
    pattern = re.compile(r'<script type="[a-z/]+" id="([ams])(\d+)">(.*?)</script>\n', re.DOTALL)
    blocks = {(kind, int(number)): block for kind, number, block in pattern.findall(after)}
    start, end = after.index('<script type="text/plain" id="m0"'), after.rindex("</script>\n") + len("</script>\n")
    listed = json.loads(index)
    few = listed["samples"]
    listed["samples"] = [few[at % len(few)] for at in range(samples)]
    out = []
    for at in range(samples):
        sample = blocks["s", at % len(few)]
        media = json.loads(sample)["media"]
        for kind, block in (("m", blocks["m", media]), ("a", blocks["a", media])):
            out.append(f'<script type="text/plain" id="{kind}{at}">{block}</script>\n')
        sample = sample.replace(f'"media":{media},', f'"media":{at},', 1)
        out.append(f'<script type="application/json" id="s{at}">{sample}</script>\n')
    seconds = sum(one["seconds"] for one in listed["samples"])
    index = json.dumps(listed, ensure_ascii=False).replace("<", "\\u003c")
    return before + index + after[:start] + "".join(out) + after[end:], seconds


if __name__ == "__main__":
    main()
