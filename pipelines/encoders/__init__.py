"""Encoders: an image becomes a vector."""

from pipelines.encoders.base import Encoder, EncoderConfig, ImportedEncoder, load_encoder

__all__ = ["Encoder", "EncoderConfig", "ImportedEncoder", "load_encoder"]
