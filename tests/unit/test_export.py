"""A run as a Hugging Face folder: transformers loads it where omnikit and its plugins cannot be imported, computes the
same bits and gives the same answers; what cannot be exported is named; nothing half-written stays."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from omnikit.checkpoint import RunFolder, flat_tensors
from omnikit.cli import main
from omnikit.component import Medium, Sample, Turn
from omnikit.export.folder import export, portable
from omnikit.export.loading import is_export, load
from omnikit.export.packaging import packaged
from omnikit.export.sources import NotCopied, Sources
from omnikit.generate import Run
from omnikit.packing import collate, positions_of, read_items
from omnikit.recipe import Recipe
from omnikit.registry import Plugin, Registry
from omnikit.stages import build

TOKENS = 8

# A modality by a package that omnikit has never seen: `pulse`, files of numbers.
PULSE = {
    "__init__.py": '''
"""Numbers."""
import tomllib
from pathlib import Path
from typing import ClassVar

import numpy as np

from omnikit.component import EncoderConfig, Grid, Input, Item, ProjectorConfig, ReaderConfig, hookimpl

TABLE = tomllib.loads(Path(__file__).with_name("sizes.toml").read_text())


class Series(Input):
    patch: int


# How many numbers
class NumbersConfig(ReaderConfig):
    type: ClassVar[str] = "numbers"
    makes = Series

    def grids(self, medium, input: Series) -> list[Grid]:
        from .reader import read

        return [(len(read(medium)) // input.patch, 1, 1)]

    def read(self, medium, input: Series, grid: Grid) -> Item:
        from .reader import read

        return Item(read(medium)[: grid[0] * input.patch], grid)

    def specimens(self, folder, input):
        from omnikit.testing import pictures

        return pictures(folder)


class PulseConfig(EncoderConfig):
    type: ClassVar[str] = "pulse"
    presets = TABLE
    preset: str | None = None
    patch: int

    @property
    def input(self) -> Series:
        return Series(patch=self.patch)

    def example(self) -> Item:
        return Item(np.zeros(self.patch, np.float32), (1, 1, 1))

    def cost(self, grid):
        return 1.0

    def build(self):
        from thirdparty_pulse.module import Pulse

        return Pulse(self.patch)


@hookimpl
def omnikit_components():
    return [NumbersConfig, PulseConfig]
''',
    "sizes.toml": "[small]\npatch = 4\n",
    "reader.py": '''
"""Reading."""
import numpy as np

from omnikit.media import source_of


def read(medium) -> np.ndarray:
    """The numbers."""
    return np.loadtxt(source_of(medium, 2**20), dtype=np.float32)


def never(medium):
    import nothing_that_is_installed
''',
    "module.py": '''
"""The encoder."""
import torch
from torch import nn


class Pulse(nn.Module):
    def __init__(self, patch: int) -> None:
        super().__init__()
        self.width = 8
        self.patch = patch
        self.map = nn.Linear(patch, self.width)
        self.register_buffer("weights", torch.linspace(0.5, 1.5, patch), persistent=False)

    def forward(self, items):
        values = torch.cat([item.value for item in items]).view(-1, self.patch)
        return self.map(values.to(self.map.weight.dtype) * self.weights)
''',
}

LOADED = """
import json
import sys

REFUSED = json.loads(sys.argv[3])


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {name!r}: refused")


sys.meta_path.insert(0, Refusing())

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoProcessor

torch.set_num_threads(1)
folder, out = sys.argv[1:3]
asked = json.load(sys.stdin)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
logits, answers = {}, []


def said(inputs):
    written = model.generate(**inputs, max_new_tokens=8)
    return written[:, inputs["input_ids"].shape[1] :].tolist()


for number, messages in enumerate(asked):
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True)
    with torch.no_grad():
        logits[f"{number}"] = model(**inputs).logits
        logits[f"{number} cached"] = model(**inputs, use_cache=True).logits
    answers += said(inputs)
together = said(processor.apply_chat_template(asked, add_generation_prompt=True))
save_file(logits, f"{out}/logits.safetensors")
labels = inputs["input_ids"].clone()
loss = model(**inputs, labels=labels).loss
written = model.generate(**inputs, max_new_tokens=4, num_beams=2, num_return_sequences=2)
model.save_pretrained(f"{out}/again")
processor.save_pretrained(f"{out}/again")
again = AutoModelForCausalLM.from_pretrained(f"{out}/again", trust_remote_code=True)
same = all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
with torch.no_grad():
    same = same and torch.equal(again(**inputs).logits, model(**inputs).logits)
small = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.bfloat16)
with torch.no_grad():
    rough = small(**inputs).logits
question = processor(text=["colour?", "red?"], images=[asked[1][0]["content"][0]["image"], None])
json.dump(
    {
        "answers": answers,
        "together": together,
        "stop": model.generation_config.eos_token_id,
        "loss": float(loss),
        "beams": list(written.shape),
        "again": same,
        "rough": [str(rough.dtype), bool(rough.isfinite().all())],
        "question": question["attention_mask"].sum(1).tolist(),
        "imported": sorted({name.partition(".")[0] for name in sys.modules} & set(REFUSED)),
        "texts": processor.batch_decode(together, skip_special_tokens=True),
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def third(tmp_path_factory, registry):
    """A registry with the package `thirdparty_pulse`, which lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("third")
    (folder / "thirdparty_pulse").mkdir()
    for name, text in PULSE.items():
        (folder / "thirdparty_pulse" / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        package = importlib.import_module("thirdparty_pulse")
        plugin = Plugin("pulse", "thirdparty-pulse", "1", (package.NumbersConfig, package.PulseConfig))
        yield Registry((*registry.plugins, plugin))
        for name in [name for name in sys.modules if name.startswith("thirdparty_pulse")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def run(third, recipe_of, world, tmp_path_factory):
    """A run of one step, of weights so large that it says something else to everyone; five modalities, one unknown."""
    tree = recipe_of().model_dump(mode="json", by_alias=True)
    tree["encoders"]["series"] = {"type": "pulse", "preset": "small"}
    tree["modalities"]["pulse"] = {"reader": "numbers", "encoder": "series", "projector": "mlp"}
    recipe = Recipe.model_validate(tree, context=third)
    (world / "pulse.txt").write_text("\n".join(str(number % 5) for number in range(14)))
    model = build(recipe, frozenset(recipe.modalities))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    made = RunFolder(tmp_path_factory.mktemp("runs") / "wild")
    made.begin(recipe, {})
    made.save("omni", 3, flat_tensors(model)[0], {"steps": 3}, keep=1)
    return made.path


@pytest.fixture(scope="module")
def folder(run, third, tmp_path_factory):
    written = tmp_path_factory.mktemp("exported") / "wild"
    export(run, written, third)
    return written


@pytest.fixture(scope="module")
def samples(world):
    """A question of each modality, of two, of text alone, and of several turns."""

    def asked(*content):
        return (Turn("user", content), Turn("assistant", ()))

    image, video, audio, pulse = (Medium(str(world / name)) for name in ("0.png", "1.mp4", "2.wav", "pulse.txt"))
    turns = [
        asked(("text", "red?")),
        asked(("image", image), ("text", "colour?")),
        asked(("video", video), ("text", "colour?")),
        asked(("audio", audio)),
        asked(("pulse", pulse), ("text", "blue <|end|> or red?")),
        asked(("image", Medium(str(world / "3.png"))), ("audio", audio), ("text", "which?")),
        (Turn("user", (("image", image),)), Turn("assistant", (("text", "red"),)), *asked(("pulse", pulse))),
    ]
    return [Sample(f"{number}", one) for number, one in enumerate(turns)]


def messages_of(sample):
    """A sample's turns as chat messages, but for the answer."""

    def entry(name, value):
        return {"type": name, name: value if name == "text" else value.source}

    return [{"role": turn.role, "content": [entry(*one) for one in turn.content]} for turn in sample.turns[:-1]]


@pytest.fixture(scope="module")
def elsewhere(folder, samples, third, tmp_path_factory):
    """What a process says and computes in which no module of omnikit or of a plugin can be imported."""
    out = tmp_path_factory.mktemp("out")
    refused = sorted({one.__module__.partition(".")[0] for plugin in third.plugins for one in plugin.components})
    assert {"omnikit", "omnikit_siglip", "thirdparty_pulse"} <= set(refused)
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(folder), str(out), json.dumps(refused)],
        input=json.dumps([messages_of(sample) for sample in samples]),
        env=surroundings | {"HF_HOME": str(out / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=out,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), load_file(out / "logits.safetensors"), done.stderr


@pytest.fixture(scope="module")
def own(run, third):
    return Run.load(run, third)


@torch.inference_mode()
def test_logits_are_those_of_the_run_bit_by_bit(elsewhere, own, samples):
    found = elsewhere[1]
    assert len(found) == 2 * len(samples)
    for number, sample in enumerate(samples):
        layout = own.layouter(sample, answer=False)
        items = read_items((layout,), own.layouter.branches)
        embeds = own.model.embed(collate([(layout,)], items, len(layout.ids)))
        ones = torch.ones(embeds.shape[:2], dtype=torch.long)
        hidden = own.model.backbone.hidden(embeds, ones, positions_of(ones))
        cached, _ = own.model.backbone.extend(embeds, ones, None)
        assert torch.equal(found[f"{number}"], own.model.backbone.head(hidden))
        assert torch.equal(found[f"{number} cached"], own.model.backbone.head(cached))
    assert len({logits[0, -1].argmax().item() for logits in found.values()}) > 2, "alike, they would prove nothing"


def test_answers_are_those_of_the_run(elsewhere, own, samples):
    told = elsewhere[0]
    expected = own.answer(samples, max_tokens=TOKENS)
    assert len(set(expected)) > 4, "answers that are alike would prove nothing"
    for answers in (told["answers"], told["together"]):
        ids = [[token for token in one if token != told["stop"]] for one in answers]
        assert [own.layouter.tokenizer.decode(one) for one in ids] == expected
    assert told["texts"] == expected


def test_it_behaves_as_a_model_of_transformers(elsewhere, own, samples):
    told, logits, errors = elsewhere
    assert told["imported"] == []
    ids = torch.tensor(own.layouter(samples[-1], answer=False).ids)
    expected = torch.nn.functional.cross_entropy(logits[f"{len(samples) - 1}"][0, :-1], ids[1:])
    assert told["loss"] == pytest.approx(float(expected), rel=1e-5) and told["stop"] == own.layouter.stop
    assert told["beams"][0] == 2
    assert told["again"] and told["rough"] == ["torch.bfloat16", True]
    assert told["question"][0] > told["question"][1] > 0
    assert "newly initialized" not in errors and "not used when" not in errors


def test_the_folder_holds_what_is_needed_and_names_no_folder_of_this_machine(folder, run, world, own):
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "processor_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "recipe.yaml", "modeling_omnikit.py"} <= names
    assert {"thirdparty_pulse.py", "thirdparty_pulse__module.py", "omnikit_siglip__module.py"} <= names
    assert {Path(name).suffix for name in names} == {".md", ".json", ".safetensors", ".yaml", ".py"}
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8")
            assert str(world) not in text and str(run.parent) not in text and sys.prefix not in text
            assert "pickle" not in text or path.name == "omnikit__weights.py", path
    tensors = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in flat_tensors(own.model)[0].items())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["components"]["encoders"]["series"]["patch"] == 4


def test_what_is_unused_is_not_copied(folder):
    text = (folder / "thirdparty_pulse.py").read_text()
    assert "# How many numbers\nclass NumbersConfig" in text and "from .thirdparty_pulse__reader import read" in text
    assert not [word for word in ("TABLE", "specimens", "cost", "hookimpl", "tomllib", "Path") if word in text]
    assert "nothing_that_is_installed" not in (folder / "thirdparty_pulse__reader.py").read_text()
    assert "class AnyresConfig" not in (folder / "omnikit_siglip.py").read_text()
    assert not (folder / "omnikit__registry.py").exists() and not (folder / "omnikit__recipe.py").exists()
    for path in folder.glob("*.py"):
        compile(path.read_text(), path.name, "exec")
        assert not re.search(r"^\s*(from|import) (omnikit|thirdparty)", path.read_text(), re.MULTILINE)


def test_the_card_says_what_it_is(folder):
    text = (folder / "README.md").read_text()
    assert "takes text, image, video, audio and pulse, and answers in text" in text
    assert "| omni | 3 | text, image, video, audio, mixed |" in text and "| language | 0 | text |" in text
    assert "| `encoders.series` | pulse | thirdparty_pulse |" in text and "openai-whisper" in text
    assert "No stage has trained `modalities.pulse`: that is as it was begun with." in text
    assert "thirdparty-pulse 1, under their licences" in text
    assert "The run was not measured on held-out data." in text and "words:" in text


def test_the_card_has_the_figures_of_the_report(run, third, tmp_path):
    table = {"samples": 1800, "metric": "exact", "better": "higher", "score": 0.944, "chance": 0.356, "blind": 0.333}
    (run / "report.json").write_text(json.dumps({"heldout": {"pictures": table}}))
    try:
        export(run, tmp_path / "it", third)
    finally:
        (run / "report.json").unlink()
    text = (tmp_path / "it" / "README.md").read_text()
    assert "| pictures | 1,800 | exact (higher is better) | 94.4% | 35.6% | 33.3% |" in text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"heldout": {"pictures": {"samples": 3}}}', '{"heldout": [1]}'])
def test_a_report_that_is_damaged_is_named(run, third, tmp_path, text):
    (run / "report.json").write_text(text)
    try:
        with pytest.raises(ValueError, match=r"report\.json: is damaged \(.*\); let `omnikit train` make it again"):
            export(run, tmp_path / "it", third)
    finally:
        (run / "report.json").unlink()
    assert not list(tmp_path.iterdir())


def test_omnikit_itself_loads_the_folder(folder, third, own, samples, tmp_path):
    assert is_export(folder) and not is_export(tmp_path)
    recipe, model = load(folder, third)
    expected = own.model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert Run(recipe, model).answer(samples, max_tokens=TOKENS) == own.answer(samples, max_tokens=TOKENS)


def test_shards_and_bf16(run, third, own, tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.export.folder.SHARD", "20KB")
    told = export(run, tmp_path / "half", third, dtype="bf16")
    index = json.loads((tmp_path / "half" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2 and set(index["weight_map"].values()) <= set(told["files"])
    _, model = load(tmp_path / "half", third)
    for name, tensor in flat_tensors(own.model)[0].items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_with_other_tensors_is_refused(folder, third, tmp_path):
    from safetensors.torch import save_file

    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    tensors = load_file(folder / "model.safetensors")
    name = "encoders.series.map.weight"
    for wrong, reason in (
        ({k: v for k, v in tensors.items() if k != name}, f"lacks 1 tensors, such as {name}"),
        (tensors | {name: torch.zeros(2, 2)}, r"holds encoders.series.map.weight \(2, 2\), and there it is \(8, 4\)"),
        (tensors | {"other": torch.zeros(2)}, "the recipe's model has no such tensor"),
    ):
        save_file(wrong, copied / "model.safetensors")
        with pytest.raises(ValueError, match=reason):
            load(copied, third)


def test_texts_that_begin_as_paths_do_stay_as_they_are(recipe_of, parts, world):
    chat = {**parts.backbone["chat"], "system": "/no_think", "open": "//"}
    chat["prefix"] = {**chat["prefix"], "system": "/ "}
    recipe = recipe_of(backbone={**parts.backbone, "chat": chat, "words": ["/", "//"]})
    found = portable(recipe)
    assert found["backbone"] == recipe.backbone.model_dump(mode="json", by_alias=True)
    assert {entry["path"] for entry in found["data"].values()} == {f"{name}.jsonl" for name in recipe.data}
    assert str(world) not in str(found)


def test_a_backbone_of_other_weights_brings_its_tokenizer_along(recipe_of, parts, registry, tmp_path, monkeypatch):
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoProcessor

    stages, weights = {"language": parts.stages["language"]}, tmp_path / "weights"
    given = recipe_of(stages, run={"seed": 3}).backbone
    weights.mkdir()
    tensors = given.build().state_dict()
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, weights / "model.safetensors"
    )
    given.tokenizer().save(str(weights / "tokenizer.json"))
    config = {**given.config, "vocab_size": len(tensors["lm_head.weight"])}
    backbone = {"type": "hf_causal_lm", "weights": str(weights), "chat": parts.backbone["chat"], "config": config}
    recipe = recipe_of(stages, backbone=backbone, encoders={}, modalities={})
    made = RunFolder(tmp_path / "run")
    made.begin(recipe, {})
    model = build(recipe, frozenset())
    made.save("language", 3, flat_tensors(model)[0], {"steps": 3}, keep=1)
    export(made.path, tmp_path / "it", registry)
    shutil.rmtree(weights)

    question = Sample("0", (Turn("user", (("text", "red or blue?"),)), Turn("assistant", ())))
    own = Run(*load(tmp_path / "it", registry))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "cache"))
    processor = AutoProcessor.from_pretrained(tmp_path / "it", trust_remote_code=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "it", trust_remote_code=True)
    inputs = processor(text="red or blue?")
    layout = own.layouter(question, answer=False)
    assert inputs["input_ids"].tolist() == [layout.ids]
    # Beside omnikit in one process neither takes the other's place.
    before = own.answer([question], max_tokens=4)
    with torch.no_grad():
        written = loaded.generate(**inputs, max_new_tokens=4)[:, len(layout.ids) :]
        logits = loaded(**inputs).logits
        embeds = own.model.backbone.embed(inputs["input_ids"])
        ones = torch.ones_like(inputs["input_ids"])
        hidden = own.model.backbone.hidden(embeds, ones, positions_of(ones))
        assert torch.equal(logits, own.model.backbone.head(hidden))
    assert processor.batch_decode(written, skip_special_tokens=True) == before == own.answer([question], max_tokens=4)


# ----------------------------------------------------------------------------------------------------------- bad input


def nothing_left(parent):
    return list(parent.iterdir()) == []


def test_what_is_no_finished_run_is_refused(run, folder, third, recipe_of, parts, tmp_path):
    target = tmp_path / "out" / "it"
    target.parent.mkdir()
    with pytest.raises(ValueError, match=r"holds no run \(no recipe.yaml\)"):
        export(tmp_path, target, third)
    with pytest.raises(ValueError, match="is an exported folder already"):
        export(folder, target, third)
    with pytest.raises(ValueError, match="--stage other: the run has no such stage; stages: language, image"):
        export(run, target, third, stage="other")
    with pytest.raises(ValueError, match="--stage image: has no checkpoint yet; the run has come to omni"):
        export(run, target, third, stage="image")

    recipe = recipe_of({name: parts.stages[name] for name in ("language", "image")})
    begun = RunFolder(tmp_path / "begun")
    begun.begin(recipe, {})
    with pytest.raises(ValueError, match="begun: has no checkpoint yet"):
        export(begun.path, target, third)
    tensors = flat_tensors(build(recipe, frozenset(recipe.modalities)))[0]
    begun.save("language", 2, tensors, {"steps": 3}, keep=1)
    told = "is not finished: language stands at step 2 of 3, and the last stage is image; .* --stage language"
    with pytest.raises(ValueError, match=told):
        export(begun.path, target, third)
    assert nothing_left(target.parent)
    assert export(begun.path, target, third, stage="language")["step"] == 2


def test_a_folder_that_holds_something_is_left_as_it_is(run, third, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ValueError, match="is not empty; give a new folder"):
            export(run, target, third)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", third)
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_full_disk_leaves_nothing(run, third, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("omnikit.export.folder.save_file", full)
    with pytest.raises(ValueError, match=r"it: cannot be written \(.*No space left.*\); make room \([\d,]+ bytes\)"):
        export(run, tmp_path / "it", third)
    assert nothing_left(tmp_path)


def test_the_command(run, third, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Registry, "load", classmethod(lambda cls: third))

    def command(*args):
        with pytest.raises(SystemExit) as left:
            main(["export", *args])
        return left.value.code or 0, *capsys.readouterr()

    code, out, err = command(str(run), str(tmp_path / "it"), "--json")
    told = json.loads(out)
    assert (code, err) == (0, "") and told["step"] == 3 and told["modalities"] == ["image", "video", "audio", "pulse"]
    assert {"pydantic", "av", "openai-whisper"} <= set(told["requirements"]) and "decord" not in told["requirements"]
    assert told["unreached"] == ["pulse"]
    assert told["files"] == {path.name: path.stat().st_size for path in (tmp_path / "it").iterdir()}
    code, out, err = command(str(run), str(tmp_path / "it"))
    assert (code, out) == (2, "") and err == f"{tmp_path / 'it'}: is not empty; give a new folder\n"
    code, out, err = command(str(run), str(tmp_path / "other"), "--dtype", "bf16")
    assert (code, err) == (0, "") and "parameters in bf16" in out and "as omni left it at step 3" in out


# ------------------------------------------------------------------------------------------------ what cannot be copied


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package({"a.py": text}) -> the Sources of the package `copied_package`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(files):
        (tmp_path / "copied_package").mkdir()
        for name, text in {"__init__.py": "", **files}.items():
            (tmp_path / "copied_package" / name).write_text(text)
        importlib.invalidate_caches()
        return Sources(frozenset({"copied_package"}), {}, {})

    yield make
    for name in [name for name in sys.modules if name.startswith("copied_package")]:
        del sys.modules[name]


def test_of_a_module_what_is_asked_for_is_kept_and_what_it_does_when_imported(package):
    sources = package(
        {
            "a.py": '"""Doc."""\nimport os\nimport json as j, re\nfrom .b import one, two\nX = 1\n"""X."""\nY = two\n\n'
            "@j.cache\ndef f():\n    from copied_package.b import (\n        three,\n    )\n    return X, one, three\n"
            "TABLE = {}\nTABLE['f'] = 1\nif True:\n    import re as Z\n",
            "b.py": "one = 1\ntwo = 2\ndef three():\n    return four()\ndef four():\n    import numpy\n",
        }
    )
    sources.require("copied_package.a", "f")
    files = sources.files()
    assert files["copied_package__a.py"] == (
        '# Copied from copied_package.a by omnikit: what this model needs of it.\n"""Doc."""\nimport json as j\n'
        'from .copied_package__b import one\nX = 1\n"""X."""\n\n@j.cache\ndef f():\n'
        "    from .copied_package__b import three\n    return X, one, three\nTABLE = {}\nTABLE['f'] = 1\n"
        "if True:\n    import re as Z\n"
    )
    assert "two" not in files["copied_package__b.py"] and "def four" in files["copied_package__b.py"]
    assert sources.requirements == {"numpy"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f():\n    return open(__file__)\n", r"a:2: reads a file of its package; keep what is in it as Python"),
        ("import importlib\ndef f():\n    importlib.import_module('b')\n", r"a:3: imports what only running it tells"),
        ("from importlib.resources import files\ndef f():\n    return files\n", r"a:1: reads files of its package"),
        ("import copied_package.b\ndef f():\n    copied_package\n", r"a:1: imports copied_package.b whole; write"),
        ("from . import b\ndef f():\n    return b\n", r"a:1: imports the module copied_package.b whole; write"),
        (
            "from .b import *\ndef f():\n    return 1\n",
            r"a:1: imports what its text does not name; write the names for",
        ),
        ("X = [one for one in open(__file__)]\ndef f(one):\n    return one\n", None),
        ("from .b import absent\ndef f():\n    return absent\n", r"copied_package.b: defines no absent"),
        ("def f():\n    import nobody_has_this\n", r"a:2: imports nobody_has_this, which no package brings: others"),
        ("try:\n    import nobody_has_it\nexcept ImportError:\n    nobody_has_it = 0\ndef f():\n    pass\n", None),
    ],
)
def test_what_cannot_be_copied_is_named(package, text, reason):
    sources = package({"a.py": text, "b.py": "one = 1\n"})
    if reason is None:
        sources.require("copied_package.a", "f")
        return
    importlib.import_module("copied_package.b")
    with pytest.raises(NotCopied, match=reason):
        sources.require("copied_package.a", "f")


def test_every_component_that_comes_with_omnikit_can_be_exported(registry):
    own = {one.__module__.partition(".")[0] for plugin in registry.plugins for one in plugin.components}
    kinds = [one for plugin in registry.plugins for one in plugin.components if one.kind not in ("source", "benchmark")]
    assert {"anyres", "c_abstractor", "conv_gmlp", "frames", "hf_causal_lm", "siglip", "whisper"} <= {
        k.type for k in kinds
    }
    for kind in kinds:
        Sources(frozenset(own), {}, {}).require(kind.__module__, kind.__qualname__)


def test_a_component_that_cannot_be_exported_is_named(third, run, tmp_path, monkeypatch):
    from omnikit.recipe import load_recipe

    module = Path(sys.modules["thirdparty_pulse"].__file__).with_name("module.py")
    text = module.read_text()
    module.write_text(f"import secret_kernels\n\n{text}".replace("self.width = 8", "self.width = secret_kernels.WIDTH"))
    try:
        with pytest.raises(ExceptionGroup) as raised:
            packaged(load_recipe(run / "recipe.yaml", third), third)
    finally:
        module.write_text(text)
    told = "encoders.series: the encoder pulse cannot be exported: thirdparty_pulse.module:1: imports secret_kernels, "
    assert [str(error).startswith(told) for error in raised.value.exceptions] == [True]


@pytest.mark.parametrize("message", [{}, {"role": "user"}, {"role": "user", "content": None}, {"content": "red?"}])
def test_a_message_that_is_none_is_named(message):
    from omnikit.export.processing import _turn

    with pytest.raises(
        ValueError, match=r"^a message is \{.*\}; write \{'role': \.\.\., 'content': a text or a list\}"
    ):
        _turn(message)
