"""Action heads: networks that map a noisy chunk, two times and a condition to an average velocity."""

from roboimi.vla.models.heads.imf_attnres_head import IMFAttnResHead

__all__ = ["IMFAttnResHead"]
