"""The command line's application: its options, and how it tells a mistake."""

import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.options import CANCELLED, FAILED, MISTAKE, NO_READER
from flows.waiting import WAITING

if TYPE_CHECKING:
    from tasks.contract import StageError


class Commands(TyperGroup):
    """Turns our errors into one sentence and an exit code, and takes ``--home`` behind a command too."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        # What --help and --version print is printed here.
        with until_nobody_reads():
            return super().make_context(*args, **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return list(super().parse_args(ctx, home_first(args)))

    def invoke(self, ctx: Any) -> Any:
        try:
            with until_nobody_reads():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            say("cancelled")
            raise typer.Exit(CANCELLED) from interrupt
        except Exception as error:
            code, sentence = explain(error)
            if code is None:
                raise
            say(sentence)
            for number, mistake in enumerate(mistakes_of(error), start=1):
                say(f"  {number}. {mistake}")
            raise typer.Exit(code) from error


@contextmanager
def until_nobody_reads() -> Iterator[None]:
    """A reader that has seen enough, such as ``head``, ends a command without a word: with the exit code that a shell shows
    for the signal by which other programs end then."""
    try:
        try:
            yield
        finally:
            # What is still on its way, of which the interpreter would complain as it ends.
            sys.stdout.flush()
    except BrokenPipeError as error:
        if not is_unread(sys.stdout):
            raise
        # The rest of what is buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(NO_READER) from error


def is_unread(stream: IO[str]) -> bool:
    """Whether a stream is a pipe of which nobody has the other end any more; a connection to a server may break too."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def home_first(args: Sequence[str]) -> list[str]:
    """The arguments with ``--home DIR`` in front, wherever it was written."""
    front: list[str] = []
    rest: list[str] = []
    remaining = iter(args)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--home":
            if (value := next(remaining, None)) is None:
                # Alone, so that no command is taken for the directory.
                return [*front, argument]
            front += [argument, value]
        elif argument.startswith("--home="):
            front.append(argument)
        else:
            rest.append(argument)
    return front + rest


def explain(error: Exception) -> tuple[int | None, str]:
    """The exit code of an error and a sentence about it; no code for a defect, whose traceback is wanted."""
    from ppo_core.errors import NonFiniteError
    from tasks.contract import StageError
    from tasks.errors import DamagedError, Mistakes, TransientError, UnhealthyError, UserError
    from tasks.paths import os_error_sentence

    if isinstance(error, Mistakes):
        return MISTAKE, f"error: {error.heading}"
    if isinstance(error, UserError):
        return MISTAKE, f"error: {error}"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        # A file or disk that is not as it has to be; what a stage meets of it comes as a StageError.
        return MISTAKE, f"error: {os_error_sentence(error)}"
    if isinstance(error, TransientError | DamagedError | UnhealthyError | NonFiniteError):
        return FAILED, f"error: {error}"
    if isinstance(error, StageError):
        return explain_stage(error)
    return None, ""


def mistakes_of(error: Exception) -> Sequence[str]:
    """What an error lists below its first line."""
    from tasks.errors import Mistakes

    return error.mistakes if isinstance(error, Mistakes) else ()


def explain_stage(error: "StageError") -> tuple[int, str]:
    """What a failed stage means for whoever started the run."""
    if error.kind == "cancelled":
        return CANCELLED, "cancelled; nothing that was committed is lost, and the same command continues"
    where = f" in {error.stage}" if error.stage else ""
    if error.kind == "user":
        return MISTAKE, f"error{where}: {error.message}"
    log = f"; details are in {error.log}" if error.log and error.log not in error.message else ""
    return FAILED, f"error{where}: {error.message}{log}; when it is mended, the same command continues"


def say(sentence: str) -> None:
    """One line on standard error; it may quote what a model or a file says."""
    from flows.text import printable

    WAITING.over()
    print(printable(sentence), file=sys.stderr, flush=True)


app = typer.Typer(
    cls=Commands,
    name="rounds",
    help="PPO-RLHF in rounds: run them, look at rollouts, rerun any stage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"rounds {version('rlhf-rounds')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    home: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where runs live; default: $ROUNDS_HOME, else .rounds here.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    from tasks import environment

    ctx.obj = environment.home_directory(home)
