"""The gRPC edge: methods, identity, errors, and the messages of preceptor.v1."""
