"""Ways to a loss from hidden states and an output matrix: ours, the dense ones, and those of two libraries.

Libraries are imported when their way is taken. A way is a function of `Inputs` that returns the mean over N positions.
"""

# N = positions, C = positions of a chunk, K = support size, V = vocabulary, D = hidden size

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
from preceptor_client.objectives.lsm import lsm
from preceptor_client.train.student.head import Head
from torch.utils.checkpoint import checkpoint

from bench.head_case import Inputs

ROWS_PER_CHUNK = 512
"""Of the chunked way: what a careful user would take."""
TRL_ROWS_PER_CHUNK = 256
"""What TRL's asynchronous trainer takes (_CHUNKED_LM_HEAD_CHUNK_SIZE)."""
LIBRARIES = {"trl": "trl==1.16.0", "liger_kernel": "liger-kernel==0.8.5"}
"""Module to requirement."""
INSTALL = f"pip install {' '.join(LIBRARIES.values())}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way, and what exactly it computes."""

    loss: Callable[[Inputs], torch.Tensor]
    computes: str
    library: str | None = None
    """Module that it needs."""
    uses_teacher_matrix: bool = False

    def check_installed(self) -> None:
        if self.library and not find_spec(self.library):
            raise SystemExit(f"not installed: {INSTALL}")


def sparse(inputs: Inputs) -> torch.Tensor:
    """K rows of the matrix per position."""
    logits_NK = Head(module=inputs.head).logits_at(inputs.hidden_ND, inputs.ids_NK)
    return lsm(logits_NK, inputs.teacher_logprobs_NK).mean()


def dense(inputs: Inputs) -> torch.Tensor:
    """All logits, of which K are kept."""
    logits_NV = inputs.hidden_ND @ inputs.head.weight.t()
    return lsm(logits_NV.gather(1, inputs.ids_NK), inputs.teacher_logprobs_NK).mean()


def dense_in_chunks(inputs: Inputs) -> torch.Tensor:
    """All logits of a few positions at a time, made anew in the backward."""

    def chunk_loss(hidden_CD: torch.Tensor, ids_CK: torch.Tensor, teacher_CK: torch.Tensor) -> torch.Tensor:
        return lsm((hidden_CD @ inputs.head.weight.t()).gather(1, ids_CK), teacher_CK).sum()

    columns = (inputs.hidden_ND, inputs.ids_NK, inputs.teacher_logprobs_NK)
    chunks = zip(*(torch.split(column, ROWS_PER_CHUNK) for column in columns), strict=True)
    losses = [checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum() / len(inputs.hidden_ND)


def trl_same_formula(inputs: Inputs) -> torch.Tensor:
    """With beta = 1 and without a tail bucket the candidates are renormalised, so this is the loss above; it also makes
    three sums for the trainer's metrics."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer = import_module("trl.experimental.async_distillation.async_distillation_trainer")
    loss: torch.Tensor = trainer._chunked_jsd_loss(
        inputs.hidden_ND,
        inputs.head.weight,
        lm_head_bias=None,
        logit_scale=1.0,
        final_logit_softcapping=None,
        target_ids=inputs.ids_NK,
        teacher_target_logps=inputs.teacher_logprobs_NK,
        valid_candidate_mask=torch.ones_like(inputs.ids_NK, dtype=torch.bool),
        beta=1.0,
        temperature=1.0,
        add_tail_bucket=False,
        teacher_id_idx=None,
        num_teachers=0,
        chunk_size=TRL_ROWS_PER_CHUNK,
    )[0]
    return loss / len(inputs.hidden_ND)


def trl_divergence(inputs: Inputs) -> torch.Tensor:
    """The kernel of TRL's distillation trainer; 1.0 is beta."""
    function = import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    student = (inputs.hidden_ND, inputs.head.weight, None)
    losses_N: torch.Tensor = function.apply(*student, inputs.teacher_hidden_ND, inputs.teacher_weight_VD, None, 1.0)[0]
    return losses_N.mean()


def liger_jsd(inputs: Inputs) -> torch.Tensor:
    """Without its cross-entropy, which it leaves out at weight 0, and without torch.compile."""
    module = import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=False
    )
    labels_N = torch.zeros(len(inputs.hidden_ND), dtype=torch.long, device=inputs.hidden_ND.device)
    loss: torch.Tensor = module(
        inputs.hidden_ND, inputs.head.weight, inputs.teacher_hidden_ND, inputs.teacher_weight_VD, labels_N
    )
    return loss


def log_partition(inputs: Inputs) -> torch.Tensor:
    """Mean of the log-sum-exp over the vocabulary, a chunk at a time."""
    return Head(module=inputs.head).log_partition(inputs.hidden_ND).mean()


def dense_log_partition(inputs: Inputs) -> torch.Tensor:
    """The same from all logits at once."""
    return torch.logsumexp(inputs.hidden_ND @ inputs.head.weight.t(), dim=1).mean()


SAME = "reverse KL, renormalised over K tokens"
FULL = "reverse KL over all V tokens, teacher's logits from its own matrix"
WAYS = {
    "sparse (ours)": Way(loss=sparse, computes=SAME),
    "dense": Way(loss=dense, computes=SAME),
    f"dense, chunks of {ROWS_PER_CHUNK}": Way(loss=dense_in_chunks, computes=SAME),
    "TRL async, chunks of 256": Way(
        loss=trl_same_formula, computes=f"{SAME}, and metrics (its trainer passes 1 token at beta = 1)", library="trl"
    ),
    "TRL chunked divergence": Way(
        loss=trl_divergence, computes=f"{FULL}; tiles of 4,096 x 32,768", library="trl", uses_teacher_matrix=True
    ),
    "Liger fused linear JSD": Way(
        loss=liger_jsd,
        computes=f"{FULL}; chunks of 1,024, not compiled",
        library="liger_kernel",
        uses_teacher_matrix=True,
    ),
}
LOG_PARTITION_WAYS = {
    "log_partition (ours)": Way(loss=log_partition, computes="log-sum-exp over all V tokens"),
    "dense logsumexp": Way(loss=dense_log_partition, computes="log-sum-exp over all V tokens"),
}
