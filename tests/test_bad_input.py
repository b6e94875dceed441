"""Bad input, through the command line: one line for each fault, exit code 2, no traceback, nothing written."""

import json
import random
import re
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

from omnikit.cli import main
from omnikit.recipe import RecipeError, load_recipe

ROOT = Path(__file__).parents[1]
SHIPPED = [ROOT / "recipes" / name for name in ("tiny_omni.yaml", "baichuan_omni.yaml")]

RECIPE = """\
backbone:
  type: hf_causal_lm
  config:
    model_type: llama
    hidden_size: 16
    intermediate_size: 24
    num_hidden_layers: 1
    num_attention_heads: 2
    num_key_value_heads: 2
    max_position_embeddings: 128
    tie_word_embeddings: true
  chat: {prefix: {user: "<|user|>", assistant: "<|assistant|>"}, suffix: {assistant: "<|end|>"}, stop: "<|end|>"}
encoders:
  vision: {type: siglip, width: 16, layers: 1, heads: 2, mlp_width: 32, image_size: 16, patch_size: 4}
modalities:
  image: {reader: square, encoder: vision, projector: pool_mlp}
data:
  text: {type: jsonl, path: WORLD/text.jsonl}
  pictures: {type: jsonl, path: WORLD/image.jsonl, modalities: [image]}
stages:
  language:
    steps: 2
    batch: {length: 64, packs: 1, micro: 1}
    data: {text: 1}
    train: {backbone: 1e-3}
  image:
    steps: 2
    batch: {length: 64, packs: 1, micro: 1}
    data: {pictures: 1}
    train: {modalities.image.projector: 1e-3, rest: frozen}
run: {seed: 0, precision: fp32}
"""


@pytest.fixture
def folder(tmp_path, world, monkeypatch):
    """An empty working folder; a run that begins would put its folder there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def refused(folder, world, capsys):
    """refused(text of a recipe) -> the lines that say why `omnikit train` would not have it."""

    def call(text, **beside):
        for name, content in {"recipe": text, **beside}.items():
            (folder / f"{name}.yaml").write_text(content.replace("WORLD", str(world)))
        before = sorted(folder.rglob("*"))
        with pytest.raises(SystemExit) as left:
            main(["train", "recipe.yaml", "--out", "run"])
        out, err = capsys.readouterr()
        assert (left.value.code, out) == (2, ""), (left.value.code, out, err)
        assert "Traceback" not in err and "\n\n" not in err
        assert sorted(folder.rglob("*")) == before, "something was written"
        return err.splitlines()

    return call


def changed(old, new):
    assert RECIPE.count(old) == 1, old
    return RECIPE.replace(old, new)


def test_the_recipe_itself_is_good(folder, world, capsys):
    (folder / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(world)))
    with pytest.raises(SystemExit) as left:
        main(["check", "recipe.yaml", "--json"])
    assert not left.value.code, capsys.readouterr().err


def test_restarts_of_nothing_are_refused(folder, world, capsys):
    (folder / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(world)))
    with pytest.raises(SystemExit) as left:
        main(["train", "recipe.yaml", "--max-restarts", "3"])
    told = "--max-restarts: there are no processes to start again without --nproc; say --nproc too\n"
    assert (left.value.code, capsys.readouterr().err) == (2, told)


# ------------------------------------------------------------------------------------------------------------- recipes

PROJECTOR_RULE = "modalities.image.projector: 1e-3"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
RECIPES = {
    "unknown key": (changed("seed: 0", "sede: 0"), [r"^recipe.yaml:31: run.sede: .*did you mean `seed`"]),
    "unknown component": (
        changed("projector: pool_mlp", "projector: pol_mlp"),
        [r"^recipe.yaml:16: modalities.image.projector: no projector is called 'pol_mlp'; did you mean `pool_mlp`"],
    ),
    "duplicate key": (
        changed("    data: {text: 1}\n", "    data: {text: 1}\n    steps: 9\n"),
        [r"^recipe.yaml:25: the key 'steps' again \(first in line 22\)"],
    ),
    "a rate that is off": (
        changed(PROJECTOR_RULE, "modalities.image.projector: {lr: off}"),
        [r"^recipe.yaml:30: stages.image.train.modalities.image.projector.*off"],
    ),
    "a rate that is false": (
        changed(PROJECTOR_RULE, "modalities.image.projector: false"),
        [r"^recipe.yaml:30: stages.image.train.modalities.image.projector: .*false"],
    ),
    "a negative rate": (
        changed(PROJECTOR_RULE, "modalities.image.projector: -1e-3"),
        [r"^recipe.yaml:30: stages.image.train.modalities.image.projector.*-0.001"],
    ),
    "a rate that is no number": (
        changed(PROJECTOR_RULE, "modalities.image.projector: .nan"),
        [r"^recipe.yaml:30: stages.image.train.modalities.image.projector.*nan"],
    ),
    "an infinite rate": (
        changed(PROJECTOR_RULE, "modalities.image.projector: .inf"),
        [r"^recipe.yaml:30: stages.image.train.modalities.image.projector.*inf"],
    ),
    "a rule of no component": (
        changed(PROJECTOR_RULE, "modalities.imag.projector: 1e-3"),
        [r"^recipe.yaml:30: stages.image.train.modalities.imag.projector: .*did you mean `modalities.image.projector`"],
    ),
    "a rule that matches no parameter": (
        changed("{backbone: 1e-3}", "{backbone.nothing: 1e-3, backbone: 1e-3}"),
        [r"stages.language.train.backbone.nothing: matches no parameter"],
    ),
    "an uncovered parameter": (
        changed(", rest: frozen}", "}"),
        [r"stages.image.train: no rule for \d+ parameters, such as "],
    ),
    "a rule that no sample reaches": (
        changed("{backbone: 1e-3}", "{backbone: 1e-3, encoders.vision: 1e-3}"),
        [r"^recipe.yaml:25: stages.language.train.encoders.vision: trains .*which no sample of the stage reaches"],
    ),
    "everything frozen": (
        changed(PROJECTOR_RULE, "modalities.image.projector: frozen"),
        [r"^recipe.yaml:30: stages.image.train: trains nothing"],
    ),
    "a missing data file": (
        changed("WORLD/text.jsonl", "nothing.jsonl"),
        [r"^data.text: .*nothing.jsonl is not there; .*--set data.text.path=FILE"],
    ),
    "two missing data files": (
        changed("WORLD/text.jsonl", "nothing.jsonl").replace("WORLD/image.jsonl", "none.jsonl"),
        [r"^data.text: .*nothing.jsonl is not there", r"^data.pictures: .*none.jsonl is not there"],
    ),
    "a stage of absent data": (
        changed("{pictures: 1}", "{picture: 1}"),
        [r"^recipe.yaml:29: stages.image.data.picture: no data is called 'picture'; did you mean `pictures`"],
    ),
    "a file that extends itself": ("extends: recipe.yaml\n", [r"^recipe.yaml:1: extends: a loop: "]),
    "a file that extends none": ("extends: other.yaml\n", [r"^recipe.yaml:1: extends: no file other.yaml"]),
    "a bomb of aliases": (
        BOMB,
        [r":1: the anchor &a", r":2: the anchor &b", r":2: the alias \*a", r":3: the anchor &c", r":3: the alias \*b"],
    ),
    "a bomb of brackets": ("a: " + "[" * 5000 + "]" * 5000, [r"^recipe.yaml:1: not valid YAML: more than 40 levels"]),
    "a bomb of bytes": ("a: b\n" * 100_000, [r"^recipe.yaml: is larger than 256 KiB"]),
    "a merge key": (RECIPE + "more: {<<: {a: 1}}\n", [r"^recipe.yaml:32: the merge key <<"]),
    "a tag that runs code": (
        changed("seed: 0", "seed: !!python/object/apply:os.system ['touch ran']"),
        [r"^recipe.yaml:31: the tag !!python/object/apply:os.system"],
    ),
    "an import path as type": (
        changed("projector: pool_mlp", "projector: {type: omnikit.builtin.projectors.MLPProjector}"),
        [r"^recipe.yaml:16: modalities.image.projector\S* no projector is called .*never import paths"],
    ),
    "an import path as a bare word": (
        changed("reader: square", "reader: os.system"),
        [r"^recipe.yaml:16: modalities.image.reader: no reader is called 'os.system' .*never import paths"],
    ),
    "an empty file": ("", [r"^recipe.yaml:1: the file is empty"]),
    "a file of comments": ("# nothing\n", [r"^recipe.yaml:1: the file is empty"]),
    "a list": ("- backbone\n", [r"^recipe.yaml:1: the file holds no mapping"]),
    "no text": ("\x00\x01", [r"^recipe.yaml:1: not valid YAML: special characters"]),
    "six faults at once": (
        changed("seed: 0", "sede: 0").replace("pool_mlp", "pol_mlp").replace("64, packs: 1", "0, packs: -1"),
        [r"image.projector", r"language.batch.length", r"language.batch.packs", r"image.batch.length",
         r"image.batch.packs", r"run.sede"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_refused_line_by_line_before_anything_is_written(refused, name):
    text, expected = RECIPES[name]
    lines = refused(text)
    for pattern in expected:
        assert any(re.search(pattern, line) for line in lines), (pattern, lines)
    assert len(lines) == len(expected), lines


def test_a_loop_of_two_files_is_named(refused):
    [line] = refused("extends: other.yaml\n", other="extends: recipe.yaml\n")
    assert "extends: a loop: recipe.yaml -> other.yaml -> recipe.yaml" in line


def test_a_pipe_a_folder_and_a_binary_file_are_no_recipes(folder, capsys):
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)))
    for path in ("binary.yaml", "/dev/null", "nothing.yaml"):
        with pytest.raises(SystemExit) as left:
            main(["check", path])
        err = capsys.readouterr().err
        assert left.value.code == 2 and len(err.splitlines()) == 1 and path in err


# ------------------------------------------------------------------------------------------------------ 200 mutations

WEIRD = ["off", "null", "-1", ".nan", ".inf", "1e400", "[]", "{}", "''", "*a", "&a b", "!!set", "<<", "- ", "\t", ": ",
         "os.system", "\x85", "\u202e", "x" * 300, "99999999999999999999", "0x10", "2026-11-22", "rest"]  # fmt: skip


def mutate(text, chance):
    """The text with one to three accidents: a line lost, doubled, moved or indented, a word or character replaced."""
    for _ in range(chance.randint(1, 3)):
        lines = text.split("\n")
        at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(other, lines[at])
            case 2:
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = " " * chance.randint(0, 6) + lines[at].lstrip()
            case 4 | 5:
                words = list(re.finditer(r"[\w.]+", lines[at]))
                if words:
                    word = chance.choice(words)
                    lines[at] = lines[at][: word.start()] + chance.choice(WEIRD) + lines[at][word.end() :]
            case 6:
                place = chance.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:place] + chance.choice(WEIRD) + lines[at][place:]
            case 7:
                lines = lines[: at + 1]
        text = "\n".join(lines)
    return text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_200_mutations_of_a_shipped_recipe_load_or_are_refused(tmp_path, registry, path):
    chance, text, outcomes = random.Random(path.stem), path.read_text(), []
    mutated = tmp_path / "mutated.yaml"
    for number in range(200):
        mutated.write_text(mutate(text, chance), encoding="utf-8")
        began = time.process_time()
        try:
            load_recipe(mutated, registry)
            outcomes.append("loaded")
        except RecipeError as error:
            outcomes.append("refused")
            for message in error.messages:
                assert message.startswith(str(mutated)) and message.isprintable(), (number, message)
                assert "pydantic" not in message, (number, message)
        assert time.process_time() - began < 5, number
    assert {"loaded", "refused"} == set(outcomes)


# ------------------------------------------------------------------------------------------------------------- samples


def turns(*content, answer="red"):
    return {"id": "s1", "turns": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]}


PICTURE, QUESTION = {"image": "WORLD/0.png"}, {"text": "colour?"}
SAMPLES = {
    "missing medium": (turns({"image": "gone.png"}, QUESTION), r"sample s1: image: .*gone.png"),
    "broken medium": (turns({"image": "broken.png"}, QUESTION), r"sample s1: image: .*broken.png"),
    "half a medium": (turns({"image": "half.png"}, QUESTION), r"sample s1: image: .*half.png: is a broken picture"),
    "empty medium": (turns({"image": "empty.png"}, QUESTION), r"sample s1: image: .*empty.png"),
    "medium of another kind": (turns({"image": "WORLD/0.wav"}, QUESTION), r"sample s1: image: .*0.wav"),
    "medium that is a folder": (turns({"image": "."}, QUESTION), r"sample s1: image: "),
    "medium that is a number": (turns({"image": 7}, QUESTION), r"bad.jsonl:1: turn 1: image: write a path"),
    "unknown modality": (turns({"smell": "a.rose"}, QUESTION), r"bad.jsonl:1: turn 1: modality 'smell' is not one of"),
    "empty answer": (turns(PICTURE, QUESTION, answer=" "), r"bad.jsonl:1: turn 2: the assistant's answer is empty"),
    "no answer": ({"id": "s1", "turns": [{"role": "user", "content": "?"}]}, r"bad.jsonl:1: has no assistant turn"),
    "unknown role": ({"turns": [{"role": "robot", "content": "?"}]}, r"bad.jsonl:1: turn 1: is no turn"),
    "unknown key": (turns(PICTURE) | {"label": 3}, r"bad.jsonl:1: unknown key 'label'"),
    "no turns": ({"id": "s1"}, r'bad.jsonl:1: has no list "turns"'),
    "no record": (None, r"bad.jsonl: holds no record"),
    "a list": ([1], r'bad.jsonl:1: has no list "turns"'),
    "too long": (turns({"text": "word " * 100}), r"sample s1: has \d+ tokens, more than a pack of 64; raise"),
}
FEW = """data.text: 1 of its 2 records are bad, more than max_bad 0.2 allows; mend them \
(`omnikit data lint` lists them), or raise it. The first: """


def broken_media(folder, world):
    (folder / "broken.png").write_bytes((world / "0.png").read_bytes()[:20])
    (folder / "empty.png").write_bytes(b"")
    Image.effect_noise((64, 64), 99).convert("RGB").save(folder / "half.png")
    noise = (folder / "half.png").read_bytes()
    (folder / "half.png").write_bytes(noise[: len(noise) // 2])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_bad_sample_is_refused_before_anything_is_written(refused, folder, world, name):
    record, expected = SAMPLES[name]
    broken_media(folder, world)
    text = "\n" if record is None else json.dumps(record).replace("WORLD", str(world)) + "\n"
    (folder / "bad.jsonl").write_text(text)
    [line] = refused(changed("WORLD/image.jsonl", "bad.jsonl"))
    assert re.search(expected, line), line
    # Where only a header is read it seems to be good; where it is decoded, there is no other to go on with.
    assert line.startswith("data.pictures: none of its 1 records can be used; the first: ") or name in (
        "half a medium",
        "no record",
    )


HELDOUT = RECIPE.replace(
    "stages:\n",
    "heldout:\n  new: {data: {type: jsonl, path: bad.jsonl, modalities: [image]}, metric: exact}\nstages:\n",
)


@pytest.mark.parametrize(
    ("name", "before"), [("missing medium", 40), ("no answer", 40), ("half a medium", 7), ("no record", 0)]
)
def test_a_bad_heldout_sample_is_refused_before_anything_is_written(refused, folder, world, name, before):
    record, expected = SAMPLES[name]
    broken_media(folder, world)
    lines = [json.dumps(turns(PICTURE, QUESTION)).replace("WORLD", str(world))] * before
    (folder / "bad.jsonl").write_text("\n".join([*lines, "" if record is None else json.dumps(record)]))
    [line] = refused(HELDOUT)
    assert re.search(expected.replace(":1:", f":{before + 1}:"), line), line


def test_faults_of_different_samples_are_all_told_up_to_20_lines(refused, folder, world):
    def write(number):
        rows = [turns({"image": f"{n}.png"}) | {"id": f"s{n}"} for n in range(number)]
        (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return sorted(refused(HELDOUT))

    assert [line.split(":")[0] for line in write(5)] == [f"sample s{n}" for n in range(5)]
    lines = write(30)
    assert len(lines) == 20 and lines[0] == "and 11 more faults in the data"


def test_a_record_that_is_no_json_is_told_with_its_line(refused, folder, world):
    good = (world / "text.jsonl").read_text().splitlines()[0]
    (folder / "bad.jsonl").write_text(f'{good}\n\n{{"id": \n')
    [line] = refused(changed("WORLD/text.jsonl", "bad.jsonl"))
    assert line.startswith(FEW) and "bad.jsonl:3: is no JSON" in line


# ------------------------------------------------------------------------------------------------------------- plugins

GOOD = """
from omnikit.component import ProjectorConfig, hookimpl

class Config(ProjectorConfig):
    type = "{type}"

@hookimpl
def omnikit_components():
    return [Config]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(package, plugin's name, source): a distribution as pip leaves it, where Python finds it."""

    def put(package, name, source):
        place, module = tmp_path / package, f"{tmp_path.name}_{package}".replace("-", "_")
        info = place / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (place / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[omnikit]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(place))

    return put


def listed(capsys, *options):
    with pytest.raises(SystemExit) as left:
        main(["plugins", *options])
    out, err = capsys.readouterr()
    assert (left.value.code or 0, err) == (0, "")
    return out


NEEDS_TASTE = changed("projector: pool_mlp", "projector: taste")


def test_two_packages_with_one_plugin_name_are_listed_and_both_named(install, refused, capsys):
    install("omnikit-one", "taste", GOOD.format(type="taste"))
    install("omnikit-two", "taste", GOOD.format(type="taste"))
    reason = "two packages register the plugin name 'taste': omnikit-one 1.5 and omnikit-two 1.5; uninstall one"
    assert listed(capsys).count(f"BROKEN: {reason}") == 2
    found = json.loads(listed(capsys, "--json"))["plugins"]
    assert [plugin["broken"] for plugin in found if plugin["name"] == "taste"] == [reason, reason]
    [line] = refused(NEEDS_TASTE)
    assert "no projector is called 'taste'" in line and "omnikit-one 1.5 and omnikit-two 1.5" in line


def test_two_plugins_with_one_component_are_a_clash_that_names_both(install, refused, capsys):
    install("omnikit-one", "one", GOOD.format(type="taste"))
    install("omnikit-two", "two", GOOD.format(type="taste"))
    clash = "two plugins bring the projector 'taste': one (package omnikit-one 1.5) and two (package omnikit-two 1.5)"
    assert f"CLASH: {clash}; uninstall one\n" in listed(capsys)
    assert json.loads(listed(capsys, "--json"))["clashes"] == [f"{clash}; uninstall one"]
    [line] = refused(NEEDS_TASTE)
    assert clash in line


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise RuntimeError('line one\\nline two')", "RuntimeError: line one line two"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x =", "SyntaxError: "),
        ("y = 1", "ValueError: no hook: it must define `omnikit_components`"),
    ],
)
def test_a_plugin_that_fails_on_import_is_listed_with_its_reason_and_the_rest_works(
    install, refused, capsys, source, reason
):
    install("omnikit-broken", "broken", source)
    out = listed(capsys)
    assert f"broken  (omnikit-broken 1.5)\n  BROKEN: {reason}" in out and "pool_mlp" in out
    [line] = refused(NEEDS_TASTE)
    assert "no projector is called 'taste'" in line and reason in line
