"""The names of the two images that steps run in, before a profile pins them by digest.

Only the cluster reads them. The subprocess runner warns about images without `python` in their name; a local run
sends that warning to its log.
"""

VERSION = "0.1.0"

CPU_IMAGE = f"roboimi-cpu:{VERSION}"
"""No torch; MuJoCo for joint limits: `validate_dataset`, `compare_experiments`."""

GPU_IMAGE = f"roboimi-gpu:{VERSION}"
"""torch with CUDA and MuJoCo with EGL: everything else."""
