"""What transformers alone says of each token: one plain forward of one sequence, by a model that ran nothing before."""

# P = prompt tokens, T = tokens of a response, V = vocabulary, K = support size, C = candidates per position

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from preceptor.wire import TokenArray
from preceptor_client import ResponseScores
from transformers import PreTrainedModel

Floats = npt.NDArray[np.float64]


class Oracle:
    """Answers from copies of a model, each of which runs once: some ropes remember the longest sequence they saw."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @torch.inference_mode()
    def logprobs(self, prompt_P: TokenArray, response_T: TokenArray, *, temperature: float) -> Floats:
        """[T, V]: before each token of the response, with all of the sequence in the forward."""
        ids = torch.from_numpy(np.concatenate([prompt_P, response_T]))[None]
        logits_TV = copy.deepcopy(self._model)(input_ids=ids, use_cache=False).logits[0, len(prompt_P) - 1 : -1]
        logprobs: Floats = (logits_TV.double() / temperature).log_softmax(dim=-1).numpy()
        return logprobs


def largest_difference(
    scores: ResponseScores, oracle_TV: Floats, response_T: TokenArray, candidates_TC: TokenArray
) -> float:
    """Over all columns and positions; in nats, and of the tail in mass. NaN where anything is."""
    support_NK, top_k = scores.support_logprobs_NK, scores.support_ids_NK.shape[1]
    assert len(support_NK) == len(response_T), "every token is scored"
    assert scores.entropies_N is not None
    assert scores.candidate_logprobs_NC is not None
    masses_TV = np.exp(oracle_TV)
    entropies_T = -np.where(masses_TV > 0, masses_TV * np.where(masses_TV > 0, oracle_TV, 0), 0).sum(axis=1)
    tails_T = 1 - np.take_along_axis(masses_TV, scores.support_ids_NK, axis=1).sum(axis=1)
    differences = [
        np.take_along_axis(oracle_TV, scores.support_ids_NK, axis=1) - support_NK,
        -np.sort(-oracle_TV, axis=1)[:, :top_k] - support_NK,
        oracle_TV[np.arange(len(response_T)), response_T] - scores.sampled_logprobs_N,
        tails_T - np.exp(scores.log_tail_mass_N.astype(np.float64)),
        entropies_T - scores.entropies_N,
        np.take_along_axis(oracle_TV, candidates_TC, axis=1) - scores.candidate_logprobs_NC,
    ]
    # numpy's maximum, unlike Python's, keeps a NaN.
    return float(np.max([np.abs(difference).max() for difference in differences]))
