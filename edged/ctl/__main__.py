"""`python -m edged.ctl` is `edgectl`, where it is not on the path."""

import sys

from edged.ctl.main import main

if __name__ == "__main__":
    sys.exit(main())
