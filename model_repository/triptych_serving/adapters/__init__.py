"""Adapters (LoRAs): a folder of files of strangers, what is kept of them while they are used, and graphs that wear them."""
