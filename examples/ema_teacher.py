"""A self-teacher: the teacher's weights are a moving average of the student's (Mean Teacher, arXiv 1703.01780).

The server is started with the student's model, and takes new weights from a folder that both machines see:

    preceptor-server --engine.model a/model --engine.weights-folder /shared/weights \\
        --access.anonymous-rights '["score", "register", "look", "update_weights"]'

average = decay average + (1 - decay) student, in float32, after each step. What the teacher knows more is what it reads
more: an example's `teacher_prompt`, or [teacher.prompt].

Settings:
    hooks = [{ kind = "ema_teacher", options = { decay = 0.99, every_steps = 10, folder = "/shared/weights" } }]
"""
