"""The command line as a module: ``python -m m2dprep`` and ``torchrun -m m2dprep``."""

from m2dprep.cli.main import program

if __name__ == "__main__":
    program()
