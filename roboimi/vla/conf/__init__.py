"""Hydra configurations; `roboimi.vla.config.compose_config` reads them."""
