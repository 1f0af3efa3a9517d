"""Adapters (LoRAs): a folder of files of strangers, what is kept of them while they are used, and graphs that wear them."""

# Here is what a server needs that is started: it needs no NumPy. By these variables it tells its models where the adapters are.
FOLDER, SHELF, MEGABYTES = "TRIPTYCH_ADAPTERS_DIR", "TRIPTYCH_ADAPTERS_SHELF", "TRIPTYCH_ADAPTERS_MB"
# An encoder's input, and what the first model tells it: the adapters that each row wears.
WORN = "adapters"
