"""All published weights that `triptych fetch` knows."""

from __future__ import annotations

from .sdxl.catalog import CATALOGUE as SDXL
from .stable_cascade.catalog import CATALOGUE as STABLE_CASCADE

CATALOGUES = (SDXL, STABLE_CASCADE)
MODELS = {model.name: model for catalogue in CATALOGUES for model in catalogue.models}
