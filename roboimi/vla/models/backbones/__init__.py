"""Backbones: what the condition holds besides the robot's own state."""

from roboimi.vla.models.backbones.siglip2_diffusion_backbone import SigLIP2DiffusionBackbone
from roboimi.vla.models.backbones.state_backbones import BlindBackbone, PrivilegedStateBackbone

__all__ = ["BlindBackbone", "PrivilegedStateBackbone", "SigLIP2DiffusionBackbone"]
