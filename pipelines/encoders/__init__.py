"""Encoders: an image becomes a vector."""

from pipelines.encoders.base import Encoder, EncoderConfig, load_encoder

__all__ = ["Encoder", "EncoderConfig", "load_encoder"]
