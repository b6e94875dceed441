"""The parts of an exported model, out of its configuration. Copied into every export."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from omnikit.component import BackboneConfig, EncoderConfig, ProjectorConfig, ReaderConfig
from omnikit.export.chosen import COMPONENTS
from omnikit.media import MediaLimits


class Modality(NamedTuple):
    """One modality, as an entry of a recipe has it."""

    reader: ReaderConfig
    encoder: str
    projector: ProjectorConfig


class Parts(NamedTuple):
    """What of a recipe its model is made of."""

    backbone: BackboneConfig
    encoders: dict[str, EncoderConfig]
    modalities: dict[str, Modality]
    limits: MediaLimits


def parts_of(tree: Mapping[str, Any]) -> Parts:
    """The parts of a configuration's `components`."""

    def made(kind: str, entry: Mapping[str, Any]) -> Any:  # noqa: ANN401
        (found,) = [one for one in COMPONENTS if (one.kind, one.type) == (kind, entry["type"])]
        return found.model_validate({key: value for key, value in entry.items() if key != "type"})

    def modality(entry: Mapping[str, Any]) -> Modality:
        return Modality(made("reader", entry["reader"]), entry["encoder"], made("projector", entry["projector"]))

    return Parts(
        made("backbone", tree["backbone"]),
        {name: made("encoder", entry) for name, entry in tree["encoders"].items()},
        {name: modality(tree["modalities"][name]) for name in tree["order"]},
        MediaLimits.model_validate(tree["limits"]),
    )
