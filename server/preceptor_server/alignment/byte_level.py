"""The alphabet in which byte-level vocabularies write bytes: one printable character per byte. Knows no tokenizer.

The table is that of GPT-2 (`bytes_to_unicode` in its encoder.py): printable Latin-1 stands for itself, the other bytes
for U+0100 onwards in ascending order.
"""

from __future__ import annotations

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

_CHARACTER_OF_BYTE = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)
}
ALPHABET = tuple(_CHARACTER_OF_BYTE[byte] for byte in range(256))
"""The character of each byte."""


class _Latin1OfAlphabet(dict[int, int]):
    """For str.translate: a character outside the alphabet becomes one that Latin-1 cannot encode."""

    def __missing__(self, key: int) -> int:
        return 0xFFFF


_TO_LATIN1 = _Latin1OfAlphabet({ord(character): byte for byte, character in _CHARACTER_OF_BYTE.items()})
_FROM_LATIN1 = {byte: ord(character) for byte, character in _CHARACTER_OF_BYTE.items()}


def from_alphabet(token: str) -> bytes:
    """The bytes of a token. A token that leaves the alphabet stands for its own UTF-8, as in the library's decoder."""
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def to_alphabet(data: bytes) -> str:
    return data.decode("latin-1").translate(_FROM_LATIN1)
