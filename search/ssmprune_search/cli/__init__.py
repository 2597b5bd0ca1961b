"""The command line."""

from ssmprune_search.cli.group import app, main

__all__ = ["app", "main"]
