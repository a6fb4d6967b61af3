#!/usr/bin/env python3
"""Parley: `main.py [serve|work|keys|models|sessions|doctor|chat]`, each with --help.

Further verbs are for Parley itself: the supervisor starts `runner`, `fake-runner`, `web` and `executor` as its children
and speaks to them over standard input (see services/wire.py).
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - old enough syntax to say so
    sys.exit("Parley needs Python 3.10 or newer; this is %d.%d. Run ./setup.sh, which finds one."  # noqa: UP031
             % sys.version_info[:2])


def run(arguments: list[str]) -> int:
    """The exit status of the verb in `arguments`."""
    verb = arguments[0] if arguments else "serve"
    try:
        if verb == "runner":
            from services.runner.server import main
            return main()
        if verb == "fake-runner":
            from services.engine.fake import main
            return main()
        from services import settings
        settings.no_tracing()
        if verb == "web":
            from services.web.serve import main
            return main()
        if verb == "executor":
            from services.jobs.process import work
            from services.web.inside import Inside
            return work(Inside)
        from services.cli import main as command_line
        return command_line(arguments)
    except ModuleNotFoundError as error:
        print("%s is not installed here: run ./setup.sh, then .venv/bin/python main.py" % error.name,  # noqa: UP031
              file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
