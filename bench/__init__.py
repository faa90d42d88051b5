"""Measurements, side by side in one run, as ratios. Tests hold no timings; these hold no assertions."""
