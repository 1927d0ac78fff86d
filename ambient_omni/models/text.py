"""Captions through a frozen text encoder: the condition of text-to-image models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ambient_omni.hub import find_part, read_json, weights_sha256
from ambient_omni.models.conditions import Condition, Conditioner
from ambient_omni.models.config import ConditionConfig
from schemas.errors import BadInput

# Encoders that were trained on padded texts, without a mask: Stable Diffusion's.
_PADDED = ("clip", "clip_text_model")


class CaptionConditioner(Conditioner):
    """A tokenizer and a frozen encoder. The empty caption is the null condition.

    Args:
        tokenizer: of transformers.
        encoder: of transformers; CLIP's text model, or any encoder with last_hidden_state.
        max_tokens: captions are cut and padded to that; none: the tokenizer's own length.
        fingerprint: hash of the encoder's weights.

    Raises:
        BadInput: `max_tokens` is more than the encoder has positions for.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoder: Any,
        max_tokens: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        # Tokenizers without a length of their own say 1e30; T5 has no positions that end.
        longest = getattr(encoder.config, "max_position_embeddings", None) or 512
        if max_tokens is not None and max_tokens > longest:
            raise BadInput(
                f"condition.max_tokens {max_tokens} is more than the {longest} tokens that the "
                "text encoder reads: lower it"
            )
        self.max_tokens = max_tokens or min(tokenizer.model_max_length, longest)
        self.takes_mask = encoder.config.model_type not in _PADDED
        self._fingerprint = fingerprint
        self._null: Condition | None = None

    @classmethod
    def open(cls, config: ConditionConfig) -> CaptionConditioner:
        """Load the text encoder of a config, on the CPU in float32.

        Raises:
            BadInput: there is none, it cannot be read, or its weights are no safetensors.
        """
        from transformers import AutoTokenizer

        assert config.text_encoder is not None  # checked by the config
        folder = find_part(config.text_encoder, "text_encoder", config.revision)
        tokens = find_part(config.text_encoder, "tokenizer", config.revision)
        fingerprint = weights_sha256(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(tokens)
            encoder = _encoder_class(folder).from_pretrained(folder, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(
                f"the text encoder {config.text_encoder} cannot be loaded: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        return cls(tokenizer, encoder.float(), config.max_tokens, fingerprint)

    @property
    def width(self) -> int:
        """Width of the states."""
        config = self.encoder.config
        return int(getattr(config, "hidden_size", None) or config.d_model)

    @property
    def fingerprint(self) -> str | None:
        """Hash of the encoder's weights."""
        return self._fingerprint

    def to(self, device: torch.device) -> Conditioner:
        """Move the encoder to a device, and return this."""
        self.encoder.to(device)
        self._null = None
        return self

    def encode(
        self,
        *,
        labels: Tensor | None = None,
        captions: Sequence[str | None] | None = None,
        drop: Tensor | None = None,
    ) -> Condition:
        """Return the states of captions; each text that occurs is encoded once."""
        texts = _required(captions)
        unique = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(unique)}
        encoded = self._states(unique)
        if len(unique) < len(texts):
            encoded = encoded.take([place[text] for text in texts])
        return encoded if drop is None else encoded.where(drop, self.null(len(texts)))

    def null(self, count: int) -> Condition:
        """Return the states of the empty caption, `count` times."""
        if self._null is None:
            self._null = self._states([""])
        return self._null.take([0] * count)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return numbers and mask of the tokens, (B, T) both, on the encoder's device."""
        device = next(self.encoder.parameters()).device
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        numbers = tokens.input_ids.to(device, non_blocking=True)
        return numbers, tokens.attention_mask.to(device, non_blocking=True)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Condition:
        numbers, mask = self.tokens(texts)
        if not self.takes_mask:
            return Condition(text=self.encoder(numbers)[0])
        return Condition(text=self.encoder(numbers, attention_mask=mask)[0], text_mask=mask.bool())


def _encoder_class(folder: Any) -> Any:
    import transformers

    kind = read_json(folder / "config.json").get("model_type")
    if kind in _PADDED:
        return transformers.CLIPTextModel
    return transformers.T5EncoderModel if kind == "t5" else transformers.AutoModel


def _required(captions: Sequence[str | None] | None) -> list[str]:
    missing = [] if captions is None else [n for n, text in enumerate(captions) if text is None]
    if captions is None or missing:
        where = (
            f" ({len(missing)} of {len(captions)}, first: number {missing[0]})" if captions else ""
        )
        raise BadInput(
            f"the model is conditioned on captions and images have none{where}: ingest captions "
            'for them (an empty one is ""), or leave their batch out'
        )
    return [text for text in captions if text is not None]
