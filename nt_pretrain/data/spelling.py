"""From tokens, one at a time, to the characters they spell: what a person reads while a text is written."""

from __future__ import annotations

import codecs

from nt_pretrain.data.tokenizer import Tokenizer

BLANK = "▁"
"""What SentencePiece writes for a blank."""
UNKNOWN = " ⁇ "
"""What SentencePiece spells an unknown piece as."""


class Speller:
    """Spells the tokens of one text as SentencePiece spells them together.

    Several byte pieces may make one character; it comes with the last of them.

    Args:
        at_start: no token of the text came before: the blank that the tokenizer puts before a text is not spelled.
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool) -> None:
        self.processor = tokenizer.processor
        self.bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.leaves_blank_out = at_start and puts_blank_before(tokenizer)

    def spell(self, token: int) -> str:
        """The characters that are complete with ``token``; often none for a byte piece, always none for a control
        piece.
        """
        if self.processor.is_control(token):
            return ""
        piece: str = self.processor.id_to_piece(token)
        if self.processor.is_byte(token):
            text = self.bytes.decode(bytes([int(piece[3:5], 16)]))  # "<0x41>"
        else:
            whole = UNKNOWN if self.processor.is_unknown(token) else piece.replace(BLANK, " ")
            text = self.bytes.decode(whole.encode())  # bytes before it that made no character are replaced
        if self.leaves_blank_out:
            self.leaves_blank_out = False
            text = text.removeprefix(" ")
        return text

    def rest(self) -> str:
        """What bytes without a character stand for, at the end of the text."""
        return self.bytes.decode(b"", final=True)


def puts_blank_before(tokenizer: Tokenizer) -> bool:
    """Whether encoding a text begins with a blank that it has not."""
    first: str = tokenizer.processor.id_to_piece(tokenizer.processor.encode("a")[0])
    return first.startswith(BLANK)
