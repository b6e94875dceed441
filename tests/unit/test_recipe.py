"""Recipes: what is refused and in which words, `extends`, `--set`, rules, reach, and the JSON schema."""

import re
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import pytest
import yaml

from omnikit.component import (
    BackboneConfig,
    Chat,
    EncoderConfig,
    Mel,
    Pixels,
    ProjectorConfig,
    ReaderConfig,
    RecipePath,
    SourceConfig,
)
from omnikit.recipe import Recipe, RecipeError, Rule, built, dump_recipe, json_schema, load_recipe, reach, rule_for
from omnikit.registry import Registry


class Anyres(ReaderConfig):
    type: ClassVar[str] = "anyres"
    makes: ClassVar[Any] = Pixels
    max_tiles: int = 1


class Waveform(ReaderConfig):
    type: ClassVar[str] = "waveform"
    makes: ClassVar[Any] = Mel


class Siglip(EncoderConfig):
    type: ClassVar[str] = "siglip"
    presets: ClassVar[Any] = {"small": {"width": 16}}
    preset: str | None = None
    width: int
    heads: int | float = 1

    @property
    def input(self):
        return Pixels(size=28, patch=14 if self.width < 1000 else "wide")


class Whisper(EncoderConfig):
    type: ClassVar[str] = "whisper"

    @property
    def input(self):
        return Mel()


class PoolMlp(ProjectorConfig):
    type: ClassVar[str] = "pool_mlp"
    newline: bool = True
    hidden: int | None = None
    note: str = ""


class ConvGmlp(ProjectorConfig):
    type: ClassVar[str] = "conv_gmlp"
    rate: int


class Llm(BackboneConfig):
    type: ClassVar[str] = "hf_causal_lm"
    chat: Chat = Chat(prefix={"user": "<|u|>"}, suffix={"user": "\n"}, stop="<|end|>")


class Jsonl(SourceConfig):
    type: ClassVar[str] = "jsonl"
    path: RecipePath


REGISTRY = Registry.of(Anyres, Waveform, Siglip, Whisper, PoolMlp, ConvGmlp, Llm, Jsonl)

GOOD = """\
backbone: hf_causal_lm
encoders:
  vision: {type: siglip, preset: small, weights: google/siglip}
  audio: whisper
modalities:
  image: {reader: {type: anyres, max_tiles: 9}, encoder: vision, projector: pool_mlp}
  video: {reader: anyres, encoder: vision, projector: pool_mlp}
  audio: {reader: waveform, encoder: audio, projector: {type: conv_gmlp, rate: 4}}
data:
  captions: {type: jsonl, path: data/captions.jsonl, modalities: [image]}
  asr: {type: jsonl, path: data/asr.jsonl, modalities: [audio]}
heldout:
  shapes: {data: {type: jsonl, path: held.jsonl, modalities: [image]}, metric: exact, target: 0.9}
stages:
  align:
    steps: 10
    batch: {length: 64, packs: 4, micro: 2}
    data: {captions: 1}
    train: {modalities.image.projector: 1e-3, rest: frozen}
  omni:
    init: {modalities.video.projector: modalities.image.projector}
    steps: 20
    batch: {length: 64, packs: 4, micro: 1}
    data: {captions: {share: 1, as: {image: video}}, asr: 2.5}
    train: {backbone.lm_head: frozen, modalities.audio: {lr: 2e-5, weight_decay: 0.1}, rest: 1e-5}
    schedule: {shape: linear, warmup: 0.1}
run: {seed: 3, save: 5}
"""


@pytest.fixture
def load(tmp_path):
    """Load a recipe text, as the file r.yaml, with `--set`s."""

    def load(text, *sets):
        (tmp_path / "r.yaml").write_text(text)
        return load_recipe(tmp_path / "r.yaml", REGISTRY, sets)

    return load


@pytest.fixture
def refused(load, tmp_path):
    """The messages for a text, with the file's folder cut off."""

    def refused(text, *sets):
        with pytest.raises(RecipeError) as caught:
            load(text, *sets)
        return [message.replace(f"{tmp_path}/", "") for message in caught.value.messages]

    return refused


def changed(old, new):
    assert GOOD.count(old) >= 1, old
    return GOOD.replace(old, new, 1)


# --------------------------------------------------------------------------------------------------- what is understood


def test_a_recipe_is_what_it_says(load, tmp_path):
    recipe = load(GOOD)
    assert isinstance(recipe.backbone, Llm)
    assert recipe.encoders["vision"] == Siglip(preset="small", width=16, weights="google/siglip")
    assert recipe.modalities["audio"].projector == ConvGmlp(rate=4)
    assert recipe.data["captions"].path == str(tmp_path / "data/captions.jsonl")
    assert list(recipe.stages) == ["align", "omni"]
    align, omni = recipe.stages.values()
    assert align.train == {"modalities.image.projector": Rule(lr=1e-3), "rest": "frozen"}
    assert list(omni.train) == ["backbone.lm_head", "modalities.audio", "rest"]
    assert omni.train["modalities.audio"] == Rule(lr=2e-5, weight_decay=0.1)
    assert (omni.data["captions"].share, omni.data["captions"].as_) == (1.0, {"image": "video"})
    assert (align.clip, align.schedule.shape, omni.schedule.warmup) == (1.0, "cosine", 0.1)
    assert (recipe.run.seed, recipe.run.precision, recipe.run.keep) == (3, "bf16", 2)
    assert recipe.heldout["shapes"].target == 0.9


def test_strings_in_a_recipe_are_plain_strings(load):
    recipe = load(GOOD)
    assert type(recipe.modalities["image"].encoder) is str and type(recipe.encoders["vision"].weights) is str


def test_a_recipe_is_frozen(load):
    with pytest.raises(ValueError, match="frozen"):
        load(GOOD).stages["align"].steps = 3


def test_a_dump_reloads_to_the_same_recipe_elsewhere(load, tmp_path):
    recipe = load(GOOD)
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "resolved.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again, REGISTRY) == recipe
    assert dump_recipe(load_recipe(again, REGISTRY)) == dump_recipe(recipe)
    assert list(yaml.safe_load(dump_recipe(recipe))) == list(Recipe.model_fields)


# ----------------------------------------------------------------------------------------------------- what is refused

BAD = {
    # the schema
    "unknown key, top": ("run:", "ruin:", "r.yaml:27: ruin: is no known key; did you mean `run`?"),
    "unknown key, stage": (
        "steps: 10",
        "stepz: 10",
        "r.yaml:16: stages.align.stepz: is no known key; did you mean `steps`?",
    ),
    "unknown key, component": (
        "max_tiles",
        "max_tile",
        "r.yaml:6: modalities.image.reader.max_tile: is no known key; did",
    ),
    "missing key": ("    steps: 10\n", "", "r.yaml:15: stages.align: needs either steps or epochs"),
    "missing section": ("backbone: hf_causal_lm\n", "", "r.yaml: backbone: is missing"),
    "missing option": (
        "{type: conv_gmlp, rate: 4}",
        "conv_gmlp",
        "r.yaml:8: modalities.audio.projector.rate: is missing",
    ),
    "unknown component": (
        "pool_mlp",
        "pool_mpl",
        "r.yaml:6: modalities.image.projector: no projector is called 'pool_mpl'; did you mean `pool_mlp`? known:",
    ),
    "unknown component, mapping": (
        "type: siglip",
        "type: sigclip",
        "r.yaml:3: encoders.vision.type: no encoder is called",
    ),
    "component of another kind": (
        "reader: anyres",
        "reader: whisper",
        "(it is the name of a component of kind encoder)",
    ),
    "import path as type": (
        "type: siglip",
        "type: torch.nn.Linear",
        "recipes name registered components, never import paths",
    ),
    "_target_": (
        "{type: siglip,",
        "{_target_: os.system,",
        "r.yaml:3: encoders.vision: needs the `type` of an encoder",
    ),
    "component is a list": (
        "audio: whisper",
        "audio: [whisper]",
        "r.yaml:4: encoders.audio: needs the `type` of an encoder",
    ),
    "component is nothing": ("audio: whisper", "audio:", "r.yaml:4: encoders.audio: needs the `type` of an encoder"),
    "type is a mapping": ("type: siglip", "type: {a: b}", "r.yaml:3: encoders.vision: needs the `type` of an encoder"),
    "unknown preset": ("preset: small", "preset: big", "siglip has no preset 'big'; presets: small"),
    "duplicate key": ("  audio: whisper", "  vision: whisper", "r.yaml:4: the key 'vision' again (first in line 3)"),
    "word for a number": (
        "steps: 10",
        "steps: ten",
        "r.yaml:16: stages.align.steps: 'ten' does not fit; should be a valid",
    ),
    "boolean for a number": ("steps: 10", "steps: true", "r.yaml:16: stages.align.steps: true is no value for it"),
    "boolean for an option": (
        "max_tiles: 9",
        "max_tiles: true",
        "modalities.image.reader.max_tiles: true is no value for it",
    ),
    "number for a string": ("projector: pool_mlp", "projector: {type: pool_mlp, note: 1.0}", 'write "1.0" in quotes'),
    "union, one line": (
        "preset: small",
        "width: 4, heads: [x]",
        "r.yaml:3: encoders.vision.heads: a list does not fit; should",
    ),
    "zero steps": ("steps: 10", "steps: 0", "stages.align.steps: 0 does not fit; should be greater than 0"),
    "negative length": ("length: 64", "length: -1", "stages.align.batch.length: -1 does not fit"),
    "micro and packs": ("micro: 2", "micro: 3", "r.yaml:17: stages.align.batch: micro 3 does not divide packs 4"),
    "batch is a number": (
        "batch: {length: 64, packs: 4, micro: 2}",
        "batch: 4",
        "stages.align.batch: 4 does not fit; should be a m",
    ),
    "keep one": ("save: 5", "keep: 1", "run.keep: 1 does not fit; should be greater than or equal to 2"),
    "precision": ("save: 5", "precision: fp16", "run.precision: 'fp16' does not fit; should be 'fp32' or 'bf16'"),
    "clip": ("steps: 10", "steps: 10\n    clip: 0", "stages.align.clip: 0 does not fit; should be greater than 0"),
    "warmup": (
        "warmup: 0.1",
        "warmup: 300",
        "stages.omni.schedule.warmup: 300 does not fit; should be less than or equal to 1",
    ),
    "schedule shape": ("shape: linear", "shape: liner", "should be 'constant', 'cosine' or 'linear'"),
    "metric": (
        "metric: exact",
        "metric: bleu",
        "heldout.shapes.metric: 'bleu' does not fit; should be 'exact' or 'wer'",
    ),
    "no stages": (GOOD[GOOD.index("stages:") : GOOD.index("run:")], "stages: {}\n", "stages: is empty"),
    "name in capitals": ("  vision:", "  Vision:", "r.yaml:3: encoders.Vision: 'Vision' is no name"),
    "name with a dot": ("  captions:", "  my.captions:", "data.my.captions: 'my.captions' is no name"),
    "modality text": ("  video:", "  text:", "r.yaml:7: modalities.text: `text` is every sample's own"),
    "before without extends": (
        "steps: 10",
        "steps: 10\n    before: omni",
        "stages.align.before: `before` places a stage",
    ),
    # rates
    "rate off": (
        "rest: frozen",
        "rest: off",
        "r.yaml:19: stages.align.train.rest: off is no learning rate; to keep something",
    ),
    "lr: off": (
        "rest: frozen",
        "rest: {lr: off}",
        "r.yaml:19: stages.align.train.rest.lr: off is no learning rate; to keep",
    ),
    "rate false": (
        "rest: frozen",
        "rest: false",
        "rest: false is no learning rate; to keep something as it is write `frozen`",
    ),
    "rate true": ("rest: frozen", "rest: true", "stages.align.train.rest: "),
    "rate negative": ("1e-3", "-1", "r.yaml:19: stages.align.train.modalities.image.projector: -1 is no learning rate"),
    "rate zero": ("1e-3", "0", "0 is no learning rate; to keep something as it is write `frozen`"),
    "rate NaN": ("1e-3", ".nan", "nan is no learning rate; it must be positive and finite"),
    "rate NaN, string": ("1e-3", "nan", "nan is no learning rate; it must be positive and finite"),
    "rate infinite": ("1e-3", "1e999", "inf is no learning rate; it must be positive and finite"),
    "rate a word": ("1e-3", "fast", "'fast' is no learning rate; write a number like 1e-4, or `frozen`"),
    "rate a list": ("1e-3", "[1]", "stages.align.train.modalities.image.projector: a list does not fit"),
    "rate nothing": ("1e-3", "", "stages.align.train.modalities.image.projector: "),
    "weight decay negative": (
        "weight_decay: 0.1",
        "weight_decay: -0.1",
        "weight_decay: -0.1 does not fit; should be greater",
    ),
    "rule's unknown key": ("weight_decay: 0.1", "wd: 0.1", "stages.omni.train.modalities.audio.wd: is no known key"),
    # shares
    "share zero": (
        "{captions: 1}",
        "{captions: 0}",
        "stages.align.data.captions: 0 does not fit; should be greater than 0",
    ),
    "share NaN": (
        "{captions: 1}",
        "{captions: .nan}",
        "stages.align.data.captions: nan does not fit; should be a finite number",
    ),
    "share true": ("{captions: 1}", "{captions: true}", "stages.align.data.captions: true is no value for it"),
    # what the parts say about each other
    "no such encoder": (
        "encoder: vision",
        "encoder: visoin",
        "r.yaml:6: modalities.image.encoder: no encoder is called 'visoin'; did you mean `vision`? encoders: visio",
    ),
    "reader of another input": (
        "reader: waveform",
        "reader: anyres",
        "r.yaml:8: modalities.audio.reader: the reader 'anyres' makes Pixels, but the encoder 'audio' eats Mel; choose",
    ),
    "encoder without input": (
        "preset: small",
        "width: 2000",
        "r.yaml:3: encoders.vision: no input fits: patch should be a valid integer",
    ),
    "unused encoder": (
        "  audio: whisper",
        "  audio: whisper\n  ear: whisper",
        "r.yaml:5: encoders.ear: no modality uses the",
    ),
    "no such data": (
        "data: {captions: 1}",
        "data: {caption: 1}",
        "r.yaml:18: stages.align.data.caption: no data is called 'caption'; did you mean `captions`? data: capt",
    ),
    "data of an unknown modality": (
        "modalities: [audio]",
        "modalities: [sound]",
        "r.yaml:11: data.asr.modalities: 'sound' is no",
    ),
    "held-out data of an unknown modality": (
        "held.jsonl, modalities: [image]",
        "held.jsonl, modalities: [imago]",
        "r.yaml:13: heldout.shapes.data.modalities: 'imago' is no modality; did you mean `image`?",
    ),
    "as of an unknown modality": (
        "{image: video}",
        "{image: vidoe}",
        "stages.omni.data.captions.as.image: 'vidoe' is no modality",
    ),
    "as of what the data lacks": (
        "{image: video}",
        "{audio: video}",
        "as.audio: 'captions' has no 'audio'; its modalities: image",
    ),
    "init of nothing": (
        "init: {modalities.video.projector",
        "init: {modalities.video.projectr",
        "r.yaml:21: stages.omni.init.modalities.video.projectr: 'modalities.video.projectr' is no component with ten",
    ),
    "init from nothing": (
        "projector: modalities.image.projector}",
        "projector: image}",
        "'image' is no component with tensors",
    ),
    "init of itself": ("init: {modalities.video", "init: {modalities.image", "would be copied onto itself"),
    "rule of nothing": (
        "train: {modalities.image.projector",
        "train: {modalities.imgae.projector",
        "stages.align.train.modalities.imgae.projector: 'modalities.imgae.projector' is the path of no component; "
        "did you mean `modalities.image.projector`?",
    ),
    "rule of a modality's encoder": (
        "train: {modalities.image.projector",
        "train: {modalities.image.encoder",
        "trained under its own name; write `encoders.vision`",
    ),
    "rule of a reader": (
        "train: {modalities.image.projector",
        "train: {modalities.image.reader",
        "a reader has no parameters",
    ),
    "rule of half a name": (
        "backbone.lm_head",
        "backbon",
        "'backbon' is the path of no component; did you mean `backbone`?",
    ),
    "rule for what no sample reaches": (
        "train: {modalities.image.projector",
        "train: {modalities.audio.projector",
        "r.yaml:19: stages.align.train.modalities.audio.projector: trains 'modalities.audio.projector', which no "
        "sample of the stage reaches (they hold text, image); write `frozen`, or add data for it",
    ),
    "rule for an encoder that no sample reaches": (
        "{modalities.image.projector: 1e-3",
        "{encoders.audio: 1e-3",
        "which no sample",
    ),
    "rule for what `as` leads away from": (
        "modalities.audio: {",
        "modalities.image: {",
        "trains 'modalities.image', which no sample of the stage reaches (they hold text, video, audio)",
    ),
    "rest above": (
        "{modalities.image.projector: 1e-3, rest: frozen}",
        "{rest: frozen, backbone: 1e-3}",
        "stands below `rest`",
    ),
    "rule that never holds": (
        "{modalities.image.projector: 1e-3",
        "{modalities: 1e-3, modalities.image.projector: 2e-3",
        "train.modalities.image.projector: never holds, since `modalities` above it fits first; put",
    ),
    "nothing trains": ("1e-3", "frozen", "r.yaml:19: stages.align.train: trains nothing, everything is frozen; give"),
    "no rules": (
        "train: {modalities.image.projector: 1e-3, rest: frozen}",
        "train: {}",
        "stages.align.train: is empty",
    ),
}


@pytest.mark.parametrize(("old", "new", "expected"), BAD.values(), ids=BAD)
def test_refused_in_one_line_that_says_where(refused, old, new, expected):
    messages = refused(changed(old, new))
    assert any(expected in message for message in messages), messages
    for message in messages:
        assert re.match(r"r\.yaml(:\d+)?: ", message) and "\n" not in message
        assert "pydantic" not in message and "http" not in message and "Input" not in message


def test_all_faults_are_told_at_once(refused):
    text = changed("steps: 10", "steps: 0").replace("rate: 4", "rite: 4").replace("rest: 1e-5", "rest: off")
    assert {message.split(": ")[1] for message in refused(text)} == {
        "modalities.audio.projector.rate",
        "modalities.audio.projector.rite",
        "stages.align.steps",
        "stages.omni.train.rest",
    }


def test_a_wrong_data_name_is_not_also_called_out_of_reach(refused):
    assert len(refused(changed("data: {captions: 1}", "data: {caption: 1}"))) == 1


def test_secrets_are_not_interpolated(load, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    recipe = load(GOOD.replace("google/siglip", "'${oc.env:SECRET}$SECRET'"))
    assert recipe.encoders["vision"].weights == "${oc.env:SECRET}$SECRET"


# -------------------------------------------------------------------------------------------------------------- extends


@pytest.fixture
def extended(tmp_path):
    """Load a text that extends GOOD, from a folder beside it."""
    (tmp_path / "base.yaml").write_text(GOOD)
    (tmp_path / "ablations").mkdir()

    def extended(text, *sets):
        (tmp_path / "ablations" / "x.yaml").write_text(f"extends: ../base.yaml\n{text}")
        return load_recipe(tmp_path / "ablations" / "x.yaml", REGISTRY, sets)

    return extended


def test_extends_alone_is_the_same_recipe(extended, load):
    assert extended("") == load(GOOD)


def test_mappings_merge_key_by_key(extended, tmp_path):
    recipe = extended(
        "encoders: {vision: {width: 32}}\nstages: {omni: {schedule: {floor: 0.1}, clip: 2}}\nrun: {seed: 9}\n"
    )
    assert recipe.encoders["vision"] == Siglip(preset="small", width=32, weights="google/siglip")
    assert (recipe.stages["omni"].schedule.shape, recipe.stages["omni"].schedule.floor) == ("linear", 0.1)
    assert (recipe.run.seed, recipe.run.save) == (9, 5)


def test_paths_stay_relative_to_the_file_that_wrote_them(extended, tmp_path):
    recipe = extended("data: {asr: {path: mine.jsonl}}\n")
    assert recipe.data["asr"].path == str(tmp_path / "ablations/mine.jsonl")
    assert recipe.data["captions"].path == str(tmp_path / "data/captions.jsonl")


def test_a_component_of_another_type_replaces_whole(extended):
    recipe = extended("modalities: {audio: {projector: pool_mlp}, image: {projector: {type: conv_gmlp, rate: 2}}}\n")
    assert recipe.modalities["audio"].projector == PoolMlp()
    assert recipe.modalities["image"].projector == ConvGmlp(rate=2)


def test_options_over_a_bare_word_keep_its_type(extended):
    text = "modalities: {image: {projector: {newline: false}}, video: {projector: {type: pool_mlp, hidden: 4}}}\n"
    assert extended(text).modalities["image"].projector == PoolMlp(newline=False)
    assert extended(text).modalities["video"].projector == PoolMlp(hidden=4)


def test_train_data_and_init_of_a_stage_replace_whole(extended):
    text = "stages: {omni: {train: {encoders.audio: 1e-4, rest: frozen}, data: {asr: 1}, init: {}}}\n"
    omni = extended(text).stages["omni"]
    assert (list(omni.train), list(omni.data), omni.init) == (["encoders.audio", "rest"], ["asr"], {})


def test_null_removes(extended):
    recipe = extended("stages: {align: null}\nencoders: {vision: {weights: null}}\nheldout: {shapes: null}\n")
    assert (list(recipe.stages), recipe.encoders["vision"].weights, recipe.heldout) == (["omni"], None, {})


NEW = "{steps: 1, batch: {length: 8, packs: 1}, data: {asr: 1}, train: {rest: 1e-5}"


def test_before_places_new_stages_in_order(extended):
    recipe = extended(
        f"stages:\n  a: {NEW}, before: omni}}\n  b: {NEW}, before: omni}}\n  c: {NEW}, before: a}}\n  d: {NEW}}}\n"
    )
    assert list(recipe.stages) == ["align", "c", "a", "b", "omni", "d"]


def test_faults_name_the_file_they_stand_in(extended, tmp_path):
    with pytest.raises(RecipeError) as caught:
        extended("stages: {omni: {train: {rest: off}}}\nencoders: {vision: {widht: 3}}\n")
    assert {message.split(": ")[0] for message in caught.value.messages} == {
        f"{tmp_path}/ablations/x.yaml:2",
        f"{tmp_path}/ablations/x.yaml:3",
    }
    (tmp_path / "base.yaml").write_text(changed("max_tiles: 9", "max_tiles: nine"))
    with pytest.raises(
        RecipeError, match=rf"^{re.escape(str(tmp_path))}/base.yaml:6: modalities.image.reader.max_tiles"
    ):
        extended("run: {seed: 1}\n")


BAD_EXTENSIONS = {
    "before of nothing": (f"stages: {{a: {NEW}, before: onmi}}}}", "no stage is called 'onmi'; did you mean `omni`?"),
    "before of itself": (f"stages: {{a: {NEW}, before: a}}}}", "no stage is called 'a'"),
    "before of an old stage": ("stages: {align: {before: omni}}", "'align' is no new stage, and keeps its place"),
    "null of nothing": ("stages: {algin: null}", "x.yaml:2: stages.algin: nothing does not fit"),
    "a second extends": ("extends: other.yaml", "the key 'extends' again"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS)
def test_bad_extensions(extended, text, expected):
    with pytest.raises(RecipeError) as caught:
        extended(text)
    assert expected in str(caught.value)


def test_chains_work_and_loops_are_named(tmp_path, load):
    for name, parent in (("a", "b"), ("b", "c")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}.yaml\nrun: {{log: {ord(name)}}}\n")
    (tmp_path / "c.yaml").write_text(GOOD)
    assert load_recipe(tmp_path / "a.yaml", REGISTRY).run.log == ord("a")
    (tmp_path / "c.yaml").write_text("extends: ./a.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "a.yaml", REGISTRY)
    chain = " -> ".join(f"{tmp_path}/{name}.yaml" for name in "abca")
    assert str(caught.value) == f"{tmp_path}/c.yaml:1: extends: a loop: {chain}; remove one `extends`"


@pytest.mark.parametrize("parent", ["x.yaml", "./x.yaml", "../{folder}/x.yaml", "link.yaml"])
def test_a_file_that_extends_itself(tmp_path, parent):
    (tmp_path / "x.yaml").write_text(f"extends: {parent.format(folder=tmp_path.name)}")
    (tmp_path / "link.yaml").symlink_to("x.yaml")
    with pytest.raises(RecipeError, match="a loop"):
        load_recipe(tmp_path / "x.yaml", REGISTRY)


def test_long_chains_end(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml")
    with pytest.raises(RecipeError, match="more than 8 files deep"):
        load_recipe(tmp_path / "0.yaml", REGISTRY)


@pytest.mark.parametrize("parent", ["none.yaml", ".", "[a.yaml, b.yaml]", "''", "3", "null", "x" * 5000])
def test_extends_names_one_file(refused, parent):
    [message] = refused(f"extends: {parent}\n{GOOD}")
    assert message.startswith("r.yaml:1: extends: ") and len(message) < 500


def test_files_that_are_none(tmp_path):
    def message(path):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, REGISTRY)
        return str(caught.value)

    assert message(tmp_path / "none.yaml").endswith("cannot be read: no such file; give the path of a recipe file")
    assert "is a folder" in message(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert "the file is empty" in message(tmp_path / "empty.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    assert "latin.yaml:1: is not UTF-8" in message(tmp_path / "latin.yaml")


# ---------------------------------------------------------------------------------------------------------------- --set

SETS = {
    "run.seed=7": lambda r: r.run.seed == 7,
    "run={seed: 8}": lambda r: (r.run.seed, r.run.save) == (8, 500),  # a node is replaced whole
    "modalities.audio.projector=pool_mlp": lambda r: r.modalities["audio"].projector == PoolMlp(),
    "modalities.image.projector.newline=false": lambda r: r.modalities["image"].projector == PoolMlp(newline=False),
    "modalities.image.projector={type: conv_gmlp, rate: 2}": lambda r: (
        r.modalities["image"].projector == ConvGmlp(rate=2)
    ),
    "encoders.vision.weights=org/other": lambda r: r.encoders["vision"].weights == "org/other",
    "encoders.vision.weights=null": lambda r: r.encoders["vision"].weights is None,
    "encoders.audio.weights=./w": lambda r: r.encoders["audio"].weights == str(Path.cwd() / "w"),
    "data.asr.path=here.jsonl": lambda r: r.data["asr"].path == str(Path.cwd() / "here.jsonl"),
    "data.asr.path=a=b": lambda r: r.data["asr"].path.endswith("/a=b"),
    "data.more={type: jsonl, path: m}": lambda r: "more" in r.data,
    "stages.align.clip=0.5": lambda r: r.stages["align"].clip == 0.5,
    "stages.align.schedule.floor=0.5": lambda r: r.stages["align"].schedule.floor == 0.5,
    "stages.omni.data.captions=3": lambda r: r.stages["omni"].data["captions"].as_ == {},
    "stages.omni.data.captions.share=3": lambda r: r.stages["omni"].data["captions"].as_ == {"image": "video"},
    "stages.omni.data.asr.share=3": lambda r: r.stages["omni"].data["asr"].share == 3,
    "stages.omni=null": lambda r: list(r.stages) == ["align"],
    "stages.omni.schedule=null": lambda r: r.stages["omni"].schedule.shape == "cosine",
    "stages.align.train.modalities.image.projector=2e-3": lambda r: (
        rules(r) == [("modalities.image.projector", 2e-3), REST]
    ),
    "stages.align.train.encoders.vision=1e-5": lambda r: (
        rules(r) == [("modalities.image.projector", 1e-3), ("encoders.vision", 1e-5), REST]
    ),
    "stages.align.train.modalities.image.projector.proj=frozen": lambda r: (
        rules(r) == [("modalities.image.projector.proj", "frozen"), ("modalities.image.projector", 1e-3), REST]
    ),
    "stages.align.train.modalities.image.projector.weight_decay=0.5": lambda r: (
        r.stages["align"].train["modalities.image.projector"] == Rule(lr=1e-3, weight_decay=0.5)
    ),
    "stages.align.train.rest=1e-6": lambda r: rules(r)[-1] == ("rest", 1e-6),
    "stages.align.train={backbone: 1e-4}": lambda r: rules(r) == [("backbone", 1e-4)],
    "stages.omni.train.backbone.lm_head=null": lambda r: "backbone.lm_head" not in r.stages["omni"].train,
    "stages.align.init.modalities.image.projector=modalities.video.projector": lambda r: (
        r.stages["align"].init == {"modalities.image.projector": "modalities.video.projector"}
    ),
    "heldout.shapes.target=null": lambda r: r.heldout["shapes"].target is None,
}
REST = ("rest", "frozen")


def rules(recipe):
    return [(path, rule if rule == "frozen" else rule.lr) for path, rule in recipe.stages["align"].train.items()]


@pytest.mark.parametrize("text", SETS)
def test_set(load, text):
    assert SETS[text](load(GOOD, text))


def test_sets_apply_in_order(load):
    recipe = load(GOOD, "modalities.audio.projector=pool_mlp", "modalities.audio.projector.hidden=3")
    assert recipe.modalities["audio"].projector == PoolMlp(hidden=3)


BAD_SETS = {
    "x": "is not path=value",
    "=3": "is not path=value",
    "run.seed=": "is not path=value",
    "runn.seed=1": "no `runn` here; did you mean `run`?",
    "stages.algin.steps=1": "no `algin` here; did you mean `align`? there is: align, omni",
    "stages.align.step=1": "stages.align.step: is no known key; did you mean `steps`?",
    "stages.align.schedul.floor=0": "no `schedul` here; did you mean `schedule`?",
    "stages.algin=null": "no `algin` to remove; did you mean `align`?",
    "stages.align.steps.x=1": "`steps` has nothing below it; set it whole",
    "data.asr.modalities.0=image": "`modalities` has nothing below it; set it whole",
    "modalities.image.projector.newlines=false": "modalities.image.projector.newlines: is no known key; did you mean `",
    "modalities.image.projector=pool_mpl": "modalities.image.projector: no projector is called 'pool_mpl'; did",
    "stages.align.train.modalities.imag.projector=1": "'modalities.imag.projector' is the path of no component; did",
    "stages.align.train.rest=off": "stages.align.train.rest: off is no learning rate",
    "run.seed=[1": "not valid YAML",
    "run.seed=&a 1": "the anchor &a",
    "run.seed=!!int 1": "the tag !!int",
    "run={seed: 1, seed: 2}": "the key 'seed' again",
    "extends=other.yaml": "extends: is no known key",
    "a..b=1": "no `a` here",
}


@pytest.mark.parametrize("text", BAD_SETS)
def test_bad_sets(refused, text):
    [message] = refused(GOOD, text)
    assert BAD_SETS[text] in message and message.startswith(f"--set {text}: ")


def test_a_required_key_cannot_be_removed(refused):
    assert refused(GOOD, "stages.align.steps=null") == ["r.yaml:15: stages.align: needs either steps or epochs"]


def test_all_bad_sets_are_told_at_once(refused):
    assert len(refused(GOOD, "runn.seed=1", "x", "stages.algin.steps=1")) == 3


# ------------------------------------------------------------------------------------------------------ rules and reach


def test_reach_and_built(load):
    recipe = load(GOOD)
    assert built(recipe, "align") == ("image",)
    assert built(recipe, "omni") == ("video", "audio")
    vision = {"encoders.vision", "modalities.image.reader", "modalities.image.projector"}
    assert reach(recipe, "align") == {"backbone"} | vision
    assert "modalities.image.projector" not in reach(recipe, "omni")
    assert {"encoders.vision", "encoders.audio", "modalities.video.projector"} < reach(recipe, "omni")


def test_text_alone_reaches_the_backbone_alone(load):
    recipe = load(
        GOOD,
        "data.text_only={type: jsonl, path: t}",
        "stages.align.data={text_only: 1}",
        "stages.align.train={rest: 1}",
    )
    assert (built(recipe, "align"), reach(recipe, "align")) == ((), {"backbone"})


def test_the_first_rule_that_fits_holds():
    train = {"backbone.lm_head": 1, "backbone": 2, "rest": 3}
    assert rule_for("backbone.lm_head.weight", train) == ("backbone.lm_head", 1)
    assert rule_for("backbone.lm_head", train) == ("backbone.lm_head", 1)
    assert rule_for("backbone.lm_head2.weight", train) == ("backbone", 2)
    assert rule_for("backbones.weight", train) == ("rest", 3)
    assert rule_for("encoders.vision.weight", {"backbone": 1}) is None


# ---------------------------------------------------------------------------------------------------------- JSON schema


@pytest.fixture(scope="module")
def validator():
    schema = json_schema(REGISTRY)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_schema_takes_good_recipes(validator, load):
    for text in (GOOD.replace("1e-3", "0.001"), dump_recipe(load(GOOD))):
        validator.validate(yaml.safe_load(re.sub(r"(\d)e-", r"\1.0e-", text)))
    validator.validate({"extends": "a.yaml", "stages": {"x": {"before": "omni", "steps": 3}, "y": None}})
    validator.validate({"extends": "a.yaml", "encoders": {"vision": {"weights": "b"}}})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 10", "steps: ten"),
        ("steps: 10", "stepz: 10"),
        ("pool_mlp", "pool_mpl"),
        ("type: siglip", "type: sigclip"),
        ("{type: conv_gmlp, rate: 4}", "conv_gmlp"),
        ("max_tiles", "max_tile"),
        ("rest: frozen", "rest: thawed"),
        ("preset: small", "preset: big"),
    ],
)
def test_the_schema_refuses_bad_recipes(validator, old, new):
    assert not validator.is_valid(yaml.safe_load(changed(old, new).replace("1e-3", "0.001")))


def test_the_schema_holds_no_word_that_draft_7_does_not_know(validator):
    assert not re.search(r"prefixItems|unevaluated|\$dynamic|'component'", str(validator.schema))
