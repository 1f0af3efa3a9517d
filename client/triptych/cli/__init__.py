"""The command line. Paths and JSON on stdout, progress on stderr; exit 0, 1 error, 2 usage, 69 no server, 130 Ctrl-C."""

from __future__ import annotations

import sys

NO_SERVER = 69
INTERRUPTED = 130


def main() -> None:
    """Run `triptych`; every error of ours is one line."""
    from triptych.errors import InvalidRequest, ServerUnavailable, TriptychError

    from .app import app, commands

    asked = [name for name in sys.argv[1:2] if name in commands()]
    try:
        app(asked)()
    except InvalidRequest as error:
        _leave(error, 2)
    except ServerUnavailable as error:
        _leave(error, NO_SERVER)
    except TriptychError as error:
        _leave(error, 1)
    except OSError as error:  # a folder that cannot be made or written to, a full disk
        _leave(error, 1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _leave(error: Exception, code: int) -> None:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(code)
