#!/usr/bin/env python3
"""A cosign that takes the words of cosign 3's sign-blob and verify-blob with a key, and refuses every other.

Its signature is a hash over the key's text and the blob: private and public key have the same text here. It notes each call.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path


def main() -> int:
    me = Path(sys.argv[0])
    note = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}  # noqa: PTH109
    with me.with_name(f"{me.name}.calls").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("sign-blob", "verify-blob"):
        verb = verbs.add_parser(name, allow_abbrev=False)
        verb.add_argument("--key", type=Path, required=True)
        verb.add_argument("--bundle", type=Path, required=True)
        verb.add_argument("blob", type=Path)
        if name == "sign-blob":
            verb.add_argument("--yes", action="store_true", required=True)
            verb.add_argument("--signing-config", type=Path, required=True)
        else:
            verb.add_argument("--insecure-ignore-tlog", choices=["true"], required=True)
    words = parser.parse_args()
    if not words.key.is_file():
        print(f"Error: reading key: {words.key}", file=sys.stderr)
        return 1
    signature = hashlib.sha256(words.key.read_bytes() + words.blob.read_bytes()).hexdigest()
    if words.verb == "sign-blob":
        config = json.loads(words.signing_config.read_text())
        if not config.pop("mediaType").startswith("application/vnd.dev.sigstore.signingconfig") or any(config.values()):
            print("Error: this would ask a service", file=sys.stderr)
            return 1
        words.bundle.write_text(json.dumps({"signature": signature}))
        return 0
    return 0 if json.loads(words.bundle.read_text()) == {"signature": signature} else 1


if __name__ == "__main__":
    sys.exit(main())
