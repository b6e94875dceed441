"""`omnikit plugins check` and `omnikit plugins new`."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import planted
import pytest
from omnikit_good_encoder import GoodEncoderConfig, GoodEncoderReaderConfig
from omnikit_good_source import GoodSourceConfig

from omnikit.cli import main
from omnikit.registry import KINDS, Plugin, Registry


@pytest.fixture
def omnikit(capsys):
    """omnikit("plugins", ...) -> (exit code, stdout, lines of stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as left:
            main(["plugins", *map(str, args)])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


@pytest.fixture
def installed(monkeypatch):
    """installed(classes...): as if these were all there is, beside a plugin that is broken."""

    def pretend(*components):
        plugins = (
            Plugin("given", "omnikit-given", "1.2", components),
            Plugin("ill", "omnikit-ill", "1", broken="ouch"),
        )
        monkeypatch.setattr(Registry, "load", classmethod(lambda cls: cls(plugins)))

    return pretend


def test_a_certificate(omnikit, installed):
    installed(GoodSourceConfig)
    code, out, err = omnikit("check", "good_source")
    assert (code, err) == (0, [])
    lines = out.splitlines()
    assert lines[0].startswith("source good_source  (omnikit-given 1.2)  conforms")
    assert "  ok    holds_samples: 3 samples" in lines and lines[-1] == "1 of 1 components conform"


def test_a_plugin_a_package_and_a_component_are_called_by_name(omnikit, installed):
    installed(GoodSourceConfig)
    for name in ("given", "omnikit-given", "good_source", "source/good_source"):
        code, out, _ = omnikit("check", name, "--json")
        report = json.loads(out)
        assert (code, report["passed"]) == (0, True)
        (component,) = report["components"]
        assert (component["kind"], component["type"], component["package"]) == (
            "source",
            "good_source",
            "omnikit-given",
        )
        assert {"check": "holds_samples", "passed": True, "detail": "3 samples"} in component["checks"]


def test_a_failing_check_is_exit_code_1_and_a_reason(omnikit, installed):
    installed(planted.Robots)
    code, out, err = omnikit("check", "given")
    assert (code, err) == (1, [])
    assert "FAILS 1 of 9 checks" in out and "  FAIL  holds_samples: sample 0 has a turn of 'robot'" in out
    report = json.loads(omnikit("check", "given", "--json")[1])
    assert report["passed"] is False
    assert [check["check"] for check in report["components"][0]["checks"] if not check["passed"]] == ["holds_samples"]


def test_who_leaves_or_prints_is_told_like_any_other(omnikit, installed):
    """By sys.exit(0) a component would end the command as if all were well."""
    installed(planted.Leaving)
    code, out, err = omnikit("check", "given", "--json")
    assert (code, err) == (1, ["nothing to see here"] * err.count("nothing to see here")) and err
    (check,) = [check for check in json.loads(out)["components"][0]["checks"] if not check["passed"]]
    assert check["detail"].startswith("SystemExit: 0")


def test_no_component_is_no_certificate(omnikit, installed):
    installed()
    code, out, err = omnikit("check", "given")
    assert (code, out) == (2, "")
    assert err == ["omnikit plugins check: given brings no component; its hook returns none"]


def test_a_broken_plugin_fails_when_it_is_meant(omnikit, installed):
    installed(GoodSourceConfig)
    code, out, _ = omnikit("check", "--all")
    assert code == 1 and "BROKEN ill (package omnikit-ill 1): ouch" in out and "1 of 1 components conform" in out
    code, out, _ = omnikit("check", "ill", "--json")
    assert code == 1 and json.loads(out)["broken"] == [{"name": "ill", "reason": "ouch"}]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["check"], "omnikit plugins check: give the names of plugins or components, or --all"),
        (["check", "given", "--all"], "omnikit plugins check: give the names of plugins or components, or --all"),
        (
            ["check", "goodencoder"],
            "omnikit plugins check: nothing is called 'goodencoder'; did you mean `good_encoder`?",
        ),
        (
            ["check", "good_encoder"],
            "omnikit plugins check: good_encoder is the name of 2 components; write encoder/good_encoder or "
            "reader/good_encoder",
        ),
        (["new", "../x", "--kind", "reader"], "omnikit plugins new: '../x' is no name; recipes use words of a-z, 0-9"),
        (["new", "class", "--kind", "reader"], "omnikit plugins new: 'class' is no name"),
        (["new", "given", "--kind", "reader"], "omnikit plugins new: there is a plugin called given; choose another"),
        (["new", "good_encoder", "--kind", "encoder"], "omnikit plugins new: there is a encoder called good_encoder"),
        (["new", "there", "--kind", "reader"], "omnikit plugins new: omnikit-there is there already; choose another"),
        (["new", "x", "--kind", "trainer"], "omnikit plugins new: Invalid value for '--kind'"),
    ],
)
def test_what_is_typed_wrong_is_one_line(omnikit, installed, tmp_path, monkeypatch, args, expected):
    installed(GoodEncoderConfig, GoodEncoderReaderConfig)
    monkeypatch.chdir(tmp_path)
    Path("omnikit-there").mkdir()
    code, out, err = omnikit(*args)
    assert (code, out, len(err)) == (2, "", 1), err
    assert err[0].startswith(expected)
    assert os.listdir() == ["omnikit-there"] and os.listdir("omnikit-there") == []


def test_a_package_is_written_whole_or_not_at_all(omnikit, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "module.py")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        code, _, err = omnikit("new", "half", "--kind", "encoder", "--out", tmp_path)
    assert (code, err) == (2, ["module.py: No space left on device"])
    assert list(tmp_path.iterdir()) == []


def test_new_packages_install_and_conform(omnikit, tmp_path):
    """All six, in a throw-away environment on top of this one, by the commands that their README gives."""
    folders = []
    for kind in KINDS:
        code, out, _ = omnikit("new", f"fresh_{kind}", "--kind", kind, "--out", tmp_path)
        assert code == 0 and out.startswith(str(tmp_path / f"omnikit-fresh-{kind}"))
        folders.append(tmp_path / f"omnikit-fresh-{kind}")
        assert "pip install --no-build-isolation --no-deps -e ." in (folders[-1] / "README.md").read_text()
        assert not [path for path in folders[-1].rglob("*") if path.is_file() and "${" in path.read_text()]
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "ours.pth").write_text("".join(f"import site; site.addsitedir({entry!r})\n" for entry in ours))
    python = tmp_path / "venv" / "bin" / "python"
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}

    def run(*args, **kwargs):
        done = subprocess.run(
            [python, "-m", *args], env=environment, capture_output=True, text=True, timeout=300, **kwargs
        )
        assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run("pip", "install", "-q", "--no-build-isolation", "--no-deps", *(f"-e{folder}" for folder in folders))
    report = json.loads(run("omnikit", "plugins", "check", *(f"fresh_{kind}" for kind in KINDS), "--json"))
    assert report["passed"]
    conform = {(found["kind"], found["type"]) for found in report["components"] if found["passed"]}
    assert conform == {*((kind, f"fresh_{kind}") for kind in KINDS), ("reader", "fresh_encoder")}
    run("pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=folders[-1])
