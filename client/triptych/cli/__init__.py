"""The command line. Paths and JSON on stdout, progress on stderr; exit 0, 1 error, 2 usage, 69 no server, 130 Ctrl-C."""

from __future__ import annotations

import sys
from typing import Any

NO_SERVER = 69
INTERRUPTED = 130


def main() -> None:
    """Run `triptych`; every error is one line, or one for each thing that is wrong."""
    import typer
    from typer.exceptions import TyperException

    from triptych.errors import InvalidRequest, ServerUnavailable, TriptychError

    from .app import EXTRAS, app, commands
    from .shown import any_locale

    any_locale()
    asked = [name for name in sys.argv[1:2] if name in {**EXTRAS, **commands()}]
    try:
        ended = app(asked)(standalone_mode=False)
        sys.exit(ended if isinstance(ended, int) else 0)
    except TyperException as error:  # wrong usage; in panels, as typer shows it, a log could not be searched
        _leave(_usage(error), error.exit_code)
    except typer.Abort:
        _leave("aborted", 1)
    except ModuleNotFoundError as error:
        if not EXTRAS.keys() & asked:
            raise
        _leave(f"{error.name} is missing; pip install 'triptych[{EXTRAS[asked[0]]}]'", 1)
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


def _usage(error: Any) -> str:
    words = " ".join(error.format_message().split())
    return f"{words} (see {error.ctx.command_path} --help)" if words and getattr(error, "ctx", None) else words


def _leave(error: object, code: int) -> None:
    from .shown import complain

    if str(error):  # a help page that was shown for want of arguments is no error to tell
        complain(error)
    sys.exit(code)
