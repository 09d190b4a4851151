"""Reads the YAML of site.yaml: nothing in it takes much time or memory, and an unreadable value costs itself only."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from golden.site_table import LONGEST_SHOWN, shown

# Limits of what is read, whatever the file holds. The settings are nested four deep.
DEEPEST = 20
LARGEST_NUMBER = 1 << 63
LONGEST_MESSAGE = 400
UNUSABLE_TAG = "!unusable"


class Unusable:
    """A placeholder for a value that YAML could not read: no check accepts it, so that only its own key is refused."""

    def __init__(self, text: str) -> None:
        self._text = text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."

    def __repr__(self) -> str:
        return self._text


class Loader(yaml.SafeLoader):
    """YAML without surprises: no key twice, no aliases, bounded depth; a scalar that cannot be read is Unusable.

    Aliases and merge keys can make a small file a huge one, and nothing here needs them.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.get_event()  # type: ignore[no-untyped-call] # it has no types in types-PyYAML
            return yaml.ScalarNode(UNUSABLE_TAG, f"*{event.anchor} (an alias)", event.start_mark, event.end_mark)
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # as above
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} deep", mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            value = super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # PyYAML checks the form of a date or a number by a pattern, and Python refuses some that have it.
            value = self.unusable(node)
        except yaml.constructor.ConstructorError:
            if not isinstance(node, yaml.ScalarNode):
                raise
            value = self.unusable(node)
        if isinstance(value, int) and not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
            value = self.unusable(node)
        return value

    def unusable(self, node: yaml.Node) -> Unusable:
        """Return the placeholder for the value of ``node``."""
        self.recursive_objects.pop(node, None)
        value = Unusable(node.value if isinstance(node, yaml.ScalarNode) else f"a value with the tag {node.tag}")
        self.constructed_objects[node] = value
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys: set[Any] = set()
        for key_node, _value in node.value:
            key = self.construct_object(key_node, deep=True)
            # Of what cannot be a key at all the class above complains.
            if not isinstance(key, Hashable):
                continue
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"the key {shown(key)} stands twice", node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


Loader.add_constructor(UNUSABLE_TAG, Loader.unusable)


def load(text: str) -> object:
    """Return the content of a text; raise yaml.YAMLError when it is not YAML."""
    return yaml.load(text, Loader=Loader)  # noqa: S506 - it is a SafeLoader


def message(error: yaml.YAMLError) -> str:
    """Return PyYAML's message in one line, without what a terminal would interpret."""
    text = " ".join(str(error).encode("ascii", "backslashreplace").decode().split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:LONGEST_MESSAGE]
