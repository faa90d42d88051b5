"""Any causal language model that transformers loads, scored in this process on a CPU or one GPU."""
