"""The frame around every command."""

import sys
from collections.abc import Callable


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Runs a command; a user's error (ValueError, OSError) becomes one sentence on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
