"""The frame around every command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path


def run_cli(main: Callable[[list[str]], None]) -> None:
    """Runs a command; a user's error (ValueError, OSError) becomes one sentence on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def print_report(report: dict, out: Path | None) -> None:
    """Prints a report as JSON, and writes it into the file `out` if there is one."""
    text = json.dumps(report, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
