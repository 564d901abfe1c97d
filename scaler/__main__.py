"""`python -m scaler` is the `scaler` command."""

import sys

from scaler.cli import main

sys.exit(main())
