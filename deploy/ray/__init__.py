"""On a Ray cluster: servers of a teacher, placed on its nodes."""
