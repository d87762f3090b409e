"""torchrun in a process that ends, with all that it started, when its standard input is closed."""

import os
import signal
import sys
import threading

__all__ = ["main"]


def main() -> None:
    """``torchrun ARGS``."""
    from torch.distributed.run import main as torchrun

    threading.Thread(target=_end_with_input, daemon=True).start()
    torchrun(sys.argv[1:])


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # torchrun ends its processes then


if __name__ == "__main__":
    main()
