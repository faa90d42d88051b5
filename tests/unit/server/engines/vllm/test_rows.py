from __future__ import annotations

import numpy as np
import pytest
from preceptor_server.engines.candidates import CandidateRows
from preceptor_server.engines.vllm.rows import RowQuestion, answer_size, read_answer


def question(*, candidates: CandidateRows | None = None) -> RowQuestion:
    return RowQuestion(
        positions_R=np.array([4, 6]),
        sampled_ids_R=np.array([200_000, 1]),
        candidates=candidates,
        top_k=2,
        temperature=0.5,
        cache_limit=4,
    )


def test_a_question_survives_its_journey() -> None:
    candidates = CandidateRows(ids_E=np.array([5, 151_000, 7]), starts_N1=np.array([0, 1, 3]))
    sent = question(candidates=candidates)
    got = RowQuestion.from_kwargs(sent.to_kwargs())
    np.testing.assert_array_equal(got.positions_R, sent.positions_R)
    np.testing.assert_array_equal(got.sampled_ids_R, sent.sampled_ids_R)
    assert got.candidates is not None
    np.testing.assert_array_equal(got.candidates.ids_E, candidates.ids_E)
    np.testing.assert_array_equal(got.candidates.starts_N1, candidates.starts_N1)
    assert (got.top_k, got.temperature, got.cache_limit) == (2, 0.5, 4)


def test_an_answer_is_read_by_its_layout() -> None:
    floats = np.array([-1.0, -2.0, 0.7, -0.25, -0.75, -3.0, -4.0, 0.8, -0.5, -1.5, -9.0], np.float32)
    bits = floats.view(np.int32)
    flat = np.concatenate([[1], bits[:3], [11, 12], bits[3:5], [0], bits[5:8], [21, 22], bits[8:10], bits[10:]])
    candidates = CandidateRows(ids_E=np.array([5]), starts_N1=np.array([0, 0, 1]))
    answer = read_answer(flat.astype(np.int32), question(candidates=candidates))
    assert answer.states_R.tolist() == [1, 0]
    assert answer.sampled_logprobs_R.tolist() == [-1.0, -3.0]
    assert answer.log_tail_mass_R.tolist() == [-2.0, -4.0]
    np.testing.assert_allclose(answer.entropies_R, [0.7, 0.8], rtol=1e-6)
    assert answer.support_ids_RK.tolist() == [[11, 12], [21, 22]]
    assert answer.support_logprobs_RK.tolist() == [[-0.25, -0.75], [-0.5, -1.5]]
    assert answer.candidate_logprobs_E.tolist() == [-9.0]


@pytest.mark.parametrize("wrong", [np.zeros(15, np.int32), np.zeros(16, np.float32), np.zeros((2, 8), np.int32)])
def test_what_is_not_an_answer_is_refused(wrong: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> None:
    assert answer_size(question()) == 16
    with pytest.raises(ValueError, match="not wrapped by Preceptor's plugin"):
        read_answer(wrong, question())
