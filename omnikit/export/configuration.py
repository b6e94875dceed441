"""The configuration of an exported model. Copied into every export as `configuration_omnikit.py`."""

from typing import Any

from transformers import PreTrainedConfig


class OmnikitConfig(PreTrainedConfig):
    """A backbone, encoders, and modalities (reader, encoder, projector), each with its type and its options.

    `components` is that part of an omnikit recipe. `ties` says of parameters which other one they are.
    """

    model_type = "omnikit"

    def __init__(
        self,
        components: dict[str, Any] | None = None,
        ties: dict[str, str] | None = None,
        vocab_size: int = 0,
        hidden_size: int = 0,
        **kwargs: Any,  # noqa: ANN401  (transformers' own)
    ) -> None:
        self.components = components or {}
        self.ties = ties or {}
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs | {"tie_word_embeddings": bool(self.ties)})
