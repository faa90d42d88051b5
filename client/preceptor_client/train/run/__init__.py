"""A run: its settings, its composition from parts, its loop."""
