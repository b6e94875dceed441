"""Weights: which files of a folder are read and fetched, and what is said of those that do not fit."""

import contextlib
import copy
import json
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnikit.component import tensors_in
from omnikit.stages import build

A, B, C = (torch.full((2, 3), float(number)) for number in (1, 2, 3))


def named(folder):
    return {name: tensor[0, 0].item() for name, tensor in tensors_in(str(folder))}


def write_index(folder, **owners):
    text = json.dumps({"metadata": {}, "weight_map": owners})
    (folder / "model.safetensors.index.json").write_text(text)


# ------------------------------------------------------------------------------------------------- which files are read


def test_shards_are_those_that_the_index_names(tmp_path):
    save_file({"a": A}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": B}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"a": C, "b": C.clone()}, tmp_path / "consolidated.safetensors")
    write_index(tmp_path, a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
    assert named(tmp_path) == {"a": 1, "b": 2}


def test_one_file_stands_before_copies_in_another_precision(tmp_path):
    """As the folder of whisper-large-v3 is: float16 in one file, float32 in shards with an index of another name."""
    save_file({"a": A}, tmp_path / "model.safetensors")
    save_file({"a": C}, tmp_path / "model.fp32-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.fp32.json").write_text("{}")
    assert named(tmp_path) == {"a": 1}


def test_without_either_every_file_is_read(tmp_path):
    save_file({"a": A}, tmp_path / "encoder.safetensors")
    save_file({"b": B}, tmp_path / "decoder.safetensors")
    assert named(tmp_path) == {"a": 1, "b": 2}


def test_a_tensor_in_two_files_is_refused(tmp_path):
    save_file({"a": A}, tmp_path / "one.safetensors")
    save_file({"a": B}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds a in both one\.safetensors and two\.safetensors"):
        named(tmp_path)


def test_a_tensor_that_is_not_used_is_not_read(tmp_path):
    mebi = 1 << 20
    save_file({name: torch.ones(16 * mebi, dtype=torch.uint8) for name in "abcd"}, tmp_path / "model.safetensors")

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    tensors = dict(tensors_in(str(tmp_path)))
    listed = resident() - before
    assert int(tensors["c"].sum(dtype=torch.int64)) == 16 * mebi
    read = resident() - before
    assert listed < 8 * mebi and 12 * mebi < read < 32 * mebi


# --------------------------------------------------------------------------------------------------------- broken files


def truncated(file):
    save_file({"a": A}, file)
    file.write_bytes(file.read_bytes()[:-4])


def pickled(file):
    file.write_bytes(pickle.dumps({"a": 1}))


def zipped(file):
    torch.save({"a": A}, file)


BROKEN = {
    "truncated": (truncated, r"cannot be read \(.*\), \d+ bytes long; get it again$"),
    "empty": (lambda file: file.write_bytes(b""), "cannot be read .* 0 bytes long; get it again$"),
    "text": (lambda file: file.write_text("<html>404</html>" * 99), "cannot be read"),
    "a pickle": (pickled, "is a pickle under another name, and no pickle is loaded; "),
    "torch.save": (zipped, "is a pickle under another name, and no pickle is loaded; "),
    "a pointer": (
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a pointer of git-lfs; get the file itself by `git lfs pull`$",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, kind):
    make, said = BROKEN[kind]
    save_file({"b": B}, tmp_path / "model-1.safetensors")
    make(tmp_path / "model-2.safetensors")
    with pytest.raises(ValueError, match=rf"^weights: {tmp_path} holds a broken .* file: model-2\.safetensors {said}"):
        named(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    save_file({"a": A}, tmp_path / "model-1.safetensors")
    write_index(tmp_path, a="model-1.safetensors", b="model-2.safetensors")
    with pytest.raises(
        ValueError, match=r"model-2\.safetensors is named by model\.safetensors\.index\.json and missing"
    ):
        named(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 7}}', '{"weight_map": {"a": "../x.safetensors"}}'],
)
def test_a_broken_index_is_one_line_and_reaches_out_of_no_folder(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"holds a broken model\.safetensors\.index\.json \(.+\); get it again$"):
        named(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_folder_of_pickles_is_told_how_to_become_safetensors(tmp_path, name):
    pickled(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"holds no \.safetensors file; convert it first .*: {name} was .*save_pretrained"
    ):
        named(tmp_path)


def test_an_empty_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.safetensors file; give the folder that has them$"):
        named(tmp_path)
    save_file({"a": A}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is a file; give the folder that it is in$"):
        named(tmp_path / "model.safetensors")


# -------------------------------------------------------------------------------------------------------------- hub ids


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(*files) -> what is asked of a hub whose one repository, org/name, holds these files of {"a": 1, ...}."""
    from fnmatch import fnmatch
    from shutil import copy as copy_file

    def make(*files, **owners):
        there, here, asked = tmp_path / "there", tmp_path / "here", []
        there.mkdir()
        here.mkdir()
        for number, name in enumerate(files):
            save_file({f"t{number}": A}, there / name)
        if owners:
            write_index(there, **owners)

        def download(repository, revision=None, allow_patterns=()):
            assert (repository, revision) == ("org/name", "v1")
            for file in there.iterdir():
                if any(fnmatch(file.name, pattern) for pattern in allow_patterns) and not (here / file.name).exists():
                    asked.append(file.name)
                    copy_file(file, here)
            return str(here)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return asked

    return make


def test_of_a_hub_id_only_the_shards_are_fetched(hub):
    asked = hub("model-1.safetensors", "model-2.safetensors", "model.fp32.safetensors", x="model-1.safetensors")
    assert [name for name, _ in tensors_in("org/name@v1")] == ["t0"]
    assert asked == ["model.safetensors.index.json", "model-1.safetensors"]


def test_of_a_hub_id_only_the_one_file_is_fetched(hub):
    asked = hub("model.safetensors", "model.fp32.safetensors")
    assert [name for name, _ in tensors_in("org/name@v1")] == ["t0"]
    assert asked == ["model.safetensors"]


def test_of_a_hub_id_without_either_every_safetensors_is_fetched(hub):
    asked = hub("open_clip_model.safetensors")
    assert [name for name, _ in tensors_in("org/name@v1")] == ["t0"]
    assert asked == ["open_clip_model.safetensors"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    def download(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        ValueError, match=r"^weights: org/name is neither a folder here nor a hub id that can be reached"
    ):
        list(tensors_in("org/name"))


# ----------------------------------------------------------------------------------------------------- weights that fit


@pytest.fixture
def folder(tmp_path, recipe_of):
    """A folder with a backbone of another seed, its config.json and a tokenizer, as transformers lays one out."""
    recipe = recipe_of(run={"seed": 9}, config={"tie_word_embeddings": False})
    backbone = build(recipe, frozenset()).backbone
    save_file({name: tensor.clone() for name, tensor in backbone.state_dict().items()}, tmp_path / "model.safetensors")
    recipe.backbone.tokenizer().save(str(tmp_path / "tokenizer.json"))
    said = {**backbone.hf_config.to_dict(), "architectures": ["LlamaForCausalLM"], "is_llama_config": True}
    del said["rope_parameters"]  # as transformers wrote it before version 5
    said |= {"rope_theta": 10000.0, "rope_scaling": None, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    return tmp_path


@pytest.fixture
def backbone_of(recipe_of, parts):
    """backbone_of(folder, config) -> the loaded backbone of a recipe with these weights; None: no config."""

    def make(folder, config="as written"):
        table = copy.deepcopy(parts.backbone) | {"weights": str(folder)}
        del table["words"]
        said = json.loads((folder / "config.json").read_text())
        plain = table.pop("config") | {"vocab_size": said["vocab_size"], "tie_word_embeddings": False}
        if config is not None:
            table["config"] = plain | ({} if config == "as written" else config)
        return _recipe_of_backbone(recipe_of, table)

    return make


def _recipe_of_backbone(recipe_of, table):
    from omnikit.builtin.backbone_config import HFCausalLM

    recipe = recipe_of()
    config = HFCausalLM.model_validate({key: value for key, value in table.items() if key != "type"})
    return build(recipe.model_copy(update={"backbone": config}), frozenset()).backbone


def change(folder, function):
    tensors = load_file(folder / "model.safetensors")
    function(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_weights_alone_are_enough(folder, backbone_of):
    expected = load_file(folder / "model.safetensors")
    loaded = backbone_of(folder, None).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_nothing_is_drawn_where_weights_are_loaded(folder, backbone_of, recipe_of, monkeypatch):
    drew = []

    @contextlib.contextmanager
    def watched(seed, path):
        before = torch.random.get_rng_state()
        yield
        drew.append(not torch.equal(torch.random.get_rng_state(), before))

    monkeypatch.setattr("omnikit.stages._seeded", watched)
    backbone_of(folder)
    build(recipe_of(), frozenset())
    assert drew == [False, True]


def test_missing_extra_and_misshaped_tensors_are_told_at_once(folder, backbone_of):
    def spoil(tensors):
        for layer in range(2):
            del (
                tensors[f"model.layers.{layer}.mlp.up_proj.weight"],
                tensors[f"model.layers.{layer}.mlp.down_proj.weight"],
            )
        tensors |= {f"extra.{number}": torch.zeros(2) for number in range(5)}
        tensors["model.norm.weight"] = torch.zeros(7)
        tensors["lm_head.weight"] = torch.zeros(3, 3)

    change(folder, spoil)
    with pytest.raises(ValueError) as caught:
        backbone_of(folder)
    said = str(caught.value)
    assert said.startswith(f"backbone.weights: {folder} lacks 4 tensors, such as model.layers.0.mlp.down_proj.weight, ")
    assert said.count(".mlp.") == 3, "the first three keys"
    assert "holds extra.0, extra.1, extra.2, ..., which the model has not (5 tensors)" in said
    assert "lm_head.weight is (3, 3) in " in said and "(2 tensors differ: lm_head.weight, model.norm.weight)" in said
    assert said.endswith("; check preset") and "\n" not in said


def test_a_folder_of_another_architecture_is_refused(folder, backbone_of):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "model_type": "qwen2"}))
    with pytest.raises(
        ValueError, match=r"^backbone\.config: is not that of .*: model_type llama \(there qwen2\); take"
    ):
        backbone_of(folder)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"rms_norm_eps": 1e-5}, r"rms_norm_eps 1e-05 \(there 1e-06\)"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            r"rope_parameters\.rope_theta 500000\.0 \(there 10000\.0\)",
        ),
        ({"num_attention_heads": 2, "head_dim": 16}, "num_attention_heads 2 .there 4., head_dim 16 .there 8."),
        ({"vocab_size": 300}, "vocab_size 300"),
        ({"hidden_act": "gelu"}, r"hidden_act gelu \(there silu\)"),
    ],
)
def test_a_config_that_fits_every_shape_but_is_not_that_of_the_weights_is_refused(folder, backbone_of, wrong, named):
    with pytest.raises(ValueError, match=rf"^backbone\.config: is not that of {folder}: {named}"):
        backbone_of(folder, wrong)


def test_what_is_not_of_the_architecture_may_differ(folder, backbone_of):
    said = json.loads((folder / "config.json").read_text())
    # a number that has been through float32, and what says how the model was saved
    (folder / "config.json").write_text(
        json.dumps({**said, "rms_norm_eps": 9.999999974752427e-07, "eos_token_id": [1, 2], "use_cache": False})
    )
    assert backbone_of(folder, {"attention_dropout": 0.1}) is not None


def test_quantised_weights_are_refused(folder, backbone_of):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "quantization_config": {"bits": 4}}))
    with pytest.raises(ValueError, match="is quantised, which does not train"):
        backbone_of(folder)
