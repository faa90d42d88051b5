"""What the teacher server and its clients share: the wire contract, and the few functions that both must agree on."""

__version__ = "0.1.0"
