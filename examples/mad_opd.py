"""MAD-OPD (arXiv 2605.01347): several teachers, and the divergences to each, weighed by how sure it is.

The loss of a response is the sum over teachers of w_k JSD(teacher k, student), each renormalised over the teacher's own
top-K, with w = softmax(confidence / 100). In the paper the teachers debate in two rounds and then say how confident
they are, from 0 to 100. There is no debate here: a teacher's confidence is 100 times the mean probability of its
likeliest token along the response. Where the teachers have several sizes or vocabularies, nothing changes.

Settings:

    [teachers]
    first = { address = "teacher-a:50051" }
    second = { address = "teacher-b:50051" }

    [tasks.debate]
    teachers = ["first", "second"]
    combine = "divergences"
    teacher_weights = { kind = "mad_opd:Confidence", options = { temperature = 100.0 } }

    [objective]
    kind = "jsd"
    options = { beta = 0.5, outside = "renormalise" }
"""

from collections.abc import Mapping

import numpy as np
from preceptor_client.extend import Episode, ResponseScores


class Confidence:
    def __init__(self, *, temperature: float = 100.0) -> None:
        self.temperature = temperature

    def shares(self, episode: Episode, answers: Mapping[str, ResponseScores]) -> dict[str, np.ndarray]:
        return {name: np.exp(self._confidence_N(scores) / self.temperature) for name, scores in answers.items()}

    def _confidence_N(self, scores: ResponseScores) -> np.ndarray:
        likeliest_N = np.exp(scores.support_logprobs_NK[:, 0])
        return np.full(len(likeliest_N), 100 * likeliest_N.sum() / max(len(likeliest_N), 1))
