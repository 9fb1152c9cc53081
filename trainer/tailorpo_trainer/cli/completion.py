"""`tailorpo completion`."""

import click


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and files in a shell.

    \b
    bash: echo 'eval "$(tailorpo completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(tailorpo completion zsh)"' >> ~/.zshrc
    fish: tailorpo completion fish > ~/.config/fish/completions/tailorpo.fish
    """
    from click.shell_completion import get_completion_class

    from tailorpo_trainer.cli import COMPLETE, PROGRAM, app

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(app, {}, PROGRAM, COMPLETE).source())
