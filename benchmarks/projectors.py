"""Projectors side by side: tokens of a medium, parameters, and milliseconds of one item, forward and backward.

    python benchmarks/projectors.py [image] [audio] [tiny] [--repeats 20] [--json table.json]

`image`: one view of SigLIP so400m (27 x 27 features of 1152) to the width of Qwen2.5-7B (3584). `audio`: thirty
seconds of Whisper large-v3 (1500 features of 1280) to the same. `tiny`: both at 128 to 192. Float32, on the CPU, with
torch's own number of threads. Every round runs each projector once, so that a machine that slows down slows them all;
the figures are medians over rounds. The backward pass includes the gradient of the features. `audio` takes 6 GB.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
import yaml

from omnikit.component import Grid, count
from omnikit.registry import Registry

IMAGE = [
    "mlp",
    "pool_mlp",
    "{type: pool_mlp, pool: conv}",
    "video_conv",
    "{type: concat, newline: true}",
    "c_abstractor",
]
AUDIO = [
    f"{{type: {name}, rate: {rate}}}"
    for rate in (2, 4, 8)
    for name in ("mean_pool", "concat", "strided_conv", "conv_gmlp")
]
GROUPS: dict[str, list[tuple[list[str], Grid, int, int]]] = {
    "image": [(IMAGE, (1, 27, 27), 1152, 3584)],
    "audio": [(AUDIO, (1500, 1, 1), 1280, 3584)],
    "tiny": [(IMAGE, (1, 27, 27), 128, 192), (AUDIO, (1500, 1, 1), 128, 192)],
}
COLUMNS = ("projector", "grid", "d_in", "d_out", "tokens", "parameters", "forward_ms", "backward_ms", "gflops")


def config_of(registry, text):
    """The Config of what a recipe says under `projector`."""
    said = yaml.safe_load(text)
    options = {"type": said} if isinstance(said, str) else dict(said)
    return registry.get("projector", options.pop("type")).model_validate(options)


def measure(registry, names, grid, d_in, d_out, repeats):
    """A row of the table for each projector."""
    torch.manual_seed(0)
    features = torch.randn(count(grid), d_in, requires_grad=True)
    configs = [config_of(registry, name) for name in names]
    modules = [config.build(d_in, d_out) for config in configs]
    times = [([], []) for _ in modules]
    for turn in range(repeats + 1):  # the first round warms up
        for module, (forward, backward) in zip(modules, times, strict=True):
            start = perf_counter()
            tokens = module(features, [grid])
            middle = perf_counter()
            tokens.backward(torch.ones_like(tokens))
            end = perf_counter()
            module.zero_grad()
            features.grad = None
            if turn:
                forward.append(1000 * (middle - start))
                backward.append(1000 * (end - middle))
    rows = []
    for name, config, module, (forward, backward) in zip(names, configs, modules, times, strict=True):
        parameters = sum(parameter.numel() for parameter in module.parameters())
        gflops = config.cost(grid, d_in, d_out) / 1e9
        tokens = count(config.shrink(grid))
        values = (name, grid, d_in, d_out, tokens, parameters, median(forward), median(backward), gflops)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="image|audio|tiny", help="what to measure; default: all")
    parser.add_argument("--repeats", type=int, default=20, help="rounds; the figures are their medians")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    options = parser.parse_args(arguments)
    unknown = set(options.groups) - set(GROUPS)
    if unknown or options.repeats < 1:
        parser.error(f"groups are {', '.join(GROUPS)}, and repeats at least 1")

    registry, rows = Registry.load(), []
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for group in options.groups or GROUPS:
        for names, grid, d_in, d_out in GROUPS[group]:
            for row in measure(registry, names, grid, d_in, d_out, options.repeats):
                rows.append(row)
                cells = [
                    f"{v:,.2f}" if isinstance(v, float) else f"{v:,}" if type(v) is int else str(v)
                    for v in row.values()
                ]
                print(f"| {' | '.join(cells)} |", flush=True)
    if options.json:
        machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "processor": platform.machine()}
        options.json.write_text(json.dumps({"repeats": options.repeats, **machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
