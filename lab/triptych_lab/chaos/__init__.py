"""Faults under load: a server whose processes are killed and stopped while strangers ask, and a ledger of every request.

`python -m triptych_lab.chaos` runs it, `python -m triptych_lab.chaos.soak` looks for memory that grows.
"""
