"""A world of eight colours on disk, and recipes small enough to train in a second.

Every modality says the same kind of thing: a picture, a clip of three frames or a tone stands for a colour, and the
answer names it.
"""

import copy
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omnikit.recipe import Recipe
from omnikit.registry import Registry

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "cyan": (30, 220, 220),
    "pink": (250, 120, 180),
    "brown": (120, 70, 20),
}
SIDE = 16


@pytest.fixture(autouse=True)
def one_thread():
    """More threads would only fight over the cores, and bitwise tests compare runs of one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Indexes of data sets go to a folder of the tests' own, never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def registry():
    return Registry.load()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with text.jsonl, image.jsonl, video.jsonl, audio.jsonl, mixed.jsonl, 160 rows each, and their media.

    Eight colours are all there is to see; rows repeat them, so that an epoch is longer than a test.
    """
    folder = tmp_path_factory.mktemp("world")
    rows = {name: [] for name in ("text", "image", "video", "audio", "mixed")}
    for number, (_, rgb) in enumerate(COLOURS.items()):
        Image.new("RGB", (SIDE, SIDE), rgb).save(folder / f"{number}.png")
        _film(folder / f"{number}.mp4", rgb)
        _tone(folder / f"{number}.wav", 200 + 150 * number)
    for number, colour in enumerate([*COLOURS] * 20):
        image, video, audio = (
            {kind: f"{number % 8}.{end}"} for kind, end in (("image", "png"), ("video", "mp4"), ("audio", "wav"))
        )
        rows["text"].append(_row(f"t{number}", [{"text": f"{colour}?"}], colour))
        rows["image"].append(_row(f"i{number}", [image, {"text": "colour?"}], colour))
        rows["video"].append(_row(f"v{number}", [video, {"text": "colour?"}], colour))
        rows["audio"].append(_row(f"a{number}", [audio], colour))
        rows["mixed"].append(_row(f"m{number}", [image, audio], colour))
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _row(name, content, answer):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "turns": turns}


def _film(path, rgb, frames=3):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((SIDE, SIDE, 3), rgb, np.uint8)
            pixels[:, : 4 * number] = 255 - pixels[:, : 4 * number]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _tone(path, hertz, seconds=0.25, rate=16000):
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), rate, subtype="PCM_16")


BACKBONE = {
    "type": "hf_causal_lm",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "chat": {
        "prefix": {"user": "<|user|>", "assistant": "<|assistant|>"},
        "suffix": {"assistant": "<|end|>"},
        "stop": "<|end|>",
    },
    "words": list(COLOURS),
}
ENCODERS = {
    "vision": {
        "type": "siglip",
        "width": 16,
        "layers": 1,
        "heads": 2,
        "mlp_width": 32,
        "image_size": 16,
        "patch_size": 4,
    },
    "audio": {
        "type": "whisper",
        "width": 16,
        "layers": 1,
        "heads": 2,
        "mlp_width": 32,
        "mel_bins": 80,
        "window": 1,
        "padding": "ragged",
    },
}
MODALITIES = {
    "image": {"reader": "square", "encoder": "vision", "projector": "pool_mlp"},
    "video": {
        "reader": {"type": "frames", "fps": 2, "max_frames": 3, "max_tiles": 1},
        "encoder": "vision",
        "projector": "video_conv",
    },
    "audio": {"reader": "waveform", "encoder": "audio", "projector": {"type": "conv_gmlp", "rate": 2}},
}
HOLDS = {"text": [], "image": ["image"], "video": ["video"], "audio": ["audio"], "mixed": ["image", "audio"]}


def stage(data, train, **settings):
    """A stage of a few steps with constant rates, so that every step moves something."""
    defaults = {
        "steps": 3,
        "batch": {"length": 48, "packs": 2, "micro": 1},
        "schedule": {"shape": "constant", "warmup": 0},
    }
    return {**defaults, "data": data, "train": train, **settings}


FIVE_STAGES = {
    "language": stage({"text": 1}, {"backbone": 1e-2}),
    "image": stage({"image": 1}, {"modalities.image.projector": 1e-2, "rest": "frozen"}),
    "video_images": stage(
        {"image": {"share": 1, "as": {"image": "video"}}, "video": 1},
        {"modalities.video.projector": 1e-2, "rest": "frozen"},
        init={"modalities.video.projector": "modalities.image.projector"},
    ),
    "audio": stage({"audio": 1}, {"backbone": "frozen", "encoders.audio": 1e-2, "modalities.audio": 1e-2}),
    "omni": stage(
        {"text": 1, "image": 1, "video": 1, "audio": 1, "mixed": 1},
        {"backbone.model.layers.0": "frozen", "encoders.vision": "frozen", "rest": 3e-3},
    ),
}


@pytest.fixture(scope="session")
def parts():
    """The plain parts of the tiny recipe, to be copied and changed: backbone, encoders, modalities, stages, stage()."""

    class Parts:
        backbone, encoders, modalities, stages = BACKBONE, ENCODERS, MODALITIES, FIVE_STAGES

    Parts.stage = staticmethod(stage)
    return Parts


@pytest.fixture(scope="session")
def recipe_of(world, registry):
    """recipe_of(stages, config={...}, run={...}, ...) -> a Recipe of the tiny parts that the stages' data needs.

    `config` changes the backbone's configuration; `backbone`, `encoders`, `modalities` and `data` replace whole tables.
    """

    def make(stages=FIVE_STAGES, *, config=None, run=None, **tables):
        used = {source for entry in stages.values() for source in entry["data"]}
        data = {
            name: {"type": "jsonl", "path": str(world / f"{name}.jsonl"), "modalities": held}
            for name, held in HOLDS.items()
            if name in used
        }
        tree = {
            "backbone": BACKBONE,
            "encoders": ENCODERS,
            "modalities": MODALITIES,
            "data": data,
            "stages": stages,
            "run": {"precision": "fp32", "save": 2, "workers": 0, **(run or {})},
            **tables,
        }
        tree = copy.deepcopy(tree)
        tree["backbone"]["config"] |= config or {}
        return Recipe.model_validate(tree, context=registry)

    return make


class Display:
    """A display that keeps what it is shown."""

    def __init__(self):
        self.stages, self.records, self.notes = [], [], []

    def indexing(self, source, done, records):
        pass

    def caching(self, what, done, total):
        pass

    def note(self, text):
        self.notes.append(text)

    def heldout(self, record):
        pass

    def stage(self, name, done, steps):
        self.stages.append((name, done, steps))

    def step(self, record):
        self.records.append(record)


@pytest.fixture
def quiet():
    return Display()


class Watched(Display):
    """A whole run, and how much gradient each trained tensor was given in each stage."""

    def __init__(self, recipe, folder, window):
        from omnikit.train import train

        super().__init__()
        self.recipe, self.gradients = recipe, {}
        step = torch.optim.AdamW.step

        def seen(optimizer, *args, **kwargs):
            given = self.gradients.setdefault(self.stages[-1][0], {})
            for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
                given[id(parameter)] = given.get(id(parameter), 0.0) + float(parameter.grad.abs().sum())
            return step(optimizer, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", seen)
            patch.setattr("omnikit.mixing.WINDOW", window)
            torch.set_num_threads(1)
            self.run = train(recipe, folder, self)

    def start(self, name):
        """The tensors with which a stage began."""
        from omnikit.starting import start_of

        model = start_of(self.recipe, name, self.run)
        return {
            path: tensor.clone() for path, tensor in model.state_dict().items() if path != "backbone.lm_head.weight"
        }

    def end(self, name):
        """The tensors with which it ended: its last checkpoint's, and for the rest those it began with."""
        from omnikit.tensorfiles import load_into

        tensors = self.start(name)
        load_into(self.run.latest(name).folder, tensors)
        return tensors

    def check_stage(self, name, after):
        """Assert that a stage moved what its rules train and nothing else; `after` is its last checkpoint."""
        from omnikit.stages import rules_by_parameter

        before = self.start(name)
        buffers = {path for path in before if path.endswith(".positions")}  # Whisper's, which never change
        rules = rules_by_parameter(before.keys() - buffers, self.recipe, name)
        trains = {path for path, matched in rules.items() if matched.rule is not None}
        assert trains and all(rules[path].rule.weight_decay == 0 for path in trains)
        assert after.keys() - buffers == trains, "the checkpoint holds what trained, and no optimizer at its end"
        for path, tensor in after.items():
            stayed = torch.equal(tensor, before[path])
            assert stayed != (path in trains), f"{path} {'stayed' if stayed else 'moved'} in stage {name}"
            assert tensor.isfinite().all()
        given = self.gradients[name]
        assert len(given) == len(trains), "the optimizer holds what is trained, and nothing else"
        assert all(amount > 0 for amount in given.values()), "every trained tensor had a gradient that is not zero"


@pytest.fixture(scope="session")
def watched():
    """watched(recipe, folder, window) -> the run of a recipe, watched."""
    return Watched


@pytest.fixture(scope="session")
def tensors_of():
    """tensors_of(folder) -> every tensor of a folder's safetensors by name."""
    from safetensors import safe_open

    def read(folder):
        found = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(path, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}
        return found

    return read


@pytest.fixture
def small_windows(monkeypatch):
    """Windows of 16 samples instead of 512: resuming at a window's edge is then a matter of a few steps."""
    monkeypatch.setattr("omnikit.mixing.WINDOW", 16)
    monkeypatch.setattr("omnikit.mixing.PACKS", 0)


class Numbers:
    """A tokenizer whose texts are the numbers of their tokens, so that no two answers look alike."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def wild_of(recipe_of):
    """wild_of(rope_parameters={...}, ...) -> a run that was never trained, of weights so large that it says something
    else to everyone, with this in its backbone's configuration."""
    from omnikit.data import branches_of
    from omnikit.generate import Run
    from omnikit.sample import Layouter
    from omnikit.stages import build

    def make(**config):
        recipe = recipe_of(config={"tie_word_embeddings": False, **config})
        model = build(recipe, frozenset(recipe.modalities))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.ndim > 1 else 1)
        run = Run(recipe, model)
        run.layouter = Layouter(recipe.backbone.chat, Numbers(recipe.backbone.tokenizer()), branches_of(recipe))
        return run

    return make


@pytest.fixture
def wild(wild_of):
    """A run that was never trained, of weights so large that it says something else to everyone."""
    return wild_of()
