"""What may be shown of a configuration and of overrides: everything but secrets."""

import re
from collections.abc import Sequence
from typing import Any

NAMES = "(api_?key|auth|token|secret|password|credentials?)"
SECRET = re.compile(rf"(^|[._]){NAMES}$", re.IGNORECASE)
IN_BRACES = re.compile(rf"(\b|_){NAMES}['\"]?\s*:", re.IGNORECASE)  # {api_key: ...}
ACCOUNT = re.compile(r"(\w+://)[^/@\s]+@")  # of an address


def public(tree: Any) -> Any:
    """A configuration without keys that name secrets, and without passwords in addresses."""
    if isinstance(tree, dict):
        return {k: public(v) for k, v in tree.items() if not SECRET.search(str(k))}
    if isinstance(tree, list):
        return [public(item) for item in tree]
    return ACCOUNT.sub(r"\1", tree) if isinstance(tree, str) else tree


def public_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides without those of `public`'s secrets."""
    shown = [o for o in overrides if not SECRET.search(o.partition("=")[0])]
    return [public(o) for o in shown if not IN_BRACES.search(o)]
