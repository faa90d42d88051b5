"""The teacher service: hosts a large language model and scores what students wrote."""
