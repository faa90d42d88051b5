"""How Preceptor is run, by place."""
