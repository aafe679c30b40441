"""Run the command line as `python -m rgtrain`."""

from rgtrain.commands.command_line import main

if __name__ == "__main__":
    main()
