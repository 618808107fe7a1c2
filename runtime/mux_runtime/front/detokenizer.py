"""Tokens to text, piece by piece: no half characters, no text past a stop string.

The pieces joined are the decoding of all tokens at once. A piece is given out when its text can
no longer change: the tokens since the last piece are decoded together with the piece before, so
that decoders which look at neighbours (leading spaces, byte fallback) see the same neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Final

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_PATIENCE: Final = 16
"""Unsettled tokens after which we look for bytes that can no longer become a character."""
_UNDECIDED: Final = 4
"""A UTF-8 character has at most 4 bytes and a token at least one, so older tokens are decided."""


class Detokenizer:
    """The text of one request so far; `push` gives what became certain.

    `special` tokens have no text.
    """

    def __init__(self, decode: Decode, special: frozenset[int] = frozenset()) -> None:
        self._decode = decode
        self._special = special
        self._context: list[int] = []  # tokens of the piece given out last
        self._pending: list[int] = []  # tokens whose text may still change
        self._context_text = ""

    def push(self, token: int) -> str:
        """The text that `token` settles; empty while a character is incomplete."""
        if token in self._special:
            return ""
        self._pending.append(token)
        piece = self._piece(self._pending)
        if piece and not piece.endswith(_REPLACEMENT):
            self._settle(len(self._pending))
            return piece
        return self._give_up_on_invalid_bytes(piece) if len(self._pending) > _PATIENCE else ""

    def flush(self) -> str:
        """The rest, incomplete characters included; to be called once, at the end."""
        if not self._pending:
            return ""
        piece = self._piece(self._pending)
        self._settle(len(self._pending))
        return piece

    def _piece(self, tokens: list[int]) -> str:
        return self._decode([*self._context, *tokens])[len(self._context_text) :]

    def _give_up_on_invalid_bytes(self, piece: str) -> str:
        """Settles the older tokens where a cut changes nothing: decoding stays linear."""
        for cut in range(len(self._pending) - _UNDECIDED, len(self._pending) // 2, -1):
            older = self._piece(self._pending[:cut])
            if older and older + self._decode(self._pending[cut:]) == piece:
                self._settle(cut)
                return older
        return ""

    def _settle(self, count: int) -> None:
        self._context, self._pending = self._pending[:count], self._pending[count:]
        self._context_text = self._decode(self._context)


class StopStrings:
    """Cuts a text at the first stop string, wherever the pieces of text are cut.

    Text that may be the beginning of a stop string is held back until that is known.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def push(self, piece: str, *, armed: bool = True) -> str:
        """The part of the text that may be shown now. Not armed: nothing ends before `piece`."""
        if not self._stops:
            return piece
        start = len(self._held)
        text = self._held + piece
        cut = self._first_stop(text, ended_by=start) if armed else None
        if cut is not None:
            self.hit, self._held = True, ""
            return text[:cut]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        rest, self._held = self._held, ""
        return rest

    def _first_stop(self, text: str, *, ended_by: int) -> int | None:
        """Where the stop string begins that is complete first; the longer one if two are."""
        best: tuple[int, int] | None = None
        for stop in self._stops:
            at = text.find(stop, max(0, ended_by - len(stop) + 1))
            if at >= 0 and (best is None or (at + len(stop), at) < best):
                best = (at + len(stop), at)
        return None if best is None else best[1]

    def _held_length(self, text: str) -> int:
        """Length of the longest ending of `text` with which a stop string begins."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            ending = text[len(text) - length :]
            if any(stop.startswith(ending) for stop in self._stops):
                return length
        return 0
