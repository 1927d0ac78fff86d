"""Samples images from networks that no pipeline of diffusers itself samples from.

This file stands as `pipeline.py` in the folder that it was exported to. It needs torch and
diffusers (and transformers for captions), and nothing else.

    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
    images = pipe(batch_size=4).images

The scheduler may be exchanged for any that speaks the same language: EDM's
(`EDMEulerScheduler`, `EDMDPMSolverMultistepScheduler`), flow matching's, or those of DDPM.
Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

if TYPE_CHECKING:

    class _Base:
        """diffusers' pipelines are untyped, and get attributes by name."""

        def __getattr__(self, name: str) -> Any: ...

else:
    _Base = DiffusionPipeline


class ExportedPipeline(_Base):
    """Any of the project's networks under a diffusers scheduler, in pixels or latents.

    Args:
        network: a U-Net or DiT of diffusers, or the network whose code lies in ``network/``.
        scheduler: whose language is `family`.
        vae: AutoencoderKL of a model that works on latents.
        text_encoder: of a model with captions; with its tokenizer.
        tokenizer: pads captions to its `model_max_length`.
        family: "edm", "flow" or "ddpm": what a timestep of the scheduler means.
        told: what the network is told of the level: the scheduler's "timestep", or ln σ / 4 as
            "log_sigma".
        id2label: names of the class labels, by number as a string; empty without labels.
        null_label: the class of images about which nothing is said; None: the network takes none.
        takes_mask: tokens of padding are masked, in the text encoder and the network.
        sigma_min: the lowest level that was trained, where flow matching stops.
        sigma_max: the highest one, where it begins.
        sigma_data: standard deviation of the data, part of what sampling begins from.
    """

    _optional_components = ["vae", "text_encoder", "tokenizer"]  # noqa: RUF012 (diffusers' own way)
    model_cpu_offload_seq = "text_encoder->network->vae"

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        family: str = "edm",
        told: str = "timestep",
        id2label: dict[str, str] | None = None,
        null_label: int | None = None,
        takes_mask: bool = False,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            network=network,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.register_to_config(
            family=family,
            told=told,
            id2label=id2label or {},
            null_label=null_label,
            takes_mask=takes_mask,
            sigma_min=sigma_min,
            sigma_max=sigma_max,
            sigma_data=sigma_data,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        *,
        prompt: str | list[str] | None = None,
        class_labels: list[int | str] | None = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **schedule: Any,
    ) -> Any:
        """Sample images.

        Args:
            batch_size: how many; with prompts or labels their number counts instead.
            prompt: one or several, for a model with captions.
            class_labels: numbers or names, for a model with labels.
            guidance_scale: classifier-free guidance; 1 = none.
            num_inference_steps: steps of the scheduler.
            generator: of the noise.
            latents: (B, C, H, W) standard normal noise to begin from, instead of a generator's.
            output_type: "pil", "np" or "pt" ((B, 3, H, W), 0..1), or "latent" (what was sampled).
            return_dict: False for a tuple.
            **schedule: handed to the scheduler's `set_timesteps`, e.g. ``sigmas``.

        Returns:
            Images, as diffusers' own pipelines return them.
        """
        condition = self._condition(prompt, class_labels, batch_size)
        null = condition
        if guidance_scale != 1:
            null = self._condition(None if prompt is None else "", None, len(condition))
        x = self._begin(len(condition), generator, latents, num_inference_steps, schedule)
        for t in self.progress_bar(self.scheduler.timesteps):
            seen = self._scaled(x, t)
            answer = self._answer(seen, t, condition)
            if guidance_scale != 1:
                untold = self._answer(seen, t, null)
                answer = untold + guidance_scale * (answer - untold)
            x = self.scheduler.step(answer, t, x, return_dict=False)[0]
        images = x if output_type == "latent" else self._images(x, output_type)
        self.maybe_free_model_hooks()
        output: Any = ImagePipelineOutput
        return output(images=images) if return_dict else (images,)

    def _begin(
        self,
        count: int,
        generator: Any,
        latents: Tensor | None,
        num_steps: int,
        schedule: dict[str, Any],
    ) -> Tensor:
        """Set the scheduler's levels; return noise of the highest, (B, C, H, W)."""
        network, scheduler, device = self.network, self.scheduler, self._execution_device
        if latents is None:
            side = network.config.sample_size
            shape = (count, network.config.in_channels, side, side)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=network.dtype)
        noise: Tensor = latents.to(device, network.dtype)
        data = self.config.sigma_data
        if self.config.family != "flow":
            scheduler.set_timesteps(num_steps, device=device, **schedule)
            # EDM's schedulers say √(σ² + 1), for data of deviation 1.
            edm = self.config.family == "edm"
            deviation = math.hypot(scheduler.sigmas[0], data) if edm else scheduler.init_noise_sigma
            return noise * deviation
        # Between the trained times, not from 1: there is no network that was trained at 1.
        low, high = (s / (1 + s) for s in (self.config.sigma_min, self.config.sigma_max))
        times = torch.linspace(high, max(low, high / num_steps), num_steps)
        schedule.setdefault("sigmas", times.tolist())
        scheduler.set_timesteps(device=device, **schedule)
        time = scheduler.sigmas[0]
        # Deviation of (1 - t) x_0 + t z.
        return noise * math.hypot((1 - time) * data, time)

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        if self.config.family == "flow":
            return x
        scaled: Tensor = self.scheduler.scale_model_input(x, t)
        return scaled

    def _answer(self, seen: Tensor, t: Tensor, condition: _Said) -> Tensor:
        noise = t if self.config.told == "timestep" else self._log_sigma(t)
        noise = torch.as_tensor(noise, device=seen.device).expand(len(seen))
        answer: Tensor = self.network(seen, noise, **condition.arguments, return_dict=False)[0]
        return answer

    def _log_sigma(self, t: Tensor) -> Tensor:
        """Return ln σ / 4 at a timestep, from what a timestep means to the scheduler."""
        scheduler = self.scheduler
        if self.config.family == "edm":
            return t
        if self.config.family == "flow":
            time: Tensor = t / scheduler.config.num_train_timesteps
            return (time / (1 - time)).log() / 4
        kept: Tensor = scheduler.alphas_cumprod[torch.as_tensor(t).cpu().long()]
        return ((1 - kept) / kept).log() / 8

    def _condition(
        self, prompt: str | list[str] | None, class_labels: list[int | str] | None, count: int
    ) -> _Said:
        if prompt is not None and self.text_encoder is None:
            raise ValueError("this model is not told captions: leave out prompt")
        if class_labels is not None and not self.config.id2label:
            raise ValueError("this model is not told labels: leave out class_labels")
        if self.text_encoder is not None:
            if prompt is None:
                raise ValueError("this model is told captions: give a prompt")
            prompts = [prompt] * count if isinstance(prompt, str) else prompt
            return _Said(len(prompts), self._encode(prompts))
        if self.config.null_label is None:
            return _Said(count, {})
        labels = [self.config.null_label] * count if class_labels is None else class_labels
        numbers = {name: int(number) for number, name in self.config.id2label.items()}
        known = [numbers.get(label, -1) if isinstance(label, str) else label for label in labels]
        if not all(0 <= number <= self.config.null_label for number in known):
            raise ValueError(f"class_labels {class_labels}: this model has {list(numbers)}")
        told = torch.tensor(known, device=self._execution_device)
        return _Said(len(known), {"class_labels": told})

    def _encode(self, prompts: list[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self._execution_device)
        mask = tokens.attention_mask if self.config.takes_mask else None
        states = self.text_encoder(tokens.input_ids, attention_mask=mask)[0]
        said = {"encoder_hidden_states": states.to(self.network.dtype)}
        return said if mask is None else {**said, "encoder_attention_mask": mask.bool()}

    def _images(self, x: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            config = self.vae.config
            latents = x / config.scaling_factor + (config.shift_factor or 0.0)
            x = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        pixels = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return self.numpy_to_pil(pixels) if output_type == "pil" else pixels


class _Said:
    """What the network is told of B images: the arguments that say so."""

    def __init__(self, count: int, arguments: dict[str, Tensor]) -> None:
        self._count = count
        self.arguments = arguments

    def __len__(self) -> int:
        return self._count
