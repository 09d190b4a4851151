"""The only place where JSON text is parsed: whatever is wrong with a text is one kind of error."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises json.JSONDecodeError for any other text, ValueError for bytes in no Unicode.

    Lists and objects within each other more deeply than Python's stack allows are such an error too, and so are numbers with
    more digits than Python reads; ``json.loads`` raises RecursionError, or a ValueError of another kind.
    """
    try:
        return json.loads(text)
    except RecursionError:
        reason = "too many values within each other"
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        reason = str(error)
    raise json.JSONDecodeError(reason, text.decode(errors="replace") if isinstance(text, bytes) else text, 0)
