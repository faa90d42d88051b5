"""The hook ema_teacher against a real server: what the server scores with is the average of the student's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from preceptor.wire import LogprobDtype
from preceptor_client import BlockingTeacherClient, TeacherIds
from preceptor_client.train.run.ema_teacher import EmaTeacher
from preceptor_client.train.run.hooks import RunState, StepDone
from preceptor_client.train.student.student import prepare_student

from tests.integration.servers import MAY_UPDATE_WEIGHTS, running_server
from tests.tiny import save_tiny, tiny_llama, tiny_tokenizer

PROMPT, RESPONSE = [40, 41, 42, 43], [50, 60, 70]


def test_server_scores_with_the_average_once_it_was_handed_over(tmp_path: Path) -> None:
    weights, ours = tmp_path / "weights", tiny_llama(seed=1)
    weights.mkdir()
    served = save_tiny(weights / "start", tiny_llama(seed=1))
    student = prepare_student(tiny_llama(seed=2), tiny_tokenizer())
    settings = ["--engine.model", str(served), "--engine.weights-folder", str(weights), *MAY_UPDATE_WEIGHTS]
    (tmp_path / "server").mkdir()
    with (
        running_server(tmp_path / "server", *settings) as server,
        BlockingTeacherClient(server.address) as client,
    ):
        state = RunState(
            step=0,
            num_steps=1,
            student=student,
            optimizer=torch.optim.SGD(student.model.parameters(), lr=0.1),
            directory=tmp_path,
            teachers={"": client},
            measure=list,
        )
        hook = EmaTeacher(decay=0.5, every_steps=1, folder=str(weights))
        with torch.no_grad():
            own = [parameter.clone() for parameter in student.model.parameters()]
            # The average begins at other weights than it goes on with, so that it is neither of the two.
            for parameter, start in zip(student.model.parameters(), ours.parameters(), strict=True):
                parameter.copy_(start)
        hook.on_start(state)
        with torch.no_grad():
            for parameter, later in zip(student.model.parameters(), own, strict=True):
                parameter.copy_(later)
            for start, later in zip(ours.parameters(), own, strict=True):
                start.copy_((start + later) / 2)
        hook.on_step(
            StepDone(**{name: getattr(state, name) for name in RunState.__dataclass_fields__ if name != "step"},
                     step=1, row={}, scored=[])
        )  # fmt: skip
        scores = client.score(TeacherIds(PROMPT), [RESPONSE], top_k=8, logprob_dtype=LogprobDtype.F32)
    with torch.no_grad():
        logits_TV = ours(torch.tensor([PROMPT + RESPONSE])).logits[0, len(PROMPT) - 1 : -1]
        logprobs_TV = torch.log_softmax(logits_TV.double(), dim=1)
    expected = [float(logprobs_TV[place, token]) for place, token in enumerate(RESPONSE)]
    np.testing.assert_allclose(scores.responses[0].sampled_logprobs_N, expected, atol=1e-4)  # float32
