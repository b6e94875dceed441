"""What a run depends on besides its recipe and data: versions and the machine."""

import functools
import os
import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

from packaging.requirements import Requirement

PACKAGES = (
    "omnikit",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "grain",
    "av",
    "decord",
    "pillow",
    "pyarrow",
    "soundfile",
    "soxr",
)


@functools.cache
def versions() -> dict[str, str]:
    """Version of each package that can change a result; "absent" where one is not installed.

    Plugins are among them, and what plugins require: openai-whisper makes the spectrograms of its encoder.
    """
    plugins = {entry.dist.name: entry.dist.requires or [] for entry in entry_points(group="omnikit") if entry.dist}
    wanted = (Requirement(text) for requires in plugins.values() for text in requires)
    required = {one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}
    found = {}
    for name in (*PACKAGES, *sorted({*plugins, *required} - set(PACKAGES))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def environment() -> dict[str, str]:
    """`versions`, and the machine."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": device,
    }
    return machine | versions()
