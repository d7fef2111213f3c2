"""`python -m bench.gpu`: see check.py."""

import sys

from bench.gpu.check import main

sys.exit(main())
