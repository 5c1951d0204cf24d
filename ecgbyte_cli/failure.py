"""The failure that every part of the toolkit raises."""

import click


class Failure(click.ClickException):  # noqa: N818 (Click's word for it is an exception, ours a failure)
    """The work could not be done: one line saying what, which file, and what to do. Exit code 1."""

    def show(self, file=None):
        click.echo(f"ecgbyte: {self.format_message()}", file=file, err=file is None)
