"""Writes the web server's access log (golden-access-log.service)."""

from golden import access_log


def main() -> None:
    """Read the pipes until the service is stopped."""
    access_log.main()


if __name__ == "__main__":
    main()
