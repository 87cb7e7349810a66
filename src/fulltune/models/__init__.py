"""Load checkpoints, check and reconcile their files, and run their models."""

import logging

# On some processors, bitsandbytes logs on import that a kernel could be downloaded from a hub; it is not needed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# DeepSpeed, if installed, is imported by other libraries, and logs that the machine has no accelerator.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
