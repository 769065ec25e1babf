"""`python -m preftune`, which is what torchrun starts."""

import os
import sys

from preftune.cli.main import main

if __name__ == "__main__":
    status = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Threads of a process group live as long as a mesh of devices that torch has cached, and one that
        # gives up a tensor while the interpreter ends aborts the process: a run that is finished would count
        # as failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
