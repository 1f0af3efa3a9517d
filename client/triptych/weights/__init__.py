"""Published weights on the Hugging Face hub: which files the exporter reads, fetched, checked and kept."""

from triptych.weights.catalog import MODELS, Licence, Model
from triptych.weights.errors import FetchError
from triptych.weights.fetching import Fetched, fetch, verify

__all__ = ["MODELS", "FetchError", "Fetched", "Licence", "Model", "fetch", "verify"]
