"""hf_causal_lm's Config: presets are their models, config read from weights, tiny(), cost(), and chat as data."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from omnikit.builtin import attention
from omnikit.builtin.backbone_config import PRESETS, HFCausalLM
from omnikit.builtin.backbone_geometry import differences
from omnikit.component import Sample, Turn
from omnikit.packing import positions_of
from omnikit.sample import Layouter


def logits_of(model, ids):
    segments = torch.ones(1, len(ids), dtype=torch.long)
    return model.head(model.hidden(model.embed(ids[None]), segments, positions_of(segments)))[0]


# -------------------------------------------------------------------------------------------------------------- presets


PARAMETERS = {
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "llama-3.2-1b-instruct": 1_235_814_400,
    # Baichuan2-7B's own total: NormHead and packed matrices are of the same sizes as llama's
    "baichuan2-7b": 7_505_973_248,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_of_its_model(name):
    with torch.device("meta"):
        model = HFCausalLM(preset=name).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reloads_to_itself_and_knows_itself(name):
    config = HFCausalLM(preset=name)
    dumped = json.loads(json.dumps(config.model_dump()))
    assert dumped.pop("type") == "hf_causal_lm" and dumped["config"]["vocab_size"] and dumped["chat"]["stop"]
    assert HFCausalLM.model_validate(dumped) == config
    assert f"`{name}`" in HFCausalLM.__doc__, "what its chat was compared with stands in the documentation"


class Characters:
    """A tokenizer of characters and of the special tokens of a chat, which renders ids back to text."""

    def __init__(self, special):
        self.special = {token: 0x110000 + index for index, token in enumerate(special)}

    def encode(self, text, *, add_special_tokens):
        return SimpleNamespace(ids=[ord(one) for one in text], offsets=[(i, i + 1) for i in range(len(text))])

    def token_to_id(self, token):
        return self.special.get(token)

    def get_added_tokens_decoder(self):
        return {index: SimpleNamespace(content=token, special=True) for token, index in self.special.items()}

    def decode(self, ids):
        names = {index: token for token, index in self.special.items()}
        return "".join(names.get(index) or chr(index) for index in ids)


def rendered(preset, *turns, answer=True):
    config = HFCausalLM(preset=preset)
    tokenizer = Characters(config.special_tokens())
    sample = Sample("s", tuple(Turn(role, (("text", text),)) for role, text in turns))
    return tokenizer.decode(Layouter(config.chat, tokenizer, {})(sample, answer=answer).ids)


HELLO = (("user", "Hi!"), ("assistant", "Hello."))
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SAID = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("qwen2.5-0.5b-instruct", QWEN + SAID),
        ("qwen2.5-1.5b-instruct", QWEN + SAID),
        ("qwen2.5-7b-instruct", QWEN + SAID),
        ("smollm2-135m-instruct", SMOL + SAID),
        ("smollm2-360m-instruct", SMOL + SAID),
        ("llama-3.2-1b-instruct", LLAMA.format("")),
        ("baichuan2-7b", "<reserved_106>Hi!<reserved_107>"),
    ],
)
def test_a_prompt_is_what_the_published_template_writes(preset, expected):
    """The expected texts are what the models' published templates render, with jinja, tools and today's date aside."""
    assert rendered(preset, *HELLO, answer=False) == expected
    stop = HFCausalLM(preset=preset).chat.stop
    assert rendered(preset, *HELLO) == f"{expected}Hello.{stop}" + ("\n" if stop == "<|im_end|>" else "")


def test_a_system_turn_takes_the_place_of_the_default():
    turns = (("system", "Be brief."), *HELLO)
    plain = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert rendered("qwen2.5-7b-instruct", *turns, answer=False) == plain + SAID
    assert rendered("smollm2-135m-instruct", *turns, answer=False) == plain + SAID
    assert rendered("llama-3.2-1b-instruct", *turns, answer=False) == LLAMA.format("Be brief.")
    several = rendered("llama-3.2-1b-instruct", *HELLO, *HELLO, answer=False)
    assert several.count("<|begin_of_text|>") == 1 and several.count("Today Date") == 1


def test_a_preset_touches_neither_disk_nor_network(monkeypatch):
    def fetched(*args):
        raise AssertionError("a preset is data")

    monkeypatch.setattr("omnikit.builtin.backbone_geometry.json_in", fetched)
    monkeypatch.setattr("omnikit.builtin.backbone_config.fetched", fetched)
    config = HFCausalLM(preset="llama-3.2-1b-instruct", weights="meta-llama/Llama-3.2-1B-Instruct")
    with torch.device("meta"):
        assert len(config.build().blocks) == 16


# ---------------------------------------------------------------------------------------------------- config of weights


CHAT = {
    "prefix": {"user": "<|user|>", "assistant": "<|assistant|>"},
    "suffix": {"assistant": "<|end|>"},
    "stop": "<|end|>",
}


def write_config(folder, **said):
    (folder / "config.json").write_text(json.dumps(said))
    return str(folder)


def test_the_config_of_weights_is_read_from_their_folder_and_dumped_whole(tmp_path):
    weights = write_config(
        tmp_path,
        architectures=["Qwen2ForCausalLM"],
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_attention_heads=14,
        num_hidden_layers=24,
        num_key_value_heads=2,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        sliding_window=32768,
        use_sliding_window=False,
        max_window_layers=21,
        vocab_size=151936,
        torch_dtype="bfloat16",
        eos_token_id=151645,
        unsloth_fixed=True,
    )
    config = HFCausalLM(weights=weights, chat=CHAT)
    assert config.config["rope_parameters"] == {"rope_type": "default", "rope_theta": 1000000.0}
    assert not {"unsloth_fixed", "dtype", "eos_token_id", "architectures", "layer_types"} & set(config.config)
    with torch.device("meta"):
        assert sum(one.numel() for one in config.build().parameters()) == PARAMETERS["qwen2.5-0.5b-instruct"]
    (tmp_path / "config.json").unlink()
    dumped = json.loads(json.dumps(config.model_dump()))
    del dumped["type"]
    assert HFCausalLM.model_validate(dumped) == config, "what is resolved needs the folder no more"


QWEN_JSON = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA_JSON = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "head_dim": 64,
    "rms_norm_eps": 1e-05,
}
PUBLISHED = {
    "qwen2.5-0.5b-instruct": QWEN_JSON
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2},
    "qwen2.5-1.5b-instruct": QWEN_JSON
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
    | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "qwen2.5-7b-instruct": QWEN_JSON
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "max_window_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "smollm2-360m-instruct": LLAMA_JSON
    | {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "tie_word_embeddings": True}
    | {"num_attention_heads": 15, "num_key_value_heads": 5, "is_llama_config": True, "rope_interleaved": False}
    | {"max_position_embeddings": 8192, "rope_scaling": None, "rope_theta": 100000, "vocab_size": 49152},
    "llama-3.2-1b-instruct": LLAMA_JSON
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0}
    | {
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "vocab_size": 128256,
    },
}
"""What matters of the config.json that these models were published with."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_the_config_that_its_model_was_published_with(tmp_path, name):
    weights = write_config(tmp_path, **PUBLISHED[name])
    assert differences(PRESETS[name]["config"], weights) == []
    theta = "rope_parameters.rope_theta 20000.0 (there "
    rope = {**PRESETS[name]["config"]["rope_parameters"], "rope_theta": 20000.0}
    [said] = differences({**PRESETS[name]["config"], "rope_parameters": rope}, weights)
    assert said.startswith(theta)


def test_layers_of_several_kinds_stay_so(tmp_path):
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    weights = write_config(tmp_path, model_type="qwen3", num_hidden_layers=4, layer_types=kinds, sliding_window=64)
    config = HFCausalLM(weights=weights, chat=CHAT)
    assert config.config["layer_types"] == kinds
    assert config.tiny().config["layer_types"] == ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weights": "."}, "chat: is missing; state it, or name a preset: the chat template of weights is a program"),
        ({"weights": ".", "chat": CHAT}, "has no config.json; state config, or name a preset"),
        ({"chat": CHAT}, "config: model_type is missing; name the architecture, such as llama or qwen2, or a preset"),
    ],
)
def test_what_cannot_be_read_must_be_stated(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        HFCausalLM.model_validate({key: str(tmp_path) if value == "." else value for key, value in fields.items()})


def test_a_vocabulary_smaller_than_the_byte_level_tokenizers_is_refused():
    least = HFCausalLM(config={"model_type": "llama"}, chat=CHAT, words=("red",)).tokenizer().get_vocab_size()
    HFCausalLM(config={"model_type": "llama", "vocab_size": least}, chat=CHAT, words=("red",))
    with pytest.raises(
        ValueError, match=rf"config: vocab_size {least - 1} is less than the {least} tokens of the byte"
    ):
        HFCausalLM(config={"model_type": "llama", "vocab_size": least - 1}, chat=CHAT, words=("red",))


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 8}'])
def test_a_broken_config_json_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is broken JSON|is no JSON object|names no model_type)"):
        HFCausalLM(weights=str(tmp_path), chat=CHAT)


# ----------------------------------------------------------------------------------------------------------- tiny, cost


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 48,
    "long_factor": [2.0] * 48,
    "original_max_position_embeddings": 4096,
}
WIDE = {
    **{name: entry["config"] for name, entry in PRESETS.items()},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 8, "num_attention_heads": 32, "head_dim": 128},
    "phi3": {"model_type": "phi3", "max_position_embeddings": 131072, "rope_parameters": LONGROPE},
    "olmo2": {"model_type": "olmo2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 128},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
}


@pytest.mark.parametrize("name", WIDE)
def test_tiny_keeps_what_it_is_and_runs_without_the_weights_tokenizer(name):
    chat = PRESETS[name]["chat"] if name in PRESETS else CHAT
    config = HFCausalLM(config={"vocab_size": 32000, **WIDE[name]}, chat=chat, weights="/nowhere")
    tiny = config.tiny()
    assert tiny.weights is None and tiny.chat == config.chat
    kept = {"model_type", "rms_norm_eps", "tie_word_embeddings"} & set(config.config)
    assert all(tiny.config[key] == config.config[key] for key in kept)
    model = tiny.build()
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    for key in ("rope_type", "rope_theta"):
        assert (
            model.hf_config.rope_parameters[key]
            == config.config.get("rope_parameters", model.hf_config.rope_parameters)[key]
        )
    sample = Sample("s", (Turn("user", (("text", "Hi!"),)), Turn("assistant", (("text", "Yes."),))))
    ids = torch.tensor(Layouter(tiny.chat, tiny.tokenizer(), {})(sample).ids)
    assert logits_of(model, ids).isfinite().all()


@pytest.mark.parametrize("name", ["qwen2.5-7b-instruct", "llama-3.2-1b-instruct", "phi3", "olmo2", "mistral"])
def test_cost_is_what_is_counted(monkeypatch, name):
    config = HFCausalLM(config=WIDE[name], chat=CHAT).tiny()
    model, length, labels = config.build(), 96, 20
    # With no other kernel to choose from, attention is counted too.
    monkeypatch.setattr(attention, "BACKENDS", [SDPBackend.MATH])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        segments = torch.ones(1, length, dtype=torch.long)
        hidden = model.hidden(model.embed(torch.zeros_like(segments)), segments, positions_of(segments))
        model.head(hidden[0, :labels])
    # The counter takes attention for a square, of which the causal half and its diagonal are needed.
    heads = model.hf_config.num_attention_heads * 16 * len(model.blocks)
    masked = 4 * heads * (length**2 - length * (length + 1) / 2)
    assert config.cost(length, labels) == pytest.approx(counter.get_total_flops() - masked, rel=0.01)
    assert config.cost(length, labels) > 0.5 * counter.get_total_flops()


def test_cost_of_the_7b_is_two_for_each_parameter_and_position():
    config = HFCausalLM(preset="qwen2.5-7b-instruct")
    embeddings = 152064 * 3584
    assert config.cost(1, 1) == pytest.approx(2 * (PARAMETERS["qwen2.5-7b-instruct"] - embeddings), rel=1e-3)
    # at 32768 positions: 28 layers of 28 heads of 128
    assert config.cost(32768, 0) - 32768 * config.cost(1, 0) == pytest.approx(28 * 4 * 3584 * 32768**2 / 2, rel=1e-3)
