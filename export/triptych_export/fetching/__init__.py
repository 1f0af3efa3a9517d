"""Published weights on the Hugging Face hub: which files the exporter reads, fetched, checked and kept."""

from triptych_export.catalog import MODELS
from triptych_export.fetching.errors import FetchError
from triptych_export.fetching.fetch import Fetched, fetch, verify
from triptych_export.published import Licence, Model

__all__ = ["MODELS", "FetchError", "Fetched", "Licence", "Model", "fetch", "verify"]
