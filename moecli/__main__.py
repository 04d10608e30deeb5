"""``python -m moecli`` is ``moe``."""

from moecli.cli.app import main

main()
