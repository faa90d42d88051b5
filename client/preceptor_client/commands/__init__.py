"""The commands of the program `preceptor`, one module each. Each exposes `run(arguments) -> exit status`."""
