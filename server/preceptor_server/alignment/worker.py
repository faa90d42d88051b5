"""Reads one student's tokenizer and pairs it with the teacher's, in a process of its own: a job on standard input, a
pairing or a refusal on standard output.

The tokenizer is a stranger's. Whatever it does, be it endless work, endless memory, a panic or an abort of the library
that reads it, happens here, under limits that this process sets on itself, and never in the server.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import traceback

from preceptor.fingerprint import tokenizer_id_of

from preceptor_server.alignment import pairing
from preceptor_server.alignment.exchange import PairingJob, pack_pairing, pack_refusal, unpack_job
from preceptor_server.alignment.forked import Forked
from preceptor_server.alignment.tokenizer_file import parse_tokenizer
from preceptor_server.alignment.types import Pairing
from preceptor_server.errors import InvalidTokenizerError

MAX_ADDRESS_SPACE_BYTES = 4 << 30
"""Memory of this process, what it only reserved included."""
_MAX_DETAIL_CHARACTERS = 300


def main() -> None:
    # What a library prints must not end up in the answer.
    answer_to = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _limit(resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    # Millions of small objects, no cycles, and a short life.
    gc.disable()
    job = unpack_job(sys.stdin.buffer.read())
    _limit(resource.RLIMIT_CPU, job.cpu_seconds)
    answer = _answer(job)
    with os.fdopen(answer_to, "wb") as stream:
        stream.write(answer)


def _answer(job: PairingJob) -> bytes:
    try:
        return pack_pairing(_pair(job))
    except InvalidTokenizerError as refusal:
        return pack_refusal(refusal)
    except MemoryError:
        message = f"reading it takes more than {MAX_ADDRESS_SPACE_BYTES >> 30} GiB of memory"
        return pack_refusal(InvalidTokenizerError(message, reason="TOKENIZER_TOO_COSTLY"))
    except RecursionError:
        return pack_refusal(InvalidTokenizerError("its JSON is nested too deeply: a tokenizer.json is not"))
    except BaseException as error:  # noqa: BLE001  # a panic in Rust is not an Exception
        traceback.print_exc()
        detail = f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARACTERS]
        return pack_refusal(InvalidTokenizerError(f"the tokenizers library cannot use it ({detail})"))


def _pair(job: PairingJob) -> Pairing:
    try:
        text = job.tokenizer_json.decode()
    except UnicodeDecodeError as error:
        raise InvalidTokenizerError(f"is not UTF-8: byte {error.start} is not part of any character") from error
    parts = parse_tokenizer(text)
    # Both take long, and neither needs the other.
    fingerprint = Forked(lambda: tokenizer_id_of(parts, job.chat_template))
    try:
        paired = pairing.pair(
            text, parts, chat_template=job.chat_template, vocabulary_size=job.vocabulary_size, teacher=job.teacher
        )
    finally:
        actual = fingerprint.result()
    _check_fingerprint(actual, job)
    return paired


def _check_fingerprint(actual: str, job: PairingJob) -> None:
    if actual != job.tokenizer_id:
        raise InvalidTokenizerError(
            f"{job.tokenizer_id[:80]} is not the fingerprint of this tokenizer_json and chat_template, which is "
            f"{actual}: compute it over the two that are sent, with preceptor.fingerprint.tokenizer_id",
            reason="FINGERPRINT_MISMATCH",
            field="tokenizer_id",
        )


def _limit(kind: int, amount: int) -> None:
    """Lowers a limit of this process for good; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > amount:
        resource.setrlimit(kind, (amount, amount))


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    # Whatever is left is the system's to free: to take millions of objects apart one by one is a tenth of the work.
    os._exit(0)
