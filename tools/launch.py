"""torchrun without its own tracebacks: `python -m tools.launch --nproc_per_node 8 -m pretrain.train ...`.

A process that fails has printed why; torchrun would bury that line under its own traceback.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.ERROR)
    try:
        main()
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        sys.exit(next((code for code in codes if code > 0), 1))
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
