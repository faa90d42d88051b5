"""Tasks: what a run practises, side by side, each with settings and teachers of its own. Rolls nothing out."""
