"""`python -m mmgpt` is the command `mmgpt`."""

from mmgpt.cli import main

raise SystemExit(main())
