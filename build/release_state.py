"""What the entries of a ledger add up to: where channels point and would go back to, what is revoked or unfinished."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from build.release_entry import NOBODY, Action, Assignment, Entry, Phase, assignment


@dataclass
class State:
    """``stacks``: what each channel pointed at, the present last; a rollback takes the last one away.

    ``open``: operations that were begun and not finished, by channel, or by digest where there is none; ``revoked``: the
    revocations that hold, by digest; ``touched``: when an image was last moved or judged, by digest.
    """

    stacks: dict[str, list[Assignment]] = field(default_factory=dict)
    open: dict[str, Entry] = field(default_factory=dict)
    revoked: dict[str, Entry] = field(default_factory=dict)
    touched: dict[str, str] = field(default_factory=dict)

    def current(self, channel: str) -> Assignment:
        """Return what a channel points at, as far as that is finished."""
        stack = self.stacks.get(channel)
        return stack[-1] if stack else NOBODY

    def goal(self, channel: str) -> Assignment:
        """Return what a channel points at when what was begun is finished."""
        begun = self.open.get(channel)
        return begun.subject if begun else self.current(channel)

    def back(self, channel: str) -> Assignment:
        """Return what a rollback would go to: the last assignment before that is not revoked."""
        stack = self.stacks.get(channel, [])
        begun = self.open.get(channel)
        # A promotion in the middle is taken back to where the channel was, a rollback in the middle goes on.
        if begun and begun.action is Action.ROLLBACK:
            return begun.subject
        earlier = stack if begun else stack[:-1]
        return next((one for one in reversed(earlier) if self.revocation(one.digest) is None), NOBODY)

    def revocation(self, digest: str) -> Entry | None:
        """Return why an image is revoked; a revocation holds from its intent on, until a restoration is done."""
        begun = self.open.get(digest)
        if begun is not None and begun.action is Action.REVOKE:
            return begun
        return self.revoked.get(digest)


def fold(entries: Iterable[Entry]) -> State:
    """Return what entries add up to; where some are missing, what the others say."""
    state = State()
    for one in entries:
        # To be pruned is no sign of life.
        for digest in (one.digest, assignment(one.before).digest) if one.action is not Action.PRUNE else ():
            if digest:
                state.touched[digest] = one.time
        if one.phase is Phase.INTENT:
            state.open[one.key] = one
            continue
        state.open.pop(one.key, None)
        _apply(state, one)
    return state


def _apply(state: State, done: Entry) -> None:
    if done.action is Action.REVOKE:
        state.revoked[done.digest] = done
    elif done.action is Action.RESTORE:
        state.revoked.pop(done.digest, None)
    elif done.action is Action.PROMOTE:
        stack = state.stacks.setdefault(done.channel, [])
        before = assignment(done.before)
        # What was there before is known even where its own entry is missing.
        if not stack and before:
            stack.append(before)
        if not stack or stack[-1] != done.subject:
            stack.append(done.subject)
    elif done.action is Action.ROLLBACK:
        stack = state.stacks.setdefault(done.channel, [])
        while stack and stack[-1] != done.subject:
            stack.pop()
        if not stack and done.subject:
            stack.append(done.subject)
