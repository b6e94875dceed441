"""Answers measured: batched beside one by one, and the language model beside transformers' own `generate`.

    python benchmarks/generate.py [runs/tiny_omni] [--rounds 5]

`batched`: the run's held-out samples of every set, as `omnikit eval` asks them and one at a time; answers must be the
same. `first` and `rate`: seconds to the first token of a prompt of 512, and tokens a second of 128 after it, one row
and 16, beside transformers' `generate` with the same weights, greedy, float32; tokens must be the same. Contenders take
turns; figures are medians of rounds. Prints one table in Markdown; exit code 1 where something is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM

from omnikit.builtin.backbone_geometry import architecture
from omnikit.generate import Run, _left_padded
from omnikit.sampling import chooser

PROMPT, FURTHER = 512, 128
SAMPLES = 32
"""Of each held-out set."""

Line = tuple[str, str, str, bool]


def batched(run: Run) -> Iterator[Line]:
    """Held-out samples, all at once and one by one."""
    sources = [entry.data.open() for entry in run.recipe.heldout.values()]
    samples = [source[number] for source in sources for number in range(min(SAMPLES, len(source)))]
    run.answer(samples[:2])
    began = time.perf_counter()
    together = run.answer(samples)
    middle = time.perf_counter()
    alone = [run.answer([sample])[0] for sample in samples]
    ended = time.perf_counter()
    times = (ended - middle) / (middle - began)
    same = sum(one == other for one, other in zip(together, alone, strict=True))
    what = f"batched: {len(samples)} held-out samples"
    yield what, f"{len(samples) / (middle - began):.0f} a second, {times:.1f} times one by one", ">= 3", times >= 3
    yield what, f"{same} answers the same", f"{len(samples)}", same == len(samples)


def beside_transformers(run: Run, rounds: int) -> Iterator[Line]:
    """The backbone's own loop, and transformers' with the same weights."""
    backbone = run.model.backbone
    theirs = AutoModelForCausalLM.from_config(architecture(run.recipe.backbone._sized()))
    theirs.load_state_dict(backbone.state_dict())
    theirs.eval()
    theirs.generation_config.update(eos_token_id=None, pad_token_id=0)
    vocabulary = theirs.config.vocab_size
    for rows in (1, 16):
        ids = torch.randint(0, vocabulary, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))
        mask = torch.ones_like(ids)

        @torch.inference_mode()
        def ours_of(most: int, ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> torch.Tensor:
            embeds, padded = _left_padded(backbone.embed(ids), mask > 0)
            return torch.tensor([*run._written(embeds, padded, chooser(None, ()), most)]).T

        def theirs_of(most: int, ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> torch.Tensor:
            found = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=most, min_new_tokens=most)
            return found[:, PROMPT:]

        same = torch.equal(ours_of(1 + FURTHER), theirs_of(1 + FURTHER))
        first: dict[str, list[float]] = {"ours": [], "theirs": []}
        rate: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for name, written in (("ours", ours_of), ("theirs", theirs_of)):
                to_first = seconds(written, 1)
                whole = seconds(written, 1 + FURTHER)
                first[name].append(to_first)
                rate[name].append(rows * FURTHER / (whole - to_first))
        one, other = (1e3 * median(first[name]) for name in first)
        yield f"first token, {rows} rows", f"{one:.0f} ms beside {other:.0f}", "no later", one <= 1.05 * other
        one, other = (median(rate[name]) for name in rate)
        yield f"rate, {rows} rows", f"{one:.0f} tokens/s beside {other:.0f}", "no less", one >= 0.95 * other
        yield f"tokens, {rows} rows", "the same" if same else "other ones", "the same", same


def seconds(written: Callable[[int], torch.Tensor], most: int) -> float:
    """What a call takes."""
    began = time.perf_counter()
    written(most)
    return time.perf_counter() - began


def main() -> None:
    """Measures; exit code 1 where something is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/tiny_omni"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    run, missed = Run.load(options.run), 0
    print("| measured | figures | wanted | |\n|---|---|---|---|")
    for lines in (batched(run), beside_transformers(run, options.rounds)):
        for what, told, wanted, is_reached in lines:
            print(f"| {what} | {told} | {wanted} | {'met' if is_reached else '**missed**'} |", flush=True)
            missed += not is_reached
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
