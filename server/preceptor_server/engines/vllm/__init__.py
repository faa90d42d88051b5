"""vLLM behind the Engine protocol: large teachers, many GPUs.

`engine.py` owns the life of vLLM; `fast.py` and `stock.py` are two ways to ask it; `plugin.py`, `wrapped.py`,
`pooler.py` and `cache_limit.py` run inside vLLM's own processes, make the fast way possible, and know nothing of the
server.
"""
