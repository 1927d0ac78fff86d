"""Captions as Stable Diffusion XL reads them: two text encoders, a summary, and sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ambient_omni.hub import read_json, weights_sha256
from ambient_omni.models.conditions import Condition, Conditioner
from ambient_omni.models.text import CaptionConditioner
from schemas.errors import BadInput
from schemas.ids import canonical_hash


class TwoEncoderConditioner(CaptionConditioner):
    """Two frozen text encoders: their last states but one side by side, the second's summary.

    Every image is told that it is whole: its size, no crop, and the same size again. Sizes of the
    images before they were cut are not in a batch.

    Args:
        tokenizers: of transformers, one for each encoder.
        encoders: CLIP's text models, the second one with a projection.
        side: of the images, pixels.
        zeros_for_null: the null condition is zeros (SDXL's base), not the empty caption's states.
        fingerprint: hash of the encoders' weights.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[Any],
        side: int,
        *,
        zeros_for_null: bool = True,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(tokenizers[0], encoders[0], fingerprint=fingerprint)
        self._second = CaptionConditioner(tokenizers[1], encoders[1])
        self._side = side
        self._zeros_for_null = zeros_for_null

    @classmethod
    def of_pipeline(cls, find: Callable[[str], Path], side: int) -> TwoEncoderConditioner:
        """Load tokenizers and encoders of a pipeline, on the CPU in float32.

        Args:
            find: returns the folder of a part of the pipeline.
            side: of the images, pixels.

        Raises:
            BadInput: a part is not there or cannot be read.
        """
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        folders = find("text_encoder"), find("text_encoder_2")
        kinds: tuple[Any, Any] = (CLIPTextModel, CLIPTextModelWithProjection)
        tokens: Any = CLIPTokenizer
        try:
            tokenizers = [tokens.from_pretrained(find(f"tokenizer{n}")) for n in ("", "_2")]
            encoders = [
                kind.from_pretrained(folder, use_safetensors=True).float()
                for kind, folder in zip(kinds, folders, strict=True)
            ]
        except (OSError, ValueError) as error:
            raise BadInput(
                f"the text encoders cannot be loaded: {' '.join(str(error).split())[:200]}"
            ) from error
        index = read_json(folders[0].parent / "model_index.json")
        return cls(
            tokenizers,
            encoders,
            side,
            zeros_for_null=bool(index.get("force_zeros_for_empty_prompt", True)),
            fingerprint=canonical_hash([weights_sha256(folder) for folder in folders]),
        )

    @property
    def width(self) -> int:
        """Width of the states of both encoders together."""
        return super().width + self._second.width

    def to(self, device: torch.device) -> Conditioner:
        """Move the encoders to a device, and return this."""
        self._second.to(device)
        return super().to(device)

    def null(self, count: int) -> Condition:
        """Return the condition of `count` images about which nothing is said."""
        if self._null is None:
            empty = self._states([""])
            assert empty.text is not None
            assert empty.pooled is not None
            factor = 0.0 if self._zeros_for_null else 1.0
            self._null = Condition(
                text=factor * empty.text, pooled=factor * empty.pooled, time_ids=empty.time_ids
            )
        return self._null.take([0] * count)

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Condition:
        answers = [
            part.encoder(part.tokens(texts)[0], output_hidden_states=True)
            for part in (self, self._second)
        ]
        whole = [self._side, self._side, 0, 0, self._side, self._side]
        pooled = answers[1].text_embeds
        return Condition(
            text=torch.cat([answer.hidden_states[-2] for answer in answers], dim=-1),
            pooled=pooled,
            time_ids=torch.tensor([whole] * len(texts), dtype=pooled.dtype, device=pooled.device),
        )
