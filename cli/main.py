"""The command ``m2dprep``: a table of commands, each imported only when it is called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import signal
import sys
import traceback
from types import FrameType
from typing import IO, Any

import click

from m2dprep.artifacts.console import VERBOSE, console, printable
from m2dprep.artifacts.errors import UserError
from m2dprep.cli.options import GENERAL, TALK, M2dprepGroup, titled

# title: {name: (module, attribute, one line for the list of commands)}
SECTIONS = {
    "From sounds to log-mels": {
        "melspec": ("m2dprep.cli.audio", "melspec", "Audio files → log-mel .npy files, records and a file list."),
        "stats": ("m2dprep.cli.audio", "stats", "Exact normalisation statistics of a folder of log-mels."),
        "pack": ("m2dprep.cli.audio", "pack", "Log-mel arrays → a few large files, which training reads faster."),
        "unpack": ("m2dprep.cli.audio", "unpack", "A pack → the .npy files that it holds."),
    },
    "From captions to embeddings": {
        "captions": (
            "m2dprep.cli.captions",
            "captions",
            "Caption tables → one captions.parquet (fill, add, check, merge, …).",
        ),
        "embed-captions": ("m2dprep.cli.embeddings", "encode", "Captions → an aligned store of sentence embeddings."),
        "embeddings": ("m2dprep.cli.embeddings", "embeddings", "Encode, inspect, check, import and export embeddings."),
    },
    "Models": {
        "train": ("m2dprep.cli.train", "train", "Train M2D-CLAP on a data directory."),
        "fine-tune": ("m2dprep.cli.fine_tune", "fine_tune", "Fine-tune a checkpoint on labels, and test it."),
        "submit": ("m2dprep.cli.submit", "submit", "Submit a training as a SLURM job that queues itself again."),
        "export": ("m2dprep.cli.export", "export", "Write checkpoints, or sounds, as other programs read them."),
        "plot": ("m2dprep.cli.train", "plot", "Draw the log of a training run."),
        "evaluate": (
            "m2dprep.cli.evaluation.protocols",
            "evaluate",
            "Judge a model by EVAR's protocols (zero-shot, linear, retrieval, …).",
        ),
        "tag": ("m2dprep.cli.evaluation.tag", "tag", "Sounds → the scores of a fine-tuned checkpoint's classes."),
        "zero-shot": ("m2dprep.cli.evaluation.protocols", "zero_shot", "Classify clips by the names of the classes."),
        "events": ("m2dprep.cli.evaluation.events", "events", "Find sound events by their names, and say how well."),
        "scenes": ("m2dprep.cli.evaluation.scenes", "scenes", "Name the places of recordings, and say how well."),
    },
    "Use what was made": {
        "embed-audio": ("m2dprep.cli.use.embed_audio", "embed_audio", "Sounds → an aligned store of their embeddings."),
        "search": ("m2dprep.cli.use.search", "search", "Words or a sound → the nearest sounds of stores."),
        "serve": ("m2dprep.cli.use.serve", "serve", "A store of sounds as a page: search, listen, look at the map."),
        "report": ("m2dprep.cli.use.report", "report", "One page of HTML about data, a run, or a store."),
        "failures": ("m2dprep.cli.use.failures", "failures", "List what failed, and why."),
    },
    "All of it": {
        "check": ("m2dprep.cli.data", "check", "Prove that what lies in a data directory fits together."),
        "report": ("m2dprep.cli.use.report", "report", "One page of HTML about data, a run, or a store."),
        "failures": ("m2dprep.cli.use.failures", "failures", "List what failed, and why."),
        "run": ("m2dprep.cli.recipe", "run", "Run the stages of a recipe: skip what is done, redo what changed."),
        "status": ("m2dprep.cli.recipe", "status", "Show how far a recipe has come."),
        "init": ("m2dprep.cli.recipe", "init", "Write a commented recipe to fill in."),
        "sound-set": ("m2dprep.cli.data", "sound_set", "Synthesise the small AudioSet-like set of the demo."),
        "demo": ("m2dprep.cli.data", "demo", "Run every stage on a small synthetic AudioSet-like set."),
    },
}
COMMANDS = {name: command for commands in SECTIONS.values() for name, command in commands.items()}


class Terminated(KeyboardInterrupt):
    """SIGTERM, a batch system's notice that time is up; ends a command as Ctrl-C does, with another exit code."""


class CommandEndedError(click.ClickException):
    """A command that ended early, with the exit code that says why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"m2dprep: {printable(self.message)}", err=True, file=file)


def _os_error(error: OSError) -> str:
    """A full disk or a missing permission, in a line that names the file."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' → '.join(names) or 'system'}: {error.strerror or error}"


class LazyGroup(M2dprepGroup):
    """A group whose commands are named in a table and imported when asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, context: click.Context) -> Any:
        """Run a command; what a user can act on becomes a line on stderr and an exit code, never a traceback."""
        try:
            return super().invoke(context)
        except UserError as error:
            if context.meta.get(TALK) == VERBOSE:
                click.echo(traceback.format_exc(), err=True, nl=False)
            raise CommandEndedError(f"error: {error}", error.exit_code) from error
        except Terminated as error:
            raise CommandEndedError("told to stop (SIGTERM); the same command goes on where it stopped.", 75) from error
        except KeyboardInterrupt as error:
            raise CommandEndedError("interrupted; the same command goes on where it stopped.", 130) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            if context.meta.get(TALK) == VERBOSE:
                click.echo(traceback.format_exc(), err=True, nl=False)
            raise CommandEndedError(f"error: {_os_error(error)}", 2) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))  # so that the lines of all sections begin in one column
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, _, line) in commands.items()])


@click.group(cls=LazyGroup)
@titled(
    GENERAL,
    click.version_option(
        None, "-V", "--version", package_name="m2dprep", prog_name="m2dprep", help="Print the version."
    ),
)
def m2dprep() -> None:
    """From audio files and caption tables to a trained M2D-CLAP audio-language model.

    Every stage reads files and writes files, and resumes where it was interrupted. Exit codes: 0 complete, 2 bad
    request, 3 too many failures, 4 check failed, 5 begun with another configuration, 75 told to stop, or the machine
    was lost (the same command goes on), 130 interrupted. `m2dprep COMMAND -h` explains a command, with examples.
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough; what is at hand is written now
    raise Terminated


def main() -> None:
    """Run the command of ``sys.argv``. Raises `SystemExit` with its exit code."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # what we were started to ignore stays ignored
        signal.signal(signal.SIGTERM, _terminate)
    with console():
        m2dprep(prog_name="m2dprep")


def program() -> None:
    """The console script: `main`, after which the process ends at once (`artifacts.process.leave`)."""
    try:
        main()
    except SystemExit as ended:
        from m2dprep.artifacts.process import is_outermost, leave  # imports ctypes, which takes its time at the start

        if isinstance(ended.code, int) and is_outermost(sys._getframe(1)):
            leave(ended.code)
        raise


if __name__ == "__main__":
    program()
