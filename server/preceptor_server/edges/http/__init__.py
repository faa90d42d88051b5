"""The HTTP side of a teacher server, for debugging: the same teacher, scheduler and validation as gRPC, as JSON."""
