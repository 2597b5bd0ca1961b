"""`python -m ssmprune_search` is the command `ssmprune`."""

from ssmprune_search.cli import main

main()
