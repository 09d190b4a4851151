"""The state after all entries of a ledger: channels, rollback targets, revocations, unfinished operations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from build.release.entry import NONE, Action, Assignment, Entry, Phase, assignment


@dataclass
class State:
    """``stacks``: the images of each channel, the present one last; a rollback removes the last one.

    ``open``: unfinished operations, by channel, or by digest if there is no channel; ``revoked``: the valid
    revocations, by digest; ``touched``: the time when an image was last promoted, rolled back, revoked or restored, by
    digest.
    """

    stacks: dict[str, list[Assignment]] = field(default_factory=dict)
    open: dict[str, Entry] = field(default_factory=dict)
    revoked: dict[str, Entry] = field(default_factory=dict)
    touched: dict[str, str] = field(default_factory=dict)

    def current(self, channel: str) -> Assignment:
        """Return the image of a channel, without unfinished operations."""
        stack = self.stacks.get(channel)
        return stack[-1] if stack else NONE

    def goal(self, channel: str) -> Assignment:
        """Return the image of a channel after its unfinished operation is completed."""
        unfinished = self.open.get(channel)
        return unfinished.subject if unfinished else self.current(channel)

    def back(self, channel: str) -> Assignment:
        """Return the target of a rollback: the last earlier assignment that is not revoked."""
        stack = self.stacks.get(channel, [])
        unfinished = self.open.get(channel)
        # An unfinished promotion is rolled back to the present image of the channel, an unfinished rollback is
        # continued.
        if unfinished and unfinished.action is Action.ROLLBACK:
            return unfinished.subject
        earlier = stack if unfinished else stack[:-1]
        return next((image for image in reversed(earlier) if self.revocation(image.digest) is None), NONE)

    def revocation(self, digest: str) -> Entry | None:
        """Return the entry that revokes an image; a revocation is valid from its intent until a restoration is done."""
        unfinished = self.open.get(digest)
        if unfinished is not None and unfinished.action is Action.REVOKE:
            return unfinished
        return self.revoked.get(digest)


def fold(entries: Iterable[Entry]) -> State:
    """Return the state after the entries; missing entries are ignored."""
    state = State()
    for entry in entries:
        # Pruning does not count as use.
        for digest in (entry.digest, assignment(entry.before).digest) if entry.action is not Action.PRUNE else ():
            if digest:
                state.touched[digest] = entry.time
        if entry.phase is Phase.INTENT:
            state.open[entry.key] = entry
            continue
        state.open.pop(entry.key, None)
        _apply(state, entry)
    return state


def _apply(state: State, done: Entry) -> None:
    if done.action is Action.REVOKE:
        state.revoked[done.digest] = done
    elif done.action is Action.RESTORE:
        state.revoked.pop(done.digest, None)
    elif done.action is Action.PROMOTE:
        stack = state.stacks.setdefault(done.channel, [])
        before = assignment(done.before)
        # The entry names the previous image, even if that image's own entry is missing.
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
