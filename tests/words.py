"""Whether the command line would take some words: without running anything."""

import click

from taskyard.runner.cli import main


def understood(words: list[str]) -> click.Command:
    """Parse them: every command and option is there, and every value fits. A name alone will do, as in a sentence.

    Returns the command. Raises click's errors.
    """
    command: click.Command = main
    context, rest = click.Context(main, info_name="taskyard"), list(words)
    while isinstance(command, click.Group):
        if not rest or rest[0].startswith("-"):
            parsed = command.make_parser(context)
            _, rest, _ = parsed.parse_args(rest)
            if not rest:
                return command
        found = command.get_command(context, rest[0])
        assert found is not None, words
        command, name, rest = found, rest[0], rest[1:]
        if isinstance(command, click.Group) or not rest:
            context = click.Context(command, parent=context, info_name=name)
        else:
            command.make_context(name, rest, parent=context)
        if not rest:
            return command
    return command
