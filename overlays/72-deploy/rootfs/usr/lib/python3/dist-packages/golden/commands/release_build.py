"""Makes a release runnable: golden-deploy-build@.service runs it as an unprivileged user, in the release's directory.

The environment is built from the bundle's wheels alone, each checked against the lock; then Django looks at itself and
collects its static files. Secrets of the contract have placeholders meanwhile: settings that read them find some text.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from golden import contract

PIP = sorted(Path("/usr/share/python-wheels").glob("pip-*.whl"))
INSTALL = (
    "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--no-index", "--no-deps",
    "--no-compile", "--only-binary=:all:", "--require-hashes", "--find-links=wheels", "--requirement=requirements.lock",
)  # fmt: skip
# As in the image: the service cannot write byte code, and its own hash instead of a time makes it the same everywhere.
COMPILE = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")


PLACEHOLDER = "only-while-a-release-is-built"


def run(*argv: str | Path, place: Path) -> None:
    """Run one step; its words go to the journal."""
    subprocess.run([str(word) for word in argv], cwd=place, check=True)


def placeholders(code: Path, into: Path) -> None:
    """Write what systemd would give to the application's processes: the credentials of this unit, one for each secret."""
    for path in Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")).glob("*"):
        shutil.copyfile(path, into / path.name)
    for name in contract.load(code)[0]["secrets"]:
        (into / f"app.{name}").write_text(f"{PLACEHOLDER}\n")


def build() -> None:
    """Build the release in the working directory."""
    top = Path.cwd()
    python = top / "venv" / "bin" / "python"
    run("/usr/bin/python3", "-I", "-m", "venv", "--without-pip", "venv", place=top)
    # Debian's own pip, out of its wheel: none stays in the environment.
    run(python, PIP[-1] / "pip", *INSTALL, place=top)
    run(python, PIP[-1] / "pip", "--disable-pip-version-check", "check", place=top)
    run("/usr/bin/python3", "-I", *COMPILE, "venv/lib", "code", place=top)
    with tempfile.TemporaryDirectory() as credentials:
        placeholders(top / "code", Path(credentials))
        os.environ["CREDENTIALS_DIRECTORY"] = credentials
        run(python, "manage.py", "check", "--deploy", place=top / "code")
        run(python, "manage.py", "collectstatic", "--no-input", "--verbosity=0", place=top / "code")


def main() -> None:
    """Build the release in the working directory; exit with the step that failed."""
    os.umask(0o077)
    try:
        build()
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd))}")


if __name__ == "__main__":
    main()
