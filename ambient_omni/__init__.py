"""From images and their levels to a trained diffusion model and its samples."""

from ambient_omni import torchvision_hook

# Before anything that may import torchvision: every command and worker passes here first.
torchvision_hook.install()
