"""docs/plugins.md, followed to the letter: its files written, its commands run."""

import json
import math
import os
import re
import shlex
import site
import subprocess
import venv
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from omnikit.builtin.projector_configs import Mlp
from omnikit.mixing import seed_of

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
FILE = re.compile(r"^\*\*`([\w./-]+)`\*\*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files_of(page: str) -> dict[str, str]:
    return dict(FILE.findall(page))


def commands_of(page: str) -> list[str]:
    lines = [line for block in COMMANDS.findall(page) for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), "console blocks hold commands; output goes in text blocks"
    return [line.removeprefix("$ ") for line in lines]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of a throw-away environment on top of this one: what is installed there is gone afterwards.

    It can reach no package index, and no hub.
    """
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, symlinks=True, with_pip=False)
    (packages,) = home.glob("lib/python*/site-packages")
    ours = [folder for folder in site.getsitepackages() if Path(folder).is_dir()]
    # addsitedir, and not a plain path: editable packages are told by .pth files.
    (packages / "ours.pth").write_text("".join(f"import site; site.addsitedir({folder!r})\n" for folder in ours))
    for name in ("omnikit", "pip"):
        command = home / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m {name} "$@"\n')
        command.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", **nowhere}
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **offline, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def followed(environment, tmp_path_factory):
    """(the folder of the package, what each command printed)."""
    page = PAGE.read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("tutorial") / "omnikit-pulse"
    for name, text in files_of(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    printed = {}
    for command in commands_of(page):
        done = subprocess.run(
            shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed[command] = done.stdout
    return folder, printed


def output_of(printed: dict[str, str], start: str) -> str:
    (text,) = [text for command, text in printed.items() if command.startswith(start)]
    return text


def test_the_page_has_what_it_promises():
    page = PAGE.read_text(encoding="utf-8")
    assert {"pyproject.toml", "omnikit_pulse/__init__.py", "tiny_text.yaml", "tiny_pulse.yaml"} <= files_of(page).keys()
    assert "pip install --no-build-isolation --no-deps -e ." in commands_of(page)


def test_the_package_is_listed_as_the_page_shows(followed):
    _, printed = followed
    shown = "pulse  (omnikit-pulse 0.1.0)\n  encoder: pulse\n  reader: numbers\n"
    assert shown in PAGE.read_text(encoding="utf-8")
    assert shown in printed["omnikit plugins"]


def test_check_counts_the_new_modalitys_tokens(followed):
    _, printed = followed
    assert re.search(r"pulse: 64 numbers\W+8\b", output_of(printed, "omnikit check"))


def test_it_trains(followed):
    folder, printed = followed
    records = [json.loads(line) for line in (folder / "runs/tiny_pulse/metrics.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {"language", "pulse"}
    assert all(math.isfinite(record["loss"]) for record in records)
    losses = [record["loss"] for record in records if record["stage"] == "pulse"]
    assert losses[-1] < 0.5 * losses[0]
    (shown,) = re.findall(r"^pulses: .*", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    any_figures = re.sub(r"\d+\\\.\d", r"\\d+\\.\\d", re.escape(shown))
    assert re.search(f"^{any_figures}$", output_of(printed, "omnikit train"), re.MULTILINE), "other words on the page"
    assert output_of(printed, "omnikit chat").strip() in ("slow", "fast")


def test_it_conforms(followed):
    _, printed = followed
    certificates = output_of(printed, "omnikit plugins check")
    shown = "2 of 2 components conform\n"
    assert shown in PAGE.read_text(encoding="utf-8") and certificates.endswith(shown)
    assert "reader numbers  (omnikit-pulse 0.1.0)  conforms" in certificates


def test_the_new_projector_moved(followed):
    """Against its start, which is drawn again from the seed."""
    folder, _ = followed
    (checkpoint,) = (folder / "runs/tiny_pulse/pulse").glob("step-000060")
    torch.manual_seed(seed_of(0, "modalities.pulse.projector"))
    start = {f"modalities.pulse.projector.{name}": value for name, value in Mlp().build(32, 32).state_dict().items()}
    seen = set()
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            for name in set(tensors.keys()) & set(start):
                assert not torch.equal(tensors.get_tensor(name), start[name]), f"{name} has not moved"
                assert torch.isclose(tensors.get_tensor(name), start[name], atol=0.5).all(), f"{name} started elsewhere"
                seen.add(name)
    assert seen == set(start)
