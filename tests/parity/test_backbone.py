"""hf_causal_lm against transformers: the same logits, packed as unpacked, and real SmolLM2 answers the same.

Real weights are read from the folder that OMNIKIT_WEIGHTS names, by default `weights/` in the repository root.
"""

import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from omnikit.builtin.backbone import CausalLM
from omnikit.builtin.backbone_config import HFCausalLM
from omnikit.component import Sample, Turn
from omnikit.generate import Run
from omnikit.packing import positions_of
from omnikit.recipe import load_recipe
from omnikit.sample import Layouter
from omnikit.stages import build

EXACT = 1e-5
"""In float32, two orders of the same sums; logits of these models are below 10."""
TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
REAL_LAYER = {
    **HFCausalLM(preset="qwen2.5-7b-instruct").config,
    "num_hidden_layers": 1,
    "vocab_size": 1024,
}
CASES = {
    "llama": {"model_type": "llama", **TINY},
    "llama3 rotary": {
        "model_type": "llama",
        **TINY,
        "rope_parameters": HFCausalLM(preset="llama-3.2-1b-instruct").config["rope_parameters"],
        "max_position_embeddings": 131072,
    },
    "qwen2": {"model_type": "qwen2", **TINY, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **TINY, "head_dim": 32},
    "mistral": {"model_type": "mistral", **TINY, "sliding_window": None, "head_dim": 16},
    "phi3": {"model_type": "phi3", **TINY},
    "olmo2": {"model_type": "olmo2", **TINY},
    "a layer of Qwen2.5-7B": REAL_LAYER,
}
LENGTHS = (37, 5, 64, 1, 23)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def pair(case):
    """(ours, transformers' own with its eager attention), of the same weights, which are spread as trained ones are."""
    torch.manual_seed(0)
    ours = CausalLM(CASES[case])
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            # Initial norms are one and initial biases zero: neither would show a mistake.
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CASES[case]), attn_implementation="eager")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def texts(case):
    chance = torch.Generator().manual_seed(1)
    return [torch.randint(0, CASES[case]["vocab_size"], (length,), generator=chance) for length in LENGTHS]


def packed(pieces, length=150):
    """One row of the texts with padding before, between and after."""
    ids, segments, column = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.long), 2
    for number, piece in enumerate(pieces, 1):
        ids[0, column : column + len(piece)], segments[0, column : column + len(piece)] = piece, number
        column += len(piece) + number % 2
    return ids, segments


def logits_of(model, ids, segments):
    return model.head(model.hidden(model.embed(ids), segments, positions_of(segments)))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_transformers_own(case):
    ours, theirs = pair(case)
    pieces = texts(case)
    ids, segments = packed(pieces)
    together = logits_of(ours, ids, segments)
    for number, piece in enumerate(pieces, 1):
        expected = theirs(input_ids=piece[None]).logits[0]
        assert expected.std() > 0.05, "logits that are all alike would prove nothing"
        alone = logits_of(ours, piece[None], torch.ones(1, len(piece), dtype=torch.long))[0]
        torch.testing.assert_close(alone, expected, rtol=0, atol=EXACT)
        torch.testing.assert_close(together[segments == number], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("case", CASES)
def test_packed_loss_and_gradients_are_those_of_transformers_text_by_text(case):
    ours, theirs = pair(case)
    pieces = texts(case)
    expected = sum(
        cross_entropy(theirs(input_ids=one[None]).logits[0, :-1], one[1:], reduction="sum") for one in pieces
    )
    expected.backward()
    ids, segments = packed(pieces)
    logits, flat = logits_of(ours, ids, segments)[0], segments[0]
    follows = (flat[:-1] == flat[1:]) & (flat[1:] > 0)
    loss = cross_entropy(logits[:-1][follows], ids[0, 1:][follows], reduction="sum")
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=EXACT, atol=0)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = float(wanted[name].grad.abs().max())
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=0, atol=EXACT * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


# --------------------------------------------------------------------------------------------------------- real weights


PROMPTS = ("What is the capital of France?", "Write a sentence about the sea.", "Count from one to five.")
RECIPE = """
backbone: {{type: hf_causal_lm, preset: smollm2-135m-instruct, weights: "{weights}"}}
encoders: {{}}
modalities: {{}}
data:
  text: {{type: jsonl, path: text.jsonl, modalities: []}}
stages:
  none:
    steps: 1
    batch: {{length: 64, packs: 1, micro: 1}}
    data: {{text: 1}}
    train: {{rest: 1.0e-5}}
run: {{precision: fp32}}
"""


@pytest.fixture(scope="module")
def weights():
    root = Path(os.environ.get("OMNIKIT_WEIGHTS", Path(__file__).parents[2] / "weights"))
    folder = root / "smollm2-135m-instruct"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(
            f"{folder} holds no weights; lay them down by `make weights`, or set OMNIKIT_WEIGHTS to their folder"
        )
    return folder


@pytest.fixture(scope="module")
def smollm2(weights):
    tokenizer = AutoTokenizer.from_pretrained(weights)
    return tokenizer, AutoModelForCausalLM.from_pretrained(
        weights, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def run(weights, registry, tmp_path_factory):
    """A recipe of nothing but the backbone, loaded as every recipe is, ready to answer."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "recipe.yaml").write_text(RECIPE.format(weights=weights))
    (folder / "text.jsonl").write_text("")
    recipe = load_recipe(folder / "recipe.yaml", registry)
    return Run(recipe, build(recipe, frozenset()))


def asking(prompt):
    return Sample("s", (Turn("user", (("text", prompt),)), Turn("assistant", (("text", ""),))))


CHATS = (
    [("user", "Hi!")],
    [("system", "Be brief.\n"), ("user", " What is it?\n\nAnd  why?"), ("assistant", "It's 42 — café 日本 😀.")],
    [("user", "<|im_start|>"), ("assistant", "a"), ("user", "b"), ("assistant", "c<|im_end|>d\n")],
)


@pytest.mark.parametrize("number", range(len(CHATS)))
def test_ids_of_a_text_conversation_are_those_of_the_chat_template(weights, number):
    config = HFCausalLM(preset="smollm2-135m-instruct", weights=str(weights))
    whole = AutoTokenizer.from_pretrained(weights)
    turns = CHATS[number]
    layout = Layouter(config.chat, config.tokenizer(), {})(
        Sample("s", tuple(Turn(role, (("text", text),)) for role, text in turns))
    )
    messages = [{"role": role, "content": text} for role, text in turns]
    expected = whole.apply_chat_template(messages, tokenize=True, return_dict=False)
    if any("<|" in text for _, text in turns):
        # What a user writes can never be a special token here; in the template it can.
        assert layout.ids != expected and layout.ids.count(1) == 1 + len(turns)
    else:
        assert layout.ids == expected


@torch.inference_mode()
def test_smollm2_answers_as_through_transformers(smollm2, run):
    tokenizer, model = smollm2
    together = run.answer([asking(prompt) for prompt in PROMPTS], max_tokens=32)
    for prompt, ours in zip(PROMPTS, together, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert len(written) > 5 and ours
        assert ours == tokenizer.decode(written, skip_special_tokens=True)
        assert run.answer([asking(prompt)], max_tokens=32) == [ours]


@torch.inference_mode()
def test_smollm2_logits_are_transformers_own_and_bfloat16_is_near(smollm2, run):
    tokenizer, model = smollm2
    text = "The sea covers most of the planet, and yet little of it has been seen by anyone."
    ids = tokenizer(text, return_tensors="pt").input_ids
    expected = model(input_ids=ids).logits
    segments = torch.ones_like(ids)
    exact = logits_of(run.model.backbone, ids, segments)
    # Logits reach 30 here: 1e-5 of that is what float32 has.
    torch.testing.assert_close(exact, expected, rtol=0, atol=EXACT * float(expected.abs().max()))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits_of(run.model.backbone, ids, segments).float()
    difference = float((rounded - expected).abs().max())
    agree = float((rounded.argmax(-1) == expected.argmax(-1)).float().mean())
    reach = float(expected.abs().max())
    print(f"bfloat16: logits up to {reach:.0f} differ by at most {difference:.2f}; same next token at {agree:.0%}")
    assert agree > 0.7


def test_the_real_folder_alone_says_all_but_the_chat(weights):
    preset = HFCausalLM(preset="smollm2-135m-instruct")
    read = HFCausalLM(weights=str(weights), chat=preset.chat)
    with torch.device("meta"):
        ours, theirs = read.build(), preset.build()
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert dict(HFCausalLM(preset="smollm2-135m-instruct", weights=str(weights)).pretrained()).keys() <= {
        *ours.state_dict()
    }
