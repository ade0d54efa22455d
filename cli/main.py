"""The command ``m2dprep``: a table of commands, each imported only when it is called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import signal
from types import FrameType
from typing import IO, Any

import click

from m2dprep.artifacts.console import console, printable
from m2dprep.artifacts.errors import UserError

# name: (module, attribute, one line for the list of commands)
COMMANDS = {
    "melspec": ("m2dprep.cli.audio", "melspec", "Audio files → log-mel .npy files, records and a file list."),
    "stats": ("m2dprep.cli.audio", "stats", "Exact normalisation statistics of a folder of log-mels."),
    "pack": ("m2dprep.cli.audio", "pack", "Log-mel arrays → few large files, which training reads faster."),
    "unpack": ("m2dprep.cli.audio", "unpack", "A pack → the .npy files that it holds."),
    "captions": (
        "m2dprep.cli.captions",
        "captions",
        "Caption tables → one captions.parquet (fill, add, check, merge, …).",
    ),
    "embed-captions": (
        "m2dprep.cli.embeddings",
        "embed_captions",
        "Captions → an aligned store of sentence embeddings.",
    ),
    "train": ("m2dprep.cli.train", "train", "Train M2D-CLAP on a data directory."),
    "zero-shot": ("m2dprep.cli.evaluate", "zero_shot", "Classify clips by the names of the classes."),
    "check": ("m2dprep.cli.data", "check", "Prove that what lies in a data directory fits together."),
    "export": ("m2dprep.cli.embeddings", "export", "Write what we have in the formats of others."),
    "run": (
        "m2dprep.cli.recipe",
        "run",
        "Run the stages in a recipe: what is done is skipped, what changed is redone.",
    ),
    "status": ("m2dprep.cli.recipe", "status", "How far a recipe has come."),
    "init": ("m2dprep.cli.recipe", "init", "Write a commented recipe to fill in."),
    "sound-set": ("m2dprep.cli.data", "sound_set", "Synthesise the small AudioSet-like set of the demo."),
    "demo": ("m2dprep.cli.data", "demo", "Every stage on a small synthetic AudioSet-like set."),
}


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


class LazyGroup(click.Group):
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
            raise CommandEndedError(f"error: {error}", error.exit_code) from error
        except Terminated as error:
            raise CommandEndedError("told to stop (SIGTERM); the same command goes on where it stopped.", 75) from error
        except KeyboardInterrupt as error:
            raise CommandEndedError("interrupted; the same command goes on where it stopped.", 130) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            raise CommandEndedError(f"error: {_os_error(error)}", 2) from error

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="m2dprep", prog_name="m2dprep")
def m2dprep() -> None:
    """From audio files and caption tables to a trained M2D-CLAP audio-language model.

    Every stage reads files and writes files, resumes where it was interrupted, and exits with
    0 complete, 2 usage, 3 too many failures, 4 check failed, 5 other configuration, 75 told to stop and saved,
    130 interrupted.
    """


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough; what is at hand is written now
    raise Terminated


def main() -> None:
    """The console script."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # what we were started to ignore stays ignored
        signal.signal(signal.SIGTERM, _terminate)
    with console():
        m2dprep(prog_name="m2dprep")


if __name__ == "__main__":
    main()
