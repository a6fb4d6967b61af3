"""The command line: each verb group is one file here, imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys

import click

from services import logs, settings
from services.errors import ParleyError

VERBS = {
    "serve": "start the server (the default verb)",
    "keys": "create, list, show, revoke and rotate API keys; a new master key",
    "models": "list, pull, select and check model files",
    "sessions": "list, show, export, import and delete sessions",
    "doctor": "what is installed, what is wrong and how to mend it",
    "work": "do the jobs of servers on other machines, which share a Redis",
    "chat": "talk to a running server from the terminal",
}


class Verbs(click.Group):
    """Finds `services.cli.<verb>.<verb>` when it is asked for, so that --help stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            near = difflib.get_close_matches(cmd_name, VERBS, 1)
            hint = f"is {near[0]!r} meant?" if near else f"there are: {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {cmd_name!r}; {hint}")
        command = getattr(importlib.import_module(f"services.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def parley(ctx: click.Context) -> int:
    """Parley: an API-key-secured LLM server for the machine you already have.

    Settings come from the environment or from .env beside main.py; .env.example lists them.
    """
    ctx.obj = ctx.obj or settings.load()
    serving = ctx.invoked_subcommand in (None, "serve", "work")
    logs.setup(ctx.obj.log_level if serving or ctx.obj.debug else "WARNING", ctx.obj.debug)
    if ctx.invoked_subcommand is None:
        from services.cli.serve import serve
        return int(ctx.invoke(serve))
    return 0


def main(arguments: list[str]) -> int:
    """The exit status: 0, 1 for an error told in one line on stderr, 2 for wrong usage. Never a traceback."""
    try:
        result = parley.main(args=arguments, prog_name="main.py", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        print(f"main.py: {error.format_message()}", file=sys.stderr)
        return 2 if isinstance(error, click.UsageError) else 1
    except ParleyError as error:
        print(f"main.py: {error.message}", file=sys.stderr)
        return 1
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
