"""Generated from teacher.proto by `make proto`; nothing here is written by hand."""
