"""What a run depends on besides its recipe and data: versions and the machine."""

import functools
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

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

    Plugins are among them, and what they require that omnikit does not: openai-whisper makes spectrograms.
    """
    plugins = {entry.dist.name: entry.dist.requires or [] for entry in entry_points(group="omnikit") if entry.dist}
    required = _required([text for needs in plugins.values() for text in needs])
    more = {*plugins, *required} - {*PACKAGES, *_required(requires("omnikit") or [])}
    found = {}
    for name in (*PACKAGES, *sorted(more)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _required(texts: Iterable[str]) -> set[str]:
    """The packages that are required here, of extras none."""
    wanted = map(Requirement, texts)
    return {one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}


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
