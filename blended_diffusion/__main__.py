"""`python -m blended_diffusion` is the command `blended-diffusion`."""

import sys

from blended_diffusion.cli import main


if __name__ == "__main__":
    sys.exit(main())
