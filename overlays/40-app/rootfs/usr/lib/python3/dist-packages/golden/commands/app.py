"""Commands of the application: any management command, and accounts with a device for one-time codes."""

import argparse
import getpass
import json
import sys
from collections.abc import Mapping
from typing import Any

from golden import app_run, core
from golden import manage as manage_errors


def manage(*words: str, stdin: bytes = b"") -> Any:
    """Run a management command of the current release; return what it answers as JSON."""
    core.need_root()
    done = core.run(app_run.argv(words), stdin=stdin, check=False)
    if done.returncode != 0:
        brief, hint = manage_errors.reason(done.stderr.decode(errors="replace"), words[0])
        raise core.Problem(brief, hint=hint)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise core.Problem(f"the application's command {words[0]} answers no JSON", hint=manage_errors.FOREIGN) from None


def read_password() -> bytes:
    """Ask for the password, twice, or read a line if there is no terminal."""
    if not sys.stdin.isatty():
        return sys.stdin.buffer.readline()
    first, second = getpass.getpass("Password (14 characters or more): "), getpass.getpass("Once more: ")
    if first != second:
        raise core.Problem("the two are not the same", code=core.USAGE)
    return f"{first}\n".encode()


def act(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Do what was asked for."""
    if arguments.verb == "accounts":
        return {"accounts": manage("accounts")}
    if arguments.verb == "close":
        return dict(manage("account", "--disable", "--", arguments.name))
    options = ["--administrator"] if arguments.administrator else []
    return dict(manage("account", *options, "--", arguments.name, stdin=read_password()))


def show(result: Mapping[str, Any]) -> str:
    """Return the result for people."""
    if "accounts" in result:
        lines = [
            f"{one['name']:<30}  {'active' if one['active'] else 'closed'}  "
            f"{'administrator' if one['administrator'] else 'user':<13}  last login {one['last_login'] or 'never'}"
            for one in result["accounts"]
        ]
        return "\n".join(lines) or "There are no accounts."
    if not result["active"]:
        return f"{result['name']} is closed."
    return f"{result['name']} may log in, with the codes of this address (it is shown once):\n{result['otpauth']}"


def run_management_command(arguments: argparse.Namespace) -> None:
    """Run a management command in the application's place; end with its exit code."""
    words = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not words:
        print("error: a management command is needed\nhint: golden-app run -- help", file=sys.stderr)
        sys.exit(core.USAGE)
    try:
        core.need_root()
    except core.Problem as problem:
        print(f"error: {problem.brief}\nhint: {problem.hint}", file=sys.stderr)
        sys.exit(problem.code)
    sys.exit(app_run.run(words, owner=arguments.owner))


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    account = verbs.add_parser("account", help="make an account, or give it a new password and device")
    account.add_argument("--administrator", action="store_true", help="may use the administration")
    close = verbs.add_parser("close", help="close an account")
    for verb in (account, close):
        verb.add_argument("name")
    verbs.add_parser("accounts", help="list the accounts")
    run = verbs.add_parser(
        "run", help="run any management command: golden-app run -- createsuperuser",
        description="As the application, in its sandbox and environment; ends with the exit code of the command.",
    )  # fmt: skip
    run.add_argument("--owner", action="store_true", help="as the owner of the tables (role app_owner), such as for dbshell")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="manage.py COMMAND ...")
    # Its output is the command's, not JSON.
    if len(sys.argv) > 1 and sys.argv[1] == "run":
        run_management_command(parser.parse_args())
    core.run_command(parser, act, show)
