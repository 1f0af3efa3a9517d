"""Other pipelines over the same weights, as programs that `triptych bench` asks (triptych/bench/peers/process.py)."""
