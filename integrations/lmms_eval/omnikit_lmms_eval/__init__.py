"""Runs of omnikit as a model of lmms-eval: `lmms-eval --model=omnikit --model_args pretrained=RUN --tasks NAME`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["manifest"]


def manifest() -> "ModelManifest":
    """What lmms-eval's entry point `lmms_eval.models` asks for: names of classes, imported when the model is used."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "omnikit",
        simple_class_path="omnikit_lmms_eval.model.Omnikit",
        chat_class_path="omnikit_lmms_eval.model.OmnikitChat",
    )
