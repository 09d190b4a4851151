"""Asks an ACME authority to sign the request in /run/golden-acme (golden-acme.service). It never sees a TLS key.

The authority asks this machine for a file over plain HTTP; the web server shows what stands in /run/golden-challenges.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import acme_tiny

ORDER = Path("/run/golden-acme")
STATE = Path("/var/lib/golden-acme")
ACCOUNT = STATE / "account.key"
ANSWER = STATE / "certificate.pem"


def main() -> None:
    """Have the request signed, and leave the chain where golden-certificate takes it."""
    order = json.loads((ORDER / "order.json").read_text())
    authority = ORDER / "authority.pem"
    if authority.is_file():
        os.environ["SSL_CERT_FILE"] = str(authority)
    if not ACCOUNT.is_file():
        fresh = ACCOUNT.with_suffix(".new")
        make = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-quiet", "-out", str(fresh)]
        subprocess.run(make, check=True)
        fresh.chmod(0o600)
        fresh.rename(ACCOUNT)
    try:
        chain = acme_tiny.get_crt(
            str(ACCOUNT), str(ORDER / "request.csr"), "/run/golden-challenges", disable_check=True,
            directory_url=order["directory"], contact=order["contact"] or None,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    fresh = ANSWER.with_suffix(".new")
    fresh.write_text(chain)
    fresh.chmod(0o644)
    fresh.rename(ANSWER)


if __name__ == "__main__":
    main()
