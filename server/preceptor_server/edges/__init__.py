"""Where requests come in and answers go out: bytes to dataclasses and back. Scores nothing."""
