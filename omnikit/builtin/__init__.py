"""The components that come with the core, through the same hook as any plugin's."""

from collections.abc import Sequence

from omnikit.builtin.backbone_config import HFCausalLM
from omnikit.builtin.benchmarks import BENCHMARKS
from omnikit.builtin.projector_configs import CAbstractorConfig, Concat, MeanPool, Mlp, PoolMlp, StridedConv
from omnikit.builtin.sources import Folder, HFDataset, Jsonl, Parquet, WebDataset
from omnikit.component import Component, hookimpl


@hookimpl
def omnikit_components() -> Sequence[type[Component]]:
    """The projectors, the backbone, the sources and the benchmarks of the core."""
    projectors = [Mlp, PoolMlp, MeanPool, Concat, StridedConv, CAbstractorConfig]
    return [HFCausalLM, Jsonl, Parquet, HFDataset, WebDataset, Folder, *projectors, *BENCHMARKS]
