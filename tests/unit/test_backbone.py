"""hf_causal_lm: packed rows equal separate ones in loss and gradients, padding and the cache change nothing."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from omnikit.builtin import attention
from omnikit.builtin.attention import buckets, kernel_for, runs
from omnikit.builtin.backbone import CausalLM
from omnikit.kernels import ALIGN
from omnikit.packing import positions_of

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def built(model_type="llama", seed=0, **changes):
    torch.manual_seed(seed)
    return CausalLM({"model_type": model_type, **SIZES, "tie_word_embeddings": False, **changes})


def ids_of(length, seed):
    return torch.randint(0, SIZES["vocab_size"], (length,), generator=torch.Generator().manual_seed(seed))


def row_of(pieces, length):
    """One row of pieces (ids, segment number) and padding: a number alone is so many places of padding."""
    ids, segments = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.long)
    column, number = 0, 0
    for piece in pieces:
        if isinstance(piece, int):
            column += piece
            continue
        number += 1
        ids[0, column : column + len(piece)], segments[0, column : column + len(piece)] = piece, number
        column += len(piece)
    assert column <= length
    return ids, segments


def logits_of(model, ids, segments):
    return model.head(model.hidden(model.embed(ids), segments, positions_of(segments)))


def alone(model, ids):
    return logits_of(model, ids[None], torch.ones(1, len(ids), dtype=torch.long))[0]


def plainly(whole, ids):
    """Logits of transformers' own model, with its own attention and its own mask."""
    return whole(input_ids=ids[None]).logits[0]


def next_token_loss(logits, ids):
    return cross_entropy(logits[:-1], ids[1:], reduction="sum")


# ------------------------------------------------------------------------------------------------------------ buckets()


def naive(segments):
    """{(row, number): flat positions} of the equal positive runs."""
    rows, length = segments.shape
    found = {}
    for row in range(rows):
        for column in range(length):
            if segments[row, column] > 0:
                found.setdefault((row, int(segments[row, column])), []).append(row * length + column)
    return list(found.values())


@pytest.mark.parametrize(
    "rows",
    [
        [[1, 1, 1, 2, 2, 0]],
        [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]],  # a document ends where its row does
        [[0, 0, 1, 1, 0, 2], [0, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]],
        [[3, 3, 1, 1, 1, 2]],
    ],
)
@pytest.mark.parametrize("in_cache", [1, 2**17])
def test_buckets_find_every_run_and_its_way_back(monkeypatch, rows, in_cache):
    monkeypatch.setattr(attention, "IN_CACHE", in_cache)
    segments = torch.tensor(rows)
    docs, found = buckets(segments), []
    places = docs.there.source.index_fill(0, docs.there.void, -1)
    sizes = [number * width for number, width in docs.shapes]
    for (number, width), bucket in zip(docs.shapes, places.split(sizes), strict=True):
        lengths = (bucket.view(number, width) >= 0).sum(1).tolist()
        assert width % ALIGN == 0 and width - ALIGN < max(lengths) <= width
        assert max(lengths) <= 2 * min(lengths), "documents of like length share a bucket"
        assert number == 1 or in_cache > 1
        found += [line[:length].tolist() for line, length in zip(bucket.view(number, width), lengths, strict=True)]
    assert sorted(found) == sorted(naive(segments))
    assert docs.longest == max(len(one) for one in found)
    back = places[docs.back.source].index_fill(0, docs.back.void, -1)
    own = torch.where(segments.flatten() > 0, torch.arange(segments.numel()), -1)
    assert torch.equal(back, own), "each place gets its own output back"


def test_documents_of_like_length_are_as_many_as_a_cache_holds():
    segments = torch.arange(1, 41).repeat_interleave(100)[None]
    assert [number for number, _ in buckets(segments).shapes] == [10, 10, 10, 10]


# ---------------------------------------------------------------------------------------------------- packed = unpacked


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "granite"])
def test_the_decoder_is_transformers_own(model_type):
    from transformers import AutoConfig, AutoModelForCausalLM

    other_scale = {"attention_multiplier": 0.9} if model_type == "granite" else {}
    model = built(model_type, **other_scale)
    config = AutoConfig.for_model(model_type, **SIZES, tie_word_embeddings=False, **other_scale)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    whole.load_state_dict(model.state_dict(), strict=True)
    ids = ids_of(19, seed=1)
    # float32; two formulas for attention
    torch.testing.assert_close(alone(model, ids), plainly(whole, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_equals_unpacked_in_loss_and_every_gradient(model_type, tied):
    model = built(model_type, tie_word_embeddings=tied)
    texts = [ids_of(length, seed) for seed, length in enumerate((17, 5, 2, 30, 8, 1))]

    loss = sum(next_token_loss(alone(model, ids), ids) for ids in texts)
    loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    first, second = row_of([texts[3], texts[0], texts[1], 3], 56), row_of([2, texts[2], 1, texts[5], texts[4], 7], 56)
    ids, segments = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    logits, flat_segments = logits_of(model, ids, segments).flatten(0, 1), segments.flatten()
    follows = (flat_segments[:-1] == flat_segments[1:]) & (flat_segments[1:] > 0)
    follows[55] = False
    packed = cross_entropy(logits[:-1][follows], ids.flatten()[1:][follows], reduction="sum")
    packed.backward()

    torch.testing.assert_close(packed, loss, rtol=1e-5, atol=0)
    for name, parameter in model.named_parameters():
        # A gradient sums terms that nearly cancel: the error is measured against the tensor's largest entry.
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_document_does_not_see_its_neighbours():
    model = built()
    first, second, other = ids_of(9, 1), ids_of(12, 2), ids_of(9, 3)
    with torch.no_grad():
        before = logits_of(model, *row_of([first, second], 24))[0, 9:21]
        after = logits_of(model, *row_of([other, second], 24))[0, 9:21]
    assert torch.equal(before, after)


@pytest.mark.parametrize("pieces", [[5, "x", 3], ["x", 8], [8, "x"], [1, "x", 1, "x", 2]])
def test_padding_is_harmless_wherever_it_stands(pieces):
    model, text = built(), ids_of(7, 4)
    ids, segments = row_of([text if piece == "x" else piece for piece in pieces], 20)
    noise = torch.where(segments > 0, ids, ids_of(20, 5)[None])  # what stands on padding must not matter
    with torch.no_grad():
        logits = logits_of(model, noise, segments)
        for number in range(1, int(segments.max()) + 1):
            torch.testing.assert_close(logits[segments == number], alone(model, text), rtol=1e-5, atol=1e-6)


def test_rows_that_are_all_padding_are_finite_forwards_and_backwards():
    model, text = built(), ids_of(6, 6)
    segments = torch.zeros(3, 12, dtype=torch.long)
    segments[1, :6] = 1
    ids = torch.zeros(3, 12, dtype=torch.long)
    ids[1, :6] = text
    logits = logits_of(model, ids, segments)
    assert logits.isfinite().all()
    next_token_loss(logits[1, :6], text).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_of_padding_alone_every_parameter_has_a_gradient_of_zero():
    """A rank that has nothing else meets the others over the same parameters."""
    model, segments = built(), torch.zeros(2, 12, dtype=torch.long)
    logits = logits_of(model, segments, segments)
    assert logits.isfinite().all()
    logits[segments > 0].sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values()), gradients


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_runs_under_bf16_autocast(model_type):
    model = built(model_type)
    ids, segments = row_of([ids_of(21, 1), ids_of(9, 2), 2], 32)
    exact = logits_of(model, ids, segments)
    with torch.autocast("cpu", torch.bfloat16):
        logits = logits_of(model, ids, segments)
    assert logits.dtype == torch.bfloat16
    real = segments > 0
    torch.testing.assert_close(logits.float()[real], exact[real], rtol=0.05, atol=0.05)  # bf16 has 8 bits
    logits[real].float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# ----------------------------------------------------------------------------------------------------------- generation


def greedily(model, ids, steps):
    """Tokens written one by one, everything computed anew for each."""
    for _ in range(steps):
        ids = torch.cat([ids, alone(model, ids)[-1:].argmax(-1)])
    return ids[-steps:]


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@torch.inference_mode()
def test_generation_with_a_cache_equals_computing_all_anew(model_type):
    model, steps = built(model_type, seed=3), 12
    prompts = [ids_of(length, seed) for seed, length in enumerate((3, 11, 1, 7), 20)]
    expected = [greedily(model, ids, steps).tolist() for ids in prompts]
    assert len({tuple(row) for row in expected}) > 1, "four prompts with one answer would prove nothing"

    longest = max(map(len, prompts))
    ids, mask = torch.zeros(4, longest, dtype=torch.long), torch.zeros(4, longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    embeds, cache, written = model.embed(ids), None, []
    embeds[mask == 0] = 100.0  # what stands on padding must not matter
    for _ in range(steps):
        hidden, cache = model.extend(embeds, mask, cache)
        tokens = model.head(hidden[:, -1]).argmax(-1)
        written.append(tokens)
        embeds, mask = model.embed(tokens[:, None]), torch.cat([mask, mask.new_ones(4, 1)], dim=1)
    assert torch.stack(written, 1).tolist() == expected


@torch.inference_mode()
def test_extend_equals_hidden_in_one_go_and_in_pieces():
    model, ids = built(), ids_of(14, 8)
    whole = model.hidden(model.embed(ids[None]), torch.ones(1, 14, dtype=torch.long), torch.arange(14)[None])
    cache, parts = None, []
    for begin, end in ((0, 5), (5, 6), (6, 14)):
        hidden, cache = model.extend(model.embed(ids[None, begin:end]), torch.ones(1, end, dtype=torch.long), cache)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@torch.inference_mode()
@pytest.mark.parametrize("pieces", [(10, 1, 1, 3), (1, 2, 9, 1, 2), (3, 1, 11)])
def test_what_a_window_leaves_out_is_not_seen_in_generation(pieces):
    """In a prompt of more positions than the window, and after it; the reference is transformers' own eager one."""
    model = built("mistral", sliding_window=4).eval()
    for parameter in model.parameters():
        parameter.mul_(8 if parameter.ndim > 1 else 1)
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.hf_config), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    ids = ids_of(sum(pieces), 9)[None]
    expected = plain.model(ids).last_hidden_state
    cache, end, found = None, 0, []
    for piece in pieces:
        begin, end = end, end + piece
        hidden, cache = model.extend(model.embed(ids[:, begin:end]), torch.ones(1, end, dtype=torch.long), cache)
        found.append(hidden)
    assert torch.allclose(torch.cat(found, 1), expected, rtol=0, atol=1e-4)


def test_positions_count_from_the_first_real_place():
    # Rotary positions are relative, so no output would show it: the decoder is asked what it was given.
    model, seen = built(), []
    model.base.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["position_ids"].tolist()), with_kwargs=True
    )
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    _, cache = model.extend(torch.zeros(2, 4, 32), mask, None)
    model.extend(torch.zeros(2, 1, 32), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1), cache)
    model.hidden(torch.zeros(1, 5, 32), torch.tensor([[1, 1, 0, 2, 2]]), torch.tensor([[0, 1, 0, 0, 1]]))
    assert seen == [[[0, 0, 0, 1], [0, 1, 2, 3]], [[2], [4]], [[0, 1, 0, 0, 1]]]


# -------------------------------------------------------------------------------------------------------- configuration


def test_an_unknown_key_of_config_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"^backbone\.config: llama has no num_layerz; see transformers' LlamaConfig$"):
        built(num_layerz=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "lama"}, "lama"),
        ({"hidden_size": 30}, "backbone.config"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_config_that_transformers_refuses_is_one_line(changes, named):
    with pytest.raises(ValueError, match=r"^backbone\.config: ") as caught:
        built(**changes)
    assert named in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


REFUSED = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "lfm2": {"hidden_size": 32, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_an_architecture_that_would_leak_between_documents_is_refused(model_type):
    with pytest.raises(ValueError, match=rf"^backbone\.config: {model_type} is not a plain stack of attention layers"):
        CausalLM({"model_type": model_type, "vocab_size": 61, **REFUSED[model_type]})


def test_attention_beyond_causality_is_refused_where_it_would_matter():
    model = built("mistral", sliding_window=8)
    assert alone(model, ids_of(8, 1)).isfinite().all()  # no document reaches out of the window
    with pytest.raises(ValueError, match=r"^backbone\.config: its attention has sliding_window, .* of 9 positions"):
        alone(model, ids_of(9, 1))
    with pytest.raises(ValueError, match="its attention has softcap"):
        alone(built("gemma2", head_dim=8, final_logit_softcapping=None), ids_of(9, 1))


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        # its layers hand nothing on to their attention, which would see the whole row
        ("nemotron", "NemotronAttention is not told where documents begin and end; take a model such as"),
        # it computes which keys each position sees, for every layer anew
        ("doge", "its attention has attention_mask, which packed training does not do"),
    ],
)
def test_attention_that_would_not_follow_the_documents_is_refused(model_type, said):
    model = built(model_type)
    with pytest.raises(ValueError, match=rf"^backbone\.config: {said}"):
        logits_of(model, *row_of([ids_of(9, 1), ids_of(12, 2)], 24))


@pytest.mark.parametrize(
    "asked", [{"position_bias": torch.zeros(1)}, {"indices": torch.zeros(1)}, {"is_causal": False}]
)
def test_what_else_is_asked_of_an_attention_is_refused_by_its_name(asked):
    model, [name] = built(), asked
    model.blocks[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | asked), with_kwargs=True
    )
    with pytest.raises(ValueError, match=rf"^backbone\.config: its attention has {name}, "):
        alone(model, ids_of(9, 1))


LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    },
}
DYNAMIC = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}


@pytest.mark.parametrize(("model_type", "changes"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
@torch.no_grad()
def test_rotary_positions_that_follow_the_longest_document_never_follow_padding_or_a_neighbour(model_type, changes):
    model, text = built(model_type, **changes), ids_of(10, 1)
    ids, segments = row_of([text, 30], 40)
    torch.testing.assert_close(logits_of(model, ids, segments)[0, :10], alone(model, text), rtol=0, atol=1e-6)
    assert alone(model, ids_of(16, 2)).isfinite().all()
    with pytest.raises(ValueError, match=r"^backbone\.config: its rotary positions .* than 16, .* one of 17; take"):
        logits_of(model, *row_of([text, ids_of(17, 2)], 40))


def test_tied_and_untied():
    tied, untied = built(tie_word_embeddings=True), built(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.base.embed_tokens.weight
    assert list(tied.tied()) == [("lm_head.weight", "model.embed_tokens.weight")]
    assert not list(untied.tied())
    assert untied.lm_head.weight.data_ptr() != untied.base.embed_tokens.weight.data_ptr()
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


def test_parameters_are_named_as_in_transformers():
    names = set(dict(built("qwen2").named_parameters()))
    assert {
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    } <= names
    assert len(built().blocks) == 2


def test_built_on_meta_has_the_same_names_and_shapes():
    with torch.device("meta"):
        meta = built()
    real = built()
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_a_padding_id_of_the_configuration_costs_no_embedding_its_gradient():
    """Folders often name their stop token as padding; torch gives the embedding of such an id no gradient."""
    model, ids = built(pad_token_id=5), torch.tensor([1, 5, 2])
    assert model.base.embed_tokens.padding_idx is None
    alone(model, ids).square().sum().backward()
    assert model.base.embed_tokens.weight.grad[5].abs().sum() > 0
    # and an id beyond a byte-level vocabulary, as phi3 has it by default, hinders nothing
    assert alone(built("phi3"), ids_of(4, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("model_type", "option"), [("granite", {"logits_scaling": 8.0}), ("cohere", {"logit_scale": 0.0625})]
)
def test_an_architecture_that_bends_its_logits_is_refused(model_type, option):
    [name] = option
    with pytest.raises(ValueError, match=rf"^backbone\.config: {model_type} has {name}, which scales or caps logits"):
        built(model_type, **option)


# --------------------------------------------------------------------------------------------------- attention on a GPU


CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "dtype", "width", "drops", "capability", "is_built", "chosen"),
    [
        (CUDA, torch.bfloat16, 128, False, (9, 0), True, "varlen"),
        (CUDA, torch.float16, 64, False, (8, 0), True, "varlen"),
        (CPU, torch.bfloat16, 128, False, (9, 0), True, "buckets"),
        (CUDA, torch.float32, 128, False, (9, 0), True, "buckets"),
        (CUDA, torch.bfloat16, 256, False, (9, 0), True, "buckets"),
        (CUDA, torch.bfloat16, 100, False, (9, 0), True, "buckets"),
        (CUDA, torch.bfloat16, 128, True, (9, 0), True, "buckets"),
        (CUDA, torch.bfloat16, 128, False, (7, 5), True, "buckets"),
        (CUDA, torch.bfloat16, 128, False, (9, 0), False, "buckets"),
    ],
)
def test_the_attention_is_chosen_by_what_the_machine_has(
    monkeypatch, device, dtype, width, drops, capability, is_built, chosen
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: is_built)
    assert kernel_for(device, dtype, width, drops) == chosen


def test_runs_lie_end_to_end_and_padding_is_one_too():
    docs = runs(torch.tensor([[1, 1, 2, 0, 0, 0], [1, 1, 1, 1, 0, 3]]))
    assert docs.bounds.tolist() == [0, 2, 3, 6, 10, 11, 12] and docs.bounds.dtype == torch.int32
    assert (docs.widest, docs.longest) == (4, 4)
    padding = runs(torch.zeros(2, 5, dtype=torch.long))
    assert (padding.bounds.tolist(), padding.widest, padding.longest) == ([0, 5, 10], 5, 0)


def plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch documents of varlen_attn, by the plain formula: documents end to end, (-1, 0) is causal."""
    assert cu_seq_q.tolist() == cu_seq_k.tolist() and cu_seq_q.dtype == torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max()) and window_size == (-1, 0)
    assert enable_gqa == (query.shape[1] != key.shape[1])
    outputs = []
    for begin, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        q, k, v = (one[begin:end].transpose(0, 1) for one in (query, key, value))
        k, v = (one.repeat_interleave(len(q) // len(k), dim=0) for one in (k, v))
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(
            torch.ones(end - begin, end - begin).triu(1) > 0, -torch.inf
        )
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("heads", [2, 4])
def test_attention_over_runs_equals_attention_over_buckets(monkeypatch, heads):
    model = built(num_key_value_heads=heads)
    ids, segments = row_of([ids_of(9, 1), 2, ids_of(12, 2), ids_of(1, 3), 3], 30)
    ids, segments = torch.cat([ids, ids.flip(1)]), torch.cat([segments, segments.flip(1)])

    def gradients():
        model.zero_grad()
        logits = logits_of(model, ids, segments)[segments > 0]
        logits.square().mean().backward()
        return [logits, *(parameter.grad for parameter in model.parameters())]

    expected = gradients()
    asked = []
    monkeypatch.setattr("omnikit.builtin.backbone.kernel_for", lambda *args: asked.append(args) or "varlen")
    monkeypatch.setattr(attention, "varlen_attn", plain_varlen)
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert asked == [(CPU, torch.float32, 8, False)]


def test_the_choice_is_told_of_autocast_and_of_dropout_that_is_on(monkeypatch):
    asked = []
    monkeypatch.setattr("omnikit.builtin.backbone.kernel_for", lambda *args: asked.append(args[1:]) or "buckets")
    model = built(attention_dropout=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        alone(model.train(), ids_of(3, 1))
        alone(model.eval(), ids_of(3, 1))
    alone(model.bfloat16(), ids_of(3, 1))
    assert asked == [(torch.bfloat16, 8, True), (torch.bfloat16, 8, False), (torch.bfloat16, 8, False)]


def test_torch_takes_what_is_asked_of_varlen_forwards_and_backwards():
    """On tensors without memory, since there may be no GPU: names, shapes and types are those of torch's own."""
    docs = runs(torch.tensor([[1, 1, 1, 2, 2, 0]]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k = (torch.empty(1, heads, 6, 16, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2))
        out = attention.attend(q, k, k * 1, docs, 0.25, 0.0)
        out.sum().backward()
        assert out.shape == (1, 6, 4, 16) and q.grad.shape == q.shape and k.grad.shape == k.shape
