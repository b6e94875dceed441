"""label_loss is plain cross-entropy, in sums, however it is cut into chunks."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from omnikit import loss
from omnikit.loss import label_loss

WIDTH, VOCABULARY = 8, 13


def case(labels=23, groups=3, seed=0):
    """(hidden states, labels, groups, head)"""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(labels, WIDTH, generator=generator, requires_grad=True)
    torch.manual_seed(seed)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    return (
        hidden,
        torch.randint(0, VOCABULARY, (labels,), generator=generator),
        torch.randint(0, groups, (labels,), generator=generator),
        head,
    )


def run(hidden, labels, groups, head, num_groups=3):
    found = label_loss(hidden, labels, groups, num_groups, head)
    gradients = torch.autograd.grad(found.total, [hidden, head.weight])
    return found, gradients


def test_it_is_plain_cross_entropy_and_its_gradient():
    hidden, labels, groups, head = case()
    found, gradients = run(hidden, labels, groups, head)
    expected = cross_entropy(head(hidden), labels, reduction="sum")
    assert found.total.dtype == torch.float32 and found.total.shape == ()
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=0)
    for mine, plain in zip(gradients, torch.autograd.grad(expected, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 4, 22, 23])
def test_chunks_change_nothing(monkeypatch, chunk):
    hidden, labels, groups, head = case()
    whole, expected = run(hidden, labels, groups, head)
    monkeypatch.setattr(loss, "CHUNK", chunk)
    calls = []
    head.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    cut, gradients = run(hidden, labels, groups, head)
    torch.testing.assert_close(cut.total, whole.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(cut.by_group, whole.by_group, rtol=1e-6, atol=0)
    assert torch.equal(cut.counts, whole.counts)
    for mine, plain in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-7)
    assert max(calls) <= chunk, "no more logits than a chunk at a time"
    assert sum(calls) == (2 if chunk < 23 else 1) * 23, "computed again in the backward pass, where there are several"


def test_sums_and_counts_by_group():
    hidden, labels, groups, head = case()
    found = label_loss(hidden, labels, groups, 5, head)
    each = cross_entropy(head(hidden), labels, reduction="none")
    for group in range(5):
        torch.testing.assert_close(found.by_group[group], each[groups == group].sum(), rtol=1e-6, atol=0)
        assert found.counts[group] == (groups == group).sum()
    assert found.by_group[3:].tolist() == [0, 0] and not found.by_group.requires_grad
    torch.testing.assert_close(found.by_group.sum(), found.total.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("groups", [0, 2])
def test_no_labels_is_a_loss_of_nothing_with_gradients_of_zero(groups):
    hidden, labels, _, head = case(labels=0)
    found, gradients = run(hidden, labels, torch.zeros(0, dtype=torch.long), head, groups)
    assert (
        found.total.item() == 0 and found.by_group.tolist() == [0.0] * groups and found.counts.tolist() == [0] * groups
    )
    assert gradients[0].shape == (0, WIDTH) and torch.equal(gradients[1], torch.zeros_like(head.weight))


def test_sums_add_up_over_micro_batches():
    hidden, labels, groups, head = case()
    whole = label_loss(hidden, labels, groups, 3, head)
    parts = [
        label_loss(hidden[part], labels[part], groups[part], 3, head)
        for part in (slice(0, 5), slice(5, 5), slice(5, 23))
    ]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(sum(part.by_group for part in parts), whole.by_group, rtol=1e-6, atol=0)
    assert torch.equal(sum(part.counts for part in parts), whole.counts)


@pytest.mark.parametrize("autocast", [True, False])
def test_of_bfloat16_logits_the_softmax_is_float32(autocast):
    hidden, labels, groups, head = case()
    if not autocast:
        hidden, head = hidden.bfloat16(), head.bfloat16()
    seen = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = label_loss(hidden, labels, groups, 3, lambda states: seen.append(head(states)) or seen[-1])
    assert seen[0].dtype == torch.bfloat16 and found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, cross_entropy(seen[0].float(), labels, reduction="sum"), rtol=1e-6, atol=0)


def test_large_logits_stay_finite():
    hidden, labels, groups, head = case()
    found = label_loss(hidden * 1e4, labels, groups, 3, head)
    assert found.total.isfinite() and found.by_group.isfinite().all()


def test_of_the_logits_only_a_gradient_in_their_own_type_is_kept():
    logits = (5 * torch.randn(7, VOCABULARY)).bfloat16().requires_grad_()
    labels, kept = torch.arange(7), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = label_loss(logits, labels, torch.zeros(7, dtype=torch.long), 1, lambda states: states)
    assert [tensor.dtype for tensor in kept if tensor.numel() == logits.numel()] == [torch.bfloat16]
    expected = cross_entropy(logits.float(), labels, reduction="sum")
    assert torch.equal(found.total, expected)
    own, plain = (torch.autograd.grad(one, logits)[0] for one in (found.total, expected))
    assert torch.allclose(own, plain, rtol=2**-8, atol=0)
    with torch.no_grad():
        assert torch.equal(label_loss(logits, labels, torch.zeros(7, dtype=torch.long), 1, lambda x: x).total, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_cache", [1, 3 * VOCABULARY])
def test_logits_taken_a_few_rows_at_a_time_give_the_same_bits(monkeypatch, dtype, in_cache):
    found = []
    for size in (loss.IN_CACHE, in_cache):
        monkeypatch.setattr(loss, "IN_CACHE", size)
        torch.manual_seed(0)
        logits = (5 * torch.randn(7, VOCABULARY)).to(dtype).requires_grad_()
        total = label_loss(logits, torch.arange(7), torch.zeros(7, dtype=torch.long), 1, lambda states: states).total
        found.append((total, *torch.autograd.grad(total, logits)))
    (whole, expected), (parts, gradient) = found
    assert torch.equal(whole, parts) and torch.equal(expected, gradient) and gradient.any()


def test_a_second_backward_pass_is_refused():
    """The logits' gradient was changed in place by the first, so it would be wrong."""
    hidden, labels, groups, head = case()
    total = label_loss(hidden, labels, groups, 3, head).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
