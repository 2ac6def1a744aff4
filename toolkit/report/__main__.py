# PYTHON_ARGCOMPLETE_OK
"""The door `python -m toolkit.report`."""

import sys

from toolkit.report import main

if __name__ == "__main__":
    sys.exit(main())
