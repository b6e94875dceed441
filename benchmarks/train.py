"""Training measured beside transformers' Trainer and TRL's SFTTrainer: real tokens a second, and peak memory.

    python benchmarks/train.py [--steps 4] [--rounds 3] [--only full,align,text,ranks]

SigLIP-base at 256 pixels, 2 x 2 features as one token, and SmolLM2-135M, all of random weights, on the CPU in bfloat16
(autocast over float32 weights, for everyone). 8 questions about a picture a step, texts of log-normal length, 30 % of
the tokens learned. The peers have the same sizes, pictures, texts and token ids, and pad 8 samples to the longest;
omnikit packs them into 1536 positions: once as recipes are by default, once with `run.compile`. No one recomputes
activations or saves while it is measured.

`full` trains everything; in `align` the projector alone trains, omnikit with features from its cache. `text` is the
language model alone at 2048 positions; `ranks` compares two processes of one thread with one of two, at 4 packs a step
and (for two steps, and two rounds at most) at 16.

Contenders take turns, each a process of its own for a few steps, of which the first is left out; figures are medians
over rounds. Tokens are real ones, not padding. Memory is the peak of the whole process, imports (0.5 GB) included.
FLOPs are those of the components' own `cost` for real tokens, beside the best rate of a bfloat16 matrix product found
in the same minutes; `text` tells the median of such products, too. The peers of `full` and `align` need 14 GB of free
memory. Prints one table in Markdown; exit code 1 where something is missed.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from train_data import TEXT_LENGTH, Costs, costs_of, recipe_of, write

from omnikit.registry import Registry

CONTENDER = Path(__file__).with_name("train_contenders.py")
THREADS = 2
OWN = {"omnikit": [], "omnikit, compiled": ["--set", "run.compile=true"]}
"""Ways in which omnikit takes part, and what its contender is told."""
PEERS = {"trainer": "transformers' Trainer", "trl": "TRL's SFTTrainer"}

Line = tuple[str, str, str, bool | None]
"""What was measured, the figures, what is wanted, and whether that is reached (None: nothing is)."""


class Options(NamedTuple):
    """What the measurements share."""

    folder: Path
    steps: int
    rounds: int


class Round(NamedTuple):
    """A few steps of a contender, the first of which is left out."""

    tokens: float
    """Real ones a second."""
    full: float
    """The share of positions that hold a token."""
    peak: float
    """MB."""
    losses: list[float]


class Failed(RuntimeError):
    """A contender ended without figures."""


def raced(command: Sequence[str], data: Path, options: Options, seed: int, threads: int = THREADS) -> Round:
    """Run a contender's command to its end."""
    environ = {**os.environ, "OMNIKIT_CACHE": str(options.folder / "cache"), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory(dir=options.folder) as out:
        more = ["--out", out, "--steps", str(options.steps + 1), "--seed", str(seed), "--threads", str(threads)]
        done = subprocess.run([*command, "--data", str(data), *more], env=environ, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        ends = (done.stderr.strip() or "it was killed").splitlines()[-1]
        raise Failed(f"exit code {done.returncode}: {ends[:200]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    tokens, places = (sum(told[name][1:]) for name in ("tokens", "places"))
    return Round(tokens / (told["ends"][-1] - told["ends"][0]), tokens / places, told["peak"], told["losses"])


class Rates(NamedTuple):
    """FLOP/s of bfloat16 matrix products of common sizes, forward or backward."""

    peak: float
    """The best of all."""
    usual: float
    """The median of the size that has the highest: a machine may reach its peak for moments only."""


def matmul_rates(seconds: float = 3.0) -> Rates:
    """How fast this machine multiplies matrices now."""
    torch.set_num_threads(THREADS)
    shapes = [(2048, 2048, 2048), (2048, 576, 1536), (2048, 1536, 576), (4096, 4096, 4096)]
    pairs = [(torch.randn(n, k).bfloat16(), torch.randn(m, k).bfloat16()) for n, k, m in shapes]
    rates: list[list[float]] = [[] for _ in shapes]
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for (n, k, m), (left, right), own in zip(shapes, pairs, rates, strict=True):
            start = time.perf_counter()
            left @ right.T
            own.append(2 * n * k * m / (time.perf_counter() - start))
    return Rates(max(map(max, rates)), max(map(median, rates)))


def missing(name: str) -> str:
    """Why a peer cannot take part, or an empty text."""
    return "" if name != "trl" or find_spec("trl") else "is not installed: pip install trl"


def setting(name: str, options: Options, registry: Registry) -> Iterator[Line]:
    """omnikit beside its peers in `full` or `align`."""
    wanted = {"full": (2.0, 0.6), "align": (4.0, 0.4)}[name]
    data = options.folder / "media"
    data.mkdir(exist_ok=True)
    lengths = write(data)
    costs = costs_of(recipe_of(data, registry, name, 0), name, lengths)
    absent = {peer: reason for peer in PEERS if (reason := missing(peer))}
    rounds: dict[str, list[Round]] = {who: [] for who in (*OWN, *PEERS) if who not in absent}
    peak = matmul_rates().peak
    for seed in range(options.rounds):
        for who, own in rounds.items():
            if who in absent:
                continue
            try:
                given = ["omnikit", name, *OWN[who]] if who in OWN else [who, name]
                own.append(raced([sys.executable, str(CONTENDER), *given], data, options, seed))
            except Failed as error:
                absent[who] = str(error)
                if who in OWN:
                    raise
        peak = max(peak, matmul_rates().peak)
    for peer, reason in absent.items():
        yield f"{name}: {PEERS[peer]}", reason, "", None
    found = {who: own for who, own in rounds.items() if who not in absent}
    speed = {who: median(one.tokens for one in own) for who, own in found.items()}
    memory = {who: max(one.peak for one in own) for who, own in found.items()}
    for who, own in found.items():
        rate = speed[who] * costs.needed
        told = (
            f"{speed[who]:.0f} real tokens/s ({', '.join(f'{one.tokens:.0f}' for one in own)}); "
            f"{median(one.full for one in own):.0%} of positions real; peak {memory[who] / 1e3:.1f} GB; "
            f"{rate / 1e9:.0f} GFLOP/s that are needed, {rate / peak:.0%} of {peak / 1e9:.0f}"
        )
        yield f"{name}: {PEERS.get(who, who)}", told, "", None
    yield from compared(name, costs, speed, memory, wanted)


def compared(
    name: str, costs: Costs, speed: dict[str, float], memory: dict[str, float], wanted: tuple[float, float]
) -> Iterator[Line]:
    """omnikit's figures as parts of its peers'; only the padded Trainer is what targets are set by."""
    ratio = costs.padded / costs.needed
    yield f"{name}: ratio of FLOPs", f"{ratio:.2f} by padding, logits everywhere and encoder alone", "", None
    for own, peer in itertools.product(OWN, PEERS):
        if peer in speed:
            is_measure = peer == "trainer"
            what = f"{name}: {own}, against {PEERS[peer]}"
            times, share = speed[own] / speed[peer], memory[own] / memory[peer]
            for told, want, reached in (
                (f"{times:.2f} times the tokens/s", f">= {wanted[0]:g}", times >= wanted[0]),
                (f"{share:.2f} of its peak memory", f"<= {wanted[1]:g}", share <= wanted[1]),
            ):
                yield what, told, want if is_measure else "", reached if is_measure else None


def full(options: Options, registry: Registry) -> Iterator[Line]:
    """Everything trains."""
    yield from setting("full", options, registry)


def align(options: Options, registry: Registry) -> Iterator[Line]:
    """The projector trains."""
    yield from setting("align", options, registry)


def text(options: Options, registry: Registry) -> Iterator[Line]:
    """The language model alone, its FLOP/s beside those of a matrix product."""
    data = options.folder / "text"
    data.mkdir(exist_ok=True)
    lengths = write(data, media=False, median=220.0)
    costs = costs_of(recipe_of(data, registry, "text", 0), "text", lengths, batches=1)
    found: dict[str, list[tuple[float, float, float]]] = {who: [] for who in OWN}
    for seed in range(options.rounds):
        for who, given in OWN.items():
            before = matmul_rates()
            one = raced([sys.executable, str(CONTENDER), "omnikit", "text", *given], data, options, seed)
            after = matmul_rates()
            rate = one.tokens * costs.needed
            found[who].append((rate, rate / max(before.peak, after.peak), rate / (before.usual + after.usual) * 2))
    for who, own in found.items():
        rate, share, usual = (median(values) for values in zip(*own, strict=True))
        told = (
            f"{rate / 1e9:.0f} GFLOP/s, {share:.0%} of the peak ({after.peak / 1e9:.0f} at last), "
            f"{usual:.0%} of the median of the same products ({after.usual / 1e9:.0f} at last)"
        )
        yield f"text: {who}, SmolLM2-135M, T {TEXT_LENGTH}", told, ">= 50 %", share >= 0.5


def ranks(options: Options, registry: Registry) -> Iterator[Line]:
    """Two processes of a thread each beside one of two threads: throughput, and losses in float32."""
    data = options.folder / "ranks"
    data.mkdir(exist_ok=True)
    write(data)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    contender = [str(CONTENDER), "omnikit", "full"]
    batch = "stages.only.batch={{length: {}, packs: {}, micro: {}}}"
    long, exact = (options._replace(steps=2, rounds=min(options.rounds, most)) for most in (2, 1))
    settings = (("bf16", 1024, 4, options), ("bf16", 1024, 16, long), ("fp32", 512, 4, exact))
    for precision, length, packs, own in settings:
        given = ["--set", f"run.precision={precision}"]
        one, two = (["--set", batch.format(length, packs, micro)] for micro in (2, 1))
        for shard in (1, 2):
            cut = ["--set", f"run.shard={shard}"]
            rates, apart = [], 0.0
            for seed in range(own.rounds):
                alone = raced([sys.executable, *contender, *given, *one], data, own, seed)
                both = raced([*torchrun, *contender, *given, *two, *cut], data, own, seed, threads=1)
                rates.append(both.tokens / alone.tokens)
                apart = max(apart, float(np.abs(np.subtract(alone.losses, both.losses)).max()))
            where = f"ranks: 2 against 1, run.shard {shard}, {precision}, {packs} packs of {length} a step"
            if precision == "bf16":
                yield where, f"{median(rates):.2f} of the throughput", ">= 0.85", median(rates) >= 0.85
            else:
                yield where, f"losses at most {apart:.1e} apart", "<= 1e-5", apart <= 1e-5


PARTS = {"full": full, "align": align, "text": text, "ranks": ranks}


def main() -> None:
    """Measures the parts that are asked for; exit code 1 where something is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="steps of a contender that are measured in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        sys.exit(f"--only: no part is called {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    registry, missed = Registry.load(), 0
    print("| measured | figures | wanted | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="omnikit-benchmark-") as folder:
        for name in options.only.split(","):
            for what, told, wanted, is_reached in PARTS[name](
                Options(Path(folder), options.steps, options.rounds), registry
            ):
                verdict = {None: "", True: "met", False: "**missed**"}[is_reached]
                print(f"| {what} | {told} | {wanted} | {verdict} |", flush=True)
                missed += is_reached is False
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
