"""completion: click's own scripts, printed."""

import click
from click.shell_completion import get_completion_class

from .output import say


@click.command(short_help="Print the script for shell completion.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands and options.

    \b
    bash, in ~/.bashrc:  eval "$(taskyard completion bash)"
    zsh, in ~/.zshrc:    eval "$(taskyard completion zsh)"
    fish, once:          taskyard completion fish > ~/.config/fish/completions/taskyard.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    say(found(context.find_root().command, {}, "taskyard", "_TASKYARD_COMPLETE").source())
