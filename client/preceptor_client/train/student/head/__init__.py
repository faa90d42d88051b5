"""The student's output head at scored positions: logits of a few tokens, and the normaliser over all of them.

`sparse` reads K rows of the output matrix per position, `dense` all rows for a few positions at a time. Neither holds
[N, V]. Knows nothing of losses.
"""

from preceptor_client.train.student.head.head import Head

__all__ = ["Head"]
