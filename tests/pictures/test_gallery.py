"""The gallery: what the page holds, and what it does in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gallery import HEADS, LAYERS, RATE, make_gallery, make_report, make_sample

from headrouter_pl.errors import HeadRouterError
from headrouter_pl.pictures import Gallery, GallerySample, GalleryView, mel_spectrogram, route_parts
from headrouter_pl.pictures.gallery import _curve, _png, _runs
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.routers import FixedRouter, JointRouter, PromptPrior, SelectivityRouter

soundfile = pytest.importorskip("soundfile")


def block(page: str, name: str) -> str:
    (found,) = re.findall(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    return found


def unrolled(runs: list[int]) -> list[bool]:
    return [bool(i % 2) for i, length in enumerate(runs) for _ in range(length)]


class TestPage:
    def test_holds_what_it_was_given(self, tmp_path: Path) -> None:
        sample = make_sample(3)
        gallery = Gallery("Title", "note")
        gallery.add(sample)
        page = gallery.write(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
        index = json.loads(block(page, "index"))
        assert (index["title"], index["note"]) == ("Title", "note")
        assert index["samples"][0] == {
            "key": "clip/3", "question": "Which sound is heard in <recording> 3?", "kind": "sound", "seconds": 4.0,
            "right": True, "views": [[view.scorer, view.keep_ratio, view.right] for view in sample.views],
        }  # fmt: skip
        data = json.loads(block(page, "s0"))
        assert (data["answer"], data["unpruned"], data["tokens"]) == ("bell", "a bell", 100)
        assert data["evidence"] == [[1.0, 2.5]]
        for view, given in zip(data["views"], sample.views, strict=True):
            assert unrolled(view["kept"]) == given.report.kept_mask.tolist()  # type: ignore[union-attr]
            assert view["count"] == len(given.report.kept)
            curve = data["curves"][view["curve"]]
            steps = np.frombuffer(base64.b64decode(curve["data"]), "<u2") / 65535
            values = curve["low"] + steps * (curve["high"] - curve["low"])
            values = 10**values if curve["log"] else values
            np.testing.assert_allclose(values, given.report.importance, rtol=1e-3, atol=1e-6)
        routed, random = data["views"][0], data["views"][-1]
        assert routed["heads"]["layers"] == list(LAYERS)
        assert len(routed["heads"]["weights"]) == len(LAYERS) * HEADS
        assert routed["route"]["posterior"] == pytest.approx({"semantic": 0.2, "sound": 0.65, "voice": 0.15})
        assert routed["route"]["prompt"]["semantic"] == 0.4
        assert (random["heads"], random["route"]) == (None, None)

    def test_audio_and_spectrogram_can_be_read_back(self, tmp_path: Path) -> None:
        seconds = np.arange(2 * RATE) / RATE
        tone = (0.5 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.float32)
        sample = GallerySample("tone", tone, RATE, "?", "", [GalleryView("x", 0.5, make_report(2.0, 0.5), "")])
        gallery = Gallery()
        gallery.add(sample)
        page = gallery.write(tmp_path / "page.html").read_text(encoding="utf-8")
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(block(page, "a0"))))
        assert rate == RATE
        assert len(heard) / RATE == pytest.approx(2.0, abs=0.1)
        spectrum = np.abs(np.fft.rfft(heard))
        assert np.fft.rfftfreq(len(heard), 1 / RATE)[spectrum.argmax()] == pytest.approx(1000, abs=2)
        pixels = matplotlib_png(base64.b64decode(block(page, "m0")))
        mel = mel_spectrogram(tone, RATE, bands=64)
        np.testing.assert_allclose(pixels[::-1], (mel / 80 + 1) * 255, atol=255 / 47)

    def test_audio_of_several_questions_is_held_once(self) -> None:
        gallery, sample = Gallery(), make_sample(0)
        for key in ("one", "two"):
            gallery.add(GallerySample(key, sample.audio, RATE, key, "", sample.views))
        page = "".join(gallery._page())
        assert [json.loads(block(page, name))["media"] for name in ("s0", "s1")] == [0, 0]
        assert 'id="a1"' not in page

    def test_nothing_is_fetched_and_texts_end_no_script(self) -> None:
        gallery, sample = Gallery("</script><b>"), make_sample(0)
        evil = "</script><script>alert(1)</script><!-- data -->"
        gallery.add(GallerySample(evil, sample.audio, RATE, evil, evil, sample.views, evil, kind=evil))
        page = "".join(gallery._page())
        assert json.loads(block(page, "index"))["samples"][0]["question"] == evil
        assert page.count("alert(1)") == 5
        assert "<script>alert" not in page
        assert "default-src 'none'" in page
        without_data = re.sub(r'id="[ams]\d+">[^<]*', "", page)  # base64 may hold two slashes
        outside = set(re.findall(r"""(?:https?:)?//[\w.]+""", without_data))
        assert {address for address in outside if address.startswith(("http", "//w"))} <= {"http://www.w3.org"}
        assert not re.search(r"""(?:src|href)="(?!#|data:)""", page)

    def test_one_unpruned_by_ratio(self) -> None:
        report = make_report(4.0, 1.0)
        whole = type(report)(**{**report.__dict__, "importance": None, "selectivity": None, "head_weights": None})
        gallery, sample = Gallery(), make_sample(0)
        gallery.add(GallerySample("all", sample.audio, RATE, "?", "", [GalleryView("x", 1.0, whole, "")]))
        view = json.loads(block("".join(gallery._page()), "s0"))["views"][0]
        assert (view["kept"], view["curve"], view["heads"]) == ([0, 100, 0], None, None)

    def test_refusals(self, tmp_path: Path) -> None:
        gallery, sample = Gallery(), make_sample(0)
        with pytest.raises(HeadRouterError, match="no sample"):
            gallery.write(tmp_path / "page.html")
        twice = [sample.views[0], sample.views[0]]
        for given, message in ((twice, "differ"), ([], "differ")):
            with pytest.raises(HeadRouterError, match=message):
                gallery.add(GallerySample("k", sample.audio, RATE, "?", "", given))
        with pytest.raises(HeadRouterError, match="no audio"):
            gallery.add(GallerySample("k", sample.audio[:0], RATE, "?", "", sample.views))
        report = type(sample.views[0].report)(**{**sample.views[0].report.__dict__, "kept_mask": None})
        with pytest.raises(HeadRouterError, match="kept_mask"):
            gallery.add(GallerySample("k", sample.audio, RATE, "?", "", [GalleryView("x", 0.5, report, "")]))
        assert len(gallery) == 0


def matplotlib_png(data: bytes) -> np.ndarray:
    image = pytest.importorskip("matplotlib.image").imread(io.BytesIO(data), format="png")
    return np.round(image * 255)


@pytest.mark.parametrize("kept", [[], [1], [0], [1, 1, 0], [0, 1, 1, 0, 1], [1, 0, 0, 1]])
def test_runs(kept: list[int]) -> None:
    assert unrolled(_runs(np.array(kept, dtype=bool))) == [bool(one) for one in kept]


def test_importance_below_zero_and_not_finite() -> None:
    curve = _curve(np.array([-1.0, np.nan, 3.0, -np.inf, 1.0]))
    assert not curve["log"]
    assert (curve["low"], curve["high"]) == (-1.0, 3.0)
    assert np.frombuffer(base64.b64decode(curve["data"]), "<u2").tolist() == [0, 0, 65535, 0, 32768]
    assert _curve(np.full(3, 0.5))["low"] == _curve(np.full(3, 0.5))["high"]


def test_png_is_one() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(matplotlib_png(_png(grey)), grey)


def test_parts_of_routers() -> None:
    profile = HeadProfile("p", centroids=torch.tensor([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]]), bandwidth=0.3)
    report = make_report(1.0, 0.5)
    report = type(report)(**{**report.__dict__, "selectivity": torch.tensor([0.2, 0.8]), "prompt": "Transcribe this."})
    joint = JointRouter()
    parts = route_parts(joint, profile, report)
    assert report.selectivity is not None
    whole = joint.route(profile, ["Transcribe this."], report.selectivity[None])[0]
    product = torch.tensor([parts["prompt"][name] * parts["audio"][name] for name in profile.types])
    torch.testing.assert_close(whole, product / product.sum())
    assert max(parts["audio"], key=lambda name: parts["audio"][name]) == "semantic"
    assert route_parts(PromptPrior(), profile, report) == {"prompt": pytest.approx(parts["prompt"])}
    assert route_parts(SelectivityRouter(), profile, report) == {"audio": pytest.approx(parts["audio"])}
    assert route_parts(FixedRouter(["voice"]), profile, report) == {}
    assert route_parts(joint, profile, type(report)(**{**report.__dict__, "selectivity": None})) == {}


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    from shutil import which

    path = next(filter(None, map(which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            opened = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
            )
        except sync_api.Error as error:
            pytest.skip(f"no browser: apt-get install chromium ({str(error).splitlines()[0]})")
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of three samples; fails on any message in the console and on any request."""
    make_gallery(3).write(tmp_path / "gallery.html")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    page.goto((tmp_path / "gallery.html").as_uri())
    page.wait_for_selector("body[data-ready='0']", timeout=20_000)
    yield page
    context.close()
    assert troubles == []


def picture(page: Any) -> str:
    return page.evaluate("document.getElementById('canvas').toDataURL()")


@pytest.mark.browser
class TestInABrowser:
    def test_plays_from_where_the_picture_is_clicked(self, page: Any) -> None:
        box = page.locator("#picture").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 90)
        page.wait_for_function("() => document.getElementById('audio').currentTime > 2.05")
        assert page.evaluate("document.getElementById('audio').duration") == pytest.approx(4, abs=0.15)
        assert 2 < float(page.get_attribute("#picture", "aria-valuenow")) < 4
        page.keyboard.press("Space")  # the click left the keyboard with the picture
        page.wait_for_function("() => document.getElementById('audio').paused")

    def test_ratio_and_scorer_change_the_picture(self, page: Any) -> None:
        pictures, answers = [picture(page)], [page.text_content("#answers div:nth-child(3) dd")]
        assert page.is_checked("#ratios label:has-text('30') input")
        for choice in ("#ratios label:has-text('70')", "#scorers label:has-text('random')"):
            page.check(f"{choice} input")
            pictures.append(picture(page))
            answers.append(page.text_content("#answers div:nth-child(3) dd"))
        assert answers == ["headrouter 0.3", "headrouter 0.7", "random 0.7"]
        assert len(set(pictures)) == 3
        assert "does not route" in page.text_content("#route")
        assert "✓ right" in page.text_content("#answers div:nth-child(3)")
        assert "70 of 100 tokens" in page.text_content("#legend")

    def test_kept_tokens_stand_out_without_colour(self, page: Any) -> None:
        # Tokens of the middle 30 % are kept: darker than the others in the spectrogram, and marked in the lane below.
        (kept, *dropped), (bar, *bare) = page.evaluate("""() => {
            const { width, height } = document.getElementById('canvas');
            const d = document.getElementById('canvas').getContext('2d').getImageData(0, 0, width, height).data;
            const grey = (x, y) => { const at = 4 * (Math.floor(y / 290 * height) * width + Math.floor(x * width));
                return (d[at] + d[at + 1] + d[at + 2]) / 3; };
            return [100, 178].map(y => [0.5, 0.1, 0.9].map(x => grey(x, y))); }""")
        assert min(dropped) - kept > 60
        assert min(bare) - bar > 150

    def test_keyboard(self, page: Any) -> None:
        page.keyboard.press("j")
        page.wait_for_selector("body[data-ready='1']")
        assert page.text_content("#question") == "Which sound is heard in <recording> 1?"
        page.keyboard.press("r")
        assert page.is_checked("#ratios label:has-text('70') input")
        page.focus("#picture")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert float(page.get_attribute("#picture", "aria-valuenow")) == pytest.approx(2)
        assert "token 50, kept" in page.text_content("#readout")
        page.keyboard.press("k")
        page.wait_for_selector("body[data-ready='0']")

    def test_find(self, page: Any) -> None:
        page.fill("#find", "recording> 2")
        assert page.locator("#list li:visible").count() == 1
        assert page.text_content("#found") == "1 of 3 samples"
        page.click("#list li:visible a")
        page.wait_for_selector("body[data-ready='2']")

    def test_phone_and_dark(self, page: Any) -> None:
        light = picture(page)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function("light => document.getElementById('canvas').toDataURL() !== light", arg=light)
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert not page.is_visible("#list")
        page.click("#toggle")
        assert page.is_visible("#list")


# How much of the page is decoded, in characters of base64.
COUNTER = """
window.decoded = 0;
const plain = window.atob;
window.atob = (text) => { window.decoded += text.length; return plain(text); };
const source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
Object.defineProperty(HTMLImageElement.prototype, "src", {
  ...source, set(value) { window.decoded += value.length; source.set.call(this, value); },
});
"""


@pytest.mark.browser
def test_two_hundred_samples_are_shown_at_once(browser: Any, tmp_path: Path) -> None:
    # As large as a page of 200 recordings of 30 s; encoding so many would take minutes, so media are repeated.
    gallery = make_gallery(1, 30.0)
    blocks = list(gallery._blocks)
    for number in range(1, 200):
        gallery._index.append({**gallery._index[0], "key": f"clip/{number}"})
        gallery._blocks += [
            text.replace('id="m0"', f'id="m{number}"').replace('id="a0"', f'id="a{number}"')
            .replace('id="s0"', f'id="s{number}"').replace('"media":0', f'"media":{number}') for text in blocks
        ]  # fmt: skip
    path = gallery.write(tmp_path / "gallery.html")
    assert path.stat().st_size > 40e6
    page = browser.new_page()
    page.add_init_script(COUNTER)
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("body[data-ready='0']", timeout=20_000)
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 3000
    assert page.locator("#list li").count() == 200
    page.wait_for_load_state()
    # Only what is looked at is decoded: a sample's audio and spectrogram, and one of its curves.
    media = sum(len(block(path.read_text(encoding="utf-8"), name)) for name in ("m0", "a0"))
    one = page.evaluate("window.decoded")
    assert media < one < 1.1 * media
    page.goto(path.as_uri() + "#200")
    page.wait_for_selector("body[data-ready='199']", timeout=20_000)
    assert page.evaluate("window.decoded") == 2 * one
    page.close()
    print(f"first contentful paint: {painted:.0f} ms of {path.stat().st_size / 2**20:.0f} MiB")
