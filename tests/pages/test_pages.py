"""The pages in a browser: pictures load, labels are coloured, nothing overflows, and nothing is fetched.

Needs chromium (`make pages` installs it) and the sample data. A script put into a copy of a page tells what it finds;
the page itself, which forbids scripts, is opened as it is to see that the browser has nothing to complain of.
`PAGES` names a folder for screenshots.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from omnikit.cli import main
from omnikit.report import report
from omnikit.train import train

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
WIDTHS = {"desktop": 1280, "phone": 390}
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe src="{name}" style="border:0;width:{width}px;height:{height}px"></iframe><pre hidden></pre>
<script>onmessage = (told) => document.querySelector("pre").textContent = JSON.stringify(told.data)</script>"""


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """browse(arguments) -> what chromium prints and complains of. Its network leads nowhere."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    assert found, "there is no chromium; `make pages` installs it"
    profile = tmp_path_factory.mktemp("profile")

    def call(*arguments):
        command = [
            found,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        command += ["--disable-background-networking", "--disable-component-update", "--no-first-run"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, check=True)

    return call


@pytest.fixture
def looked_at(browse, tmp_path):
    """looked_at(page, width, dark) -> what the probe found in a copy of the page, shown so wide."""

    def look(page, width=WIDTHS["desktop"], dark=False):
        text, policies = POLICY.subn("", page.read_text(encoding="utf-8"))
        assert policies == 1
        probe = f"<script>{(HERE / 'probe.js').read_text()}</script></body>"
        (tmp_path / "copy.html").write_text(text.replace("</body>", probe), encoding="utf-8")
        frame = tmp_path / "frame.html"
        # A frame, for a window is never narrower than 500.
        frame.write_text(FRAME.format(name="copy.html", width=width, height=3000))
        scheme = ["--force-dark-mode"] if dark else []
        window = [f"--window-size={max(width, 500)},3000", "--virtual-time-budget=60000"]
        told = browse(*scheme, *window, "--dump-dom", frame.as_uri()).stdout
        found = json.loads(html.unescape(re.search(r"<pre[^>]*>(.*?)</pre>", told, re.S)[1]))
        assert (found["width"], found["dark"]) == (width, dark)
        return found

    return look


@pytest.fixture
def complaints(browse):
    """complaints(page) -> what the browser's console says of the page as it is."""

    def open_it(page):
        told = browse("--window-size=1280,3000", "--virtual-time-budget=60000", "--dump-dom", page.as_uri())
        assert "</html>" in told.stdout
        return [line for line in told.stderr.splitlines() if "CONSOLE" in line]

    return open_it


def take_picture(browse, page, name, width, dark=False):
    """A screenshot into the folder that the environment names, if it names one."""
    if folder := os.environ.get("PAGES"):
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        frame = page.with_name(f"{page.stem}-frame.html")
        frame.write_text(FRAME.format(name=page.name, width=width, height=3000))
        shutil.copy(page, folder / page.name)
        window = [f"--window-size={max(width, 500)},3000", f"--screenshot={folder / name}.png"]
        browse(*(["--force-dark-mode"] if dark else []), *window, frame.as_uri())


# --------------------------------------------------------------------------------------------------------------- pages


@pytest.fixture(scope="session")
def pages(tmp_path_factory, recipe_of, world, parts):
    """The pages by name: previews of two stages of the tiny recipe, one with bad media, a report, and scores."""
    folder = tmp_path_factory.mktemp("pages")
    for stage in ("sft", "video_mixed"):
        _omnikit(
            "data", "preview", ROOT / "recipes/tiny_omni.yaml", "--stage", stage, "--out", folder / f"{stage}.html"
        )
    (folder / "bad.html").write_text(_with_faults(folder / "bad", recipe_of, world, parts))
    held = {
        "image": {
            "data": {"type": "jsonl", "path": str(world / "image.jsonl"), "modalities": ["image"]},
            "metric": "exact",
        }
    }
    stages = {name: parts.stages[name] for name in ("language", "image")}
    run = recipe_of(stages, heldout=held)
    train(run, folder / "run", _Quiet())
    report(folder / "run")
    rows = ROOT / "omnikit/evaluate/rows"
    chosen = [part for name in ("textvqa", "mme") for part in ("--bench", name, "--data", f"{name}={rows / name}")]
    _omnikit("eval", folder / "run", *chosen, "--report", folder / "scores.html")
    return {
        "sft": folder / "sft.html",
        "video_mixed": folder / "video_mixed.html",
        "bad": folder / "bad.html",
        "report": folder / "run" / "report.html",
        "scores": folder / "scores.html",
    }


class _Quiet:
    def indexing(self, *_):
        pass

    stage = step = note = indexing


def _omnikit(*args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    assert not left.value.code


def _with_faults(folder, recipe_of, world, parts):
    """A preview in which a medium cannot be read, and text is long, of two scripts, and has no place to break."""
    from omnikit.preview import page_of, preview

    folder.mkdir()
    (folder / "cut.png").write_bytes((world / "0.png").read_bytes()[:60])
    texts = ["red " * 300, "x" * 2000, "שלום עולם \u202egreen <script>alert(1)</script>"]
    rows = []
    for number, text in enumerate(texts * 3):
        medium = str(folder / "cut.png") if number < 2 else str(world / "0.png")
        turns = [
            {"role": "user", "content": [{"image": medium}, {"text": text}]},
            {"role": "assistant", "content": text},
        ]
        rows.append(json.dumps({"id": f"{'long-name-' * (number % 3 * 6)}{number}", "turns": turns}) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows))
    data = {"rows": {"type": "jsonl", "path": str(folder / "rows.jsonl"), "modalities": ["image"]}}
    only = parts.stage({"rows": 1}, {"rest": 1e-3}, batch={"length": 6000, "packs": 2, "micro": 1})
    images = {"image": parts.modalities["image"]}
    recipe = recipe_of({"only": only}, data=data, modalities=images, config={"max_position_embeddings": 6000})
    shown = preview(recipe, "only", 2)
    assert any(one.bad for row in shown.rows for one in row.segments)
    return page_of("world", shown)


PAGES = ("sft", "video_mixed", "bad", "report", "scores")


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_in_a_browser(pages, looked_at, browse, name, width):
    found = looked_at(pages[name], width)
    assert found["images"] and all(own > 0 and shown > 0 for own, shown in found["images"])
    assert (found["overflow"], found["wide"]) == (0, []), "nothing is wider than the window"
    assert found["fetched"] == []
    assert all(0 < seconds < 60 for seconds in found["sounds"]) and bool(found["sounds"]) == (name == "sft")
    take_picture(browse, pages[name], f"{name}_{width}", width)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_everything_can_be_read(pages, looked_at, browse, name, dark):
    found = looked_at(pages[name], dark=dark)
    assert found["written"] > 50 and found["faint"] == []
    if dark:
        take_picture(browse, pages[name], f"{name}_dark", WIDTHS["desktop"], dark=True)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ("sft", "video_mixed", "bad"))
def test_labels_are_coloured(pages, looked_at, name, dark):
    found = looked_at(pages[name], dark=dark)
    assert len(set(found["styles"].values())) == 3 and None not in found["styles"].values()
    learned, context = (found["styles"][kind].split(" / ") for kind in ("learned", "context"))
    assert all(one != other for one, other in zip(learned, context, strict=True)), "colour, ground and underline differ"


@pytest.mark.parametrize("name", PAGES)
def test_the_browser_has_nothing_to_complain_of(pages, complaints, name):
    assert complaints(pages[name]) == []


# ------------------------------------------------------------------------------------------- the checks see their fault


def test_every_check_sees_the_fault_it_is_for(looked_at, complaints, tmp_path):
    page = tmp_path / "faulty.html"
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    page.write_text(
        f"<!doctype html><html><head>{policy}</head><body><p style='color:#999;background:#fff'>faint</p>"
        "<div style='width:5000px'>wide</div><img src='http://example.invalid/a.png'><script>1</script></body></html>"
    )
    found = looked_at(page)
    assert found["overflow"] > 3000 and found["wide"] == ["DIV.null"]
    assert found["images"][0][0] == 0 and found["fetched"] == ["http://example.invalid/a.png"]
    assert len(found["faint"]) == 1 and found["faint"][0].startswith("2.85: P")
    told = complaints(page)
    assert any("image" in line for line in told) and any("script" in line for line in told)
